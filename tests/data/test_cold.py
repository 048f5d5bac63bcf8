import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import CheckpointError, ConfigError, DataError
from recbole_llm.evaluator.ranks import RankCollector
from recbole_llm.quick_start import load_run, run
from recbole_llm.run.results import cold_report
from tests.worlds import write_dataset

USERS, ITEMS = 40, 24


@pytest.fixture
def settings(tmp_path):
    draw = np.random.default_rng(4)
    histories = {f"u{u}": [f"i{i}" for i in draw.permutation(ITEMS)[: 3 + u % 9]] for u in range(USERS)}
    write_dataset(tmp_path / "data", "mall", histories, {f"i{i}": f"thing {i}" for i in range(ITEMS)})
    return {
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "embedding_cache_dir": str(tmp_path / "cache"),
        "MAX_ITEM_LIST_LENGTH": 5,
        "train_batch_size": 64,
        "epochs": 1,
        "show_progress": False,
        "use_gpu": False,
    }


def build(settings, model="SASRec", **more):
    config = Config(model, "mall", config_dict={**settings, **more})
    dataset = HistoryDataset(config)
    return dataset, prepare_data(config, dataset)


def rows_of(dataset):
    """(user, history that a model reads, whole history, target) of every row of a split."""
    batch = dataset[torch.arange(len(dataset))]
    row, item = dataset.history(torch.arange(len(dataset)))
    whole = [item[row == number].tolist() for number in range(len(dataset))]
    return [
        (user, items[:length], whole[number], target)
        for number, (user, items, length, target) in enumerate(
            zip(*(batch[name].tolist() for name in ("user_id", "item_id_list", "item_length", "item_id")), strict=True)
        )
    ]


def expected(dataset, cold, in_history):
    """The same rows by hand, from the whole sequences: training, validation, test."""
    parts = ([], [], [])
    for user in range(1, dataset.user_num):
        items = dataset.flat["item_id"][dataset.offsets[user] : dataset.offsets[user + 1]].tolist()
        for place in range(1, len(items)):
            # Of three interactions one is trained on, as RecBole splits.
            part = 2 if place == len(items) - 1 else 1 if place == len(items) - 2 > 1 else 0
            kept = [item for item in items[:place] if not cold[item] or (in_history and part)]
            if kept and not (part == 0 and cold[items[place]]):
                parts[part].append((user, kept[-5:], kept, items[place]))
    return parts


@pytest.mark.parametrize("in_history", [False, True])
def test_rows_equal_those_made_by_hand(in_history, settings):
    dataset, loaders = build(settings, cold_items=0.5, cold_items_in_history=in_history)
    cold = dataset.cold.mask
    assert cold.sum() == ITEMS // 2
    splits = [loader.dataset for loader in loaders]
    for split, rows in zip(splits, expected(dataset, cold, in_history), strict=True):
        assert sorted(rows_of(split)) == sorted(rows)
    train, valid, test = splits
    assert not cold[train.inter_feat["item_id"]].any()
    assert train.train_counts[cold].sum() == 0
    assert cold[test.inter_feat["item_id"]].any()
    assert test.all_counts.tolist() == np.bincount(dataset.flat["item_id"], minlength=dataset.item_num).tolist()
    counts = dataset.cold.counts
    plain = build(settings)[1]
    kept = sum(loader.dataset.train_counts.sum() for loader in loaders[:1])
    lost = counts["training_interactions_removed"]
    assert lost == plain[0].dataset.train_counts[cold].sum() > 0
    # A user of whom one training item is left trains no more.
    assert kept <= plain[0].dataset.train_counts.sum() - lost
    dropped = len(plain[2].dataset) - len(test)
    assert counts.get("test_rows_without_history", 0) == dropped
    assert (dropped > 0) == (not in_history)


@pytest.mark.parametrize("view", ["prefix", "sequence", "segment"])
def test_every_view_trains_on_warm_items_only(view, settings):
    _, (train, _, _) = build(settings, "LRURec", train_view=view, cold_items=0.4)
    cold = torch.from_numpy(train.dataset.cold.mask)
    seen = 0
    for batch in train:
        for name in ("item_id_list", "item_id", "next_item_id_list"):
            if name in batch:
                assert not cold[batch[name]].any()
        seen += len(batch)
    assert seen > 0


def test_the_draw_depends_on_its_own_seed_only(settings):
    def tokens(**more):
        dataset, _ = build(settings, cold_items=0.25, **more)
        return set(dataset.id2token("item_id", dataset.cold.items))

    assert tokens() == tokens(seed=7) == tokens(model="LRURec", time_order="recbole")
    assert tokens() != tokens(cold_items_seed=7)


