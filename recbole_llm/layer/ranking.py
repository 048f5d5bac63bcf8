"""Reordering the first items of a ranking."""

import torch


def reorder(scores: torch.Tensor, items: torch.Tensor, ranking: torch.Tensor) -> torch.Tensor:
    """Swap the scores of some items to reorder them, while all others stay in place.

    The highest of their scores goes to the item that ``ranking`` puts first, and so on. Equal scores, which a ranking
    would order by item id, are made different by the smallest steps of their type. Rows whose order does not change
    keep their scores exactly.

    Parameters
    ----------
    scores : torch.Tensor, shape (B, n_items)
        Entry 0 is padding.
    items : torch.LongTensor, shape (B, C)
        In the order of their scores, equal scores by id; 0 at the end is none.
    ranking : torch.Tensor, shape (B, C)
        Larger is better; of equal values the first stays first.

    Returns
    -------
    torch.Tensor, shape (B, n_items)
    """
    here = items > 0
    order = ranking.masked_fill(~here, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    ranked = items.gather(1, order)
    changed = (ranked != items).any(1)
    values = scores.gather(1, items).masked_fill(~here, -torch.inf).sort(dim=1, descending=True).values
    up = torch.full_like(values[:, 0], torch.inf)
    below = values[:, 0]
    for place in reversed(range(items.shape[1])):
        value, last = values[:, place], here[:, place + 1 :].sum(1) == 0
        raised = torch.where(last, torch.nextafter(value, up), torch.maximum(value, torch.nextafter(below, up)))
        below = torch.where(here[:, place], raised, below)
        values[:, place] = torch.where(changed & here[:, place], raised, value)
    result = scores.scatter(1, ranked, values)
    result[:, 0] = scores[:, 0]
    return result
