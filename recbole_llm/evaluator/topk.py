"""The k best items of every row under one total order: higher score first, equal scores by smaller internal id.

:mod:`recbole_llm.evaluator.ranks` counts ranks in the same order, so a list and a rank never disagree.
"""

import torch

# Scores in memory at once: what stays in the cache of a processor (16 MB), what keeps a GPU busy.
SCORES_AT_ONCE = {"cpu": 2**22, "gpu": 2**26}
# Scores of one product: what stays in a core's own cache (1 MB).
PRODUCT = {"cpu": 2**18, "gpu": 2**26}
# Neighbouring scores of a user that are looked at together: at their highest first.
GROUP = 64
# Scores that may enter a list wait until there are so many per user, so that sorting is rare.
WAITING = 4


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


@torch.no_grad()
def top_k_of_products(
    users: torch.Tensor,
    items: torch.Tensor,
    k: int,
    excluded: tuple[torch.Tensor, torch.Tensor] | None = None,
    scores_at_once: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`top_k` of ``users @ items.T``, blocks of items at a time: the (B, n) scores are never in memory at once.

    After the first block only scores above a user's k-th best so far are looked at, and these are found by the highest
    of each group of neighbours. Blocks run through the items in order, so an equal score that comes later belongs
    behind and needs no look either.

    Parameters
    ----------
    users : torch.Tensor, shape (B, d)
    items : torch.Tensor, shape (n, d)
    k : int
    excluded : two torch.LongTensor, shape (pairs,), optional
        Row and column of scores that do not count: ``-inf``.
    scores_at_once : int, optional
        About the largest number of scores in memory; default :data:`SCORES_AT_ONCE`. A block has k items at least.

    Returns
    -------
    values, columns : torch.Tensor, shape (B, min(k, n))
    """
    kind = "cpu" if users.device.type == "cpu" else "gpu"
    at_once = SCORES_AT_ONCE[kind] if scores_at_once is None else scores_at_once
    count, n = max(1, len(users)), len(items)
    k = min(k, n)
    width = min(n, max(k, min(at_once, PRODUCT[kind]) // count))
    group = min(GROUP, width)
    width = -(-width // group) * group
    most = max(1, at_once // (count * width))
    history = None if excluded is None else _Excluded(*excluded)
    scores = users.new_empty(min(most, -(-n // width)), len(users), width)
    best: _Best | None = None
    start = 0
    while start < n:
        # As many blocks as before this one, so that the k-th best is not far from what it will be.
        blocks = scores[: min(max(1, start // width), most, -(-(n - start) // width))]
        _multiply(users, items[start : start + blocks.shape[0] * width], blocks)
        if history is not None:
            history.remove(blocks, start)
        if best is None:
            best = _Best(blocks[0], k, group)
        else:
            best.add(blocks, start)
        start += blocks.shape[0] * width
    assert best is not None, "there is at least one item"
    return best.lists()


def _multiply(users: torch.Tensor, items: torch.Tensor, blocks: torch.Tensor) -> None:
    """Fill blocks (b, B, width) with the products of users (B, d) and at most b width items; ``-inf`` behind them."""
    width = blocks.shape[2]
    for block, part in zip(blocks, items.split(width), strict=True):
        torch.mm(users, part.T, out=block[:, : len(part)])
        block[:, len(part) :] = -torch.inf


class _Excluded:
    """Pairs of row and column that do not count, in the order of columns."""

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        self.columns, order = columns.sort()
        self.rows = rows[order]

    def remove(self, blocks: torch.Tensor, start: int) -> None:
        """Set scores (b, B, width) of the items from ``start`` on to ``-inf``."""
        number, _, width = blocks.shape
        ends = self.columns.new_tensor([start, start + number * width])
        first, last = torch.searchsorted(self.columns, ends).tolist()
        place = self.columns[first:last] - start
        blocks[place // width, self.rows[first:last], place % width] = -torch.inf


class _Best:
    """The k best so far of every row, and what waits to be sorted into them."""

    def __init__(self, scores: torch.Tensor, k: int, group: int) -> None:
        self.values, columns = top_k(scores, k)
        # A column may lie behind the last item where nothing has a score.
        self.columns = columns.masked_fill_(self.values == -torch.inf, 0)
        self.lowest = self.values[:, -1].contiguous()
        self.group = group
        self.waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.room = WAITING * len(scores)

    def add(self, blocks: torch.Tensor, start: int) -> None:
        """Note scores (b, B, width) of the items from ``start`` on that are above the k-th best of their row."""
        _, users, width = blocks.shape
        groups = blocks.view(blocks.numel() // self.group, self.group)
        highest = blocks.unflatten(2, (-1, self.group)).amax(3)
        block, row, group = (highest > self.lowest[:, None]).nonzero(as_tuple=True)
        of_group = width // self.group
        scores = groups[(block * users + row) * of_group + group]
        found, place = (scores > self.lowest[row, None]).nonzero(as_tuple=True)
        first = start + block * width + group * self.group
        self.waiting.append((row[found], first[found] + place, scores[found, place]))
        self.room -= len(found)
        if self.room < 0:
            self._sort_in()

    def lists(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and columns, (B, k)."""
        self._sort_in()
        return self.values, self.columns

    def _sort_in(self) -> None:
        if not self.waiting:
            return
        self.room = WAITING * len(self.values)
        rows, columns, values = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        # By row; columns of a row rise, because blocks do.
        rows, order = rows.sort(stable=True)
        changed, inverse, count = rows.unique_consecutive(return_inverse=True, return_counts=True)
        if len(changed) == 0:
            return
        # Packed to the right of the best in a (changed, k + most) table.
        k = self.values.shape[1]
        place = k + torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[inverse]
        table = self.values.new_full((len(changed), k + int(count.max())), -torch.inf)
        ids = self.columns.new_zeros(table.shape)
        table[:, :k], ids[:, :k] = self.values[changed], self.columns[changed]
        table[inverse, place], ids[inverse, place] = values[order], columns[order]
        table, order = table.sort(dim=1, descending=True, stable=True)
        self.values[changed], self.columns[changed] = table[:, :k], ids.gather(1, order[:, :k])
        self.lowest[changed] = table[:, k - 1]
