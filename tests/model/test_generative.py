"""P5, POD and LightLM: parity with POD's released network, known answers, what is shown to the model and kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.prompt.decoding import Trie, beam_search
from recbole_llm.prompt.p5 import WordPrompts
from recbole_llm.quick_start import load_run, run
from tests.worlds import write_cycle

GOLDEN = Path(__file__).parents[1] / "golden" / "pod"
TINY = {
    "llm": "tiny-random-t5",
    "show_progress": False,
    "use_gpu": False,
    "train_batch_size": 16,
    "item_index_cluster_size": 4,
    "item_index_clusters": 3,
    "dropout": 0.0,
}


@pytest.fixture
def settings(tmp_path):
    write_cycle(tmp_path / "data")
    folders = {"data_path": "data", "checkpoint_dir": "saved", "embedding_cache_dir": "cache"}
    return {**TINY, **{key: str(tmp_path / folder) for key, folder in folders.items()}}


def build(name, settings, **more):
    config = Config(name, "cycle", config_dict={**settings, **more})
    train, _, test = prepare_data(config, HistoryDataset(config))
    torch.manual_seed(1)
    return config.model_class(config, train.dataset), train, test


# ---- the released network


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "tiny_t5_io.npz")
    weights = np.load(GOLDEN / "tiny_t5_weights.npz")
    return (
        json.loads((GOLDEN / "tiny_t5.json").read_text()),
        {name: torch.from_numpy(arrays[name]) for name in arrays.files},
        {name: torch.from_numpy(weights[name]) for name in weights.files},
    )


def released(golden, settings, soft, unmasked, pad_in_loss):
    """POD with the golden T5; the soft prompts of all tasks, as POD has them."""
    facts, _, weights = golden
    model, *_ = build("POD", settings, unmasked_cross_attention=unmasked, pad_in_loss=pad_in_loss)
    model.t5 = T5ForConditionalGeneration(T5Config(**facts["config"]))
    network = {name: tensor for name, tensor in weights.items() if not name.endswith("_embeddings.weight")}
    missing, unknown = model.t5.load_state_dict(network, strict=False)
    assert not unknown and all("shared" in name or "embed_tokens" in name or "lm_head" in name for name in missing)
    model.whole_word_embedding = torch.nn.Embedding.from_pretrained(
        weights["whole_word_embeddings.weight"], freeze=False
    )
    prompts = torch.nn.Parameter(weights["prompt_embeddings.weight"].clone())
    model.soft_prompt = None
    return model.eval(), prompts if soft else None


def forward(model, soft, arrays):
    """Encoder states of every row, each with the soft prompts of its task."""
    hidden, masks = [], []
    for row in range(len(arrays["input_ids"])):
        task, part = int(arrays["task_id"][row]), slice(row, row + 1)
        model.soft_prompt = None
        if soft is not None:
            del model.soft_prompt
            model._parameters.pop("soft_prompt", None)
            model.__dict__["soft_prompt"] = soft.view(3, 4, -1)[task][None]
        prompts = WordPrompts(
            arrays["input_ids"][part], arrays["attention_mask"][part], arrays["whole_word_ids"][part], dropped=0
        )
        states, mask = model.forward(prompts)
        hidden.append(states)
        masks.append(mask)
        model.__dict__.pop("soft_prompt", None)
    return torch.cat(hidden), torch.cat(masks)


CASES = {
    "unmasked_cross__pad_in_loss": (True, True, True),
    "unmasked_cross__pad_ignored": (True, True, False),
    "masked_cross__pad_in_loss": (True, False, True),
    "masked_cross__pad_ignored": (True, False, False),
    "no_prompt__unmasked_cross__pad_in_loss": (False, True, True),
    "no_prompt__masked_cross__pad_ignored": (False, False, False),
}


@pytest.mark.parametrize("case", CASES)
def test_golden_pod_losses_and_gradients(golden, settings, case):
    facts, arrays, _ = golden
    model, soft = released(golden, settings, *CASES[case])
    hidden, mask = forward(model, soft, arrays)
    if soft is not None:
        torch.testing.assert_close(hidden, arrays["encoder_last_hidden_state"].float(), rtol=0, atol=2e-5)
    labels = arrays["labels"].masked_fill(arrays["labels"] == 0, -100)
    loss = model.code_loss(model.t5, hidden, mask, labels)
    assert loss.item() == pytest.approx(facts["results"][case]["loss"], abs=2e-5)
    loss.backward()
    for name, norm in facts["results"][case]["grad_norm"].items():
        gradient = {
            "prompt_embeddings.weight": None if soft is None else soft.grad,
            "whole_word_embeddings.weight": model.whole_word_embedding.weight.grad,
        }.get(name)
        if name == "prompt_embeddings.weight" and soft is None:
            continue
        if gradient is None:
            gradient = dict(model.t5.named_parameters())[name].grad
        assert gradient.norm().item() == pytest.approx(norm, rel=2e-5, abs=2e-5), name


def test_golden_pod_beams(golden, settings):
    facts, arrays, _ = golden
    model, soft = released(golden, settings, True, True, True)
    wanted = facts["beam_search"]
    with torch.no_grad():
        hidden, mask = forward(model, soft, arrays)
    beams = wanted["settings"]["num_beams"]
    # Every sequence of the released search is called an item, so that beams that are none stand out.
    found = [tuple(row[1 : row.index(1) + 1]) for row in wanted["sequences"]]
    codes = [(), *sorted(set(found))]
    number = {code: item for item, code in enumerate(codes)}
    item, score = beam_search(
        model.t5, hidden, mask, Trie(codes, 64), beams, False, 49, length_penalty=1.0, early_stopping=True
    )
    kept = wanted["settings"]["num_return_sequences"]
    assert item[:, :kept].flatten().tolist() == [number[code] for code in found]
    expected = torch.tensor(wanted["sequences_scores"]).view(-1, kept)
    torch.testing.assert_close(score[:, :kept], expected, rtol=0, atol=2e-5)


def test_codes_of_a_batch_may_be_shorter_than_the_longest(settings):
    model, train, _ = build("POD", settings)
    batch = next(iter(train))
    labels = model.labels[batch[model.POS_ITEM_ID]]
    wide = torch.nn.functional.pad(labels, (0, 2), value=-100)
    with torch.no_grad():
        hidden, mask = model.eval().forward(model.prompts(batch))
        losses = [model.code_loss(model.t5, hidden, mask, each) for each in (labels, wide, wide[:, : labels.shape[1]])]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


# ---- known answers

LEARNT = {
    "P5": ("P5", {"templates": ["{user} {history}"], "prompt_weights": {"sequential": 1}}),
    "P5 w/o_d": ("P5", {"head": "projection", "prompt_weights": {"sequential": 1}}),
    "POD": ("POD", {"templates": ["{user} {history}"], "train_tasks": None}),
    "POD w/o_d_TID": ("POD", {"head": "projection", "item_repr": "title", "train_tasks": None}),
    "LightLM": ("LightLM", {"digit_embedding_range": None, "feed_forward_size": None}),
}


@pytest.mark.parametrize("row", LEARNT)
def test_learns_a_cycle(row, settings, tmp_path):
    name, own = LEARNT[row]
    write_cycle(tmp_path / "small", users=20, items=12, length=10)
    more = {"templates": ["{history}"], "test_template": 0, "item_prefix": "", "target_prefix": "", "decoding": "trie"}
    more |= {"MAX_ITEM_LIST_LENGTH": 1, "train_view": "prefix", "train_batch_size": 32, "topk": [1, 5], "beams": 5}
    more |= {"learning_rate": 3e-3, "lr_schedule": "constant", "epochs": 40, "eval_step": 10, "valid_metric": "NDCG@5"}
    more |= {"data_path": str(tmp_path / "small"), **own}
    result = run(name, "cycle", config_dict={**settings, **more})
    assert result["test_result"]["recall@5"] > 0.9
    if "w/o_d" not in row:
        report = json.loads((Path(result["run_dir"]) / "results.json").read_text())
        assert report["model_report"]["invalid_rate"] == report["model_report"]["duplicate_rate"] == 0


# ---- what is shown, kept and reported


def test_titles_in_the_prompt_and_codes_in_the_answer(settings):
    model, train, _ = build("POD", settings, item_repr="title", templates=["{user} {history}"], test_template=0)
    batch = next(iter(train))
    ids = model.eval().prompts(batch).input_ids[0]
    text = model.tokenizer.decode(ids[ids > 1])
    first = int(batch[model.ITEM_SEQ][0, 0])
    user = int(batch[model.USER_ID][0])
    assert text.startswith(f"user_{model.index.users[user]} [{model.item_text.texts[first]}]")
    assert model.tokenizer.decode(model.codes[first][:-1]) == model.index.items[first]


def test_items_without_a_title_are_shown_by_their_ids(settings, tmp_path, caplog):
    file = tmp_path / "data" / "cycle" / "cycle.item"
    head, first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, first.split("\t")[0] + "\t" * head.count("\t"), *rest]) + "\n")
    model, _, _ = build("POD", settings, item_repr="title")
    assert "Prompts show their id" in caplog.text
    token = first.split("\t")[0]
    assert model.titles.count(f"Item {token}") == 1 and all(model.titles[1:])


@pytest.mark.parametrize("name", ["P5", "POD", "LightLM"])
def test_items_without_any_text_do_not_matter_where_only_codes_are_shown(name, settings, tmp_path, caplog):
    items = "".join(f"i{item}\t{item}\n" for item in range(30))
    (tmp_path / "data" / "cycle" / "cycle.item").write_text(f"item_id:token\tprice:float\n{items}")
    result = run(name, "cycle", config_dict={**settings, "epochs": 1})
    assert load_run(result["run_dir"]).model.item_text is None and "no text" not in caplog.text
    with pytest.raises(ConfigError, match="has no field that looks like text"):
        run(name, "cycle", config_dict={**settings, "item_index": "title"})


def test_internal_ids_are_not_shown(settings):
    model, train, _ = build("POD", settings, item_prefix="", templates=["{history}"], test_template=0)
    batch = next(iter(train))
    ids = model.eval().prompts(batch).input_ids[0]
    shown = model.tokenizer.decode(ids[ids > 1]).split()
    items = batch[model.ITEM_SEQ][0][: int(batch[model.ITEM_SEQ_LEN][0])].tolist()
    assert shown == [model.index.items[item] for item in items]
    assert shown != [str(item) for item in items]


def test_soft_prompts_and_whole_words_learn(settings):
    model, train, _ = build("POD", settings)
    model.train().calculate_loss(next(iter(train))).backward()
    assert model.soft_prompt.grad.abs().sum() > 0 and model.soft_prompt.shape == (2, 10, 32)
    used = model.whole_word_embedding.weight.grad.abs().sum(1) > 0
    assert used[:3].all() and not used[100:].any()


def test_whole_words_can_be_left_out_at_test_as_released(settings):
    with_them, _, test = build("P5", settings)
    without, _, _ = build("P5", settings, whole_word_at_test=False)
    without.load_state_dict(with_them.state_dict())
    interaction = next(iter(test))[0]
    with torch.no_grad():
        states = [model.eval().forward(model.prompts(interaction))[0] for model in (with_them, without)]
        assert not torch.allclose(*states)
        with_them.whole_word_embedding.weight.zero_()
        torch.testing.assert_close(with_them.forward(with_them.prompts(interaction))[0], states[1])


def test_exact_scores_and_wide_beams_agree(settings):
    more = {"decoding": "trie", "beams": 40, "length_penalty": 0.0, "early_stopping": False}
    model, _, test = build("POD", settings, **more)
    interaction = next(iter(test))[0]
    with torch.no_grad():
        beams = model.eval().full_sort_predict(interaction)
        model.decoding = "exact"
        exact = model.full_sort_predict(interaction)
    torch.testing.assert_close(beams, exact, rtol=1e-5, atol=1e-4)


def test_a_run_keeps_its_codes_and_reports_what_beams_were(settings, monkeypatch):
    more = {"epochs": 1, "item_index": "collaborative", "decoding": "unconstrained", "beams": 20}
    result = run("POD", "cycle", config_dict={**settings, **more})
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text())
    rates = report["model_report"]
    assert set(rates) == {"invalid_rate", "duplicate_rate", "seen_rate", "named_rate", "filled_rate", "loss"}
    assert 0 < rates["invalid_rate"] <= 1 and 0 < rates["filled_rate"] <= 1
    assert report["language_models"]["item_index_leak"] == "none"
    loaded = load_run(result["run_dir"])
    codes = loaded.model.index.items
    # Another clustering, by another version of a library say: the run's own codes count.
    import recbole_llm.model.generative as module

    def other(*args, **options):
        index = original(*args, **options)
        return type(index)(index.scheme, ["", *index.items[:0:-1]], index.users, index.new_tokens, index.leak)

    original = module.build_item_index
    monkeypatch.setattr(module, "build_item_index", other)
    again = load_run(result["run_dir"]).model
    assert again.index.items == codes and again.codes == loaded.model.codes


def test_leaky_codes_are_called_leaky(settings):
    result = run("POD", "cycle", config_dict={**settings, "epochs": 1, "item_index": "sequential_full"})
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text())
    assert report["language_models"]["item_index_leak"] == "leaky"
    assert "LEAKY" in (Path(result["run_dir"]) / "run.log").read_text()


def test_top_n_ranks_candidates_only(settings):
    model, train, test = build("POD", settings, task="topn", topn_negatives=9)
    assert torch.isfinite(model.calculate_loss(next(iter(train))))
    interaction = next(iter(test))[0]
    with torch.no_grad():
        scores = model.eval().full_sort_predict(interaction)
    assert (torch.isfinite(scores).sum(1) == 10).all()


def test_a_narrow_t5_keeps_the_rest_of_its_weights(settings):
    model, *_ = build("LightLM", settings)
    assert model.t5.config.d_ff == 16
    assert model.t5.encoder.block[0].layer[1].DenseReluDense.wi.weight.shape == (16, 32)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"beams": 5, "topk": [10]}, "beams=5 cannot fill a list of topk=10"),
        ({"test_template": 9}, "test_template=9 is neither"),
        ({"llm": "tiny-random-bert"}, "tiny-random-bert is not a T5"),
        ({"item_index": "sequential"}, "item_index: 'sequential'"),
        ({"max_prompt_tokens": 8}, "max_prompt_tokens=8 does not hold"),
    ],
)
def test_settings_that_are_not_allowed(settings, more, message):
    with pytest.raises(ConfigError, match=message):
        model, train, _ = build("P5", settings, **more)
        model.calculate_loss(next(iter(train)))


def test_rule_of_the_largest_id(settings):
    model, _, test = build("MaxIdRule", settings, item_index="internal")
    interaction = next(iter(test))[0]
    best = model.full_sort_predict(interaction).argmax(1)
    top = interaction[model.ITEM_SEQ].amax(1)
    assert best.tolist() == [item % (model.n_items - 1) + 1 for item in top.tolist()]


# ---- tasks and kinds of prompts


def words_of(model, ids):
    return model.tokenizer.decode([token for token in ids.tolist() if token > 1])


def test_p5_asks_in_three_ways_and_each_answer_is_right(settings):
    templates = {
        "templates": ["next {user} {history}"],
        "choice_templates": ["choose {user} {history} of {candidates}"],
        "yes_no_templates": ["ask {user} {history} about {item}"],
    }
    model, train, _ = build("P5", settings, choice_candidates=5, separators=[" "], test_template=0, **templates)
    codes = model.index.items
    answers = {"next": set(), "choose": set(), "ask": set()}
    for batch in train:
        prompts, labels = model.train().training_rows(batch, "sequential")
        for row, target in enumerate(batch["item_id"].tolist()):
            kind, _, *shown = words_of(model, prompts.input_ids[row]).split()
            answer, history = words_of(model, labels[row]), batch["item_id_list"][row][: batch["item_length"][row]]
            assert shown[: len(history)] == [codes[item] for item in history.tolist()]
            if kind == "next":
                assert answer == codes[target] and len(shown) == len(history)
            elif kind == "choose":
                candidates = shown[len(history) + 1 :]
                assert answer == codes[target] and answer in candidates and len(set(candidates)) == 5
            else:
                assert answer == ("yes" if shown[-1] == codes[target] else "no")
            answers[kind].add(answer if kind == "ask" else kind)
    assert answers == {"next": {"next"}, "choose": {"choose"}, "ask": {"yes", "no"}}


def test_p5_the_unseen_prompt_is_evaluated_and_never_trained_on(settings):
    unseen = "Unseen {user} took {history} and?"
    model, train, test = build("P5", settings, test_template="unseen", unseen_template=unseen)
    interaction = next(iter(test))[0]
    with torch.no_grad():
        assert words_of(model, model.eval().prompts(interaction).input_ids[0]).startswith("Unseen user_")
    for batch in train:
        for ids in model.train().training_rows(batch, "sequential")[0].input_ids:
            assert not words_of(model, ids).startswith("Unseen")


def test_pod_takes_its_tasks_in_turn_each_with_its_own_soft_prompts(settings):
    model, train, test = build("POD", settings)
    batches = list(train)[:2]
    for number, task in enumerate(("sequential", "topn")):
        model.zero_grad()
        model.train().calculate_loss(batches[number]).backward()
        touched = model.soft_prompt.grad.abs().sum((1, 2)) > 0
        assert touched.tolist() == [task == name for name in model.tasks]
    assert int(model.batches) == 2
    candidates = batches[1]["candidate_id_list"]
    assert (candidates == batches[1]["item_id"][:, None]).any(1).all()
    # A resumed run goes on with the task whose turn it is; evaluation takes no turn.
    again, *_ = build("POD", settings)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        again.eval().full_sort_predict(next(iter(test))[0])
    assert int(again.batches) == 2 and again.train().next_task() == "sequential"


def test_lightlm_with_the_history_has_templates_of_its_own(settings):
    for with_history in (False, True):
        model, train, test = build("LightLM", settings, with_history=with_history)
        interaction = next(iter(test))[0]
        history = interaction["item_id_list"][0][: interaction["item_length"][0]].tolist()
        text = words_of(model, model.eval().prompts(interaction).input_ids[0])
        shown = [f"item_{model.index.items[item]}" in text for item in history]
        assert all(shown) if with_history else not any(shown)
        assert torch.isfinite(model.train().calculate_loss(next(iter(train))))


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("P5", {"prompt_weights": {"sequential": 0, "choice": 1}}, "sequential, which is evaluated, one above 0"),
        ("P5", {"prompt_weights": {"sequential": 1, "direct": 1}}, "give the kinds sequential, choice, yes_no"),
        ("P5", {"head": "projection"}, "contradicts head=projection"),
        ("P5", {"choice_templates": ["{history} and?"]}, r"choice_templates: .* must hold .*\{candidates\}"),
        ("P5", {"yes_no_templates": ["{history} and?"]}, r"yes_no_templates: .* must hold .*\{item\}"),
        ("POD", {"train_tasks": ["topn"]}, "lacks the evaluated task: add sequential"),
        ("LightLM", {"with_history": True, "history_test_template": 7}, "^history_test_template=7 is neither"),
        # A template has the fields of its kind and no others: there would be nothing to put there.
        (
            "P5",
            {"templates": ["{user} {history} of {candidates}"]},
            r"^templates: .* no fields but \{user\}, \{history\}, e",
        ),
        ("P5", {"test_template": "{history} then {item}"}, "^test_template: .* no fields but"),
        ("P5", {"test_template": "unseen", "unseen_template": "{item}?"}, "^unseen_template: .* must hold"),
        ("P5", {"choice_templates": ["{history} {item} {candidates}"]}, "^choice_templates: .* no fields but"),
        ("P5", {"choice_templates": ["{candidates}"]}, r"must hold \{user\} or \{history\} and \{candidates\}"),
        ("P5", {"yes_no_templates": ["{history} {candidates} {item}"]}, "^yes_no_templates: .* no fields but"),
        (
            "P5",
            {"test_template": "unseen", "unseen_template": "{user}?", "templates": ["{user}?"]},
            "that training uses",
        ),
        ("P5", {"templates": ["{user} {history} {history}"]}, "^templates: .* each once"),
        ("POD", {"topn_templates": ["{user}"]}, r"^topn_templates: .* must hold \{history\}"),
        ("POD", {"test_template": "unseen"}, "^test_template: 'unseen' must hold"),
        ("POD", {"train_tasks": []}, "train_tasks: .*non-empty"),
        ("LightLM", {"with_history": True, "history_templates": ["{user}?"]}, r"^history_templates: .* \{history\}"),
        (
            "LightLM",
            {"with_history": True, "history_test_template": "{user}?"},
            "^history_test_template: .* must hold",
        ),
    ],
)
def test_tasks_that_are_not_allowed(settings, model, more, message):
    with pytest.raises(ConfigError, match=message):
        build(model, settings, **more)


@pytest.mark.parametrize("more", [{}, {"loss_reduction": "sample"}, {"head": "projection", "train_tasks": None}])
def test_pod_validates_by_the_loss_of_the_targets(settings, more):
    result = run("POD", "cycle", config_dict={**settings, **more, "epochs": 3, "stopping_step": 9})
    folder = Path(result["run_dir"])
    report = json.loads((folder / "results.json").read_text())
    assert report["protocol"]["valid_metric"] == "loss"
    assert result["best_valid_score"] > 0 and result["valid_score_bigger"] is False
    assert report["model_report"]["loss"] > 0


def test_the_validation_loss_is_the_mean_over_all_targets(settings):
    model, train, test = build("POD", settings)
    model.eval().start_evaluation()
    total = weight = 0.0
    with torch.no_grad():
        for interaction, *_ in test:
            model.full_sort_predict(interaction)
            labels = model.labels[interaction["item_id"]]
            tokens = int((labels != -100).sum())
            total += float(model.code_loss(model.t5, *model.forward(model.prompts(interaction)), labels)) * tokens
            weight += tokens
    report = model.evaluation_report(model.evaluation_counts())
    assert report["loss"] == pytest.approx(total / weight, rel=1e-5)


def test_a_loss_that_a_model_does_not_report_is_no_valid_metric(settings):
    with pytest.raises(ConfigError, match="valid_metric='loss' is not among"):
        Config("SASRec", "cycle", config_dict={**settings, "valid_metric": "loss"})
