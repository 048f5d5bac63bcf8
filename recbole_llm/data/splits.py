"""Split rows into training, validation and test."""

import numpy as np
import pandas as pd

from recbole_llm.data.times import stable_order


def grouped(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers group by group, in order of first appearance, and the size of each group."""
    codes, unique = pd.factorize(keys)
    return stable_order(codes), np.bincount(codes, minlength=len(unique))


def leave_one_out(users: np.ndarray, mode: str) -> list[np.ndarray]:
    """Rows of training, validation and test: the last ones of every user, of whom one always trains.

    Parameters
    ----------
    users : numpy.ndarray, shape (rows,)
        In order of time.
    mode : {'valid_and_test', 'valid_only', 'test_only'}
    """
    order, counts = grouped(users)
    from_end = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(order))
    left_out = np.repeat(np.minimum(2 if mode == "valid_and_test" else 1, counts - 1), counts)
    none = np.array([], dtype=np.int64)
    train, last = order[from_end >= left_out], order[(from_end == 0) & (left_out > 0)]
    if mode == "valid_and_test":
        return [train, order[(from_end == 1) & (left_out > 1)], last]
    return [train, last, none] if mode == "valid_only" else [train, none, last]
