"""LlamaRec: the authors' numbers, what holds for any ranker, both stages from one call."""

import csv
import json
import random
import re
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_llm.config import Config
from recbole_llm.data.candidates import CANDIDATES
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import CheckpointError, ConfigError, MissingExtraError, ModelNotFoundError
from recbole_llm.evaluator.evaluator import Evaluator
from recbole_llm.evaluator.topk import top_items
from recbole_llm.llm.backbone import load_tokenizer
from recbole_llm.llm.left_padded import last_logits
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.prompt import verbalizer
from recbole_llm.quick_start import load_run, run
from recbole_llm.run import submodel
from recbole_llm.run.submodel import build
from recbole_llm.trainer.batches import batches_of
from recbole_llm.trainer.trainer import RunTrainer
from tests.toy_llms import save_llama
from tests.toy_tokenizers import GOLDEN, llama2
from tests.worlds import WORDS, write_cycle, write_dataset

K = 6


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A language model whose prompts are short."""
    return save_llama(tmp_path_factory.mktemp("llm") / "small", "llama2")


@pytest.fixture
def settings(tmp_path, small):
    write_cycle(tmp_path / "data", users=16, items=20)
    return {
        "llm": small,
        "llm_dtype": "float32",
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "n_candidates": K,
        "max_history": 4,
        "max_train_rows_per_user": 2,
        "retriever_epochs": 2,
        "retriever_settings": {"hidden_size": 16, "state_size": 16, "inner_size": 16, "train_batch_size": 16},
        "show_progress": False,
        "use_gpu": False,
        "lora_r": 2,
    }


def prepare(settings, stage="ranker", dataset="cycle", **more):
    config = Config("LlamaRec", dataset, config_dict={**settings, **more})
    train, valid, test = prepare_data(config, HistoryDataset(config))
    torch.manual_seed(0)
    model = build(config, train.dataset)
    if stage == "ranker":
        model.start_stage("ranker")
    return model.eval(), train, valid, test


def batch_of(loader):
    batch = next(iter(loader))
    return batch[0] if isinstance(batch, tuple) else batch


# ---- parity with the authors' code


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden_llm(tmp_path_factory):
    """The golden set's tiny Llama as a model folder."""
    folder = tmp_path_factory.mktemp("golden") / "llama"
    shape = json.loads((GOLDEN / "tiny_llama.json").read_text(encoding="utf-8"))["config"]
    arrays = np.load(GOLDEN / "tiny_llama.npz")
    llm = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    weights = {name[7:]: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("weight/")}
    llm.load_state_dict(weights)
    llm.save_pretrained(folder)
    llama2().save_pretrained(folder)
    return str(folder)


def test_golden_llamarec_prompt_model(golden, golden_llm, tmp_path, settings):
    titles = {str(i): golden["titles_after_truncation"][str(i)]["truncated"] for i in range(1, 26)}
    # The whole catalogue in order of its numbers, so that internal ids are the golden set's.
    write_dataset(tmp_path / "toy", "toy", {"u": list(titles)}, titles)
    more = {"llm": golden_llm, "data_path": str(tmp_path / "toy"), "tuning": "full", "n_candidates": 20}
    more |= {"max_history": 20, "max_title_tokens": None, "max_train_rows_per_user": None}
    model, *_ = prepare(settings, dataset="toy", **more)
    expected = json.loads((GOLDEN / "tiny_llama.json").read_text(encoding="utf-8"))
    arrays = np.load(GOLDEN / "tiny_llama.npz")

    def batch(examples):
        histories = [torch.tensor(example["history_items"]) for example in examples]
        return Interaction(
            {
                "item_id_list": torch.nn.utils.rnn.pad_sequence(histories, batch_first=True),
                "item_length": torch.tensor([len(history) for history in histories]),
                CANDIDATES: torch.tensor([example["candidate_items"] for example in examples]),
                "item_id": torch.tensor([example["target_item"] for example in examples]),
            }
        )

    # A candidate may stand twice among the released code's random ones: hand over the label itself.
    train = golden["train_examples"][:3]
    interaction = batch(train)
    prompts = model.composer(interaction["item_id_list"], interaction["item_length"], interaction[CANDIDATES])
    label = torch.tensor([example["label_index"] for example in train])
    model.train()
    loss = model.answer_loss(prompts.ids, prompts.mask, label, interaction[CANDIDATES] > 0)
    loss.backward()
    assert loss.item() == pytest.approx(expected["train_loss"], abs=1e-4)
    norms = {name: parameter.grad.norm().item() for name, parameter in model.ranker.named_parameters()}
    assert norms == pytest.approx(expected["grad_norm"], rel=1e-4)

    test = batch(golden["test_examples"])
    model.eval()
    logits = model._letter_logits(test["item_id_list"], test["item_length"], test[CANDIDATES])
    trained = [int(i) for i in golden["verbalizer"]["ids_trained_in_context"]]
    torch.testing.assert_close(
        logits, torch.from_numpy(arrays["test_last_position_logits"])[:, trained], rtol=0, atol=1e-4
    )
    model.reader.letter_ids = torch.tensor(golden["verbalizer"]["ids_read_at_evaluation"])
    logits = model._letter_logits(test["item_id_list"], test["item_length"], test[CANDIDATES])
    torch.testing.assert_close(logits, torch.from_numpy(arrays["test_letter_scores"]), rtol=0, atol=1e-4)


