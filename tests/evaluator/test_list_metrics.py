"""Serendipity, Novelty and CatalogCoverage as Boz et al. (arXiv 2402.01339) compute them."""

import json
from pathlib import Path

import numpy as np
import pytest

from recbole_llm.config import Config
from recbole_llm.errors import ConfigError
from recbole_llm.evaluator import metrics
from recbole_llm.quick_start import load_run, run

# Made by the released code of the paper (dh-r/LLM-Sequential-Recommendation at 6464b39, BSD-3).
GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "metrics.json"


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def _ids(golden):
    """Raw id -> ours, by first appearance in the counts, where the authors' ties follow it; then the others."""
    counted = [item for item, _ in golden["item_counts_in_order"]]
    others = [item for item in range(1, 61) if item not in counted]
    return {item: number for number, item in enumerate(counted + others, 1)}


def _counts(golden):
    ids = _ids(golden)
    counts = np.zeros(61, dtype=np.int64)
    for item, count in golden["item_counts_in_order"]:
        counts[ids[item]] = count
    return counts


def _rows(case, ids, k):
    """Lists cut to k and targets, right padded with 0, of the sessions that have a prediction."""
    predicted = [session for session in case["ground_truth"] if session in case["recommendations"]]
    lists = [[ids[i] for i in case["recommendations"][session][:k]] for session in predicted]
    targets = [[ids[i] for i in case["ground_truth"][session]] for session in predicted]

    def padded(rows):
        width = max(map(len, rows))
        return np.array([row + [0] * (width - len(row)) for row in rows])

    return padded(lists), padded(targets)


@pytest.mark.parametrize("k", [5, 10])
@pytest.mark.parametrize("name", ["clean", "messy"])
def test_golden_metrics(golden, name, k):
    """Also with repeated, short and empty lists, and several targets."""
    ids, counts, case = _ids(golden), _counts(golden), golden["cases"][name]
    lists, targets = _rows(case, ids, k)
    expected, rows = (case["results"][f"k={k}"][key] for key in ("mean", "per_session"))

    found = metrics.serendipity(lists, targets, counts, k)
    np.testing.assert_allclose(found, rows[f"Serendipity@{k}"], rtol=0, atol=1e-9)
    assert found.mean() == pytest.approx(expected[f"Serendipity@{k}"], abs=1e-9)
    found = metrics.novelty(lists, counts)
    np.testing.assert_allclose(found, rows[f"Novelty@{k}"], rtol=0, atol=1e-9)
    assert found.mean() == pytest.approx(expected[f"Novelty@{k}"], abs=1e-9)
    coverage = metrics.catalog_coverage(lists, case["num_items"])
    assert coverage == pytest.approx(expected[f"Catalog coverage@{k}"], abs=1e-9)


@pytest.mark.parametrize("k", [5, 10])
def test_golden_metrics_of_ranks(golden, k):
    case = golden["cases"]["clean"]
    lists, targets = _rows(case, _ids(golden), 20)
    found = lists == targets
    rank = np.where(found.any(axis=1), found.argmax(axis=1) + 1, 61)
    for name, theirs in (("NDCG", "NDCG"), ("Hit", "HitRate"), ("MRR", "MRR")):
        rows = metrics.RANK_METRICS[name.lower()](rank, k)
        np.testing.assert_allclose(rows, case["results"][f"k={k}"]["per_session"][f"{theirs}@{k}"], rtol=0, atol=1e-9)


def test_golden_metrics_by_name(golden):
    """Through the door that --metrics uses; the whole catalogue is what has an interaction anywhere."""
    case = golden["cases"]["clean"]
    lists, targets = _rows(case, _ids(golden), 20)
    settings = {
        "metrics": ["Serendipity", "Novelty", "CatalogCoverage"],
        "topk": [5, 10],
        "popularity_counts": "train",
    }
    everything = np.ones(61, dtype=np.int64)
    everything[0] = 0
    result = metrics.compute(settings, np.ones(50), lists, _counts(golden), targets[:, 0], everything)
    for k in (5, 10):
        expected = case["results"][f"k={k}"]["mean"]
        assert result[f"serendipity@{k}"] == pytest.approx(expected[f"Serendipity@{k}"], abs=1e-9)
        assert result[f"novelty@{k}"] == pytest.approx(expected[f"Novelty@{k}"], abs=1e-9)
        assert result[f"catalogcoverage@{k}"] == pytest.approx(expected[f"Catalog coverage@{k}"], abs=1e-9)


