import math

import numpy as np
import pytest
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict

from recbole_llm.config.metrics import is_smaller_better
from recbole_llm.evaluator import metrics

RANKS = np.random.default_rng(0).integers(1, 60, 500)
KS = [1, 5, 10, 20]


def settings(*names, topk=KS):
    return {"metrics": list(names), "topk": topk, "tail_ratio": 0.1, "metric_decimal_place": 4}


def by_hand(name, k):
    """RecBole's definitions over the list of hits and misses of every row."""
    total = 0.0
    for rank in RANKS:
        hits = [1.0 if place == rank else 0.0 for place in range(1, k + 1)]
        if name in ("recall", "hit"):
            total += sum(hits)
        elif name == "precision":
            total += sum(hits) / k
        elif name == "ndcg":
            total += sum(hit / math.log2(place + 1) for place, hit in enumerate(hits, 1))
        elif name == "mrr":
            total += max(hit / place for place, hit in enumerate(hits, 1))
        elif name == "map":
            precisions = np.cumsum(hits) / np.arange(1, k + 1)
            total += (precisions * hits).sum() / min(1, k)
    return total / len(RANKS)


@pytest.mark.parametrize("name", ["Recall", "Hit", "NDCG", "MRR", "MAP", "Precision"])
def test_rank_metrics(name):
    result = metrics.compute(settings(name), RANKS, None, None)
    assert list(result) == [f"{name.lower()}@{k}" for k in KS]
    for k in KS:
        assert result[f"{name.lower()}@{k}"] == pytest.approx(by_hand(name.lower(), k), abs=1e-12)


@pytest.mark.parametrize("name", ["Recall", "Hit", "NDCG", "MRR", "MAP", "Precision"])
def test_rank_metrics_equal_recbole(name, monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)  # RecBole needs the alias that NumPy dropped
    hits = torch.from_numpy(np.arange(1, max(KS) + 1) == RANKS[:, None]).int()
    data = DataStruct()
    data.set("rec.topk", torch.cat([hits, torch.ones(len(RANKS), 1, dtype=torch.int)], dim=1))
    config = settings(name) | {"metric_decimal_place": 12}
    expected = metrics_dict[name.lower()](config).calculate_metric(data)
    result = metrics.compute(settings(name), RANKS, None, None)
    assert result == pytest.approx({key: float(value) for key, value in expected.items()}, abs=1e-6)


def test_values_are_not_rounded():
    result = metrics.compute(settings("NDCG"), np.array([2, 30, 30]), None, None)
    assert result["ndcg@5"] == 1 / math.log2(3) / 3


def test_a_rank_at_the_end_of_the_list():
    ranks = np.array([10, 11])
    result = metrics.compute(settings("Recall", "NDCG", topk=[10]), ranks, None, None)
    assert result == {"recall@10": 0.5, "ndcg@10": pytest.approx(0.5 / math.log2(11))}


def test_consistency_of_ndcg_and_recall():
    """A hit in places 11..20 adds between 1/log2(21) and 1/log2(12) to NDCG."""
    result = metrics.compute(settings("Recall", "NDCG"), RANKS, None, None)
    share = (result["ndcg@20"] - result["ndcg@10"]) / (result["recall@20"] - result["recall@10"])
    assert 0.2277 <= share <= 0.2789


def test_list_metrics_by_hand():
    counts = np.array([0, 10, 5, 1, 1, 0])  # with padding; item 5 has no training interaction
    lists = np.array([[1, 2], [1, 3], [2, 1]])
    names = ["ItemCoverage", "AveragePopularity", "ShannonEntropy", "GiniIndex", "TailPercentage"]
    result = metrics.compute(settings(*names, topk=[1, 2]), np.array([1, 1, 1]), lists, counts)
    assert result["itemcoverage@2"] == pytest.approx(3 / 6)
    assert result["itemcoverage@1"] == pytest.approx(2 / 6)
    assert result["averagepopularity@2"] == pytest.approx(np.mean([15, 11, 15]) / 2)
    assert result["averagepopularity@1"] == pytest.approx(25 / 3)
    shares = np.array([3, 2, 1]) / 6
    assert result["shannonentropy@2"] == pytest.approx(-(shares * np.log(shares)).sum() / 3)
    assert set(result) == {f"{name.lower()}@{k}" for name in names for k in (1, 2)}
    assert all(np.isfinite(value) for value in result.values())


