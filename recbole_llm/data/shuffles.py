"""Splits with histories in random order: what the order is worth."""

import copy
from typing import TypeVar

import numpy as np
import torch

from recbole_llm.data.row_dataset import RowDataset
from recbole_llm.data.rows import POSITION, HistoryRows

RowDatasetT = TypeVar("RowDatasetT", bound=RowDataset)


def with_shuffled_histories(split: RowDatasetT, seed: int) -> RowDatasetT:
    """Return the same rows with the items that are visible in a history in random order; times stay in place."""
    other = copy.copy(split)
    other.histories = split.histories.shuffled(seed)
    other.inter_feat = HistoryRows(split.inter_feat.interaction, other)
    return other


def with_shuffled_training(split: RowDatasetT, seed: int) -> RowDatasetT:
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