# ---- what holds for any ranker


@pytest.fixture(scope="module", params=["llama2", "llama3"])
def llama(request, tmp_path_factory):
    """A language model of either shape; titles of the cycle have different numbers of tokens."""
    texts = [f" ({i}) {WORDS[i]} volume {i} \n" for i in range(5)] * 9
    return save_llama(tmp_path_factory.mktemp("llm") / request.param, request.param, texts)


def evaluated(settings, patch=None, **more):
    """Test result, unmasked result and the rows of both steps, with ``patch`` applied to the model."""
    model, train, _, test = prepare(settings, topk=[1, K, 20], valid_metric="NDCG@20", **more)
    if patch is not None:
        patch(model)
    trainer = RunTrainer(model.config, model, None, train.dataset.train_counts, finished=True)
    masked = trainer.evaluate(test, load_best_model=False)
    return masked, trainer.evaluation.unmasked, trainer.evaluation.retrieval


@pytest.mark.parametrize("mask_history", [True, False])
def test_an_oracle_reaches_the_recall_of_the_retriever(settings, llama, mask_history):
    def oracle(model):
        original = model.full_sort_predict

        def remember(interaction):
            model.target = interaction["item_id"]
            return original(interaction)

        model.full_sort_predict = remember
        model.rank = lambda history, length, candidates, retrieved: (candidates == model.target[:, None]).float()

    masked, unmasked, rows = evaluated(settings, oracle, llm=llama, mask_history=mask_history)
    result = masked
    found = rows[f"retriever_recall@{K}"]
    assert 0 < found < 1
    assert result["recall@1"] == result[f"mrr@{K}"] == found
    assert rows["retrieved_users"]["recall@1"] == 1.0
    assert rows["users_retrieved"] == round(found * rows["users"])
    kind = "retriever_masked" if mask_history else "retriever_unmasked"
    assert result["recall@20"] == rows[kind]["recall@20"]  # what stands behind the candidates stays there


def test_the_order_of_the_retriever_gives_its_metrics_to_the_last_digit(settings, llama):
    def identity(model):
        model._letter_logits = lambda history, length, candidates: -torch.arange(K).float().expand(len(history), K)

    masked, unmasked, rows = evaluated(settings, identity, llm=llama)
    assert masked == rows["retriever_masked"]
    assert unmasked == rows["retriever_unmasked"]
    assert rows["retrieved_users"] == rows["retrieved_users_retriever"]


def test_overall_is_the_subset_weighted_by_its_size(settings, llama):
    masked, _, rows = evaluated(settings, llm=llama)
    assert masked != rows["retriever_masked"]
    share = rows["users_retrieved"] / rows["users"]
    for metric in ("recall@1", f"ndcg@{K}", f"mrr@{K}"):
        assert masked[metric] == pytest.approx(share * rows["retrieved_users"][metric], abs=1e-12)
    assert rows["users_reranked"] == rows["users"]


def test_one_step_changes_adapters_only(settings, llama):
    model, train, *_ = prepare(settings, llm=llama, warmup_updates=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = RunTrainer(model.config, model, None, train.dataset.train_counts)
    assert trainer.stages == ["retriever", "ranker"]
    trainer.start_stage(1)
    trainer.steps.total = 100
    model.train()
    assert not model.retriever.training
    trainer.model.calculate_loss(batch_of(train)).backward()
    trainer.steps.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all("lora_B" in name for name in changed)  # A has no gradient while B is 0
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name for name in before if "lora_" in name
    }


def test_scores_do_not_depend_on_the_batch(settings, llama):
    model, _, _, test = prepare(settings, llm=llama, rank_batch_size=7, permutations=2)
    batch = batch_of(test)
    with torch.no_grad():
        together = model.full_sort_predict(batch)
        alone = torch.cat([model.full_sort_predict(batch[[i]]) for i in range(len(batch))])
        backwards = model.full_sort_predict(batch[list(range(len(batch)))[::-1]]).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, backwards, rtol=1e-5, atol=1e-6)
    candidates = model._candidates(model.retriever_scores(batch), batch)
    arguments = batch["item_id_list"], batch["item_length"], candidates
    logits = model._letter_logits(*arguments)
    model.settings = replace(model.settings, rank_batch_size=1)
    torch.testing.assert_close(model._letter_logits(*arguments), logits, rtol=1e-4, atol=1e-5)


