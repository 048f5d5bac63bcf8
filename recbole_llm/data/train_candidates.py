"""Candidates of a reranker's training rows: its target among random items, or a retriever's list."""

import copy

import torch

from recbole_llm.data.candidates import repeated
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.rows import POSITION, take


def rows_at(dataset: HistoryDataset, position: torch.Tensor) -> HistoryDataset:
    """Return the split with only the rows whose targets stand at some positions of the flat array, in their order."""
    some = copy.copy(dataset)
    some.inter_feat = take(dataset.inter_feat, row_of_position(dataset)[position])
    return some


def row_of_position(dataset: HistoryDataset) -> torch.Tensor:
    """Return the row of a split whose target stands at each position of the flat array; -1: there is none."""
    row = torch.full((len(dataset.flat[dataset.uid_field]),), -1)
    row[dataset.inter_feat[POSITION]] = torch.arange(len(dataset.inter_feat[POSITION]))
    return row


class RetrievedLists:
    """The lists that a retriever makes for training rows: what a reranker is given in evaluation.

    Parameters
    ----------
    dataset : HistoryDataset
        Rows of the training split.
    items : torch.Tensor, shape (rows, C)
        First items of each of them, best first; 0 at the end where there are fewer.
    shuffled : bool
        In random order, drawn anew each time.
    """

    def __init__(self, dataset: HistoryDataset, items: torch.Tensor, shuffled: bool = False) -> None:
        self._items, self._row, self._shuffled = items.int(), row_of_position(dataset), shuffled
        self._target = dataset.flat[dataset.iid_field]

    def has_target(self, position: torch.Tensor) -> torch.Tensor:
        """Return whether the list of each row has its target; ``position`` as for :meth:`draw`. (rows,)."""
        return (self._items[self._row[position]] == self._target[position][:, None]).any(1)

    def draw(self, position: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the list of each row, (rows, C); parameters as those of :meth:`PrefixNegatives.draw`."""
        items = self._items[self._row[position]]
        return _in_random_order(items, generator) if self._shuffled else items


class PrefixNegatives:
    """Sampler of negatives outside the history before a training row's target; may draw later items of the user.

    Parameters
    ----------
    dataset : HistoryDataset
        The training split.
    negatives : int
        How many per row; fewer where the catalogue has no more.
    """

    ROUNDS = 64  # of drawing again what was not allowed; a row that still lacks some is left with fewer

    def __init__(self, dataset: HistoryDataset, negatives: int) -> None:
        self.negatives, self.item_num = negatives, dataset.item_num
        self._user, self._item = dataset.flat[dataset.uid_field], dataset.flat[dataset.iid_field]
        pair, order = (self._user * self.item_num + self._item).sort(stable=True)
        begins = torch.ones_like(pair, dtype=torch.bool)
        begins[1:] = pair[1:] != pair[:-1]
        # Where each pair of user and item occurs first: positions count up with time.
        self._had, self._since = pair[begins], order[begins]
        self._pool: torch.Tensor | None = None

    def draw_from(self, dataset: HistoryDataset, pool: torch.Tensor) -> None:
        """Draw from these items of rows of the split, (rows, P), 0 is none, instead of the catalogue."""
        self._pool, self._row = pool, row_of_position(dataset)

    def draw(self, position: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Target and distinct negatives in random order, 0 at the end where there are fewer.

        Parameters
        ----------
        position : torch.LongTensor, shape (rows,)
            Where the targets stand in the flat array of the dataset.
        generator : torch.Generator

        Returns
        -------
        torch.IntTensor, shape (rows, 1 + negatives)
        """
        parts = [self._draw(part, generator) for part in position.split(2**17)]
        return torch.cat(parts) if parts else torch.zeros(0, 1 + self.negatives, dtype=torch.int32)

    def _draw(self, position: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        target = self._item[position]
        drawn = self._first_draw(position, target, generator)
        bad = self._not_allowed(position, target, drawn)
        # Only the rows that lack something are looked at again.
        rows = bad.any(1).nonzero()[:, 0]
        for _ in range(self.ROUNDS):
            if len(rows) == 0:
                break
            again, wrong = drawn[rows], bad[rows]
            again[wrong] = torch.randint(1, self.item_num, (int(wrong.sum()),), generator=generator)
            drawn[rows], bad[rows] = again, self._not_allowed(position[rows], target[rows], again)
            rows = rows[bad[rows].any(1)]
        items = torch.cat([target[:, None], drawn.masked_fill(bad, 0)], dim=1)
        return _in_random_order(items, generator).int()

    def _first_draw(self, position: torch.Tensor, target: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        wanted = (len(position), self.negatives)
        if self._pool is None:
            return torch.randint(1, self.item_num, wanted, generator=generator)
        pool = self._pool[self._row[position]].long()
        allowed = (pool > 0) & (pool != target[:, None]) & ~self._had_before(position, pool)
        key = torch.rand(pool.shape, generator=generator).masked_fill(~allowed, 2.0)
        few = key.argsort(dim=1)[:, : self.negatives]
        drawn = torch.where(allowed, pool, 0).gather(1, few)
        return torch.cat([drawn, drawn.new_zeros(len(drawn), self.negatives - drawn.shape[1])], dim=1)

    def _not_allowed(self, position: torch.Tensor, target: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Which items are padding, the target, in the history before it, or repeated; (rows, negatives)."""
        bad = self._had_before(position, items)
        return bad | repeated(items) | (items == target[:, None]) | (items == 0)

    def _had_before(self, position: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Which items the user of each position had before it; (rows, negatives)."""
        pair = self._user[position][:, None] * self.item_num + items
        at = torch.searchsorted(self._had, pair).clamp(max=len(self._had) - 1)
        return (self._had[at] == pair) & (self._since[at] < position[:, None])


def _in_random_order(items: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the items of each row in random order, 0 at the end, shape (rows, C)."""
    key = torch.rand(items.shape, generator=generator).masked_fill(items == 0, 2.0)
    return items.gather(1, key.argsort(dim=1))
