"""One true item among sampled ones: sampled ranking, candidates of the top-N task, negatives of training rows."""

import torch

from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import DataError

CANDIDATES = "candidate_id_list"
# Evaluated rows whose negatives are drawn together.
ROWS_AT_ONCE = 4096
# Rounds of drawing again what was not allowed, before the few rows that still lack some are drawn exactly.
ROUNDS = 32


class DistinctSampler:
    """Sampler of distinct items for each row, outside a set of excluded items.

    A row gets the first distinct allowed items of an endless sequence of independent draws, which is sampling without
    replacement.

    Parameters
    ----------
    weights : torch.Tensor, shape (n_items,)
        Sampling weights of the items; 0 is never drawn. Item 0 is padding and has weight 0.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights.double()
        self.n_items = len(weights)
        self._uniform = bool((weights[1:] == 1).all())
        self._until = self.weights.cumsum(0)

    def possible(self, taken: torch.Tensor, owners: int) -> torch.Tensor:
        """How many items can be drawn for each owner, shape (owners,); ``taken`` as for :meth:`draw`."""
        of_taken = torch.bincount(taken // self.n_items, self.weights[taken % self.n_items] > 0, minlength=owners)
        return (self.weights > 0).sum() - of_taken.long()

    def draw(
        self, taken: torch.Tensor, owner: torch.Tensor, count: int, generator: torch.Generator | None
    ) -> torch.Tensor:
        """``count`` items for each row, at most :meth:`possible` ones; shape (B, count).

        Parameters
        ----------
        taken : torch.LongTensor, shape (pairs,)
            ``owner * n_items + item`` of what is not drawn, ascending and distinct.
        owner : torch.LongTensor, shape (B,)
            Whose ``taken`` count for each row.
        count : int
        generator : torch.Generator, optional
        """
        items = self._independent((len(owner), count), generator)
        bad = self._not_allowed(items, taken, owner)
        for _ in range(ROUNDS):
            if not bad.any():
                return items
            items[bad] = self._independent((int(bad.sum()),), generator)
            bad = self._not_allowed(items, taken, owner)
        for row in bad.any(1).nonzero()[:, 0].tolist():
            items[row] = self._complete(items[row], bad[row], taken, int(owner[row]), generator)
        return items

    def _independent(self, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        if self._uniform:
            return torch.randint(1, self.n_items, shape, generator=generator)
        point = torch.rand(shape, dtype=torch.float64, generator=generator) * self._until[-1]
        return torch.searchsorted(self._until, point, right=True).clamp(max=self.n_items - 1)

    def _not_allowed(self, items: torch.Tensor, taken: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        bad = repeated(items) | (self.weights[items] == 0)
        if len(taken):
            key = owner[:, None] * self.n_items + items
            bad |= taken[torch.searchsorted(taken, key).clamp(max=len(taken) - 1)] == key
        return bad

    def _complete(
        self,
        items: torch.Tensor,
        bad: torch.Tensor,
        taken: torch.Tensor,
        owner: int,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Redraw the excluded entries of one row from the weights of the remaining items."""
        start, end = torch.searchsorted(taken, torch.tensor([owner, owner + 1]) * self.n_items).tolist()
        left = self.weights.clone()
        left[taken[start:end] - owner * self.n_items] = 0
        left[items[~bad]] = 0
        # The largest of exponential races is a draw without replacement (Efraimidis and Spirakis, 2006).
        race = torch.empty_like(left).exponential_(generator=generator) / left
        complete = items.clone()
        complete[bad] = race.topk(int(bad.sum()), largest=False).indices
        return complete


def repeated(items: torch.Tensor) -> torch.Tensor:
    """Which entries of a row repeat one further left, shape (B, n)."""
    ordered, order = items.sort(dim=1, stable=True)
    repeated = torch.zeros_like(items, dtype=torch.bool)
    return repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])


def ranked_negatives(
    dataset: HistoryDataset, count: int, weights: torch.Tensor, outside_history: bool, generator: torch.Generator
) -> torch.Tensor:
    """Negatives of every row of an evaluated split: distinct, and not its target.

    Parameters
    ----------
    dataset : HistoryDataset
    count : int
    weights : torch.Tensor, shape (item_num,)
    outside_history : bool
        Exclude all items of the row's whole history, too.
    generator : torch.Generator

    Returns
    -------
    torch.IntTensor, shape (rows, count)

    Raises
    ------
    DataError
        If some row has fewer than ``count`` possible negatives.
    """
    sampler, n_items = DistinctSampler(weights), dataset.item_num
    parts = []
    for index in torch.arange(len(dataset)).split(ROWS_AT_ONCE):
        target = dataset.inter_feat[dataset.iid_field][index]
        owner = torch.arange(len(index))
        row, item = dataset.history(index) if outside_history else (owner[:0], target[:0])
        taken = torch.unique(torch.cat([row, owner]) * n_items + torch.cat([item, target]))
        possible = sampler.possible(taken, len(index))
        if int(possible.min()) < count:
            users = dataset.inter_feat[dataset.uid_field][index]
            user = str(dataset.id2token(dataset.uid_field, int(users[possible.argmin()])))
            reason = "not in the user's history" if outside_history else "other than the target"
            raise DataError(
                f"eval_args.mode asks for {count} sampled items, but of the {n_items - 1} items only "
                f"{int(possible.min())} can be drawn for user {user!r}: {reason}"
                f"{'' if sampler._uniform else ', and in the training data'}. Sample fewer, or use mode=full."
            )
        parts.append(sampler.draw(taken, owner, count, generator).int())
    return torch.cat(parts)


