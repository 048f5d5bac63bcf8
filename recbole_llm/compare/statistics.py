"""Paired tests over users, Holm's correction, intervals.

A user is the unit: values of several seeds, or of several test rows of a user, are averaged before they are tested.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
PERMUTATIONS = 9_999


def p_value(difference: np.ndarray, test: str = "t-test") -> float:
    """Probability of differences at least this much above zero if there were none on average.

    Smucker et al. (CIKM 2007) and Urbano et al. (SIGIR 2019) found the t-test and the permutation test to keep their
    level on ranking metrics; Wilcoxon's test is about another hypothesis, symmetry around zero.

    Parameters
    ----------
    difference : numpy.ndarray, shape (users,)
        Metric of the model less metric of the baseline.
    test : str
        ``t-test``, ``permutation`` (random signs) or ``wilcoxon`` (signed ranks, zeros dropped).

    Returns
    -------
    float
        1 where there is nothing to test: fewer than two users, or no difference anywhere.
    """
    if len(difference) < 2 or not difference.any():
        return 1.0
    if test == "t-test":
        if np.ptp(difference) == 0:
            return float(difference[0] < 0)
        return float(stats.ttest_1samp(difference, 0.0, alternative="greater").pvalue)
    if test == "permutation":
        return _permuted(difference)
    if test == "wilcoxon":
        return float(stats.wilcoxon(difference, alternative="greater").pvalue)
    raise ValueError(f"{test!r} is not a test")


def _permuted(difference: np.ndarray) -> float:
    """Share of random signs under which the sum is at least as large; the same signs at every call."""
    rng = np.random.default_rng(0)
    observed = difference.sum() - 1e-9 * np.abs(difference).sum()  # equal sums, added in another order, count
    batch = max(1, 10**7 // len(difference))
    reached = 1
    for start in range(0, PERMUTATIONS, batch):
        count = min(batch, PERMUTATIONS - start)
        signs = rng.integers(0, 2, (count, len(difference)), dtype=np.int8) * 2 - 1
        reached += int((signs @ difference >= observed).sum())
    return reached / (PERMUTATIONS + 1)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction (1979): p-values that keep the family-wise error; shape (tests,)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval over users (Student's t); the width is NaN for a single value."""
    n = len(values)
    if n < 2:
        return (float(values.mean()) if n else np.nan), np.nan
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean()), float(half)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample deviation over seeds; no deviation for a single one."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def quantile_bins(values: np.ndarray, bins: int = 5) -> list[tuple[str, np.ndarray]]:
    """Split whole numbers into at most ``bins`` groups of about equal size.

    Returns
    -------
    list of (label, mask)
        Labels such as ``"3-6"``, in rising order; masks have the shape of ``values``.
    """
    upper = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:], method="inverted_cdf"))
    group = np.searchsorted(upper, values)
    result = []
    for number in range(len(upper)):
        mask = group == number
        low, high = int(values[mask].min()), int(values[mask].max())
        result.append((f"{low}" if low == high else f"{low}–{high}", mask))
    return result
