"""Splits with histories in random order: what the order is worth, and orders that mean nothing."""

import copy
from typing import TypeVar

import numpy as np
import torch

from recbole_llm.data.row_dataset import RowDataset
from recbole_llm.data.rows import POSITION, HistoryRows
from recbole_llm.errors import DataError

RowDatasetT = TypeVar("RowDatasetT", bound=RowDataset)


def with_shuffled_histories(split: RowDatasetT, seed: int) -> RowDatasetT:
    """Return the same rows with the items that are visible in a history in random order; times stay in place."""
    other = copy.copy(split)
    other.histories = split.histories.shuffled(seed)
    other.inter_feat = HistoryRows(split.inter_feat.interaction, other)
    return other


def with_shuffled_training(split: RowDatasetT, seed: int) -> RowDatasetT:
    """Return a training split with each user's training items, histories and targets, in random order."""
    return _shuffled_within(split, split.histories.users, torch.Generator().manual_seed(seed))


def with_shuffled_ties(split: RowDatasetT, generator: torch.Generator) -> RowDatasetT:
    """Return a training split in which training items of one user and time are in random order.

    Raises
    ------
    DataError
        If the split has no times.
    """
    moments = split.histories.moments
    if moments is None:
        raise DataError(
            f"shuffle_ties=True needs times, and the files of {split.dataset_name!r} were split beforehand. Use "
            "shuffle_ties=False."
        )
    return _shuffled_within(split, moments, generator)


def _shuffled_within(split: RowDatasetT, groups: torch.Tensor, generator: torch.Generator) -> RowDatasetT:
    """Put the training items of each group, neighbours of one user, in random order."""
    other = copy.copy(split)
    keys = torch.rand(len(split.histories), generator=generator).numpy()
    position = np.sort(split.train_positions)
    source = np.arange(len(split.histories))
    source[position] = position[np.lexsort((keys[position], groups.numpy()[position]))]
    other.histories = split.histories.reordered(torch.from_numpy(source), but=(split.uid_field, split.time_field))
    rows = other.histories.take(split.inter_feat[POSITION])
    moved = {field: values for field, values in rows.items() if field in split.inter_feat}
    other.inter_feat = HistoryRows({**split.inter_feat.interaction, **moved}, other)
    return other
