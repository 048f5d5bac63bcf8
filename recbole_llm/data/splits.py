"""Split rows into training, validation and test, and check that the result can be evaluated."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from recbole_llm.data.rows import POSITION, HistoryRows
from recbole_llm.data.times import stable_order
from recbole_llm.errors import DataError

if TYPE_CHECKING:
    from recbole_llm.data.dataset import HistoryDataset


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


def with_shuffled_histories(split: "HistoryDataset", seed: int) -> "HistoryDataset":
    """Return the same rows with the items that are visible in a history in random order; times stay in place."""
    other = copy.copy(split)
    other.histories = split.histories.shuffled(seed)
    other.inter_feat = HistoryRows(split.inter_feat.interaction, other)
    return other


def with_shuffled_training(split: "HistoryDataset", seed: int) -> "HistoryDataset":
    """Return a training split with each user's training items, histories and targets, in random order."""
    other = copy.copy(split)
    keys = torch.rand(len(split.histories), generator=torch.Generator().manual_seed(seed)).numpy()
    position = np.sort(split.train_positions)
    source = np.arange(len(split.histories))
    source[position] = position[np.lexsort((keys[position], split.histories.users.numpy()[position]))]
    other.histories = split.histories.reordered(torch.from_numpy(source), but=(split.uid_field, split.time_field))
    rows = other.histories.take(split.inter_feat[POSITION])
    moved = {field: values for field, values in rows.items() if field in split.inter_feat}
    other.inter_feat = HistoryRows({**split.inter_feat.interaction, **moved}, other)
    return other


def check_evaluated(config: Any, splits: Sequence["HistoryDataset"]) -> list[str]:
    """Check the size of validation and test; return warnings for the user.

    Raises
    ------
    DataError
        If no row is left to test, or to validate where only validation is wanted.
    """
    train, valid, test = splits
    users = int((np.diff(train.offsets) > 0).sum())
    wanted = _phases(config)
    parts = {"valid": valid, "test": test}
    evaluated = {
        phase: np.count_nonzero(np.bincount(parts[phase].inter_feat[train.uid_field].numpy())) for phase in wanted
    }
    last = "test" if "test" in wanted else "valid"
    longest = int(np.diff(train.offsets).max())
    rule, split = "", f"eval_args.split={config['eval_args']['split']!r}"
    if config["benchmark_filename"] is not None:
        split = f"benchmark_filename={config['benchmark_filename']!r}"
    if "LS" in config["eval_args"]["split"] and config["benchmark_filename"] is None:
        rule = " (leave-one-out tests users of 3 interactions or more, and validates those of 4 or more)"
        if len(wanted) == 1:
            rule = " (leave-one-out needs users with 3 interactions or more)"
    if evaluated[last] == 0:
        raise DataError(
            f"Nothing to evaluate: of {users:,} users of {train.dataset_name!r}, the longest with {longest} "
            f"interactions, none has a {'test' if last == 'test' else 'validation'} item{rule}. Use more data, looser "
            f"filters, or another split than {split}."
        )
    if config["protocol"] == "temporal_session" or config["benchmark_filename"] is not None:
        return []
    texts = []
    if evaluated.get("valid") == 0:
        texts.append(
            f"No user has a validation item{rule}"
            + (
                ": there is no early stopping, and the weights of the last epoch are tested."
                if config["epochs"]
                else "."
            )
        )
    names = {"test": "tested", "valid": "validated"}
    counts = [f"{evaluated[phase]:,} {names[phase]}" for phase in wanted[::-1] if evaluated[phase] < users]
    if counts:
        texts.append(f"Of {users:,} users, {' and '.join(counts)}{rule}.")
    return texts


def _phases(config: Any) -> list[str]:
    """Return the phases for which a split must leave rows."""
    if config["benchmark_filename"] is not None:
        return ["valid", "test"] if len(config["benchmark_filename"]) == 3 else ["test"]
    (kind, how), *_ = config["eval_args"]["split"].items()
    if kind == "temporal_session":
        return ["valid", "test"] if config["temporal_session_valid_ratio"] > 0 else ["test"]
    if kind == "LS":
        return {"valid_and_test": ["valid", "test"], "valid_only": ["valid"], "test_only": ["test"]}[how]
    return [phase for phase, share in zip(("valid", "test"), how[1:], strict=False) if share > 0] or ["test"]
