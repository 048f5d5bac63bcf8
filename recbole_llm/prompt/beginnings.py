"""Prompts that begin alike: the language model reads what they share once."""

from collections.abc import Iterator, Sequence

import torch

from recbole_llm.llm.kept import Kept, can_share, read
from recbole_llm.prompt.pieces import Prompts
from recbole_llm.typing import LanguageModel


class SharedBeginnings:
    """Prompts of rows, in several orders of their candidates, whose beginnings are read once.

    All prompts share the instruction, and those of a row its history.

    Parameters
    ----------
    lm : transformers causal language model, or a PEFT model around it
    orders : sequence of Prompts
        Of the same rows.
    """

    def __init__(self, lm: LanguageModel, orders: Sequence[Prompts]) -> None:
        self.lm, self.orders = lm, orders
        self.kept: Kept | None = None
        self.everywhere = torch.zeros_like(orders[0].length)  # tokens that are kept, (B,)
        self.of_row = self.everywhere
        if len(orders) * len(orders[0].ids) == 1 or not can_share(lm):
            return
        ids, length = _from_the_left(orders)
        alike = (ids == ids[:1, :1]).flatten(0, 1).all(0)
        shared = alike.cumprod(0).sum().clamp(max=length.min() - 1)  # one token is left to read
        self.everywhere = self.of_row = shared.expand(len(orders[0].ids))
        if int(shared):
            self.kept = read(lm, *part(orders[0], self.everywhere * 0, self.everywhere, slice(1)))
        if len(orders) > 1:
            same = (ids == ids[:1]).all(0).cumprod(1).sum(1)
            self.of_row = torch.minimum(same, length.min(0).values - 1)

    def rests(self, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, Kept | None]]:
        """Yield what follows the beginnings of some ``rows`` (R,), order by order: ids, mask, and the beginnings."""
        kept = self.kept
        if bool((self.of_row > self.everywhere)[rows].any()):
            kept = read(self.lm, *part(self.orders[0], self.everywhere, self.of_row, rows), kept)
        for prompts in self.orders:
            yield *part(prompts, self.of_row, prompts.length, rows), kept


def part(
    prompts: Prompts, first: torch.Tensor, end: torch.Tensor, rows: torch.Tensor | slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens ``first`` to ``end`` (B,), exclusive, of some prompts, left padded: ids and mask, (R, W)."""
    first, end, start = first[rows], end[rows], prompts.ids.shape[1] - prompts.length[rows]
    width = int((end - first).max())
    place = end[:, None] - width + torch.arange(width, device=end.device)
    return prompts.ids[rows].gather(1, (start[:, None] + place).clamp(min=0)), (place >= first[:, None]).long()


def _from_the_left(orders: Sequence[Prompts]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids without padding on the left, (orders, B, W), and lengths, (orders, B)."""
    width = max(int(prompts.length.max()) for prompts in orders)
    place = torch.arange(width, device=orders[0].ids.device)
    ids = []
    for prompts in orders:
        start = prompts.ids.shape[1] - prompts.length[:, None]
        ids.append(prompts.ids.gather(1, (start + place).clamp(max=prompts.ids.shape[1] - 1)))
    return torch.stack(ids), torch.stack([prompts.length for prompts in orders])
