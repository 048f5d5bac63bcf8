"""Datasets that were split beforehand: ``benchmark_filename``, with or without ready-made lists of items.

A file with a field ``item_id_list`` has one example per line: the user's history, and the target. Other files have one
interaction per line; those of a later file come after those of an earlier one, whatever their times. The whole history
of an example is what all files say of its user up to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils.enum_type import FeatureSource

from recbole_llm.config import Config
from recbole_llm.data.filters import parse_intervals
from recbole_llm.errors import ConfigError, DataError

TRAIN, VALID, TEST = range(3)


def parts_of(config: Config) -> dict[str, int]:
    """Names in ``benchmark_filename`` -> the part that each file is.

    Raises
    ------
    ConfigError
        Unless there are two or three names, or with a protocol that makes its own split.
    """
    names = config["benchmark_filename"]
    if len(names) not in (2, 3) or len(set(names)) != len(names):
        raise ConfigError(
            f"benchmark_filename={names!r} must name the files of training, validation and test, such as "
            "[train, valid, test], or of training and test."
        )
    if config["protocol"] == "temporal_session":
        raise ConfigError("protocol=temporal_session makes its own split: leave out benchmark_filename.")
    return dict(zip(names, (TRAIN, VALID, TEST) if len(names) == 3 else (TRAIN, TEST), strict=True))


def read(dataset: Any, folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Interactions of all files, and the part that each belongs to, shape (lines,).

    Raises
    ------
    DataError
        For a file that is missing, or has other fields than the first, or a line without a user or an item.
    """
    frames: list[pd.DataFrame] = []
    parts: list[np.ndarray] = []
    for name, part in parts_of(dataset.config).items():
        path = folder / f"{dataset.dataset_name}.{name}.inter"
        if not path.is_file():
            found = ", ".join(sorted(file.name for file in folder.glob("*.inter"))) or "no .inter file"
            raise DataError(f"benchmark_filename names {name!r}, but there is no file {str(path)!r} (found: {found}).")
        frame = dataset._load_feat(str(path), FeatureSource.INTERACTION)
        if frames and set(frame) != set(frames[0]):
            fields, first = (", ".join(map(str, other)) for other in (frame, frames[0]))
            raise DataError(
                f"{path} has the fields {fields}, but the first file has {first}: all files of benchmark_filename "
                "need the same ones."
            )
        for field in (dataset.uid_field, dataset.iid_field):
            if frame[field].isna().any():
                raise DataError(f"{path}: {int(frame[field].isna().sum())} lines have no {field}.")
        frames.append(frame)
        parts.append(np.full(len(frame), part))
    columns = {field: _joined([frame[field] for frame in frames]) for field in frames[0]}
    return pd.DataFrame(columns, copy=False), np.concatenate(parts)


def _joined(columns: list[pd.Series]) -> Any:
    if columns[0].dtype == "category":
        return pd.api.types.union_categoricals(columns)
    return np.concatenate([column.to_numpy() for column in columns])


def ignored_filters(config: Config) -> list[str]:
    """List the filters that are set but have no effect on files split beforehand, as in RecBole."""
    keys = [key for key in ("val_interval", "rm_dup_inter") if config[key]]
    for key in ("user_inter_num_interval", "item_inter_num_interval"):
        if any(low > 1 or high < np.inf for _, low, high, _ in parse_intervals(key, config[key]) or ()):
            keys.append(key)
    return keys


@dataclass(frozen=True)
class Chained:
    """Examples of users joined into sequences.

    Attributes
    ----------
    users, items, starts : numpy.ndarray of int64, shape (interactions,)
        Sorted by user; ``starts`` says where the sequence of each interaction begins.
    position, length : numpy.ndarray of int64, shape (examples,)
        Position of the target of each example, and length of its list.
    """

    users: np.ndarray
    items: np.ndarray
    starts: np.ndarray
    position: np.ndarray
    length: np.ndarray


def chain(users: np.ndarray, lists: Sequence[np.ndarray], targets: np.ndarray, parts: np.ndarray) -> Chained:
    """Join examples of one user where one continues the other, that is, its list ends with the same items.

    Parameters
    ----------
    users, targets, parts : numpy.ndarray of int, shape (examples,)
    lists : sequence of numpy.ndarray of int
        Items before each target, oldest first; not empty.

    Examples
    --------
    >>> chained = chain(np.array([1, 1]), [np.array([5]), np.array([5, 6])], np.array([6, 7]), np.array([0, 1]))
    >>> chained.items.tolist(), chained.position.tolist()
    ([5, 6, 7], [1, 2])
    """
    length = np.array([len(part) for part in lists], dtype=np.int64)
    position = np.zeros(len(lists), dtype=np.int64)
    items: list[int] = []
    owners: list[int] = []
    starts: list[int] = []
    user, start = -1, 0
    for row in np.lexsort((length, parts, users)).tolist():
        history, target = lists[row].tolist(), int(targets[row])
        if users[row] != user:
            user, start = int(users[row]), len(items)
        size = len(history)
        if items[start : start + size + 1] == [*history, target]:
            position[row] = start + size  # a prefix of what is there
            continue
        if len(items) - start < size or items[len(items) - size :] != history:
            start = len(items)
            items += history
        items.append(target)
        position[row] = len(items) - 1
        owners += [user] * (len(items) - len(owners))
        starts += [start] * (len(items) - len(starts))
    columns = [np.array(part, dtype=np.int64) for part in (owners, items, starts)]
    return Chained(columns[0], columns[1], columns[2], position, length)