class CandidateSampler:
    """Sampler of negatives, uniform outside a user's full history, validation and test items included (POD's rule).

    Parameters
    ----------
    dataset : HistoryDataset
    negatives : int
        How many per row.
    seed : int
        The evaluation negatives are drawn once per user from this seed, in a fixed order.

    Raises
    ------
    DataError
        If fewer than ``negatives`` items remain for some user.
    """

    def __init__(self, dataset: HistoryDataset, negatives: int, seed: int) -> None:
        self.negatives = negatives
        self._sampler = DistinctSampler(every_item(dataset.item_num))
        self._had = torch.unique(dataset.histories.users * dataset.item_num + dataset.histories.items)
        possible = self._sampler.possible(self._had, dataset.user_num)
        if possible.min() < negatives:
            user = str(dataset.id2token(dataset.uid_field, int(possible.argmin())))
            had = dataset.item_num - 1 - possible.min()
            raise DataError(
                f"topn_negatives={negatives} is too many: user {user!r} had {had} of {dataset.item_num - 1} items. "
                f"At most {possible.min()} are possible here."
            )
        generator = torch.Generator().manual_seed(seed)
        self._fixed = self._negatives_of(torch.arange(dataset.user_num), generator)
        self._order = torch.rand(dataset.user_num, negatives + 1, generator=generator).argsort(dim=1)

    def _negatives_of(self, user: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return self._sampler.draw(self._had, user, self.negatives, generator)

    def draw(self, user: torch.Tensor, target: torch.Tensor, fixed: bool) -> torch.Tensor:
        """Target and negatives in random order, shape (B, 1 + negatives).

        ``fixed``: every user's own stored negatives and order, for evaluation. Otherwise new ones from torch's global
        generator.
        """
        negatives = self._fixed[user] if fixed else self._negatives_of(user, None)
        candidates = torch.cat([target[:, None], negatives], dim=1)
        return candidates.gather(1, self._order[user] if fixed else torch.rand(candidates.shape).argsort(dim=1))


def every_item(n_items: int) -> torch.Tensor:
    """Equal weights for all items except padding, shape (n_items,)."""
    weights = torch.ones(n_items)
    weights[0] = 0
    return weights


class UnseenNegatives:
    """Sampler of items that a user has not had in training, for training rows of any kind.

    Parameters
    ----------
    dataset : HistoryDataset
        The training split.
    negatives : int
        How many per row; fewer where the catalogue has no more.
    """

    ROUNDS = 64

    def __init__(self, dataset: HistoryDataset, negatives: int) -> None:
        self.negatives, self.item_num = min(negatives, dataset.item_num - 1), dataset.item_num
        fields = (dataset.uid_field, dataset.iid_field)
        users, items = (dataset.flat[field][dataset.train_positions] for field in fields)
        self._had = torch.unique(users * self.item_num + items)

    def draw(self, user: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Draw distinct items for users (B,), none of them the target (B,), from torch's global generator.

        Returns
        -------
        torch.LongTensor, shape (B, negatives)
            In random order; 0 at the end where there are fewer.
        """
        device = user.device
        user, target = user.cpu(), target.cpu()
        if self.item_num < 4 * self.negatives:  # most draws would be refused: order the whole catalogue instead
            items = torch.arange(self.item_num).expand(len(user), -1)
            key = torch.rand(items.shape).masked_fill(self._refused(user, target, items), 2.0)
            key, order = key.sort(dim=1)
            return torch.where(key < 2, order, 0)[:, : self.negatives].to(device)
        drawn = torch.randint(1, self.item_num, (len(user), self.negatives))
        bad = self._refused(user, target, drawn)
        for _ in range(self.ROUNDS):
            if not bool(bad.any()):
                break
            drawn[bad] = torch.randint(1, self.item_num, (int(bad.sum()),))
            bad = self._refused(user, target, drawn)
        drawn = drawn.masked_fill(bad, 0)
        return drawn.gather(1, (drawn == 0).byte().argsort(dim=1, stable=True)).to(device)

    def _refused(self, user: torch.Tensor, target: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        pair = user[:, None] * self.item_num + items
        at = torch.searchsorted(self._had, pair).clamp(max=len(self._had) - 1)
        return (self._had[at] == pair) | (items == target[:, None]) | (items == 0) | repeated(items)