@pytest.mark.parametrize("name", metrics.LIST_METRICS)
def test_list_metrics_equal_recbole(name):
    draw = np.random.default_rng(1)
    counts = np.concatenate([[0], draw.integers(0, 20, 40)])
    lists = np.stack([draw.permutation(np.arange(1, 41))[:20] for _ in range(30)])
    data = DataStruct()
    data.set("rec.items", torch.from_numpy(lists))
    data.set("data.num_items", 41)
    data.set("data.count_items", {int(item): int(counts[item]) for item in np.flatnonzero(counts)})
    expected = metrics_dict[name](settings() | {"metric_decimal_place": 12}).calculate_metric(data)
    assert metrics.compute(settings(name), np.ones(30), lists, counts) == pytest.approx(dict(expected))


def test_names():
    assert metrics.needs_lists(["NDCG", "ItemCoverage"])
    assert not metrics.needs_lists(["NDCG", "Recall"])
    assert not is_smaller_better("ndcg")
    with pytest.raises(AssertionError, match="needs the recommended lists"):
        metrics.compute(settings("ItemCoverage"), RANKS, None, None)


LISTS = ["AveragePopularity", "TailPercentage", "ItemCoverage", "ShannonEntropy", "GiniIndex"]
ALL_LISTS = [*LISTS, "Serendipity", "Novelty", "CatalogCoverage"]


def list_metrics(lists, topk, counts, names=ALL_LISTS):
    settings = {"metrics": names, "topk": topk, "tail_ratio": 0.4, "popularity_counts": "train"}
    rows = len(lists)
    return metrics.compute(settings, np.ones(rows), lists, counts, np.ones(rows, dtype=np.int64), counts)


@pytest.mark.parametrize("beyond", [0, 1, 30])
def test_lists_may_be_asked_for_that_are_longer_than_the_catalogue(beyond):
    """Places that no item takes count as for Precision: nothing stands there."""
    counts = np.array([0, 8, 4, 2, 1, 0])
    lists = np.array([[3, 1, 2, 4, 5], [1, 2, 0, 0, 0]])
    k = 5 + beyond
    found = list_metrics(lists, [2, k], counts)
    assert found[f"averagepopularity@{k}"] == pytest.approx((15 / k + 12 / k) / 2)
    # The rarer .4 of the four items that have a count: item 4.
    assert found[f"tailpercentage@{k}"] == pytest.approx((1 / k + 0) / 2)
    assert found[f"itemcoverage@{k}"] == pytest.approx(5 / 6)
    assert found[f"catalogcoverage@{k}"] == pytest.approx(5 / 4)
    shares = np.array([2, 2, 1, 1, 1]) / 7
    assert found[f"shannonentropy@{k}"] == pytest.approx(-(shares * np.log(shares)).sum() / 5)
    assert found["averagepopularity@2"] == pytest.approx((5 + 6) / 2)
    assert found == {**found, **list_metrics(lists, [k], counts)}  # whatever other lengths there are


def test_full_lists_are_recbole_s():
    draw = np.random.default_rng(0)
    counts = np.concatenate([[0], draw.integers(1, 30, 40)])
    lists = np.stack([1 + draw.permutation(40)[:10] for _ in range(25)])
    found = list_metrics(lists, [3, 10], counts, LISTS)
    data = DataStruct()
    data.set("rec.items", torch.from_numpy(lists))
    data.set("data.num_items", 41)
    data.set("data.count_items", {item: int(count) for item, count in enumerate(counts) if count})
    for name in LISTS:
        settings = {"metric_decimal_place": 12, "topk": [3, 10], "tail_ratio": 0.4}
        theirs = metrics_dict[name.lower()](settings).calculate_metric(data)
        for key, value in theirs.items():
            assert found[key] == pytest.approx(value, abs=1e-9), key


def test_no_list_at_all():
    found = list_metrics(np.zeros((3, 2), dtype=np.int64), [2], np.array([0, 1, 1, 1]))
    assert all(value == 0 for value in found.values())
