from typing import get_args

import numpy as np
import pytest
from scipy import stats

from recbole_llm.compare.statistics import (
    holm,
    interval,
    mean_and_deviation,
    p_value,
    quantile_bins,
)
from recbole_llm.config.schema import Comparison
from tests.compare.made_up_runs import draw_ranks, made_up_comparison

TESTS = get_args(Comparison.types()["significance_test"])


@pytest.mark.parametrize("test", TESTS)
def test_right_sided(test):
    difference = np.random.default_rng(0).normal(0.3, 1, 200)
    better, worse = p_value(difference, test), p_value(-difference, test)
    assert better < 0.01
    assert better + worse == pytest.approx(1, abs=1e-3)


def test_t_test_and_permutation_agree():
    difference = np.random.default_rng(1).normal(0.12, 1, 300)
    assert p_value(difference) == pytest.approx(stats.ttest_rel(difference, 0 * difference, alternative="greater")[1])
    assert p_value(difference, "permutation") == pytest.approx(p_value(difference), abs=0.01)


@pytest.mark.parametrize("test", TESTS)
def test_nothing_to_test(test):
    assert p_value(np.zeros(5), test) == 1
    assert p_value(np.array([0.3]), test) == 1
    assert p_value(np.zeros(0), test) == 1


def test_the_same_difference_everywhere():
    assert p_value(np.full(5, 0.5)) == 0
    assert p_value(np.full(5, -0.5)) == 1


def test_holm():
    # The example of Holm's procedure in Wikipedia's and R's documentation: p.adjust(c(.01, .04, .03, .005), "holm").
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert holm([]).shape == (0,)


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(500):
        mean, half = interval(rng.random(30) < 0.4)
        covered += abs(mean - 0.4) <= half
    assert 0.92 < covered / 500 < 0.98
    assert interval(np.array([2.0]))[0] == 2
    assert np.isnan(interval(np.array([2.0]))[1])


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_deviation([1.0]) == (1.0, None)


def test_quantile_bins():
    values = np.array([3, 3, 3, 3, 3, 4, 5, 6, 7, 100])
    bins = quantile_bins(values, 4)
    assert [label for label, _ in bins] == ["3", "4–6", "7–100"]
    assert sum(mask.sum() for _, mask in bins) == len(values)
    assert quantile_bins(np.array([5, 5]))[0][0] == "5"


# ---- planted and null differences, through everything that a comparison does


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(3)
    found = []
    for _ in range(10):
        ranks = {name: draw_ranks(rng, easy) for name, easy in (("SASRec", 0.10), ("same", 0.10), ("better", 0.22))}
        ranks["worse"] = draw_ranks(rng, 0.02)
        comparison = made_up_comparison(ranks)
        found.append([test.significant for test in comparison.tests.values() if test.label == "better"])
        assert not any(test.significant for test in comparison.tests.values() if test.label == "worse")
    assert np.mean(found) > 0.9


def test_the_family_wise_error_is_near_its_level():
    """Five models that are equally good: how often is any of four found better than the baseline, on one metric?"""
    rng = np.random.default_rng(4)
    corrected = uncorrected = 0
    simulations = 400
    for _ in range(simulations):
        ranks = {name: draw_ranks(rng, 0.1, users=200) for name in ("SASRec", "a", "b", "c", "d")}
        comparison = made_up_comparison(ranks, metrics=("ndcg@10",))
        tests = [comparison.tests["masked", name, "ndcg@10"] for name in "abcd"]
        corrected += any(test.significant for test in tests)
        uncorrected += any(test.p < 0.05 for test in tests)
    assert 0.015 < corrected / simulations < 0.075
    assert uncorrected / simulations > 0.09


def test_seeds_are_averaged_per_user():
    rng = np.random.default_rng(5)
    base = [draw_ranks(rng, 0.1) for _ in range(3)]
    better = [np.maximum(rank - 15, 1) for rank in base]
    comparison = made_up_comparison({"SASRec": base, "better": better})
    test = comparison.tests["masked", "better", "recall@10"]
    expected = np.mean([(b <= 10).astype(float) - (a <= 10) for a, b in zip(base, better, strict=True)], axis=0)
    assert test.difference == pytest.approx(expected.mean())
    assert test.p == pytest.approx(stats.ttest_1samp(expected, 0, alternative="greater").pvalue)
    assert comparison.cells["masked", "better", "recall@10"].deviation > 0


def test_the_opponent_is_the_best_baseline_on_that_metric():
    rank = np.arange(1, 201)
    ranks = {"hits": np.where(rank <= 50, 10, 100), "tops": np.where(rank <= 40, 1, 100), "ours": rank}
    comparison = made_up_comparison(ranks, baselines=("hits", "tops"))
    assert {key[2]: test.baseline for key, test in comparison.tests.items()} == {
        "recall@10": "hits",
        "ndcg@10": "tops",
    }
    # Without baselines each is tested against the best of the others.
    comparison = made_up_comparison(ranks, baselines=())
    assert comparison.tests["masked", "ours", "recall@10"].baseline == "hits"
    assert comparison.tests["masked", "hits", "recall@10"].baseline == "tops"
