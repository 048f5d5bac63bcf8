"""The k best items of every row under one total order: higher score first, equal scores by smaller internal id.

:mod:`recbole_llm.evaluator.ranks` counts ranks in the same order, so a list and a rank never disagree.
"""

import torch

# Scores of one block: what stays in a core's own cache (1 MB), what keeps a GPU busy.
SCORES_AT_ONCE = {"cpu": 2**18, "gpu": 2**26}


def top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and columns of the ``min(k, n)`` best of every row, best first.

    Parameters
    ----------
    scores : torch.Tensor, shape (B, n)
        ``-inf`` is no score: which of several such columns is returned is left open.
    k : int

    Returns
    -------
    values, columns : torch.Tensor, shape (B, min(k, n))
    """
    width = scores.shape[1]
    k = min(k, width)
    values, columns = torch.topk(scores, min(k + 1, width))
    if width > k:
        # torch.topk leaves open which of the scores equal to the lowest it takes: take those with the smallest ids.
        lowest = values[:, k - 1]
        tied = ((lowest == values[:, k]) & (lowest > -torch.inf)).nonzero()[:, 0]
        columns = columns[:, :k].contiguous()
        if len(tied):
            columns[tied] = _smallest_ids(scores[tied], lowest[tied, None], k)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def top_items(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Columns of the ``min(k, n)`` best of every row, best first; 0 where fewer are above ``-inf``. Shape (B, k)."""
    values, columns = top_k(scores, k)
    return columns.where(values > -torch.inf, 0)


def _smallest_ids(scores: torch.Tensor, lowest: torch.Tensor, k: int) -> torch.Tensor:
    """Columns above ``lowest`` and the first ones equal to it, k in a row, in no order; (B, k)."""
    above, equal = scores > lowest, scores == lowest
    free = k - above.sum(1, keepdim=True)
    taken = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= free))
    return taken.nonzero()[:, 1].view(len(scores), k)


def top_k_of_products(
    users: torch.Tensor,
    items: torch.Tensor,
    k: int,
    excluded: tuple[torch.Tensor, torch.Tensor] | None = None,
    scores_at_once: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`top_k` of ``users @ items.T``, a block of items at a time: the (B, n) scores are never in memory at once.

    After the first block only rows whose best new score is above their k-th best so far are looked at, and of these
    only the scores above it. Blocks run through the items in order, so an equal score that comes later belongs behind
    and needs no look either.

    Parameters
    ----------
    users : torch.Tensor, shape (B, d)
    items : torch.Tensor, shape (n, d)
    k : int
    excluded : two torch.LongTensor, shape (pairs,), optional
        Row and column of scores that do not count: ``-inf``.
    scores_at_once : int, optional
        Largest size B x block; default :data:`SCORES_AT_ONCE`.

    Returns
    -------
    values, columns : torch.Tensor, shape (B, min(k, n))
    """
    if scores_at_once is None:
        scores_at_once = SCORES_AT_ONCE["cpu" if users.device.type == "cpu" else "gpu"]
    k = min(k, len(items))
    step = max(k, scores_at_once // max(1, len(users)))
    starts = torch.arange(0, len(items), step)
    if excluded is not None:
        rows, columns = excluded
        columns, order = columns.sort()
        rows = rows[order]
        bounds = [*torch.searchsorted(columns, starts.to(columns.device)).tolist(), len(columns)]
    best: tuple[torch.Tensor, torch.Tensor] | None = None
    for number, start in enumerate(starts.tolist()):
        scores = users @ items[start : start + step].T
        if excluded is not None:
            part = slice(bounds[number], bounds[number + 1])
            scores[rows[part], columns[part] - start] = -torch.inf
        best = top_k(scores, k) if best is None else _merge(*best, scores, start)
    assert best is not None, "there is at least one item"
    return best


def _merge(
    values: torch.Tensor, columns: torch.Tensor, scores: torch.Tensor, start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the best of a list (B, k), in place, with a later block's scores (B, block)."""
    changed = (scores.amax(1) > values[:, -1]).nonzero()[:, 0]
    if len(changed) == 0:
        return values, columns
    values[changed], columns[changed] = _merged(values[changed], columns[changed], scores[changed], start)
    return values, columns


def _merged(
    values: torch.Tensor, columns: torch.Tensor, scores: torch.Tensor, start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    better = scores > values[:, -1:]
    count = better.sum(1)
    # Row by row, so columns rise within a row; packed to the left of a (rows, most) table.
    row, column = better.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    more = values.new_full((len(values), int(count.max())), -torch.inf)
    more[row, place] = scores[row, column]
    ids = columns.new_zeros(more.shape)
    ids[row, place] = column + start
    values, order = torch.cat([values, more], dim=1).sort(dim=1, descending=True, stable=True)
    k = columns.shape[1]
    return values[:, :k], torch.cat([columns, ids], dim=1).gather(1, order[:, :k])
