"""Rows of a dataset: positions in its histories, whose lists are built on demand."""

from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils.enum_type import FeatureType
from torch.nn.utils.rnn import pad_sequence

from recbole_llm.errors import DataError

# Column of `inter_feat` that says where in the flat array a row's target stands. It travels with the rows through
# RecBole's sorting, splitting and copying, and never reaches a model.
POSITION = "history_position"
# Prefix of the list fields that the `sequence` view adds: the next item at every position.
NEXT = "next_"


class HasLists(Protocol):
    """A dataset that builds list fields on demand."""

    list_fields: list[str]
    item_list_length_field: str

    def gather_lists(self, position: torch.Tensor, length: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the list fields of the ``length`` interactions before ``position``."""
        ...


def take(interaction: Interaction, index: Any) -> Interaction:
    """Rows ``index`` of an interaction (RecBole's own indexing turns tensors into Python lists first)."""
    if isinstance(index, torch.Tensor) and index.ndim == 1 and index.dtype == torch.int64:
        # Takes a third of the time of values[index].
        columns = {field: values.index_select(0, index) for field, values in interaction.interaction.items()}
    else:
        columns = {field: values[index] for field, values in interaction.interaction.items()}
    return HistoryRows(columns, interaction.dataset) if isinstance(interaction, HistoryRows) else Interaction(columns)


def as_tensor(column: pd.Series, ftype: FeatureType, width: int | None) -> torch.Tensor:
    """Return a column of ids (int64), numbers (float32), or sequences of them: (rows, width), right padded with 0.

    Raises
    ------
    DataError
        For a number that float32 cannot hold.
    """
    if ftype == FeatureType.TOKEN:
        return torch.from_numpy(column.to_numpy(np.int64, copy=True))
    if ftype == FeatureType.FLOAT:
        values = column.to_numpy(np.float64)
        if max(values.max(initial=0), -values.min(initial=0)) > np.finfo(np.float32).max:
            raise DataError(f"{column.name!r} has numbers beyond 3.4e38, which 32 bits cannot hold: scale them.")
        return torch.from_numpy(values.astype(np.float32))
    dtype = np.int64 if ftype == FeatureType.TOKEN_SEQ else np.float32
    return pad_sequence([torch.from_numpy(np.array(row[:width], dtype=dtype)) for row in column], batch_first=True)


class HistoryRows(Interaction):  # type: ignore[misc]
    """Rows of a dataset; a list field is made when it is indexed, as FEARec does row by row."""

    def __init__(self, columns: dict[str, torch.Tensor], dataset: HasLists) -> None:
        super().__init__(columns)
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str) and index not in self.interaction and index in self.dataset.list_fields:
            return ListColumn(self, index)
        return super().__getitem__(index)


class ListColumn:
    """A list field of all rows, gathered on demand for the indexed rows."""

    def __init__(self, rows: HistoryRows, field: str) -> None:
        self.rows, self.field = rows, field

    def __getitem__(self, index: Any) -> torch.Tensor:
        dataset = self.rows.dataset
        position, length = self.rows[POSITION][index], self.rows[dataset.item_list_length_field][index]
        values = dataset.gather_lists(position.reshape(-1), length.reshape(-1))[self.field]
        return values[0] if position.ndim == 0 else values