def test_most_popular_is_the_baselines_list(golden):
    raw = {ours: item for item, ours in _ids(golden).items()}
    found = metrics.most_popular(_counts(golden), 10)
    assert [raw[item] for item in found] == golden["most_popular_top10"]
    assert len(metrics.most_popular(_counts(golden), 100)) == len(golden["item_counts_in_order"])


def test_by_hand():
    counts = np.array([0, 4, 2, 2, 0])  # item 2 goes before item 3
    lists, targets = np.array([[1, 3], [2, 3], [4, 0]]), np.array([1, 3, 4])
    assert metrics.most_popular(counts, 2).tolist() == [1, 2]
    assert metrics.serendipity(lists, targets, counts, 2).tolist() == [0, 1, 1]
    assert metrics.novelty(lists, counts).tolist() == [1.5, 2, 0]
    assert metrics.catalog_coverage(lists, 5) == 0.8


def test_a_row_without_a_list_is_a_miss_and_counts():
    lists, counts = np.zeros((2, 3), dtype=np.int64), np.array([0, 1, 1])
    assert metrics.serendipity(lists, np.array([1, 2]), counts, 1).tolist() == [0, 0]
    assert metrics.novelty(lists, counts).tolist() == [0, 0]
    assert metrics.catalog_coverage(lists, 2) == 0


# ---- in a run


def test_a_run_reports_them_with_either_popularity(shop, tiny):
    names = ["NDCG", "Serendipity", "Novelty", "CatalogCoverage"]
    settings = {**tiny, "metrics": names, "epochs": 0}
    train = run("SASRec", "shop", config_dict=settings)
    everything = run("SASRec", "shop", config_dict={**settings, "popularity_counts": "all"})
    assert set(train["test_result"]) == {f"{name.lower()}@5" for name in names}
    assert train["test_result"]["novelty@5"] != everything["test_result"]["novelty@5"]
    assert train["test_result"]["ndcg@5"] == everything["test_result"]["ndcg@5"]

    loaded = load_run(train["run_dir"])
    loaded.trainer.evaluate(loaded.test_data)
    ranks, items = loaded.trainer.evaluation.ranks, loaded.dataset.flat["item_id"].numpy()
    assert len(items) == 14 * 8
    counts = np.bincount(items)
    for result, popularity in ((train, loaded.train_data.dataset.train_counts), (everything, counts)):
        for lists, part in ((ranks.masked_lists, "test_result"), (ranks.unmasked_lists, "test_result_unmasked")):
            shares = popularity / popularity.sum()
            surprise = [np.mean([-np.log2(shares[item]) for item in row if shares[item]]) for row in lists]
            popular = sorted(range(1, 13), key=lambda item: -popularity[item])[:5]  # noqa: B023
            hits = [t in row and t not in popular for t, row in zip(ranks.target, lists, strict=True)]
            assert result[part]["novelty@5"] == pytest.approx(np.mean(surprise))
            assert result[part]["serendipity@5"] == pytest.approx(np.mean(hits))
            assert result[part]["catalogcoverage@5"] == len(np.unique(lists)) / 12


def test_they_may_steer_early_stopping_and_names_are_checked(shop, tiny):
    settings = {**tiny, "metrics": ["Serendipity"], "valid_metric": "Serendipity@5"}
    assert Config("SASRec", "shop", config_dict=settings)["valid_metric_bigger"]
    assert 0 <= run("SASRec", "shop", config_dict=settings, saved=False)["best_valid_score"] <= 1
    with pytest.raises(ConfigError, match="Did you mean 'catalogcoverage'"):
        Config("SASRec", "shop", config_dict={**settings, "metrics": ["CatalogueCoverage"]})
    with pytest.raises(ConfigError, match="invalid value for popularity_counts: 'test'"):
        run("SASRec", "shop", config_dict={**settings, "popularity_counts": "test"})


def test_lists_longer_than_the_catalogue_of_a_whole_run(shop, tiny):
    settings = {
        **tiny,
        "topk": [5, 40],
        "metrics": ["Recall", "AveragePopularity", "TailPercentage", "ItemCoverage"],
        "valid_metric": "Recall@5",
    }
    result = run("SASRec", "shop", config_dict={**settings, "data_path": str(shop.parent)})["test_result"]
    assert result["recall@40"] == 1 and result["itemcoverage@40"] == pytest.approx(12 / 13)
    assert 0 < result["averagepopularity@40"] < result["averagepopularity@5"]
