"""Filters over tables of interactions, users and items."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from recbole_llm.errors import ConfigError

# Bracket, bounds, bracket: ``[5,inf)``.
Interval = tuple[str, float, float, str]


def parse_intervals(key: str, value: object) -> list[Interval] | None:
    """Parse ``"[0,1];[3,4)"``; None is no filter.

    Raises
    ------
    ConfigError
        If the value of ``key`` is not an interval: RecBole warns and filters nothing.
    """
    if value is None:
        return None
    intervals = []
    for part in str(value).split(";"):
        match = re.fullmatch(r"\s*([(\[])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([)\]])\s*", part)
        try:
            assert match is not None
            low, high = float(match[2]), float(match[3])
            assert low <= high
        except (AssertionError, ValueError):
            raise ConfigError(
                f'{key}={value!r} is not an interval. Write "[5,inf)" for 5 and more, and several as "[0,1];[3,4)".'
            ) from None
        intervals.append((match[1], low, high, match[4]))
    return intervals


def factorize(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return codes in order of first appearance, -1 for missing values, and the distinct values, dtype object.

    A categorical whose categories are in that order already, as a file is read, needs no hashing.

    Examples
    --------
    >>> factorize(pd.Series(["b", "a", "b"], dtype="category"))
    (array([0, 1, 0]), array(['b', 'a'], dtype=object))
    """
    if isinstance(values, pd.Series) and isinstance(values.dtype, pd.CategoricalDtype):
        codes = values.cat.codes.to_numpy()
        highest = np.maximum.accumulate(codes)
        in_order = len(codes) > 0 and highest[0] <= 0 and not np.any(highest[1:] > highest[:-1] + 1)
        if in_order and highest[-1] + 1 == len(values.cat.categories):
            return codes, np.asarray(values.cat.categories, dtype=object)
    codes, unique = pd.factorize(values)
    return codes, np.asarray(unique, dtype=object)


def within(values: np.ndarray, intervals: Sequence[Interval]) -> np.ndarray:
    """Whether each value lies in one of the intervals."""
    values = np.asarray(values)
    inside = np.zeros(values.shape, dtype=bool)
    for left, low, high, right in intervals:
        above = values >= low if left == "[" else values > low
        inside |= above & (values <= high if right == "]" else values < high)
    return inside


def k_core(
    codes: Sequence[np.ndarray], counts: Sequence[int], intervals: Sequence[Sequence[Interval] | None]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Filter on the number of interactions until nothing changes.

    Parameters
    ----------
    codes : two numpy.ndarray of int, shape (interactions,)
        Users and items, counted from 0.
    counts : two int
        Number of users and of items.
    intervals : two lists of intervals, or None
        Allowed numbers of interactions of a user, or an item.

    Returns
    -------
    kept : numpy.ndarray of bool, shape (interactions,)
    allowed : two numpy.ndarray of bool, shape (count,)
        Users and items whose number of interactions is allowed.
    """
    kept = np.ones(len(codes[0]), dtype=bool)
    allowed = [np.ones(count, dtype=bool) for count in counts]
    while True:
        before = kept.sum()
        for side, interval in enumerate(intervals):
            if interval:
                allowed[side] &= within(np.bincount(codes[side][kept], minlength=counts[side]), interval)
        for side in range(len(codes)):
            kept &= allowed[side][codes[side]]
        if kept.sum() == before:
            return kept, allowed


def without_repeated_pairs(
    frame: pd.DataFrame, pair: Sequence[str], time: str, keep: Literal["first", "last"]
) -> pd.DataFrame:
    """Keep the ``first`` or the ``last`` interaction of each user and item; equal times keep their order."""
    order = frame.sort_values(by=[time], kind="stable") if time in frame else frame
    return order.drop_duplicates(subset=list(pair), keep=keep).sort_index()


def first_users(frame: pd.DataFrame, user: str, users: int, interactions: int) -> pd.DataFrame:
    """Return the first interactions of the first users of a table."""
    few = frame[frame[user].isin(pd.unique(frame[user])[:users])]
    number = few.groupby(user, observed=True).cumcount()
    return few[number < interactions].reset_index(drop=True)