def test_the_side_of_the_padding_does_not_matter(settings, llama):
    model, _, _, test = prepare(settings, llm=llama)
    batch = batch_of(test)
    candidates = model._candidates(model.retriever_scores(batch), batch)
    prompts = model.composer(batch["item_id_list"], batch["item_length"], candidates)
    assert prompts.length.min() < prompts.length.max()
    width = prompts.ids.shape[1]
    where = (torch.arange(width) + (width - prompts.length)[:, None]) % width
    right, mask = prompts.ids.gather(1, where), prompts.mask.gather(1, where)
    with torch.no_grad():
        left = last_logits(model.ranker, prompts.ids, prompts.mask, 1)[:, -1]
        padded = model.ranker(input_ids=right, attention_mask=mask).logits
    last = padded[torch.arange(len(batch)), prompts.length - 1]
    torch.testing.assert_close(left, last, rtol=1e-4, atol=1e-4)


def test_the_head_sees_the_answer_only_and_gives_letters_only_where_no_other_word_counts(settings, llama, monkeypatch):
    model, train, _, test = prepare(settings, llm=llama)
    whole, letters = [], []
    head = model.ranker.get_base_model().lm_head
    head.register_forward_hook(lambda module, inputs, output: whole.append(inputs[0].shape[1]))
    few = verbalizer._Rows.forward

    def spy(self, hidden):
        letters.append((hidden.shape[1], len(self.tokens)))
        return few(self, hidden)

    monkeypatch.setattr(verbalizer._Rows, "forward", spy)
    batch = batch_of(train)
    model.calculate_loss(batch)
    model.reader.loss = "letter"
    model.calculate_loss(batch)
    assert whole == [2, 1] and not letters
    model.reader.loss = "candidates"
    model.calculate_loss(batch)
    model.full_sort_predict(batch_of(test))
    assert whole == [2, 1] and set(letters) == {(1, model.n_candidates)}
    assert model.ranker.get_base_model().lm_head is head


# ---- losses and options


