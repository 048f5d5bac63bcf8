import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.trainer.stopping import EarlyStopping
from tests.properties import examples


def trained(scores, patience, bigger=True):
    """Early stopping after training that ends when it says so, and how many scores it has seen."""
    early = EarlyStopping(patience, bigger)
    for epoch, score in enumerate(scores):
        early.update(score, {"score": score}, epoch)
        if early.stopped:
            return early, epoch + 1
    return early, len(scores)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience_is_the_number_of_misses(patience):
    early, seen = trained([0.1, 0.3] + [0.2] * 20, patience)
    assert seen == 2 + patience and early.epoch == 1


def test_an_equal_score_is_no_progress_and_the_first_of_equals_is_best():
    early, seen = trained([0.1, 0.3, 0.3, 0.3, 0.4], patience=2)
    assert (early.score, early.epoch, seen) == (0.3, 1, 4)
    early, seen = trained([0.0] * 10, patience=3)
    assert (early.epoch, seen) == (0, 4)


def test_smaller_may_be_better():
    early, seen = trained([3.0, 2.0, 2.0, 2.5, 1.0], patience=2, bigger=False)
    assert (early.score, early.epoch, seen) == (2.0, 1, 4)


def test_patience_zero_stops_at_the_first_miss():
    assert trained([0.1, 0.2, 0.1, 0.5], patience=0)[1] == 3


@pytest.mark.parametrize("bigger", [True, False])
def test_nan_is_worse_than_any_number(bigger):
    nan = float("nan")
    early, seen = trained([nan, nan, 0.2, nan, 0.2, nan], patience=3, bigger=bigger)
    assert (early.score, early.epoch, seen) == (0.2, 2, 6)
    assert trained([nan] * 9, patience=2, bigger=bigger)[1] == 3


@given(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30), st.integers(0, 6), st.booleans())
@examples(200)
def test_the_best_is_the_first_of_the_best_seen(scores, patience, bigger):
    early, seen = trained(scores, patience, bigger)
    best = (max if bigger else min)(scores[:seen])
    assert early.score == best and early.epoch == scores.index(best) and early.result == {"score": best}
    assert early.misses == seen - 1 - early.epoch
    assert early.stopped == (early.misses >= max(1, patience))
