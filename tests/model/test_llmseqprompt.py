"""LLMSeqPrompt: each variant learns what is known, writes what it may, and every item gets a score of its own."""

import json
import re
from pathlib import Path

import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import CheckpointError, ConfigError, ModelNotFoundError
from recbole_llm.prompt.chat import parse_title
from recbole_llm.quick_start import load_run, run
from recbole_llm.run.submodel import build
from recbole_llm.trainer.checkpoint import learned_tensors
from recbole_llm.trainer.trainer import RunTrainer
from tests.answers import list_lines
from tests.closeness import assert_same_order
from tests.toy_llms import save_llama
from tests.worlds import WORDS, write_cycle, write_dataset

VARIANTS = ["genitem", "genlist", "classify", "rank"]
SHORT = {"classify": "[user]\n{history}\nof\n{candidates}\n", "rank": "[user]\n{history}\nof\n{candidates}\n"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A language model of few tokens."""
    text = "".join(f"{i}. {word}\n{word}\n {word} volume {i}\n" for i, word in enumerate(WORDS))
    lines = f"{list_lines(WORDS)}\n### User:\nof\n### Assistant:\n{text}"
    return save_llama(tmp_path_factory.mktemp("llm") / "small", "llama3", [lines] * 9)


@pytest.fixture
def settings(tmp_path, small):
    write_cycle(tmp_path / "data", users=12, items=20, length=8)
    return {
        "llm": "tiny-random-t5",
        "rec_llm": small,
        "rec_llm_dtype": "float32",
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "embedding_cache_dir": str(tmp_path / "cache"),
        "list_length": 5,
        "clusters": 6,
        "n_samples": 4,
        "max_history": 3,
        "max_new_tokens": 30,
        "lora_r": 2,
        "gradient_checkpointing": False,
        "show_progress": False,
        "use_gpu": False,
    }


def prepare(settings, dataset="cycle", **more):
    config = Config("LLMSeqPrompt", dataset, config_dict={**settings, **more})
    train, valid, test = prepare_data(config, HistoryDataset(config))
    torch.manual_seed(0)
    return build(config, train.dataset).eval(), train, valid, test


def evaluated(model, train, test):
    trainer = RunTrainer(model.config, model, None, train.dataset.train_counts, finished=True)
    return trainer.evaluate(test, load_best_model=False), trainer


# ---- known answers


@pytest.mark.parametrize("variant", VARIANTS)
def test_learns_a_cycle(variant, settings, tmp_path):
    titles = {f"i{k}": word for k, word in enumerate(WORDS)}
    n = len(titles)
    write_dataset(
        tmp_path / "words", "words", {f"u{u}": [f"i{(u + i) % n}" for i in range(6)] for u in range(24)}, titles
    )
    (tmp_path / "short.txt").write_text(SHORT.get(variant, "[user]\n{history}\n"), encoding="utf-8")
    more = {
        "data_path": str(tmp_path / "words"),
        "variant": variant,
        "prompt": str(tmp_path / "short.txt"),
        "rec_llm_init": "scratch",
        "tuning": "full",
        "max_history": 1,
        "MAX_ITEM_LIST_LENGTH": 6 if variant == "rank" else 1,
        "max_train_rows_per_user": None,
        "length_bucketing": False,
        # With as many clusters and candidates as items nothing is out of reach.
        "clusters": n,
        "list_length": {"rank": n, "genlist": 3, "classify": 3}.get(variant, 5),
        "mask_history": False,
        "temperature": 0.0 if variant != "genitem" else 0.25,
        "max_new_tokens": 80,
        "epochs": {"genitem": 12, "rank": 80}.get(variant, 25),
        "eval_step": 100,
        "learning_rate": 5e-3,
        "lr_schedule": "constant",
        "train_batch_size": 24,
        "topk": [1, 5],
        "valid_metric": "Recall@1",
    }
    result = run("LLMSeqPrompt", "words", config_dict={**settings, **more})
    report = json.loads((tmp_path / "saved" / result["run_dir"] / "results.json").read_text())["model_report"]
    # Rank offers nothing of the history: 7 candidates at the test, of which chance finds 1/7; 9 to 11 in training.
    assert result["test_result"]["recall@1"] > (0.5 if variant == "rank" else 0.9)
    assert report["exact_rate"] > 0.9


# ---- answers


def oracle(model):
    """Let the model answer with the target, at the first place of a list, whatever it would say itself."""

    def generate(interaction, candidates=None):
        answers = []
        for row, target in enumerate(interaction["item_id"].tolist()):
            items = [target] if candidates is None else [target, *candidates[row].tolist()]
            titles = [model.titles[item] for item in dict.fromkeys(items) if item and model.titles[item]]
            answers.append([model.titles[target]] if model.single else [list_lines(titles[: model.k])])
        return answers

    model.generate = generate


@pytest.mark.parametrize("variant", ["genitem", "genlist"])
def test_an_oracle_is_always_right(settings, variant):
    model, train, _, test = prepare(settings, variant=variant, topk=[1, 5], valid_metric="NDCG@5")
    oracle(model)
    result, trainer = evaluated(model, train, test)
    assert result["recall@1"] == 1 == trainer.evaluation.unmasked["recall@1"]
    assert trainer.evaluation.report["exact_rate"] == 1 and trainer.evaluation.report["hallucination_rate"] == 0


@pytest.mark.parametrize("mask_history", [True, False])
def test_no_ranking_of_candidates_finds_more_than_llmseqsim(settings, mask_history):
    more = {"topk": [5], "valid_metric": "Recall@5", "mask_history": mask_history, "epochs": 0}
    model, train, _, test = prepare(settings, variant="rank", **more)
    trainer = RunTrainer(model.config, model.seqsim, None, train.dataset.train_counts, finished=True)
    similar = trainer.evaluate(test, load_best_model=False)["recall@5"]
    assert similar < 1 and (similar > 0 or not mask_history)
    oracle(model)
    result, trainer = evaluated(model, train, test)
    reachable = trainer.evaluation.report["reachable_rate"]
    assert result["recall@5"] == reachable
    # Without a mask LLMSeqSim also finds items of the history, which rank does not offer.
    assert reachable == similar if mask_history else reachable >= similar


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fill", ["seqsim", "random"])
def test_nonsense_still_orders_the_whole_catalogue(settings, variant, fill):
    model, _, _, test = prepare(settings, variant=variant, fill=fill)
    interaction, *_ = next(iter(test))
    said = [["", "rubbish", "x y", "rubbish"], [""], ["1. \n2. no such thing\n3. no such thing"]]
    model.generate = lambda interaction, candidates=None: [said[row % 3] for row in range(len(interaction))]
    scores = model.full_sort_predict(interaction)
    assert torch.isfinite(scores[:, 1:]).all() and (scores[:, 0] == -torch.inf).all()
    assert (scores[:, 1:].sort(dim=1).values.diff(dim=1) > 0).all()
    if fill == "seqsim":
        # A row of which nothing is known is LLMSeqSim's.
        similar = model.seqsim.full_sort_predict(interaction[[1]])
        assert_same_order(scores[[1]].argsort(descending=True), similar)
    report = model.evaluation_report(model.evaluation_counts())
    assert report["exact_rate"] == 0 and report["hallucination_rate"] > 0 and report["empty_rate"] > 0
    assert report["unparsed_rate"] > 0


def test_items_of_the_history_are_named_and_masked_but_never_put_in(settings):
    model, _, _, test = prepare(settings)
    interaction, *_ = next(iter(test))
    seen = interaction["item_id_list"][:, 0].tolist()
    model.generate = lambda interaction, candidates=None: [[model.titles[item], "rubbish"] for item in seen]
    scores = model.full_sort_predict(interaction)
    order = scores.argsort(dim=1, descending=True)
    assert order[:, 0].tolist() == seen
    histories = interaction["item_id_list"]
    assert not (order[:, 1:2] == histories).any()  # what stands for the unknown name
    assert model.evaluation_report(model.evaluation_counts())["seen_rate"] == 0.5


# ---- what is taught


def test_teacher_lists_are_llmseqsims_with_the_target_first(settings):
    model, train, *_ = prepare(settings, variant="genlist")
    batch = next(iter(train))
    answers, similar = model.teacher(batch), model._similar(batch)
    for row, target in enumerate(batch["item_id"].tolist()):
        others = [item for item in similar[row].argsort(descending=True).tolist() if item != target]
        assert answers[row].tolist() == [target, *others[: model.k - 1]]
        history = set(batch["item_id_list"][row].tolist()) - {0}
        assert not history & set(answers[row, 1:].tolist())


def test_rank_shows_the_answers_in_another_order(settings):
    model, train, *_ = prepare(settings, variant="rank")
    batch = next(iter(train))
    answers = model.teacher(batch)
    first, second = (model._to_choose_from(answers, batch, salt) for salt in (1, 2))
    assert torch.equal(first.sort(dim=1).values, answers.sort(dim=1).values)
    assert not torch.equal(first, answers) and not torch.equal(first, second)


def test_classify_offers_the_most_popular_item_of_each_cluster(settings):
    model, train, *_ = prepare(settings, variant="classify")
    counts, cluster = torch.from_numpy(train.dataset.train_counts), model.cluster_of
    assert len(model.representatives) == 6
    for number, item in enumerate(model.representatives.tolist()):
        members = (cluster == number).nonzero()[:, 0]
        assert item in members and counts[item] == counts[members].max()
    batch = next(iter(train))
    own = model.representatives[cluster[batch["item_id"]]]
    assert (model.teacher(batch) == own[:, None]).any(1).all()
    assert model.provenance()["representatives"] == 6


def test_members_of_chosen_clusters_come_before_others(settings):
    model, _, _, test = prepare(settings, variant="classify", classify_expand=True)
    interaction, *_ = next(iter(test))
    chosen = model.representatives[2].item()
    model.generate = lambda interaction, candidates=None: [[list_lines([model.titles[chosen]])]] * len(interaction)
    order = model.full_sort_predict(interaction).argsort(dim=1, descending=True)[:, :-1]
    inside = model.cluster_of[order] == 2
    count = int(inside[0].sum())
    assert (order[:, 0] == chosen).all() and inside[:, :count].all()


def test_the_loss_is_that_of_the_answers_alone(settings):
    model, train, *_ = prepare(settings, variant="genlist")
    batch = next(iter(train))
    texts, sizes = model.prompts.with_answers(batch["item_id_list"], batch["item_length"], None, model.teacher(batch))
    places = (texts.mask.cumsum(1) - 1).clamp(min=0)
    logits = model.lm(input_ids=texts.ids, attention_mask=texts.mask, position_ids=places).logits
    inside = torch.arange(texts.ids.shape[1]) >= (texts.ids.shape[1] - sizes)[:, None]
    labels = texts.ids.masked_fill(~inside, -100)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(model.calculate_loss(batch), expected)
    assert int(model.loss_weight(batch)) == int(inside.sum()) == int(sizes.sum())


def test_items_without_a_title_are_shown_and_neither_taught_nor_named(settings, tmp_path):
    texts = {f"i{k}": word for k, word in enumerate(WORDS)} | {"bare": ""}
    histories = {f"u{u}": ["i0", "bare", f"i{1 + u}", "bare"] + [f"i{2 + u}", "i11"] for u in range(8)}
    write_dataset(tmp_path / "bare", "bare", histories, texts)
    more = {"data_path": str(tmp_path / "bare"), "max_train_rows_per_user": None}
    model, train, *_ = prepare(settings, "bare", **more)
    bare = train.dataset.token2id("item_id", "bare")
    assert model.titles[bare] == "" and "" not in model.names.items_of and "Unknown item" not in model.names.items_of
    batch = next(iter(train))
    shown = model.tokenizer.batch_decode(model.prompts(batch["item_id_list"], batch["item_length"]).ids)
    assert any("Unknown item" in text for text in shown)
    untaught = batch["item_id"] == bare
    assert 0 < int(untaught.sum()) < len(untaught)
    assert float(model.calculate_loss(batch[untaught]).detach()) == 0 and int(model.loss_weight(batch[untaught])) == 0
    torch.testing.assert_close(model.calculate_loss(batch), model.calculate_loss(batch[~untaught]))


# ---- decoding


@pytest.mark.parametrize("n_samples", [3, 25])
def test_a_trie_leaves_names_of_the_catalogue_by_their_probability(settings, n_samples):
    model, train, _, test = prepare(settings, decoding="trie", n_samples=n_samples)
    interaction, *_ = next(iter(test))
    interaction = interaction[[0, 1, 2]]
    answers = model.generate(interaction)
    history, length = interaction["item_id_list"], interaction["item_length"]
    items = torch.arange(1, model.n_items)
    for row, names in enumerate(answers):
        found = [name for name in names if name]
        assert len(found) == min(n_samples, len(items)) and len(set(found)) == len(found)
        rows = torch.full_like(items, row)
        texts, sizes = model.prompts.with_answers(history[rows], length[rows], None, items[:, None])
        with torch.no_grad():
            exact = torch.stack(
                [
                    -model.answer_loss(type(texts)(*(part[[i]] for part in texts)), sizes[[i]]) * sizes[i]
                    for i in range(len(items))
                ]
            )
        if n_samples > len(items):  # beams that drop nothing
            best = [model.titles[i + 1] for i in exact.argsort(descending=True).tolist()]
            assert found == best


def test_answers_are_those_of_generate_at_temperature_0(settings):
    model, _, _, test = prepare(settings, temperature=0.0)
    interaction, *_ = next(iter(test))
    prompts = model.prompts(interaction["item_id_list"], interaction["item_length"])
    plain = model.lm.generate(input_ids=prompts.ids, attention_mask=prompts.mask, max_new_tokens=30, do_sample=False)[
        :, prompts.ids.shape[1] :
    ]
    texts = model.tokenizer.batch_decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    written = [[parse_title(text) for text in answers] for answers in model.generate(interaction)]
    assert written == [[parse_title(text)] * 4 for text in texts]


def test_samples_differ_and_the_seed_decides(settings):
    (first, _, _, test), (other, *_), (again, *_) = (prepare(settings, temperature=2.0, seed=s) for s in (1, 2, 1))
    interaction, *_ = next(iter(test))
    answers = first.generate(interaction)
    assert any(len(set(row)) > 1 for row in answers)
    assert again.generate(interaction) == answers != other.generate(interaction)


# ---- what a run keeps


def test_only_the_adapter_is_saved_and_scores_come_back(settings, tmp_path):
    more = {**settings, "variant": "classify", "epochs": 1, "valid_users_sample": 3, "topk": [5]}
    result = run("LLMSeqPrompt", "cycle", config_dict={**more, "valid_metric": "NDCG@5", "learning_rate": 0.01})
    folder = tmp_path / "saved" / result["run_dir"]
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["r"] == 2 and adapter["base_model_name_or_path"] == "small"
    again = load_run(result["run_dir"])
    assert all("lora_" in name or name in ("representatives", "cluster_of") for name in learned_tensors(again.model))
    assert again.trainer.evaluate(again.test_data, load_best_model=False) == result["test_result"]
    assert len(again.valid_data.dataset) == 3 and len(again.test_data.dataset) == 12
    # The base model is named by its revision, and has to be the same again.
    report = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    report["language_models"]["rec_llm_revision"] = "another"
    (folder / "results.json").write_text(json.dumps(report), encoding="utf-8")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"revision another, and .* Set rec_llm_revision"):
        load_run(result["run_dir"])


# ---- errors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"variant": "genre"}, "invalid value for variant: 'genre'.*genlist"),
        (
            {"rec_llm": "tiny-random-t5"},
            "rec_llm: tiny-random-t5 is not a causal language model.*can write.*--rec_llm=",
        ),
        ({"rec_llm": "no/such-folder", "llm_local_files_only": True}, "rec_llm: .*no/such-folder"),
        ({"variant": "rank", "prompt_style": "completion"}, "variant=rank has chat only"),
        ({"variant": "genlist", "decoding": "trie"}, "variant=genlist writes lists. Use decoding=sample"),
        ({"temperature": -1}, "invalid value for temperature: -1"),
        ({"top_p": 0}, "top_p: 0 .*above 0"),
        ({"n_samples": 0}, "invalid value for n_samples: 0"),
        ({"clusters": 1, "variant": "classify"}, "invalid value for clusters: 1"),
        ({"generate_batch_size": 0}, "generate_batch_size: 0"),
        ({"valid_users_sample": 0}, "invalid value for valid_users_sample: 0"),
        ({"max_prompt_tokens": 2040}, "max_prompt_tokens=2040 and an answer .* beyond the 2048 positions of small"),
        ({"tuning": "full", "load_in_4bit": True}, "weights of 4 bits cannot be trained"),
        ({"item_vectors": "vectors.npz"}, "Set unknown_names=drop"),
        ({"eval_args": {"mode": "uni5"}}, "Use mode: full"),
        ({"item_title": "{kind}"}, "uses the field 'kind'"),
    ],
)
def test_settings_that_are_not_allowed(settings, change, says):
    with pytest.raises((ConfigError, ModelNotFoundError)) as caught:
        prepare(settings, **change)
    assert re.search(says, str(caught.value), re.S), str(caught.value)


def test_a_catalogue_without_titles(settings, tmp_path):
    write_dataset(
        tmp_path / "bare",
        "bare",
        {f"u{u}": ["a", "b", "c", "d"] for u in range(4)},
        dict.fromkeys("abc", "") | {"d": "one"},
    )
    more = {"data_path": str(tmp_path / "bare"), "item_title": "{title}", "item_text": "{item_id}"}
    with pytest.raises(ConfigError, match="only 1 of the items of bare"):
        prepare(settings, "bare", **more)


def test_nothing_to_train(settings):
    result = run("LLMSeqPrompt", "cycle", config_dict={**settings, "tuning": "none"})
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    assert report["notices"][-1].startswith("LLMSeqPrompt has nothing to train: epochs=")


# ---- what is read of an answer


def test_a_title_is_the_first_line_of_an_answer(settings):
    model, _, _, test = prepare(settings)
    interaction, *_ = next(iter(test))
    title = model.titles[3]
    model.generate = lambda interaction, candidates=None: [
        [f"\n {title}\nand more\n"] for _ in range(len(interaction))
    ]
    assert (model.full_sort_predict(interaction).argmax(1) == 3).all()
    assert model.evaluation_report(model.evaluation_counts())["exact_rate"] == 1


def test_generation_of_a_title_stops_at_the_end_of_its_line(settings):
    model, *_ = prepare(settings)
    stop = model.writer.line_end.behind(2)

    def stops(text):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return bool(stop(torch.tensor([[5, 6, *ids]]), None)[0])

    assert stops("\nred\n") and stops("red\n")
    assert not stops("\n") and not stops("red") and not stops("\nred") and not stops("\n\n")


def test_places_that_the_mask_takes_away_are_not_named_by_the_model(settings):
    more = {"list_length": 5}
    for mask, share in ((True, 1 / 5), (False, 2 / 5)):
        model, _, _, test = prepare(settings, mask_history=mask, **more)
        interaction, *_ = next(iter(test))
        histories = interaction["item_id_list"].tolist()
        new = [next(item for item in range(1, model.n_items) if item not in row) for row in histories]
        said = [[model.titles[row[0]], model.titles[item]] for row, item in zip(histories, new, strict=True)]
        model.generate = lambda interaction, candidates=None, said=said: said
        model.full_sort_predict(interaction)
        report = model.evaluation_report(model.evaluation_counts())
        assert report["named_rate"] == pytest.approx(share) and report["filled_rate"] == pytest.approx(1 - share)


def test_rank_never_chooses_from_the_history(settings):
    model, _, _, test = prepare(settings, variant="rank", mask_history=False)
    interaction, *_ = next(iter(test))
    candidates = model._to_choose_from(None, interaction, 0)
    for row, history in zip(candidates.tolist(), interaction["item_id_list"].tolist(), strict=True):
        assert not (set(row) - {0}) & set(history)


@pytest.mark.parametrize("variant", ["genlist", "classify"])
def test_prompts_ask_for_as_many_titles_as_the_list_has(settings, variant):
    model, *_ = prepare(settings, variant=variant, list_length=3)
    assert " 3 " in model.prompts.example and "20" not in model.prompts.example
