"""What a control changes, what it leaves as it is, and that none of them can pass unnoticed."""

import json
import logging
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.controls import exchanged, random_vectors
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.data.rows import NEXT
from recbole_llm.errors import ConfigError
from recbole_llm.quick_start import load_run, run
from recbole_llm.text.item_text import item_text_of
from recbole_llm.text.item_vectors import item_vectors_of
from tests.worlds import write_cycle, write_dataset, write_twins


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


def settings(tmp_path, **more):
    return {
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "embedding_cache_dir": str(tmp_path / "cache"),
        "llm": "tiny-random-bert",
        "show_progress": False,
        "use_gpu": False,
        "MAX_ITEM_LIST_LENGTH": 6,
        **more,
    }


@pytest.fixture
def load(tmp_path):
    write_cycle(tmp_path / "data")

    def _load(model="LLMSeqSim", dataset="cycle", **more):
        config = Config(model, dataset, config_dict=settings(tmp_path, **more))
        return config, HistoryDataset(config)

    return _load


# ---- what is drawn

TOKENS = [f"i{(7 * i) % 50}" for i in range(50)]


def test_texts_are_exchanged_among_the_items_that_have_one():
    has = np.arange(50) % 5 > 0
    source = exchanged(TOKENS, has, 3)
    assert sorted(source) == list(range(50))
    assert (source[has] != np.arange(50)[has]).all()
    assert has[source[has]].all()
    assert (source[~has] == np.arange(50)[~has]).all()
    assert not np.array_equal(source, exchanged(TOKENS, has, 4))


def test_who_exchanges_with_whom_does_not_depend_on_the_order_of_the_items():
    has = np.arange(50) % 5 > 0
    one = {TOKENS[i]: TOKENS[j] for i, j in enumerate(exchanged(TOKENS, has, 3))}
    back = TOKENS[::-1]
    assert one == {back[i]: back[j] for i, j in enumerate(exchanged(back, has[::-1], 3))}


def test_random_vectors_keep_norms_and_the_common_direction_and_nothing_else():
    draw = np.random.default_rng(0)
    tokens = [str(i) for i in range(400)]
    vectors = draw.normal(size=(400, 32)) * draw.uniform(0.5, 3, size=(400, 1)) + 2
    vectors[[0, 7]] = 0
    found = random_vectors(vectors, tokens, 1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-5)
    unit, new = (v[1:] / np.maximum(np.linalg.norm(v[1:], axis=1, keepdims=True), 1e-9) for v in (vectors, found))
    common = unit.sum(0) / np.linalg.norm(unit.sum(0))
    assert (unit @ common).mean() > 0.5
    np.testing.assert_allclose((new @ common).mean(), (unit @ common).mean(), rtol=1e-4)

    def likeness(v):  # cosines between items, without what all have in common
        v = v - np.outer(v @ common, common)
        return (v @ v.T)[np.triu_indices(len(v), 1)]

    assert abs(np.corrcoef(likeness(unit), likeness(new))[0, 1]) < 0.02
    assert not np.allclose(found, random_vectors(vectors, tokens, 2))
    back = random_vectors(vectors[::-1], tokens[::-1], 1)[::-1]
    np.testing.assert_allclose(found, back, atol=1e-5)


# ---- the text


def test_shuffled_text_is_a_permutation_of_the_texts(load, tmp_path):
    histories = {f"u{u}": [f"i{(u + i) % 9}" for i in range(5)] for u in range(9)}
    write_dataset(tmp_path / "data", "gap", histories, {f"i{i}": f"text {i}" if i else "" for i in range(9)})
    config, dataset = load(dataset="gap", control="shuffled_text")
    real = item_text_of(dataset, Config("LLMSeqSim", "gap", config_dict=settings(tmp_path)))
    text = item_text_of(dataset, config)
    assert Counter(text.texts) == Counter(real.texts)
    changed = [a != b for a, b in zip(text.texts, real.texts, strict=True)]
    assert sum(changed) == 8 and not changed[0]
    assert (text.n_missing, text.missing_tokens) == (real.n_missing, real.missing_tokens) == (1, ["i0"])
    assert text.texts[real.texts.index("", 1)] == ""
    assert text.fingerprint() != real.fingerprint()
    assert text == item_text_of(dataset, config)
    other, _ = load(dataset="gap", control="shuffled_text", control_seed=1)
    assert text.texts != item_text_of(dataset, other).texts


def vectors_under(load, control, **more):
    config, dataset = load(control=control, **more)
    return item_vectors_of(dataset, config, "bundled", logging.getLogger()).vectors


