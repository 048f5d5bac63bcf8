"""Cold items: a random share of the catalogue that no training interaction has, but evaluation targets may.

A cold item represents one that nobody has interacted with yet. Its interactions are removed from training, both
histories and targets, and by default from the evaluated histories: it appears only as a target. It stays in the
catalogue, where every model may recommend it, learns to score it low (as a class of the softmax, or a sampled
negative) and has its text. The draw depends on ``cold_items``, ``cold_items_seed`` and the items alone, so that all
models and all seeds of training see the same cold items.
"""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from recbole_llm.config import Config
from recbole_llm.data.row_dataset import RowDataset
from recbole_llm.data.rows import POSITION, HistoryRows, take
from recbole_llm.errors import ConfigError, DataError

RowDatasetT = TypeVar("RowDatasetT", bound=RowDataset)


@dataclass(frozen=True)
class ColdItems:
    """Which items are cold.

    Attributes
    ----------
    mask : numpy.ndarray of bool, shape (item_num,)
    item_counts : numpy.ndarray of int, shape (item_num,)
        Interactions of each item before any were removed.
    share, seed, in_history : the settings ``cold_items``, ``cold_items_seed``, ``cold_items_in_history``.
    counts : effect of the removal: interactions removed from training, and rows of each part that lost their whole
        history and were dropped.
    """

    mask: np.ndarray
    item_counts: np.ndarray
    share: float
    seed: int
    in_history: bool
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def items(self) -> torch.Tensor:
        """Internal ids of the cold items, ascending."""
        return torch.from_numpy(np.flatnonzero(self.mask))

    def describe(self) -> str:
        """One line for the log."""
        counts = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in self.counts.items())
        return f"Cold items: {int(self.mask.sum()):,} of {len(self.mask) - 1:,} items held out of training ({counts})"


def draw_cold_items(config: Config, item_counts: np.ndarray) -> ColdItems | None:
    """Draw cold items uniformly among those with an interaction; None if ``cold_items`` is 0.

    Parameters
    ----------
    config : Config
    item_counts : numpy.ndarray, shape (item_num,)
        Interactions of each item in the whole dataset.

    Raises
    ------
    ConfigError
        If ``cold_items`` is not a share, or so small or large that no item would be cold, or warm.
    """
    share = float(config["cold_items"] or 0)
    if share == 0:
        return None
    present = np.flatnonzero(item_counts)
    count = round(share * len(present))
    if not 0 < share < 1 or not 0 < count < len(present):
        raise ConfigError(
            f"cold_items={config['cold_items']!r} must be a share between 0 and 1 that is at least one of the "
            f"{len(present)} items and not all of them (0: no cold items)."
        )
    seed = int(config["cold_items_seed"])
    mask = np.zeros(len(item_counts), dtype=bool)
    mask[np.random.default_rng(seed).choice(present, count, replace=False)] = True
    return ColdItems(mask, item_counts, share, seed, bool(config["cold_items_in_history"]))


def check_left(training_rows: int, cold: ColdItems, dataset: str) -> None:
    """Raise DataError if no training row is left."""
    if training_rows == 0:
        raise DataError(
            f"cold_items={cold.share} leaves no training row of {dataset!r}: hold out fewer items, or use more data."
        )


def without_cold(split: RowDatasetT, cold: ColdItems, name: str) -> RowDatasetT:
    """Remove cold items from the histories of a split and, in training, from its targets.

    Rows left without a history are dropped and counted under ``name`` in ``cold``.
    """
    training = name == "training"
    warm = ~cold.mask[split.histories.items.numpy()]
    # How many warm interactions stand before each position: where that position is in the new array.
    before = np.concatenate([[0], np.cumsum(warm)])
    position = split.inter_feat[POSITION].numpy()
    first = before[split.offsets][split.inter_feat[split.uid_field].numpy()]
    depth = before[position] - first
    kept = depth > 0
    wanted = warm[position] if training else np.ones(len(position), dtype=bool)
    if training:
        # What training reads is the rows' targets and the first item of a user.
        removed = ~warm[position]
        removed_first = ~warm[position - 1] & (
            position - 1 == split.offsets[split.inter_feat[split.uid_field].numpy()]
        )
        cold.counts["training_interactions_removed"] = int(removed.sum() + removed_first.sum())
    cold.counts[f"{name}_rows_without_history"] = int((wanted & ~kept).sum())
    index = np.flatnonzero(kept & wanted)
    columns = take(split.inter_feat, torch.from_numpy(index)).interaction
    columns[POSITION] = torch.from_numpy(before[position][index])
    columns[split.item_list_length_field] = torch.from_numpy(np.minimum(depth[index], split.max_item_list_len))
    other = split.copy(None)
    other.histories = split.histories.kept(warm)
    other.inter_feat = HistoryRows(columns, other)
    return other