def test_without_cold_items_nothing_changes(settings):
    dataset, loaders = build(settings)
    assert dataset.cold is None
    assert all(loader.dataset.histories is dataset.histories for loader in loaders)


@pytest.mark.parametrize("model", ["SASRec", "LLMSeqSim", "FPMC"])
def test_results_come_apart(model, settings, caplog):
    untrained = {"llm": "tiny-random-t5", "epochs": 0} if model == "LLMSeqSim" else {}
    given = {**settings, **untrained, "cold_items": 0.3}
    with caplog.at_level(logging.INFO):
        run_dir = Path(run(model, "mall", config_dict=given)["run_dir"])
    report = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    cold = report["cold_items"]
    ranks = np.load(run_dir / "test_ranks.npz")
    assert (cold["items"], cold["share"], cold["seed"], cold["in_history"]) == (7, 0.3, 2020, False)
    assert cold["cold"]["targets"] == ranks["target_cold"].sum() > 0
    assert cold["warm"]["targets"] == (~ranks["target_cold"]).sum() > 0
    assert (ranks["target_popularity"][ranks["target_cold"]] == 0).all()
    for kind in ("masked", "unmasked"):
        for metric, value in report[f"test_{kind}"].items():
            parts = [cold[name][kind][metric] * cold[name]["targets"] for name in ("cold", "warm")]
            assert sum(parts) / len(ranks["target"]) == pytest.approx(value, abs=1e-12)
    assert cold["cold"]["among_cold"]["recall@10"] == 1  # there are seven
    assert "30% of the items held out of training" in report["protocol"]["text"]
    assert f"{cold['cold']['targets']} cold targets" in caplog.text
    assert "Cold items: 7 of 24 items held out of training" in caplog.text
    loaded = load_run(run_dir)
    assert loaded.trainer.evaluate(loaded.test_data, load_best_model=False) == report["test_result"]
    if model == "SASRec":
        with pytest.raises(CheckpointError, match="another cold_items"):
            run("ScoreEnsemble", "mall", config_dict={**settings, "members": [str(run_dir), str(run_dir)]})


def test_ranks_among_a_group():
    draw = np.random.default_rng(1)
    scores = draw.integers(0, 5, (50, 20)).astype(np.float32)
    target, group = draw.integers(1, 20, 50), np.array([2, 3, 7, 11, 13, 19])
    history = [draw.choice(np.arange(1, 20), 6, replace=False) for _ in range(50)]
    history = [items[items != t] for items, t in zip(history, target, strict=True)]
    collector = RankCollector(group=torch.from_numpy(group))
    rows = torch.repeat_interleave(torch.arange(50), torch.tensor([len(items) for items in history]))
    pairs = rows, torch.from_numpy(np.concatenate(history))
    collector.collect(torch.from_numpy(scores.copy()), torch.arange(50), torch.from_numpy(target), pairs)
    ranks = collector.finish()
    for row in range(50):
        left = [item for item in group if item not in history[row]]
        order = sorted(left, key=lambda item: (-scores[row, item], item))
        assert ranks.among[row] == (order.index(target[row]) + 1 if target[row] in group else 0)
    assert RankCollector().group is None


def test_a_test_without_cold_targets(settings):
    _, (_, _, test) = build(settings, cold_items=0.05)
    cold = test.dataset.cold
    collector = RankCollector(group=cold.items)
    target = torch.from_numpy(np.flatnonzero(~cold.mask)[1:4])
    none = torch.zeros(0, dtype=torch.long)
    collector.collect(torch.rand(3, len(cold.mask)), target, target, (none, none))
    report = cold_report({"metrics": ["Recall"], "topk": [5]}, collector.finish(), cold)
    assert report["cold"] == {"targets": 0}
    assert set(report["warm"]["masked"]) == {"recall@5"}


@pytest.mark.parametrize("share", [1.0, 0.001, 1.5])
def test_shares_that_are_none(share, settings):
    with pytest.raises(ConfigError, match=f"cold_items.*{share}"):
        build(settings, cold_items=share)
    with pytest.raises(ConfigError, match="invalid value for cold_items: -0.1"):
        build(settings, cold_items=-0.1)


def test_nothing_left_to_train_on(settings):
    with pytest.raises(DataError, match="leaves no training row"):
        build(settings, cold_items=0.95)