def test_vectors_of_the_text_controls_and_the_cache(load, tmp_path):
    real = vectors_under(load, "none")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert before
    shuffled, random = vectors_under(load, "shuffled_text"), vectors_under(load, "random_vectors")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == before
    assert not np.allclose(shuffled[1:], real[1:], atol=1e-3)
    np.testing.assert_allclose(np.sort(shuffled, axis=0), np.sort(real, axis=0))
    assert not np.allclose(random[1:], real[1:], atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(random, axis=1), np.linalg.norm(real, axis=1), rtol=1e-4)
    # A cold cache is filled with the same.
    for path in before:
        path.unlink()
    np.testing.assert_allclose(vectors_under(load, "random_vectors"), random)
    np.testing.assert_allclose(vectors_under(load, "none"), real)
    assert set((tmp_path / "cache").rglob("*.safetensors")) == set(before)  # named by their content


@pytest.mark.parametrize("control", ["random_vectors", "shuffled_text"])
def test_the_link_that_only_the_text_has_is_gone(tmp_path, control):
    """Second editions have the text of the first: LLMSeqSim finds them by it, and under a control it does not."""
    write_twins(tmp_path / "data")
    found = {}
    for name in ("none", control):
        model = load_run(
            run("LLMSeqSim", "twins", config_dict=settings(tmp_path, control=name, combine="last"))["run_dir"]
        ).model
        scores = model.item_vectors @ model.item_vectors.T
        scores.fill_diagonal_(-torch.inf)
        dataset = load_run_dataset(tmp_path, name)
        twin = {f"a{i}": f"b{i}" for i in range(12)} | {f"b{i}": f"a{i}" for i in range(12)}
        ids = dataset.field2token_id["item_id"]
        found[name] = np.mean([scores[ids[a]].argmax() == ids[b] for a, b in twin.items()])
    assert found["none"] == 1
    assert found[control] < 0.3


def load_run_dataset(tmp_path, control):
    (folder,) = [path for path in (tmp_path / "saved").iterdir() if (control in path.name) == (control != "none")]
    return load_run(folder).dataset


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("SASRec", {"control": "shuffled_text"}),
        ("SASRec", {"control": "random_vectors"}),
        ("LRURec", {"control": "shuffled_text"}),
        ("LLM2SASRec", {"control": "shuffled_text", "llm_init": False}),
        ("LiteLLM4Rec", {"control": "random_vectors", "item_llm_mode": "joint"}),
    ],
)
def test_a_control_that_does_nothing_is_an_error(tmp_path, model, more):
    write_cycle(tmp_path / "data")
    more = {**more, "llm": "tiny-random-t5", "rec_llm": "tiny-random-t5"} if model == "LiteLLM4Rec" else more
    expected = f"control='{more['control']}' has no effect: {model} has no (precomputed )?item"
    with pytest.raises(ConfigError, match=expected):
        run(model, "cycle", config_dict=settings(tmp_path, epochs=0, **more))
    assert not list((tmp_path / "saved").iterdir())


def test_an_unknown_control(tmp_path):
    with pytest.raises(ConfigError, match="invalid value for control: 'shuffled_texts'.*Did you mean 'shuffled_text'"):
        Config("LLMSeqSim", "cycle", config_dict={"control": "shuffled_texts"})


# ---- the history


def rows(loader):
    return [batch[0] for batch in loader]


def lists(batch):
    return [row[:n].tolist() for row, n in zip(batch["item_id_list"], batch["item_length"], strict=True)]


def test_histories_are_shuffled_at_test_and_nowhere_else(load):
    plain, shuffled = (prepare_data(*load("SASRec", control=control)) for control in ("none", "shuffled_history"))
    one, two = next(iter(plain[0])), next(iter(shuffled[0]))
    for field in one.columns:
        assert torch.equal(one[field], two[field]), field
    for a, b in zip(rows(plain[1]), rows(shuffled[1]), strict=True):
        assert torch.equal(a["item_id_list"], b["item_id_list"])
    (real,), (mixed,) = rows(plain[2]), rows(shuffled[2])
    for field in ("user_id", "item_id", "item_length", "timestamp_list"):
        assert torch.equal(real[field], mixed[field]), field
    before, after = lists(real), lists(mixed)
    assert [sorted(items) for items in before] == [sorted(items) for items in after]  # what is seen stays
    assert (mixed["item_id_list"] == 0).equal(real["item_id_list"] == 0)
    assert np.mean([a == b for a, b in zip(before, after, strict=True)]) < 0.1
    last = np.mean([a[-1] == b[-1] for a, b in zip(before, after, strict=True)])
    assert last < 0.5  # 1 in 6
    masks = [next(iter(loaders[2]))[1] for loaders in (plain, shuffled)]
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_a_shuffled_history_is_the_same_in_every_batch_and_another_with_another_seed(load):
    (whole,) = rows(prepare_data(*load("SASRec", control="shuffled_history"))[2])
    parts = rows(prepare_data(*load("SASRec", control="shuffled_history", eval_batch_size=7))[2])
    assert torch.equal(torch.cat([part["item_id_list"] for part in parts]), whole["item_id_list"])
    (other,) = rows(prepare_data(*load("SASRec", control="shuffled_history", control_seed=1))[2])
    assert not torch.equal(other["item_id_list"], whole["item_id_list"])