def test_losses(settings, llama):
    model, train, *_ = prepare(settings, llm=llama, lora_dropout=0.0)
    batch = batch_of(train)
    candidates, target = batch[CANDIDATES], batch["item_id"]
    label = (candidates == target[:, None]).long().argmax(1)
    assert (candidates.gather(1, label[:, None])[:, 0] == target).all()
    prompts = model.composer(batch["item_id_list"], batch["item_length"], candidates)
    answer = model.reader.answer_ids[label]
    whole = torch.cat([prompts.ids, answer[:, None]], 1)
    mask = torch.cat([prompts.mask, torch.ones_like(answer)[:, None]], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model.ranker(input_ids=whole, attention_mask=mask, position_ids=places).logits.log_softmax(-1)
        letter = -logits[:, -2].gather(1, answer[:, None]).mean()
        end = -logits[:, -1, model.reader.eos].mean()
        among = -logits[:, -2, model.reader.letter_ids].log_softmax(-1).gather(1, label[:, None]).mean()
        expected = {"letter_eos": (letter + end) / 2, "letter": letter, "candidates": among}
        for model.reader.loss, value in expected.items():
            torch.testing.assert_close(model.calculate_loss(batch), value, rtol=1e-5, atol=1e-5)


def test_permutations_average_over_orders_of_the_same_candidates(settings, llama):
    model, _, _, test = prepare(settings, llm=llama, permutations=3)
    batch = batch_of(test)
    scores = model.retriever_scores(batch)
    candidates = model._candidates(scores, batch)
    candidates[0, 4:] = 0
    arguments = batch["item_id_list"], batch["item_length"]
    orders = [model._order(number, arguments[0], candidates) for number in range(3)]
    assert orders[0].tolist() == [list(range(K))] * len(batch)
    assert len({tuple(row) for row in orders[1].tolist()}) > 5  # every row has its own
    assert not torch.equal(orders[1], orders[2])
    assert (orders[1][0, 4:] >= 4).all()  # what is no candidate stays behind
    single = []
    for order in orders:
        logits = model._letter_logits(*arguments, candidates.gather(1, order)).log_softmax(1)
        single.append(logits.gather(1, order.argsort(1)))
    average = model.rank(*arguments, candidates, scores.gather(1, candidates))
    torch.testing.assert_close(average, sum(single) / 3)
    model.settings = replace(model.settings, permutations=1, shuffle_candidates=True)
    assert not torch.equal(model._order(0, arguments[0], candidates), orders[0])


def test_the_weight_of_the_retriever(settings, llama):
    masked, unmasked, rows = evaluated(settings, llm=llama, retriever_weight=1.0)
    assert masked == rows["retriever_masked"] and unmasked == rows["retriever_unmasked"]
    model, _, _, test = prepare(settings, llm=llama, retriever_weight=0.3)
    batch = batch_of(test)
    candidates = model._candidates(model.retriever_scores(batch), batch)
    retrieved = torch.randn(candidates.shape)
    arguments = batch["item_id_list"], batch["item_length"], candidates
    mixed = model.rank(*arguments, retrieved)
    expected = 0.7 * model._letter_logits(*arguments).log_softmax(1) + 0.3 * retrieved.log_softmax(1)
    torch.testing.assert_close(mixed, expected)


def test_users_whose_target_was_missed_can_be_left_out(settings, llama):
    every, _, all_rows = evaluated(settings, llm=llama)
    found, _, rows = evaluated(settings, llm=llama, skip_users_without_target="always")
    assert rows["users_reranked"] == rows["users_retrieved"] < all_rows["users_reranked"]
    assert {k: v for k, v in found.items() if k.endswith((f"@{K}", "@1"))} == {
        k: v for k, v in every.items() if k.endswith((f"@{K}", "@1"))
    }
    _, _, rows = evaluated(settings, llm=llama, skip_users_without_target="valid")
    assert rows["users_reranked"] == rows["users"]


def test_both_readings_of_the_letters(settings, llama):
    model, *_ = prepare(settings, "retriever", llm=llama)
    other, *_ = prepare(settings, "retriever", llm=llama, verbalizer="original")
    assert torch.equal(model.reader.answer_ids, other.reader.answer_ids)
    # Llama 2 has others for them.
    assert torch.equal(model.reader.letter_ids, other.reader.letter_ids) == ("llama3" in llama)


def test_more_candidates_than_letters(settings, llama, tmp_path):
    write_cycle(tmp_path / "many", users=16, items=50)
    words = [*string.ascii_uppercase, *string.ascii_lowercase][:30]
    more = {"llm": llama, "n_candidates": 30, "label_words": words, "data_path": str(tmp_path / "many")}
    more["mask_history"] = False
    model, train, _, test = prepare(settings, **more)
    assert len(set(model.reader.letter_ids.tolist())) == 30
    batch = batch_of(test)
    candidates = model._candidates(model.retriever_scores(batch), batch)
    assert "\n (c) " in model.composer.text([1], candidates[0].tolist())
    ranking = model.rank(batch["item_id_list"], batch["item_length"], candidates, torch.zeros(candidates.shape))
    ordered = candidates.gather(1, ranking.argsort(1, descending=True))
    scores = model.full_sort_predict(batch)
    scores[:, 0] = -torch.inf
    assert torch.equal(top_items(scores, 30), ordered)
    assert torch.isfinite(model.calculate_loss(batch_of(train)))


def test_candidates_of_training_prompts(settings):
    def draws(**more):
        model, train, *_ = prepare(settings, max_train_rows_per_user=None, **more)
        trainer = RunTrainer(model.config, model, None, train.dataset.train_counts, finished=True)
        loader = batches_of(trainer.stage, trainer.model, train, trainer.evaluator)
        loader.set_epoch(0)
        return model, train.dataset, list(loader)

    model, dataset, batches = draws()
    for batch in batches:
        for i in range(len(batch)):
            items, history = batch[CANDIDATES][i].tolist(), batch["item_id_list"][i].tolist()
            assert batch["item_id"][i] in items and len(set(items)) == K and 0 not in items
            assert not set(items) & set(history)
    places = torch.cat([(batch[CANDIDATES] == batch["item_id"][:, None]).long().argmax(1) for batch in batches])
    assert (places.bincount(minlength=K) > len(places) / K / 4).all()  # the answer is any letter

    model, dataset, batches = draws(train_negatives="retriever", negative_pool=8)
    for batch in batches:
        first = model._candidates(model.retriever_scores(batch), batch)  # the history is shown whole here
        scores = model.retriever_scores(batch).scatter(1, batch["item_id_list"], -torch.inf)
        pool = scores.topk(8).indices
        for i in range(len(batch)):
            negatives = set(batch[CANDIDATES][i].tolist()) - {int(batch["item_id"][i])}
            assert len(negatives) == K - 1 and negatives <= set(pool[i].tolist()), first[i]


def test_batches_of_similar_length_are_the_same_rows_in_the_same_order_each_time(settings):
    def lengths(bucket):
        model, train, *_ = prepare(settings, max_train_rows_per_user=None, length_bucketing=bucket, train_batch_size=8)
        trainer = RunTrainer(model.config, model, None, train.dataset.train_counts, finished=True)
        loader = batches_of(trainer.stage, trainer.model, train, trainer.evaluator)
        rows = []
        for _ in range(2):
            loader.set_epoch(3)
            rows.append([(batch["user_id"].tolist(), batch["item_length"].tolist()) for batch in loader])
        assert rows[0] == rows[1]
        loader.set_epoch(3)
        padding = 0
        for batch in loader:
            size = model.composer(batch["item_id_list"], batch["item_length"], batch[CANDIDATES]).length
            padding += int((size.max() - size).sum())
        pairs = [pair for batch in rows[0] for pair in zip(*batch, strict=True)]
        return padding, sorted(pairs), pairs

    padding, rows, order = lengths(True)
    plain, same, other = lengths(False)
    assert rows == same and order != other
    assert padding < 0.6 * plain


# ---- both stages


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_both_stages_from_one_call(settings, llama, tmp_path):
    result = run(
        "LlamaRec", "cycle", config_dict={**settings, "llm": llama, "retriever_epochs": 10, "eval_updates": 2}
    )
    assert [stage["stage"] for stage in result["stages"]] == ["retriever", "ranker"]
    report = json.loads((tmp_path / "saved" / result["run_dir"] / "results.json").read_text(encoding="utf-8"))
    assert report["retrieval"]["retriever_masked"]["recall@10"] > 0.5
    assert report["language_models"]["retriever"] == "LRURec"
    assert report["test_masked"] == result["test_result"]
    assert report["seconds"]["retrieve"] > 0
    # The adapter is PEFT's, the weights are what was learned here: no base weights in either.
    from peft import PeftModel

    run_dir = tmp_path / "saved" / result["run_dir"]
    adapter = json.loads((run_dir / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == llama.rpartition("/")[2]
    names = set(load_file(run_dir / "model.safetensors"))
    assert {name.partition(".")[0] for name in names} == {"retriever", "ranker"}
    assert all("lora_" in name for name in names if name.startswith("ranker"))
    assert all("lora_" in name for name in load_file(run_dir / "adapter" / "adapter_model.safetensors"))

    loaded = load_run(result["run_dir"])
    assert loaded.trainer.evaluate(loaded.test_data, load_best_model=False) == result["test_result"]
    base = LlamaForCausalLM.from_pretrained(llama)
    plain = PeftModel.from_pretrained(base, run_dir / "adapter").eval()
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, loaded.model.ranker(ids).logits)

    # The base model is named by its revision, and has to be the same again.
    assert report["language_models"]["llm_revision"] == resolve_llm(LLMSpec(llama)).revision
    report["language_models"]["llm_revision"] = "another"
    (run_dir / "results.json").write_text(json.dumps(report), encoding="utf-8")
    (run_dir / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"revision another, and .* is now at \w+"):
        load_run(result["run_dir"])


@pytest.mark.parametrize("retriever", ["SASRec", "LLMSeqSim"])
def test_another_retriever_by_name(settings, retriever):
    own = (
        {"llm": "tiny-random-bert"} if retriever == "LLMSeqSim" else {"hidden_size": 8, "inner_size": 8, "n_heads": 1}
    )
    more = {"retriever": retriever, "retriever_settings": own, "retriever_epochs": None if own.get("llm") else 1}
    more["embedding_cache_dir"] = settings["checkpoint_dir"] + "-cache"
    result = run("LlamaRec", "cycle", config_dict={**settings, **more})
    assert [stage["stage"] for stage in result["stages"]] == ["retriever", "ranker"]


def test_a_finished_run_as_retriever(settings, tmp_path):
    shared = {key: settings[key] for key in ("data_path", "checkpoint_dir", "show_progress", "use_gpu")}
    first = run("LRURec", "cycle", config_dict={**shared, "epochs": 15, "train_batch_size": 8, "learning_rate": 0.01})
    more = {key: value for key, value in settings.items() if not key.startswith("retriever")}
    result = run("LlamaRec", "cycle", config_dict={**more, "retriever": first["run_dir"]})
    assert [stage["stage"] for stage in result["stages"]] == ["ranker"]
    run_dir = tmp_path / "saved" / result["run_dir"]
    report = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    for kind, expected in (("masked", first["test_result"]), ("unmasked", first["test_result_unmasked"])):
        assert report["retrieval"][f"retriever_{kind}"] == expected
    assert all(name.startswith("ranker.") for name in load_file(run_dir / "model.safetensors"))
    again = load_run(result["run_dir"])
    assert again.trainer.evaluate(again.test_data, load_best_model=False) == result["test_result"]


def test_a_retriever_with_other_item_numbers_is_refused(settings, monkeypatch):
    shared = {key: settings[key] for key in ("data_path", "checkpoint_dir", "show_progress", "use_gpu")}
    first = run("LRURec", "cycle", config_dict={**shared, "epochs": 1})
    original = submodel.load_trained

    def renumbered(*arguments):
        model = original(*arguments)
        model.item_tokens = model.item_tokens[::-1]
        return model

    monkeypatch.setattr(submodel, "load_trained", renumbered)
    more = {key: value for key, value in settings.items() if not key.startswith("retriever")}
    with pytest.raises(CheckpointError, match="numbers its items differently"):
        prepare(more, "retriever", retriever=first["run_dir"])


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


def test_a_killed_run_goes_on_as_if_it_had_not_been(settings, monkeypatch, caplog):
    """Killed in the first stage, between the two, and inside an epoch of the second one."""
    tries = {"retriever_epochs": 2, "epochs": 2, "eval_updates": 2, "train_batch_size": 16, "lora_dropout": 0.5}
    given = {**settings, **tries, "topk": [1, K], "valid_metric": f"NDCG@{K}", "save_state": True}
    whole = run("LlamaRec", "cycle", config_dict=given)
    weights = load_file(f"{whole['run_dir']}/model.safetensors")
    original = RunTrainer._save_training_state
    caplog.set_level("INFO")
    for after, place in ((1, "epoch 2 comes"), (3, "epoch 1 comes next."), (4, "epoch 1 comes next, after 2 of its")):
        saved = []

        def dying(self, *arguments, after=after, saved=saved):
            original(self, *arguments)
            saved.append(arguments)
            if len(saved) == after:
                raise Killed

        elsewhere = {**given, "checkpoint_dir": f"{settings['checkpoint_dir']}-{after}"}
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(RunTrainer, "_save_training_state", dying)
            run("LlamaRec", "cycle", config_dict=elsewhere)
        caplog.clear()
        resumed = run("LlamaRec", "cycle", config_dict={**elsewhere, "resume": True})
        assert f"Resuming {resumed['run_dir']}" in caplog.text and place in caplog.text
        assert resumed["test_result"] == whole["test_result"]
        assert resumed["stages"] == whole["stages"]
        again = load_file(f"{resumed['run_dir']}/model.safetensors")
        assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


def test_candidates_are_computed_once_per_split(settings, monkeypatch, tmp_path):
    calls = []
    original = Evaluator._collect

    def counted(self, data, scores_of, length, label, *others):
        calls.append(label) if label.startswith("Retrieve") else None
        return original(self, data, scores_of, length, label, *others)

    monkeypatch.setattr(Evaluator, "_collect", counted)
    given = {**settings, "eval_updates": 1, "train_negatives": "retriever", "negative_pool": 8}
    result = run("LlamaRec", "cycle", config_dict=given)
    assert sorted(calls) == ["Retrieve test", "Retrieve train", "Retrieve valid"]
    kept = sorted(path.name for path in (tmp_path / "saved" / result["run_dir"] / "candidates").iterdir())
    assert kept == ["test.safetensors", "train.safetensors", "valid.safetensors"]


def text_decides(folder, shuffled):
    """The next item of a user is always one of the five that are called good."""
    draw = random.Random(0)
    good, bad = [f"g{i}" for i in range(5)], [f"b{i}" for i in range(30)]
    texts = dict.fromkeys(good, "good") | dict.fromkeys(bad, "bad")
    histories = {f"u{u}": draw.sample(good, 5) for u in range(150)}
    histories |= {f"v{i}": [*bad[i : i + 3], "g0"] for i in range(0, 30, 3)}
    if shuffled:
        words = list(texts.values())
        draw.shuffle(words)
        texts = dict(zip(texts, words, strict=True))
    return write_dataset(folder, "world", histories, texts)


def test_learns_what_the_text_decides_and_nothing_where_it_is_shuffled(settings, tmp_path):
    (tmp_path / "short.txt").write_text("{history};\n{candidates}\n", encoding="utf-8")
    text = " (1) good \n (2) bad;\n (A) good \n (B) bad \n (C) good\n"
    right = {}
    for shuffled in (False, True):
        more = {
            "data_path": str(text_decides(tmp_path / f"world-{shuffled}", shuffled)),
            "llm": save_llama(tmp_path / "llm", "llama3", [text] * 50, seed=1),
            "llm_init": "scratch",
            "tuning": "full",
            "prompt": str(tmp_path / "short.txt"),
            "retriever_epochs": 4,
            "retriever_learning_rate": 0.01,
            "n_candidates": 3,
            "shuffle_candidates": True,
            "max_history": 1,
            "max_train_rows_per_user": None,
            "ranker_loss": "candidates",
            "epochs": 8,
            "eval_step": 8,
            "eval_updates": None,
            "learning_rate": 5e-3,
            "lr_schedule": "constant",
            "warmup_updates": 20,
            "topk": [1, 3],
            "valid_metric": "Recall@1",
        }
        result = run("LlamaRec", "world", config_dict={**settings, **more})
        rows = json.loads((tmp_path / "saved" / result["run_dir"] / "results.json").read_text())["retrieval"]
        assert rows["users_retrieved"] > 100
        right[shuffled] = rows["retrieved_users"]["recall@1"]
    assert right[False] > 0.85
    assert right[True] < 0.6  # three candidates


# ---- errors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_candidates": 27}, "n_candidates=27 is too many"),
        ({"n_candidates": 1}, "invalid value for n_candidates: 1"),
        ({"ranker_loss": "all"}, "ranker_loss: 'all'"),
        ({"tuning": "full", "load_in_4bit": True}, "weights of 4 bits cannot be trained"),
        ({"retriever_weight": 2.0}, "invalid value for retriever_weight: 2.0"),
        ({"train_negatives": "retriever", "negative_pool": 3}, "negative_pool=3 must be at least n_candidates"),
        ({"eval_args": {"mode": "uni5"}}, "Use mode: full"),
        ({"retriever": "S3Rec", "retriever_settings": {}}, "'S3Rec' is itself trained in stages"),
        (
            {"retriever": "LiteLLM4Rec", "retriever_settings": {"llm": "tiny-random-t5"}},
            "'LiteLLM4Rec' is itself trained in stages",
        ),
        ({"retriever": "LlamaRec", "retriever_settings": {}}, "'LlamaRec' .*(stages|its own retriever)"),
        ({"retriever": "SASrec"}, "retriever='SASrec' is not known.*Did you mean 'SASRec'"),
        ({"retriever": "nosuch"}, "^retriever='nosuch' is not known.*run directory"),
        ({"max_prompt_length": 2047}, "beyond the 2048 positions of small.*set it to 2046"),
        ({"llm": "tiny-random-bert"}, "tiny-random-bert is not a causal language model.*Qwen"),
        ({"verbalizer": "none"}, "verbalizer: 'none'"),
    ],
)
def test_settings_that_are_not_allowed(settings, change, says):
    with pytest.raises(ConfigError) as caught:
        prepare(settings, "retriever", **change)
    assert re.search(says, str(caught.value), re.S), str(caught.value)


