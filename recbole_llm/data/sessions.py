"""The temporal session split of Boz et al. (arXiv 2402.01339): later users are tested on what earlier ones did.

A session is everything a user did. Sessions are sorted by their last event; the last of them are tested, with
all items but the last as prompt and the last as target. No user is in two parts, and no test session ends before a
training session. Items unseen in training are removed from test sessions, so a target, the last remaining
item, may be older than the newest training event; ``test_targets_before_newest_training_event`` counts those.
"""

from dataclasses import dataclass

import numpy as np

from recbole_llm.config import Config
from recbole_llm.data.times import are_ranks, history_order
from recbole_llm.errors import DataError

UNUSED, TRAIN, VALID, TEST = range(4)


@dataclass(frozen=True)
class SessionSplit:
    """Which session belongs to which part.

    Attributes
    ----------
    part : numpy.ndarray of int8, shape (users,)
        ``TRAIN``, ``VALID``, ``TEST`` or ``UNUSED``.
    kept : numpy.ndarray of bool, shape (interactions,)
        Interactions to keep: those with an item unseen in training are removed from the other parts.
    counts : dict of str to int
        Sessions, interactions and items of the parts, and what was removed.
    """

    part: np.ndarray
    kept: np.ndarray
    counts: dict[str, int]


def refuse_ranks(users: np.ndarray, times: np.ndarray, where: str, field: str) -> None:
    """Raise DataError if every user's times are ranks; called before a filter leaves gaps in them.

    Parameters
    ----------
    users : numpy.ndarray of int, shape (interactions,)
    times : numpy.ndarray, shape (interactions,)
    where, field : str
        Names of the file and of the time in it.
    """
    order = history_order(users, times)
    starts = np.flatnonzero(np.r_[True, np.diff(users[order]) != 0])
    if are_ranks(times[order], starts):
        raise DataError(
            f"protocol=temporal_session needs times that can be compared between users, but {where} every user's "
            f"{field!r} is a rank (0, 1, 2, ...): the sessions that end last would be the longest ones. Convert the "
            "data with its timestamps (recbole-llm convert), use leave-one-out (protocol=loo), or set "
            "allow_rank_times=True if that is what you want."
        )


def split_sessions(
    items: np.ndarray,
    times: np.ndarray,
    offsets: np.ndarray,
    *,
    test_ratio: float = 0.2,
    valid_ratio: float = 0.1,
    valid_max: int = 500,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 3,
) -> SessionSplit:
    """Divide sessions into training, validation and test.

    The last ``ceil(test_ratio * n)`` sessions are for testing, the others for training. A random share of the latter
    is used for validation instead. Items in no training session are removed from test sessions (validation sessions
    count as training here: the authors hold them out later); items not in the remaining training sessions are removed
    from validation sessions. Sessions with fewer than two items left predict nothing and are dropped. A session of
    one item is never counted.

    Parameters
    ----------
    items, times : numpy.ndarray, shape (interactions,)
        In order of user and time.
    offsets : numpy.ndarray of int, shape (users + 1,)
        User ``u`` owns ``items[offsets[u]:offsets[u + 1]]``.
    test_ratio : float
    valid_ratio : float
        Share of the training sessions used for validation; 0 for none.
    valid_max : int
        Maximum number of validation sessions.
    seed : int
        Seed of the choice of validation sessions.
    fold : int, optional
        For tuning without looking at the test sessions: the training sessions are cut into ``folds + 1`` equal bins in
        time; the first ``fold`` of them train, the next one is tested, the rest and the test sessions are left out.
    folds : int

    Returns
    -------
    SessionSplit
    """
    lengths = np.diff(offsets)
    users = np.repeat(np.arange(len(lengths)), lengths)
    sessions = np.flatnonzero(lengths >= 2)
    # Sessions that end at the same time stay in the order of their first appearance in the file.
    sessions = sessions[np.argsort(times[offsets[sessions + 1] - 1], kind="stable")]
    # Rounded first: 0.2 of 20 sessions is not 5.
    n_test = int(np.ceil(round(test_ratio * len(sessions), 9)))
    train, test = sessions[: len(sessions) - n_test], sessions[len(sessions) - n_test :]
    if fold is not None:
        bins = np.array_split(train, folds + 1)
        train, test = np.concatenate(bins[:fold]), bins[fold]
    n_valid = min(valid_max, max(1, int(valid_ratio * len(train)))) if valid_ratio > 0 and len(train) else 0
    valid = np.random.default_rng(seed).permutation(train)[:n_valid]

    part = np.full(len(lengths), UNUSED, dtype=np.int8)
    part[train], part[valid], part[test] = TRAIN, VALID, TEST
    of = part[users]
    n_items = int(items.max()) + 1 if len(items) else 0
    trained = np.bincount(items[of == TRAIN], minlength=n_items) > 0
    known = trained | (np.bincount(items[of == VALID], minlength=n_items) > 0)
    kept = (of == TRAIN) | ((of == VALID) & trained[items]) | ((of == TEST) & known[items])
    unseen = {kind: int(((of == kind) & ~kept).sum()) for kind in (VALID, TEST)}
    part[np.bincount(users[kept], minlength=len(lengths)) < 2] = UNUSED
    kept &= part[users] != UNUSED

    of = np.where(kept, part[users], UNUSED)
    counts = {}
    for name, kind, drawn in (("train", TRAIN, None), ("valid", VALID, valid), ("test", TEST, test)):
        counts[f"{name}_sessions"] = int((part == kind).sum())
        counts[f"{name}_interactions"] = int((of == kind).sum())
        if drawn is None:
            counts[f"{name}_items"] = int(trained.sum())
        else:
            counts[f"{name}_unseen_interactions_dropped"] = unseen[kind]
            counts[f"{name}_sessions_dropped"] = len(drawn) - counts[f"{name}_sessions"]
    ends = np.zeros(len(lengths), dtype=np.int64)
    np.maximum.at(ends, users[kept], np.flatnonzero(kept))
    newest = times[of == TRAIN].astype(np.float64).max(initial=-np.inf)
    counts["test_targets_before_newest_training_event"] = int((times[ends[part == TEST]] < newest).sum())
    return SessionSplit(part, kept, counts)


def split_as_configured(
    config: Config, items: np.ndarray, times: np.ndarray, offsets: np.ndarray, name: str
) -> SessionSplit:
    """Split the sessions of a dataset as the settings ``temporal_session_*`` say.

    Parameters
    ----------
    config : Config
    items, times, offsets
        As :func:`split_sessions`.
    name : str
        Of the dataset, for messages.

    Raises
    ------
    DataError
        If a part that is wanted has no session.
    """
    keys = ("test_ratio", "valid_ratio", "valid_max", "seed", "fold", "folds")
    split = split_sessions(items, times, offsets, **{key: config[f"temporal_session_{key}"] for key in keys})
    wanted = ["train", "test"] if config["temporal_session_valid_ratio"] == 0 else ["train", "valid", "test"]
    empty = [part for part in wanted if split.counts[f"{part}_sessions"] == 0]
    if empty:
        raise DataError(
            f"protocol=temporal_session leaves no {empty[0]} session of {name!r} ({split.counts}). Use more data, or "
            "change temporal_session_test_ratio or temporal_session_valid_ratio (0: no validation)."
        )
    return split
