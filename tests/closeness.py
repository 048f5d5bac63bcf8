"""What two computations of the same scores must have in common on any machine.

The last digits of a float depend on the kernel, and the kernel on the shape of the batch, on the processor and on the
number of threads. Only a computation that is repeated with the same shapes in the same environment gives the same
bits. Everything else (rows alone and in a batch, a part of the items and all of them, padded and packed, resumed with
other threads) agrees up to rounding, and two items whose scores differ by less than that may change places.
"""

from collections.abc import Sequence

import pandas as pd
import torch

Scored = Sequence[tuple[str | int, float]]

RELATIVE, ABSOLUTE = 1e-4, 1e-5


def pairs(frame: pd.DataFrame, item: str = "item_id") -> list[tuple[str, float]]:
    """Items and scores of one user's rows of a table of recommendations, in the order of the rows."""
    return list(zip(frame[item], map(float, frame["score"]), strict=True))


def assert_same_list(found: Scored, expected: Scored, rtol: float = RELATIVE, atol: float = ABSOLUTE) -> None:
    """Assert that two lists of (item, score), best first, are the same list of scores computed twice.

    Place by place the scores agree, and so do the two scores of every item: a different item in one place is then one
    with the same score, up to rounding. An item that only one list has must tie with the end of the other.
    """
    assert len(found) == len(expected), (found, expected)
    for (item, score), (other, wanted) in zip(found, expected, strict=True):
        assert _close(score, wanted, rtol, atol), f"{item!r} has {score}, {other!r} has {wanted} in its place"
    for mine, theirs in ((found, expected), (expected, found)):
        known = dict(theirs)
        assert len(known) == len(theirs), f"an item stands twice in {theirs}"
        for item, score in mine:
            # Beyond the end of a list nothing is better than its last score.
            wanted = known.get(item, theirs[-1][1])
            assert _close(score, wanted, rtol, atol), f"{item!r} has {score} in one list, {wanted} in the other"


def assert_same_order(
    order: torch.Tensor, scores: torch.Tensor, rtol: float = RELATIVE, atol: float = ABSOLUTE
) -> None:
    """Assert that the columns ``order`` (B, k) are the best of ``scores`` (B, n), best first, up to rounding."""
    best = scores.sort(dim=1, descending=True).values[:, : order.shape[1]]
    torch.testing.assert_close(scores.gather(1, order), best, rtol=rtol, atol=atol)
    assert all(len(row.unique()) == len(row) for row in order), "a column stands twice in one order"


def _close(one: float, two: float, rtol: float, atol: float) -> bool:
    return one == two or abs(one - two) <= atol + rtol * max(abs(one), abs(two))