def test_layers_that_are_not_there(settings):
    with pytest.raises(ConfigError, match="has no layer q_prj. It has down_proj, .*q_proj"):
        prepare(settings, "retriever", lora_target_modules=["q_prj"])


def test_four_bits_need_their_package(settings, monkeypatch):
    """Said before the retriever is trained."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'bitsandbytes: pip install "recbole-llm\[4bit\]"'):
        prepare(settings, "retriever", load_in_4bit=True)


def test_automatic_choice_offline(settings, isolated, monkeypatch):
    monkeypatch.setattr("recbole_llm.llm.resolve.packaged_smollm2", lambda: None)
    with pytest.raises(ModelNotFoundError, match="auto means meta-llama/Llama-2-7b-hf here.*"):
        prepare(settings, "retriever", llm="auto")


def test_the_tiny_model_of_smoke_runs(settings, isolated):
    result = run(
        "LlamaRec", "cycle", config_dict={"data_path": settings["data_path"], "smoke": True, "use_gpu": False}
    )
    report = json.loads((isolated / result["run_dir"] / "results.json").read_text(encoding="utf-8"))
    assert report["language_models"]["llm"] == "tiny-random-llama (random)"


def test_nothing_to_train(settings):
    noted = run("LlamaRec", "cycle", config_dict={**settings, "tuning": "none"})
    report = json.loads((Path(noted["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    assert any("LlamaRec has nothing to train in stage" in notice for notice in report["notices"])
    result = run("LlamaRec", "cycle", config_dict={**settings, "tuning": "none", "epochs": 0})
    assert result["stages"][1]["updates"] == 0


def test_unknown_settings_of_the_retriever_are_reported(settings):
    with pytest.raises(ConfigError, match="LRURec has no parameter 'drpout'. Did you mean 'dropout'"):
        prepare(settings, "retriever", retriever_settings={"drpout": 0.1})


def test_sixteen_bits(settings, llama):
    """The base model's weights in bfloat16, adapters and loss in float32: nearly the same scores and loss."""
    results = []
    for dtype in ("float32", "bfloat16"):
        model, train, _, test = prepare(settings, llm=llama, llm_dtype=dtype, lora_dropout=0.0)
        batch = batch_of(test)
        candidates = model._candidates(model.retriever_scores(batch), batch)
        logits = model._letter_logits(batch["item_id_list"], batch["item_length"], candidates)
        loss = model.calculate_loss(batch_of(train))
        loss.backward()
        assert {p.dtype for p in model.ranker.parameters() if p.requires_grad} == {torch.float32} == {loss.dtype}
        assert {p.dtype for n, p in model.ranker.named_parameters() if "lora_" not in n} == {getattr(torch, dtype)}
        results.append((logits, loss.detach()))
    (exact, loss), (rounded, rounded_loss) = results
    assert not torch.equal(exact, rounded)
    # How products of 16 bits are added differs between processors.
    assert torch.corrcoef(torch.stack([exact.flatten(), rounded.flatten()]))[0, 1] > 0.99
    torch.testing.assert_close(rounded_loss, loss, rtol=0.02, atol=0.02)


