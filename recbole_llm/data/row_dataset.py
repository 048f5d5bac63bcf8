"""Rows as positions in flat histories: list fields are built for the rows of a batch only."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.data.histories import Histories, Pairs
from recbole_llm.data.rows import NEXT, POSITION, HistoryRows, take
from recbole_llm.data.splits import grouped
from recbole_llm.data.tables import TableDataset
from recbole_llm.data.times import stable_order
from recbole_llm.errors import DataError


class RowDataset(TableDataset):
    """What a dataset answers once its histories and rows are set, in place of RecBole's table of prefixes.

    Attributes
    ----------
    histories : Histories
        All interactions sorted by user and time; :attr:`flat` and :attr:`offsets` are its columns and offsets.
    """

    histories: Histories
    _rows: Any = None

    def __init__(self, config: Config) -> None:
        self._exact_time: np.ndarray | None = None
        self._unused_lists: set[str] = set()
        self._unused_columns: set[str] = set()  # of rows: histories keep them
        super().__init__(config)

    @property
    def inter_feat(self) -> Any:
        """Table of interactions, until `build`; then rows, which are made when they are first asked for."""
        if callable(self._rows):
            self._rows = self._rows()
        return self._rows

    @inter_feat.setter
    def inter_feat(self, rows: Any) -> None:
        self._rows = rows

    def _normalize(self) -> None:
        # RecBole rounds to float32 when it makes tensors; sorting needs the times as they were written.
        if self.time_field in self.inter_feat:
            self._exact_time = self.inter_feat[self.time_field].to_numpy(np.float64)
        super()._normalize()

    def _set_histories(self, columns: dict[str, torch.Tensor], starts: torch.Tensor | None = None) -> None:
        self.histories = Histories(
            columns,
            user=self.uid_field,
            item=self.iid_field,
            n_users=self.user_num,
            n_items=self.item_num,
            starts=starts,
        )

    def _rows_at(self, position: np.ndarray, depth: np.ndarray | None = None) -> HistoryRows:
        """Return the rows of the interactions at ``position``, which read the ``depth`` ones before it, or all."""
        where = torch.from_numpy(position)
        columns = self.histories.take(where)
        depth = self.histories.depths_at(position) if depth is None else depth
        length = torch.from_numpy(depth).clamp(max=self.max_item_list_len)
        columns = {field: values for field, values in columns.items() if field not in self._unused_columns}
        return HistoryRows({**columns, self.item_list_length_field: length, POSITION: where}, self)

    @property
    def flat(self) -> Interaction:
        """All interactions sorted by user and time, one entry per interaction."""
        return Interaction(self.histories.columns)

    @property
    def offsets(self) -> np.ndarray:
        """User ``u`` owns ``flat[offsets[u]:offsets[u + 1]]``; int64, shape (user_num + 1,)."""
        return self.histories.offsets

    @staticmethod
    def _sort_key(interaction: Any, field: str) -> np.ndarray:
        # A numerical feature has its value and its bucket.
        values = interaction[field].numpy()
        return values if values.ndim == 1 else values[..., 0]

    def sort(self, by: Any, ascending: Any = True) -> None:
        """Sort the rows, as RecBole does; skipped for a single field if they are already in order."""
        if not isinstance(by, str) or ascending is not True:
            super().sort(by, ascending)
            return
        key = self._sort_key(self.inter_feat, by)
        if not np.all(key[1:] >= key[:-1]):
            self.inter_feat = take(self.inter_feat, torch.from_numpy(stable_order(key)))

    def _order_times(self) -> np.ndarray:
        if self.config["time_order"] == "recbole":
            return self._sort_key(self.inter_feat, self.time_field)
        assert self._exact_time is not None, "a sequential dataset without time is refused when it is read"
        return self._exact_time

    def data_augmentation(self) -> None:
        """RecBole's table of prefixes; never built here, see :meth:`gather_lists`."""
        raise DataError("HistoryDataset builds prefixes per batch; data_augmentation is not called.")

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Rows with their list fields, as RecBole's augmented dataset gives them."""
        # A plain Interaction: a batch must not carry the dataset along.
        rows = Interaction(take(self.inter_feat, index).interaction)
        position = rows[POSITION]
        del rows[POSITION]
        lists = self.gather_lists(position.reshape(-1), rows[self.item_list_length_field].reshape(-1))
        rows.update(
            Interaction({field: values[0] if position.ndim == 0 else values for field, values in lists.items()})
        )
        return self.join(rows) if join else rows

    def join(self, df: Interaction) -> Interaction:
        """Add the loaded fields of the rows' users and items."""
        for feat, field in ((self.user_feat, self.uid_field), (self.item_feat, self.iid_field)):
            if feat is not None and field in df:
                df.update(take(feat, df[field]))
        return df

    def rows_at(self, position: torch.Tensor, length: torch.Tensor, with_next: bool = False) -> Interaction:
        """Return rows whose target is at ``position`` of :attr:`flat`, with the ``length`` interactions before it.

        Parameters
        ----------
        position, length : torch.LongTensor, shape (B,)
        with_next : bool
            Also the item after every history item, ``next_item_id_list`` of shape (B, L), for all-position losses.
        """
        columns = self.histories.take(position).items()
        rows = Interaction({field: values for field, values in columns if field not in self._unused_columns})
        rows.update(Interaction({self.item_list_length_field: length, **self.gather_lists(position, length)}))
        if with_next:
            targets = self.gather_lists(position, length, shift=1, fields=[self.iid_field])
            rows.update(Interaction({NEXT + field: values for field, values in targets.items()}))
        return self.join(rows)

    @property
    def list_fields(self) -> list[str]:
        """Names of the list fields, ``<field>_list`` of every interaction field but the user."""
        return [getattr(self, f"{field}_list_field") for field in self.histories.columns if field != self.uid_field]

    def gather_lists(
        self, position: torch.Tensor, length: torch.Tensor, shift: int = 0, fields: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """List fields of the ``length`` interactions before ``position``, right padded with 0.

        Parameters
        ----------
        position, length : torch.LongTensor, shape (B,)
            Positions in :attr:`flat` and how many interactions before them to take.
        shift : int
            1 gives the interaction after each of them: the targets of the ``sequence`` view.
        fields : list of str, optional
            Only the lists of these fields.

        Returns
        -------
        dict of torch.Tensor
            ``<field>_list`` of every interaction field but the user, shape (B, L) or (B, L, width).
        """
        names = {
            field: getattr(self, f"{field}_list_field")
            for field in (self.histories.columns if fields is None else fields)
            if field != self.uid_field
        }
        wanted = [field for field, name in names.items() if name not in self._unused_lists]
        lists = self.histories.lists(
            position, length, self.max_item_list_len, wanted, shift=shift, in_order=[self.time_field]
        )
        return {names[field]: values for field, values in lists.items()}

    def history(self, index: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Every item a row's user had before the row's target: the whole history, not only the last L items.

        Returns
        -------
        row, item : torch.LongTensor, shape (pairs,)
            ``row`` counts from 0 in the order of ``index``; a repeated item is listed once.
        """
        return self.items_before(self.inter_feat[self.uid_field][index], self.inter_feat[POSITION][index])

    def items_before(self, user: torch.Tensor, position: torch.Tensor) -> Pairs:
        """Every item that users (B,) had before positions (B,) of :attr:`flat`; pairs as :meth:`history`."""
        return self.histories.before(user, position)

    def after_last(self, user: torch.Tensor) -> tuple[Interaction, tuple[torch.Tensor, torch.Tensor]]:
        """Return model input for users after all their interactions: rows without a target.

        Parameters
        ----------
        user : torch.LongTensor, shape (B,)
            Users with an interaction.

        Returns
        -------
        rows : Interaction
            User, list fields and their length, and the loaded fields of the users.
        history : two torch.LongTensor, shape (pairs,)
            As :meth:`history`.
        """
        end, length = self.histories.ends(user)
        length = length.clamp(max=self.max_item_list_len)
        rows = Interaction({self.uid_field: user, self.item_list_length_field: length})
        rows.update(Interaction(self.gather_lists(end, length)))
        return self.join(rows), self.histories.all_of(user)

    @property
    def has_repeats(self) -> bool:
        """Whether some user has an item more than once."""
        return self.histories.has_repeats

    # ---- what RecBole asks of an augmented dataset

    def _grouped_index(self, group_by_list: Any) -> Iterable[np.ndarray]:
        """Row numbers of each group, groups in order of first appearance."""
        order, counts = grouped(np.asarray(group_by_list))
        return np.split(order, np.cumsum(counts)[:-1])

    def _drop_unused_col(self) -> None:
        for kind, fields in (self.config["unused_col"] or {}).items():
            feat = getattr(self, f"{kind}_feat")
            for field in fields or ():
                if field in feat:
                    self._del_col(feat, field)
                    self._unused_columns |= {field} if kind == "inter" else set()
                elif field in [f"{name}{self.config['LIST_SUFFIX']}" for name in self.histories.columns]:
                    self._unused_lists.add(field)
                else:
                    self._notice([f"unused_col: there is no field {field!r} in the .{kind} data; it has no effect."])

    def _firsts(self) -> torch.Tensor:
        """Positions of the first items of those users whose second item is a row here: RecBole has no row for them."""
        before = self.inter_feat[POSITION] - 1
        return before[before == torch.from_numpy(self.offsets)[self.inter_feat[self.uid_field]]]

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """Sparse users x items matrix of the rows' targets and of each first item (RecBole's definition)."""
        firsts = self._firsts()
        fields = [self.uid_field, self.iid_field] + ([value_field] if value_field else [])
        columns = self.histories.columns
        pairs = Interaction({field: torch.cat([self.inter_feat[field], columns[field][firsts]]) for field in fields})
        return self._create_sparse_matrix(pairs, self.uid_field, self.iid_field, form, value_field)

    @property
    def train_positions(self) -> np.ndarray:
        """Positions in :attr:`flat` of the interactions of this split, first items included."""
        return self.histories.up_to(self.inter_feat[self.uid_field], self.inter_feat[POSITION])

    @property
    def train_counts(self) -> np.ndarray:
        """How often each item occurs in the rows of this split, first items included; shape (item_num,)."""
        return np.bincount(self.histories.items[self.train_positions].numpy(), minlength=self.item_num)
