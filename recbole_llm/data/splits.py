"""Split rows into training, validation and test."""

import numpy as np
import pandas as pd

from recbole_llm.data.times import stable_order


def grouped(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers group by group, in order of first appearance, and the size of each group."""
    codes, unique = pd.factorize(keys)
    return stable_order(codes), np.bincount(codes, minlength=len(unique))


def leave_one_out(users: np.ndarray, times: np.ndarray, mode: str) -> list[np.ndarray]:
    """Rows of training, validation and test: the last ones of every user, of whom one always trains.

    RecBole sorts all rows by time and then groups them by user. Rows that stand user by user need neither: users are
    ordered by their first row, which gives the same rows in the same order.

    Parameters
    ----------
    users, times : numpy.ndarray, shape (rows,)
        In order of user, then time.
    mode : {'valid_and_test', 'valid_only', 'test_only'}

    Returns
    -------
    three numpy.ndarray of int64
        Users in order of their first time, equal times in order of user; the rows of a user in order.

    Examples
    --------
    >>> leave_one_out(np.array([1, 1, 1, 2, 2]), np.array([5, 6, 7, 3, 4]), "test_only")
    [array([3, 0, 1]), array([], dtype=int64), array([4, 2])]
    """
    starts = np.flatnonzero(np.diff(users, prepend=users[:1] - 1))
    counts = np.diff(np.append(starts, len(users)))
    order = stable_order(times[starts])
    starts, counts = starts[order], counts[order]
    left_out = np.minimum(2 if mode == "valid_and_test" else 1, counts - 1)
    trained = counts - left_out
    ends = starts + counts
    train = np.arange(trained.sum()) + np.repeat(starts - np.cumsum(trained) + trained, trained)
    last, none = ends[left_out > 0] - 1, np.array([], dtype=np.int64)
    if mode == "valid_and_test":
        return [train, ends[left_out > 1] - 2, last]
    return [train, last, none] if mode == "valid_only" else [train, none, last]