def test_gradient_checkpointing_changes_nothing_but_memory(settings, llama):
    losses = []
    for checkpointing in (False, True):
        model, train, *_ = prepare(settings, llm=llama, gradient_checkpointing=checkpointing, lora_dropout=0.0)
        model.train()
        assert model.ranker.get_base_model().model.gradient_checkpointing is checkpointing
        loss = model.calculate_loss(batch_of(train))
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        losses.append((loss.detach(), gradients))
    torch.testing.assert_close(losses[0], losses[1])


def test_a_stage_with_as_many_updates_as_the_one_before_is_validated(settings):
    result = run("LlamaRec", "cycle", config_dict=settings)
    assert [stage["updates"] for stage in result["stages"]] == [2, 2]
    with open(f"{result['run_dir']}/history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["retriever", "retriever", "ranker"]
    assert all(float(row["valid_score"]) > 0 for row in rows)


# ---- calibration


@pytest.mark.parametrize("calibration", ["content_free", "shuffled"])
def test_calibration_takes_off_what_a_letter_has_by_itself(settings, calibration, monkeypatch):
    """Scores are those of a model without the constant that each letter has more or less of here."""
    model, _, _, test = prepare(settings, calibration=calibration, calibration_prompts=5)
    plain, *_ = prepare(settings)
    plain.ranker = model.ranker
    batch = batch_of(test)
    before, uncalibrated = model.full_sort_predict(batch), plain.full_sort_predict(batch)
    assert torch.isfinite(model.reader.bias).all()
    assert model.reader.bias.exp().sum() <= 1 + 1e-5
    original = type(model.reader).letters

    def leaning(self, lm, ids, mask, count):
        return original(self, lm, ids, mask, count) + torch.linspace(3, -3, K)[:count]

    monkeypatch.setattr(type(model.reader), "letters", leaning)
    assert not torch.equal(plain.full_sort_predict(batch).argsort(1), uncalibrated.argsort(1))
    model.reader.forget_bias()
    torch.testing.assert_close(model.full_sort_predict(batch), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("calibration", ["content_free", "shuffled"])
def test_the_bias_is_that_of_the_weights_and_kept_with_them(settings, calibration):
    given = {**settings, "calibration": calibration, "calibration_prompts": 3, "save_state": True}
    result = run("LlamaRec", "cycle", config_dict=given)
    loaded = load_run(result["run_dir"])
    kept = loaded.model.reader.bias.clone()
    assert torch.isfinite(kept).all()
    batch = batch_of(loaded.test_data)
    scores = loaded.model.full_sort_predict(batch)
    assert torch.equal(loaded.model.reader.bias, kept)
    loaded.model.reader.forget_bias()
    torch.testing.assert_close(loaded.model.full_sort_predict(batch), scores)
    torch.testing.assert_close(loaded.model.reader.bias, kept)
    model, train, *_ = prepare(given)
    assert model.reader.needs_bias
    model.full_sort_predict(batch)
    assert not model.reader.needs_bias
    model.calculate_loss(batch_of(train))
    assert model.reader.needs_bias


def test_calibration_prompts(settings, monkeypatch):
    """Without content: one title everywhere. Shuffled: training prefixes, candidates in an order of their own."""
    model, *_ = prepare(settings, calibration="content_free")
    texts = [model.composer.text([], [1]), *map(tokens_of(model), model._calibration_prompts())]
    assert [text.count("N/A") for text in texts] == [0, 4 + K, 0, 0]
    model, train, *_ = prepare(settings, calibration="shuffled", calibration_prompts=7)
    (prompts,) = model._calibration_prompts()
    assert len(prompts.ids) == 7
    rows = model._calibration_rows
    assert (rows["item_length"] > 0).all()
    monkeypatch.setattr("recbole_llm.model.llamarec.shuffled", lambda items, *_: torch.arange(K).expand_as(items))
    (ordered,) = model._calibration_prompts()
    assert (ordered.ids[:, -1] == prompts.ids[:, -1]).all() and not torch.equal(ordered.ids, prompts.ids)


def tokens_of(model):
    tokenizer = load_tokenizer(model.resolved)
    return lambda prompts: tokenizer.decode(prompts.ids[0], skip_special_tokens=True)