def test_sampled_evaluation_is_shuffled_too(load):
    settings = {"eval_args": {"mode": "uni5"}}
    plain, mixed = (
        torch.cat(
            [batch["item_id_list"] for batch in rows(prepare_data(*load("SASRec", control=control, **settings))[2])]
        )
        for control in ("none", "shuffled_history")
    )
    assert not torch.equal(plain, mixed)
    assert torch.equal(plain.sort(dim=1).values, mixed.sort(dim=1).values)


@pytest.mark.parametrize("view", ["prefix", "sequence", "segment"])
def test_shuffled_training_keeps_each_users_items_and_loses_their_order(load, view):
    config, dataset = load("LRURec", control="shuffled_history_train", train_view=view)
    splits = dataset.build()
    train, valid, _ = prepare_data(config, dataset, splits)
    mine, old = train.dataset, splits[0]
    assert mine is not old
    first = {int(u): old.flat["item_id"][a:b].tolist() for u, (a, b) in enumerate(pairwise(old.offsets))}
    second = {int(u): mine.flat["item_id"][a:b].tolist() for u, (a, b) in enumerate(pairwise(old.offsets))}
    for user, items in first.items():
        assert sorted(items[:-2]) == sorted(second[user][:-2]) and items[-2:] == second[user][-2:]
    assert sum(first[user] == second[user] for user in first) <= 3
    assert torch.equal(mine.flat["timestamp"], old.flat["timestamp"])
    np.testing.assert_array_equal(mine.train_counts, old.train_counts)
    for batch in train:
        for user, items, target in zip(
            batch["user_id"].tolist(), lists(batch), batch["item_id"].tolist(), strict=True
        ):
            text = " ".join(map(str, second[user][:-2]))
            assert " ".join(map(str, [*items, target])) in text  # consecutive in the new order
    if view == "sequence":
        assert NEXT + "item_id_list" in batch
    rows_of = mine.inter_feat
    assert torch.equal(rows_of["item_id"], mine.flat["item_id"][rows_of["history_position"]])
    plain = prepare_data(*load("LRURec"))[1]
    assert not torch.equal(rows(valid)[0]["item_id_list"], rows(plain)[0]["item_id_list"])


def test_a_model_that_lives_on_order_loses_by_a_shuffled_history(tmp_path):
    """The next item is always the next number; the same trained model no longer knows which is the last one."""
    write_cycle(tmp_path / "data", users=24, items=12, length=9)
    more = {"epochs": 15, "learning_rate": 2e-2, "train_batch_size": 32, "mask_history": False, "topk": [1]}
    more |= {"valid_metric": "NDCG@1", "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
    more |= {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 1, "eval_step": 5}
    real, mixed = (
        run("SASRec", "cycle", config_dict=settings(tmp_path, control=control, **more))
        for control in ("none", "shuffled_history")
    )
    assert real["best_valid_result"] == mixed["best_valid_result"]  # trained and chosen alike
    assert real["test_result"]["ndcg@1"] > 0.8
    assert mixed["test_result"]["ndcg@1"] < 0.6 * real["test_result"]["ndcg@1"]
    again = load_run(real["run_dir"], {"control": "shuffled_history"})  # without training anew
    assert again.trainer.evaluate(again.test_data, load_best_model=False) == mixed["test_result"]
    cheap = {"init_from": real["run_dir"], "epochs": 0, "control": "shuffled_history"}
    assert (
        run("SASRec", "cycle", config_dict=settings(tmp_path, **{**more, **cheap}))["test_result"]
        == mixed["test_result"]
    )


# ---- what a result is called


def test_a_control_stands_in_the_name_of_its_result(tmp_path, caplog):
    write_cycle(tmp_path / "data")
    caplog.set_level(logging.INFO)
    result = run("LLMSeqSim", "cycle", config_dict=settings(tmp_path, control="shuffled_text", control_seed=5))
    assert Path(result["run_dir"]).name.startswith("LLMSeqSim-shuffled_text-cycle-2")
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text())
    assert report["label"] == "LLMSeqSim [shuffled_text]"
    assert report["protocol"]["control"] == "shuffled_text"
    assert report["protocol"]["text"].startswith("CONTROL shuffled_text (seed 5), history masked")
    assert "LLMSeqSim [shuffled_text] on cycle" in caplog.text
    plain = run("LLMSeqSim", "cycle", config_dict=settings(tmp_path))
    report = json.loads((Path(plain["run_dir"]) / "results.json").read_text())
    assert (report["label"], report["protocol"]["control"]) == ("LLMSeqSim", "none")
    assert Path(plain["run_dir"]).name.startswith("LLMSeqSim-cycle-2")
    assert "CONTROL" not in report["protocol"]["text"]
