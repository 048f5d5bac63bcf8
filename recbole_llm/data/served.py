"""The dataset of a finished run, read again from files that may have changed since."""

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from recbole.utils.enum_type import FeatureType

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.filters import parse_intervals, within
from recbole_llm.data.histories import Histories
from recbole_llm.data.rows import take
from recbole_llm.data.trained import TrainedData
from recbole_llm.errors import CheckpointError


class ServedDataset(HistoryDataset):
    """Dataset with the ids, interactions and splits of a run, whatever else the files contain.

    Rows may be in another order, and there may be new ones. Items unknown to the run are dropped.

    Parameters
    ----------
    config : Config
        Of the run.
    trained : TrainedData
        What the run was trained on.

    Attributes
    ----------
    grown : HistoryDataset
        The same ids with all interactions now in the files, and new users after those of the run.

    Raises
    ------
    CheckpointError
        If interactions of the run are gone, or their order in time has changed.
    """

    grown: HistoryDataset

    def __init__(self, config: Config, trained: TrainedData) -> None:
        self.trained = trained
        self._unsettled: tuple[Histories, np.ndarray, np.ndarray] | None = None
        super().__init__(config)

    # ---- reading

    def _cut(self) -> None:
        """Drop items unknown to the run and, for a smoke run, what it had dropped."""
        trained, items = self.trained, self.inter_feat[self.iid_field]
        known = items.isin(trained.tokens[self.iid_field][1:])
        if not known.any():
            raise CheckpointError(
                f"{self.source_files[0]} has none of the {len(trained.tokens[self.iid_field]) - 1} items that the run "
                "was trained on: it is another dataset. Point data_path at the files of the run."
            )
        unknown = ~known & items.notna()
        if unknown.any() and not self.config["smoke"]:
            self.logger.warning(
                f"{int(unknown.sum())} interactions with {items[unknown].nunique()} items that the run does not know "
                "are left out."
            )
        if self.config["smoke"]:
            is_new = self.inter_feat[self.time_field] > trained.newest
            known &= self.inter_feat[self.uid_field].isin(trained.tokens[self.uid_field][1:]) | is_new
        self.inter_feat = self.inter_feat[known].reset_index(drop=True)
        if self.item_feat is not None:
            rows = self.item_feat[self.iid_field].isin(trained.tokens[self.iid_field][1:])
            self.item_feat = self.item_feat[rows].reset_index(drop=True)

    def _filter_by_inter_num(self) -> None:
        """Keep all known items; require enough interactions with them of new users."""
        intervals = parse_intervals("user_inter_num_interval", self.config["user_inter_num_interval"])
        if intervals:
            users = self.inter_feat[self.uid_field]
            codes, unique = pd.factorize(users)
            enough = within(np.bincount(codes, minlength=len(unique)), intervals)
            kept = enough[codes] | users.isin(self.trained.tokens[self.uid_field][1:]).to_numpy()
            self.inter_feat = self.inter_feat[kept]

    def _remap(self, remap_list: Sequence[tuple[pd.DataFrame, str, FeatureType]]) -> None:
        """Return the run's internal ids, with new users after its own; any other unknown value becomes 0."""
        for feat, field, ftype in remap_list:
            if field not in self.trained.tokens:
                raise CheckpointError(f"The run was trained without the field {field!r}, which load_col now reads.")
            known = self.field2id_token.get(field, self.trained.tokens[field])
            values = feat[field] if ftype == FeatureType.TOKEN else np.concatenate([[], *feat[field]])
            ids, tokens = self.trained.numbers(known, values, grow=field == self.uid_field)
            if ftype == FeatureType.TOKEN:
                feat[field] = ids
            else:
                ends = np.cumsum([len(part) for part in feat[field]])[:-1]
                feat[field] = pd.Series(np.split(ids, ends), index=feat.index, dtype=object)
            self._set_tokens(field, tokens)

    def _set_tokens(self, field: str, tokens: np.ndarray) -> None:
        self.field2id_token[field] = np.asarray(tokens, dtype=str)
        self.field2token_id[field] = {token: index for index, token in enumerate(tokens.tolist())}

    # ---- histories

    def _settled(self, times: np.ndarray) -> np.ndarray:
        """Restore the interactions of the run in its order."""
        trained = self.trained
        places = trained.places(self.histories.users.numpy(), self.histories.items.numpy())
        self._check_complete(places)
        known = np.flatnonzero(places >= 0)
        order = known[np.argsort(places[known])]
        self._check_order(times[order])
        self._unsettled = self.histories, places, times
        self.grown = copy.copy(self)
        for name in ("field2id_token", "field2token_id"):
            setattr(self.grown, name, dict(getattr(self, name)))
        users = len(trained.lengths)
        self._set_tokens(self.uid_field, self.field2id_token[self.uid_field][:users])
        if self.user_feat is not None:
            self.user_feat = take(self.user_feat, torch.arange(users))
        self._set_histories(self.histories.take(torch.from_numpy(order)))
        return times[order]

    def _check_complete(self, places: np.ndarray) -> None:
        trained = self.trained
        missing = np.setdiff1d(np.arange(len(trained.items)), places)
        if len(missing) == 0:
            return
        user = np.searchsorted(np.cumsum(trained.lengths), missing[0], side="right")
        names = [
            f"{field} {trained.tokens[field][number]!r}"
            for field, number in ((self.uid_field, user), (self.iid_field, trained.items[missing[0]]))
        ]
        raise CheckpointError(
            f"{len(missing)} of the {len(trained.items)} interactions that the run was trained on are no longer in "
            f"{self.source_files[0]} (the first: {', '.join(names)}). Rows may be added or reordered, but those of "
            "the run are needed: point data_path at files that have them."
        )

    def _check_order(self, times: np.ndarray) -> None:
        lengths = self.trained.lengths
        owners = np.repeat(np.arange(len(lengths)), lengths)
        backwards = np.flatnonzero((np.diff(times) < 0) & (np.diff(owners) == 0))
        if len(backwards):
            user = self.trained.tokens[self.uid_field][owners[backwards[0]]]
            raise CheckpointError(
                f"In {self.source_files[0]}, the interactions of {self.uid_field} {user!r} have other times than when "
                "the run was trained: their order would change. Point data_path at files with the times of the run."
            )

    def _change_feat_format(self) -> None:
        super()._change_feat_format()
        if self._unsettled is not None:
            self._grow(*self._unsettled)

    def _grow(self, histories: Histories, places: np.ndarray, times: np.ndarray) -> None:
        """Histories of :attr:`grown`: those of the run, without what its protocol removed, and new interactions."""
        self._unsettled = None
        new = places < 0
        if self.config["smoke"]:  # it had left out older ones
            new &= times > times.dtype.type(self.trained.newest)
        kept = np.ones(len(self.trained.items), dtype=bool) if self.sessions is None else self.sessions.kept
        index = np.flatnonzero(new | ((places >= 0) & kept[places]))
        # Equal times stand in the order of the run, new interactions behind them.
        rank = np.where(places < 0, len(kept), places)[index]
        owners = histories.users.numpy()
        order = torch.from_numpy(index[np.lexsort((rank, times[index], owners[index]))])
        self.grown._set_histories(histories.take(order))
        if new.any():
            strangers = len(np.unique(owners[new & (owners >= len(self.trained.lengths))]))
            self.logger.warning(
                f"{int(new.sum())} interactions are new since the run was trained, {strangers} users among them: they "
                "are history where all interactions are asked for, and play no part in the splits of the run."
            )
