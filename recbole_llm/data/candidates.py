"""Candidates of the top-N task: one true item among sampled ones that the user never had."""

import numpy as np
import torch

from recbole_llm.data.dataset import HistoryDataset
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
