"""User histories in one flat array: everything that a batch reads is looked up by position in it."""

from collections.abc import Collection, Mapping

import numpy as np
import torch

# Rows and items, each of shape (pairs,): which items occur in which row.
Pairs = tuple[torch.Tensor, torch.Tensor]


class Histories:
    """Interactions sorted by user and time, one entry per interaction.

    Parameters
    ----------
    columns : dict of str to torch.Tensor, shape (interactions, ...)
        Values of each field, among them the ids ``user`` and ``item``; users ascending.
    user, item : str
        Names of those two fields.
    n_users, n_items : int
        Size of the id spaces; id 0 is padding.
    starts : torch.LongTensor, shape (interactions,), optional
        Where the history of each interaction begins, for data in which a user has several unconnected sequences; by
        default at the first interaction of the user.
    moments : torch.LongTensor, shape (interactions,), optional
        Ascending numbers, equal where user and time are. Only ``shuffle_ties`` needs them.

    Attributes
    ----------
    offsets : numpy.ndarray of int64, shape (n_users + 1,)
        User ``u`` owns the positions ``offsets[u]`` to ``offsets[u + 1] - 1``.

    Examples
    --------
    >>> columns = {"user": torch.tensor([1, 1, 1, 2]), "item": torch.tensor([3, 4, 5, 3])}
    >>> histories = Histories(columns, user="user", item="item", n_users=3, n_items=6)
    >>> histories.lists(torch.tensor([2]), torch.tensor([2]), width=3, fields=["item"])["item"]
    tensor([[3, 4, 0]])
    """

    def __init__(
        self,
        columns: Mapping[str, torch.Tensor],
        *,
        user: str,
        item: str,
        n_users: int,
        n_items: int,
        starts: torch.Tensor | None = None,
        moments: torch.Tensor | None = None,
    ) -> None:
        self.columns, self.starts, self.moments = dict(columns), starts, moments
        self.user, self.item, self.n_users, self.n_items = user, item, n_users, n_items
        counts = np.bincount(self.users.numpy(), minlength=n_users)
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._order_keys: torch.Tensor | None = None
        self._has_repeats: bool | None = None

    def __len__(self) -> int:
        """Interactions."""
        return len(self.users)

    @property
    def users(self) -> torch.Tensor:
        """User of each interaction, shape (interactions,)."""
        return self.columns[self.user]

    @property
    def items(self) -> torch.Tensor:
        """Item of each interaction, shape (interactions,)."""
        return self.columns[self.item]

    @property
    def item_counts(self) -> np.ndarray:
        """Interactions of each item, shape (n_items,)."""
        return np.bincount(self.items.numpy(), minlength=self.n_items)

    @property
    def depths(self) -> np.ndarray:
        """How many interactions of the same history precede each one, shape (interactions,)."""
        return self.depths_at(np.arange(len(self)))

    def depths_at(self, position: np.ndarray) -> np.ndarray:
        """How many interactions of the same history precede those at positions (B,), shape (B,)."""
        where = torch.from_numpy(position)
        return position - self._starts_of(self.users[where], where).numpy()

    @property
    def has_repeats(self) -> bool:
        """Whether some user has an item more than once."""
        if self._has_repeats is None:
            pairs = self.users.numpy() * np.int64(self.n_items) + self.items.numpy()
            pairs.sort()
            self._has_repeats = bool(np.any(pairs[1:] == pairs[:-1]))
        return self._has_repeats

    def take(self, position: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values of every field at ``position``, a LongTensor of shape (B,)."""
        return {field: values.index_select(0, position) for field, values in self.columns.items()}

    def lists(
        self,
        position: torch.Tensor,
        length: torch.Tensor,
        width: int,
        fields: Collection[str],
        *,
        shift: int = 0,
        in_order: Collection[str] = (),
    ) -> dict[str, torch.Tensor]:
        """Values of the ``length`` interactions before ``position``, oldest first, right padded with 0.

        Parameters
        ----------
        position, length : torch.LongTensor, shape (B,)
        width : int
            Entries of each list.
        fields : collection of str
        shift : int
            1 gives the interaction after each of them.
        in_order : collection of str
            Fields that keep their order in :meth:`shuffled` histories.

        Returns
        -------
        dict of str to torch.Tensor, shape (B, width, ...)
        """
        steps = torch.arange(width)
        inside = steps < length[:, None]
        index = torch.where(inside, (position - length)[:, None] + steps + shift, 0)
        shuffled = index
        if self._order_keys is not None:
            keys = torch.where(inside, self._order_keys[index], torch.inf)
            shuffled = index.gather(1, keys.argsort(dim=1))
        lists = {}
        for field in fields:
            values = self.columns[field]
            where = index if field in in_order else shuffled
            gathered = values.index_select(0, where.view(-1)).view(*index.shape, *values.shape[1:])
            mask = inside.view(*inside.shape, *[1] * (gathered.ndim - 2))
            lists[field] = torch.where(mask, gathered, torch.zeros((), dtype=gathered.dtype))
        return lists

    def before(self, user: torch.Tensor, position: torch.Tensor) -> Pairs:
        """Every item that users (B,) had before positions (B,): whole histories.

        Returns
        -------
        row, item : torch.LongTensor, shape (pairs,)
            ``row`` counts from 0; a repeated item is listed once.
        """
        return self._between(self._starts_of(user, position), position)

    def all_of(self, user: torch.Tensor) -> Pairs:
        """Every item of users (B,), as :meth:`before`."""
        offsets = torch.from_numpy(self.offsets)
        return self._between(offsets[user], offsets[user + 1])

    def sequence(self, user: int, position: int | None = None) -> torch.Tensor:
        """Items of a user before a position (default: all of the last history), oldest first, repeats included."""
        end = int(self.offsets[user + 1]) if position is None else position
        inside = end - 1 if position is None else position
        start = self._starts_of(torch.tensor([user]), torch.tensor([inside]))
        return self.items[int(start) : end]

    def up_to(self, user: torch.Tensor, position: torch.Tensor) -> np.ndarray:
        """Every position from the start of some history of users (B,) to the positions (B,), ascending."""
        edges = np.zeros(len(self) + 1, dtype=np.int64)
        np.add.at(edges, self._starts_of(user, position).numpy(), 1)
        np.add.at(edges, position.numpy() + 1, -1)
        return np.flatnonzero(np.cumsum(edges[:-1]) > 0)

    def ends(self, user: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions after the last interaction of users (B,), and the lengths of the histories that end there."""
        end = torch.from_numpy(self.offsets)[user + 1]
        return end, end - self._starts_of(user, end - 1)

    def kept(self, mask: np.ndarray) -> "Histories":
        """Keep the interactions selected by a mask of shape (interactions,)."""
        starts = None
        if self.starts is not None:
            new_position = torch.from_numpy(np.concatenate([[0], np.cumsum(mask)]))
            starts = new_position[self.starts[torch.from_numpy(mask)]]
        moments = None if self.moments is None else self.moments[torch.from_numpy(mask)]
        return self._with(self.take(torch.from_numpy(np.flatnonzero(mask))), starts, moments)

    def reordered(self, source: torch.Tensor, but: Collection[str]) -> "Histories":
        """Return these histories with the values at ``source``, shape (interactions,), except for some fields."""
        columns = {field: v if field in but else v[source] for field, v in self.columns.items()}
        return self._with(columns, self.starts, self.moments)

    def shuffled(self, seed: int) -> "Histories":
        """Return these histories with :meth:`lists` in random order."""
        other = self._with(self.columns, self.starts, self.moments)
        # One random number per interaction: what is in two histories has one order in both, whatever the batch.
        other._order_keys = torch.rand(len(self), generator=torch.Generator().manual_seed(seed))
        return other

    def _with(
        self, columns: Mapping[str, torch.Tensor], starts: torch.Tensor | None, moments: torch.Tensor | None
    ) -> "Histories":
        return Histories(
            columns,
            user=self.user,
            item=self.item,
            n_users=self.n_users,
            n_items=self.n_items,
            starts=starts,
            moments=moments,
        )

    def _starts_of(self, user: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.offsets)[user] if self.starts is None else self.starts[position]

    def _between(self, start: torch.Tensor, end: torch.Tensor) -> Pairs:
        length = end - start
        row = torch.repeat_interleave(torch.arange(len(length)), length)
        first = torch.cumsum(length, 0) - length
        item = self.items[torch.arange(len(row)) - first[row] + start[row]]
        if len(row) and self.has_repeats:
            pair = torch.unique(row * self.n_items + item)
            return pair // self.n_items, pair % self.n_items
        return row, item
