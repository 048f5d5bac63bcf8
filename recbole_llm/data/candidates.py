"""One true item among sampled ones: candidates of the top-N task, and of the training prompts of a ranker."""

import numpy as np
import torch

from recbole_llm.data.dataset import POSITION, HistoryDataset
from recbole_llm.errors import DataError

CANDIDATES = "candidate_id_list"


class CandidateSampler:
    """Draws negatives uniformly outside a user's full history, validation and test items included (POD's rule).

    Parameters
    ----------
    dataset : HistoryDataset
    negatives : int
        How many per row.
    seed : int
        The negatives of evaluation are one fixed draw per user from this seed.

    Raises
    ------
    DataError
        If some user has had so many items that fewer than ``negatives`` are left.
    """

    def __init__(self, dataset: HistoryDataset, negatives: int, seed: int) -> None:
        self.negatives, self.item_num = negatives, dataset.item_num
        users, items = dataset.flat[dataset.uid_field], dataset.flat[dataset.iid_field]
        self._had = torch.unique(users * self.item_num + items)
        had = np.bincount((self._had // self.item_num).numpy(), minlength=dataset.user_num)
        if had.max() > self.item_num - 1 - negatives:
            user = dataset.id2token(dataset.uid_field, int(had.argmax()))
            raise DataError(
                f"topn_negatives={negatives} is too many: user {user!r} had {had.max()} of {self.item_num - 1} items. "
                f"At most {self.item_num - 1 - had.max()} are possible here."
            )
        self._fixed = self._negatives_of(torch.arange(dataset.user_num), torch.Generator().manual_seed(seed))

    def _negatives_of(self, user: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Distinct unseen items for each user, shape (B, negatives)."""
        wanted = (len(user), self.negatives)
        drawn = torch.randint(1, self.item_num, wanted, generator=generator)
        while True:
            pair = user[:, None] * self.item_num + drawn
            at = torch.searchsorted(self._had, pair).clamp(max=len(self._had) - 1)
            bad = self._had[at] == pair
            ordered, order = drawn.sort(dim=1)
            repeated = torch.zeros_like(bad)
            repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
            bad |= repeated
            count = int(bad.sum())
            if count == 0:
                return drawn
            drawn[bad] = torch.randint(1, self.item_num, (count,), generator=generator)

    def draw(self, user: torch.Tensor, target: torch.Tensor, fixed: bool) -> torch.Tensor:
        """Target and negatives in random order, shape (B, 1 + negatives).

        ``fixed``: every user's own stored negatives, ordered by item id, for evaluation. Otherwise new ones from
        torch's global generator.
        """
        negatives = self._fixed[user] if fixed else self._negatives_of(user, None)
        candidates = torch.cat([target[:, None], negatives], dim=1)
        order = candidates.argsort(dim=1) if fixed else torch.rand(candidates.shape).argsort(dim=1)
        return candidates.gather(1, order)


class PrefixNegatives:
    """Draws negatives outside the history before a training row's target; later items of the user may be among them.

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
        self._row = torch.full((len(self._user),), -1)
        self._row[dataset.inter_feat[POSITION]] = torch.arange(len(dataset.inter_feat[POSITION]))

    def draw_from(self, pool: torch.Tensor) -> None:
        """Draw from these items of every row of the split, shape (rows, P), 0 is none, instead of the catalogue."""
        self._pool = pool

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
        key = torch.rand(items.shape, generator=generator).masked_fill(items == 0, 2.0)
        return items.gather(1, key.argsort(dim=1)).int()

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
        """Which items are none, the target, in the history before it, or there already; (rows, negatives)."""
        bad = self._had_before(position, items)
        ordered, order = items.sort(dim=1, stable=True)
        repeated = torch.zeros_like(bad)
        repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        return bad | repeated | (items == target[:, None]) | (items == 0)

    def _had_before(self, position: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Which items the user of each position had before it; (rows, negatives)."""
        pair = self._user[position][:, None] * self.item_num + items
        at = torch.searchsorted(self._had, pair).clamp(max=len(self._had) - 1)
        return (self._had[at] == pair) & (self._since[at] < position[:, None])
