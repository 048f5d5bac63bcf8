"""Interactions as histories: each user's sequence stored once, list fields built per batch.

RecBole copies every prefix of every user into a dense ``(rows, MAX_ITEM_LIST_LENGTH)`` table per field. Here a row
is a position in one flat, sorted array; ``item_id_list`` and its siblings are gathered for the rows of a batch only.
Field names, dtypes, padding side and values are RecBole's.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import recbole.data.dataset
import torch
from recbole.data.interaction import Interaction

from recbole_llm import distributed
from recbole_llm.config import Config
from recbole_llm.data import stored
from recbole_llm.data.cold import ColdItems, check_left, draw_cold_items, without_cold
from recbole_llm.data.evaluable import check_evaluated
from recbole_llm.data.ready_made import lay_out
from recbole_llm.data.row_dataset import RowDataset
from recbole_llm.data.rows import POSITION, HistoryRows, take
from recbole_llm.data.sessions import TEST, TRAIN, VALID, SessionSplit, refuse_ranks, split_as_configured
from recbole_llm.data.splits import leave_one_out
from recbole_llm.data.times import examine_times, history_order
from recbole_llm.errors import ConfigError, DataError


class HistoryDataset(RowDataset):
    """RecBole's ``SequentialDataset`` with one flat array per field instead of a table of prefixes.

    Rows are the prefixes ``(u_1 .. u_{t-1}) -> u_t`` of RecBole's augmentation, in its order, and splitting is
    RecBole's. Every stock sequential model runs on it unchanged.

    Parameters
    ----------
    config : recbole_llm.config.Config

    Attributes
    ----------
    histories : Histories
        All interactions sorted by user and time; :attr:`flat` and :attr:`offsets` are its columns and offsets.
    read_histories : tuple of numpy.ndarray
        Item of every interaction read, user by user and oldest first, and offsets as :attr:`offsets`, before a
        protocol removes any.
    catalogue_size : int
        Distinct items with an interaction, before a split removes any.
    cold : ColdItems, optional
        Items held out of training. The splits' own :attr:`flat` and :attr:`offsets` lack their interactions.
    sessions : SessionSplit, optional
        Under ``protocol: temporal_session``, which user is in which part; :attr:`flat` then lacks what it removed.

    Raises
    ------
    DataError
        For a missing or damaged file, a missing field, a time that is missing or of the wrong kind, or filters that
        leave nothing.
    """

    catalogue_size: int
    sessions: SessionSplit | None = None
    cold: ColdItems | None = None
    read_histories: tuple[np.ndarray, np.ndarray]
    _entry: Path | None = None  # of the cache of prepared data
    row_parts: np.ndarray  # of files split beforehand: which part each row belongs to

    def __init__(self, config: Config) -> None:
        if hasattr(recbole.data.dataset, f"{config['model']}Dataset"):
            raise ConfigError(
                f"model={config['model']!r} reads data that RecBole prepares in its {config['model']}Dataset "
                "(knowledge graphs, negative histories), which recbole-llm does not have. Run it with RecBole itself."
            )
        super().__init__(config)

    # ---- histories

    def _from_scratch(self) -> None:
        # The others of a machine find what its first process downloads and stores.
        with distributed.main_of_machine_first():
            if type(self) is HistoryDataset:
                self._entry = stored.prepare(self, super()._from_scratch)
            else:
                super()._from_scratch()

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        super()._load_inter_feat(token, dataset_path)
        if self.config["protocol"] == "temporal_session" and not self.config["allow_rank_times"]:
            users = pd.factorize(self.inter_feat[self.uid_field])[0]
            times = self.inter_feat[self.time_field].to_numpy()
            refuse_ranks(users, times, f"in {self.source_files[0]}", self.time_field)

    def _change_feat_format(self) -> None:
        """Convert DataFrames to tensors, sort the histories and define the rows, without building their lists."""
        if hasattr(self, "histories"):
            return
        if self.parts is not None:
            self.row_parts = lay_out(self, self.parts)
            self.read_histories = self.histories.items.numpy(), self.offsets
            self.catalogue_size = int((self.histories.item_counts > 0).sum())
            return
        kind = str(self.config["time_order"])
        columns, times, notices = stored.histories(self._entry, kind, self.config, self._sorted)
        for name in self.feat_name_list:
            if name != "inter_feat":
                setattr(self, name, self._dataframe_to_interaction(getattr(self, name)))
        self.inter_feat, self._exact_time = Interaction(columns), None
        self._aug_presets()
        self._notice(notices)
        self._set_histories(columns)
        times = self._settled(times)
        if self.config["shuffle_ties"]:
            users = self.histories.users.numpy()
            new = (np.diff(users, prepend=-1) != 0) | (np.diff(times, prepend=-np.inf) != 0)
            self.histories.moments = torch.from_numpy(np.cumsum(new))
        self.read_histories = self.histories.items.numpy(), self.offsets
        self.catalogue_size = int((self.histories.item_counts > 0).sum())
        if self.config["protocol"] == "temporal_session" and not self.config["final_fit"]:
            self._split_sessions(times)
        if np.diff(self.offsets).max(initial=0) < 2:
            raise DataError(f"No user of {self.dataset_name!r} has two interactions: there is nothing to predict.")
        self.inter_feat = self._all_rows

    def _all_rows(self) -> HistoryRows:
        return self._rows_at(self._row_positions)

    @property
    def _row_positions(self) -> np.ndarray:
        """Positions of all interactions but the first of each history."""
        return np.flatnonzero(self.histories.depths > 0)

    def with_rows_of(self, split: Callable[[], "HistoryDataset"]) -> "HistoryDataset":
        """Return this dataset with the rows that ``split`` makes, as soon as somebody asks for them."""
        self._change_feat_format()
        other: HistoryDataset = self.copy(lambda: split().inter_feat)
        return other

    def _sorted(self) -> stored.Sorted:
        """Interactions in order of user and time, exact times in that order, and notices about them."""
        self.inter_feat = self._dataframe_to_interaction(self.inter_feat)
        users, times = self.inter_feat[self.uid_field].numpy(), self._order_times()
        order = history_order(users, times)
        self._exact_time = None
        times = times[order]
        notices = examine_times(users[order], times).notices(self.time_field)
        unsorted, index = self.inter_feat.interaction, torch.from_numpy(order)
        del users  # a column makes room for the next
        return {field: unsorted.pop(field).index_select(0, index) for field in list(unsorted)}, times, notices

    def _settled(self, times: np.ndarray) -> np.ndarray:
        """Change :attr:`histories` after sorting (a hook); takes and returns the time of each interaction."""
        return times

    def _split_sessions(self, times: np.ndarray) -> None:
        """Assign users to parts and remove what no model could know."""
        self.sessions = split_as_configured(
            self.config, self.histories.items.numpy(), times, self.offsets, self.dataset_name
        )
        counts = self.sessions.counts
        self.logger.info("Temporal session split: " + ", ".join(f"{k} {n:,}" for k, n in counts.items()))
        self.histories = self.histories.kept(self.sessions.kept)

    def build(self) -> list["HistoryDataset"]:
        """Training, validation and test split, as ``protocol``, ``eval_args`` and ``cold_items`` say."""
        if self.config["final_fit"]:
            return self._all_in_training()
        splits = self._split()
        self.cold = draw_cold_items(self.config, self.histories.item_counts)
        if self.cold is not None:
            self._leave_out_cold(splits)
        self._notice(check_evaluated(self.config, splits))
        return splits

    def _all_in_training(self) -> list["HistoryDataset"]:
        """Return every row as training, and two empty splits."""
        self._change_feat_format()
        self.sort(self.time_field)
        self._drop_unused_col()
        rows = torch.arange(len(self.inter_feat))
        return [self.copy(take(self.inter_feat, part)) for part in (rows, rows[:0], rows[:0])]

    def _leave_out_cold(self, splits: list["HistoryDataset"]) -> None:
        assert self.cold is not None
        for number, (name, split) in enumerate(zip(("training", "validation", "test"), splits, strict=True)):
            split.cold = self.cold
            if number == 0 or not self.cold.in_history:
                splits[number] = without_cold(split, self.cold, name)
        check_left(len(splits[0]), self.cold, self.dataset_name)
        self.logger.info(self.cold.describe())

    def _split(self) -> list["HistoryDataset"]:
        by_count = self.config["eval_args"]["split"].get("LS")
        if self.config["protocol"] != "temporal_session" and self.parts is None and by_count is None:
            return super().build()  # in order of time
        self._change_feat_format()
        if self.parts is not None:
            rows = [np.flatnonzero(self.row_parts == part) for part in range(3)]
        elif self.sessions is not None:
            self.sort(self.time_field)
            rows = self._rows_of_sessions(self.sessions)
        else:
            return self._left_out(by_count)
        self._drop_unused_col()
        return [self.copy(take(self.inter_feat, torch.from_numpy(index))) for index in rows]

    def _left_out(self, mode: str) -> list["HistoryDataset"]:
        """Return splits by leave-one-out, whose rows are made when somebody asks for them."""
        position = self._row_positions
        users, times = self.histories.users.numpy(), self._sort_key(self.histories.columns, self.time_field)
        parts = [position[index] for index in leave_one_out(users[position], times[position], mode)]
        if self.config["unused_col"]:
            self._drop_unused_col()
        return [self.copy(partial(self._rows_at, part)) for part in parts]

    def _rows_of_sessions(self, sessions: SessionSplit) -> list[np.ndarray]:
        user, position = self.inter_feat[self.uid_field].numpy(), self.inter_feat[POSITION].numpy()
        part, last = sessions.part[user], position == self.offsets[user + 1] - 1
        chosen = [part == TRAIN, (part == VALID) & last, (part == TEST) & last]
        return [np.flatnonzero(each) for each in chosen]

    @property
    def all_counts(self) -> np.ndarray:
        """Interactions of each item in training, validation and test, shape (item_num,)."""
        counts = self.histories.item_counts
        return counts if self.cold is None else np.where(self.cold.mask, self.cold.item_counts, counts)
