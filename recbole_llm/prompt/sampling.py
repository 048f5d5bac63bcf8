"""Random numbers that belong to a row, not to the batch it is in: the same for a user alone or among others."""

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper


def scramble(values: torch.Tensor) -> torch.Tensor:
    """Spread 64-bit integers, so that small differences become large ones (the mixing steps of SplitMix64)."""
    values = values * -7046029254386353131
    values = (values ^ (values >> 30)) * -4658895280553007687
    values = (values ^ (values >> 27)) * -7723592293110705685
    return values ^ (values >> 31)


def row_keys(history: torch.Tensor, salt: int) -> torch.Tensor:
    """Return a number for each history (B, L), whatever padding follows it; shape (B, 1)."""
    place = torch.arange(1, history.shape[1] + 1, device=history.device)
    return scramble(history * place).sum(1, keepdim=True) + salt


def shuffled(items: torch.Tensor, history: torch.Tensor, salt: int) -> torch.Tensor:
    """Columns of ``items`` (B, C) in an order drawn from each row's history (B, L); 0, none, stays last. (B, C)."""
    key = (scramble(items + scramble(row_keys(history, salt))) >> 1) & (2**62 - 1)
    return key.masked_fill(items == 0, 2**62).argsort(dim=1, stable=True)


class SeededSampling(LogitsProcessor):  # type: ignore[misc]
    """Draws a token of each sequence and leaves no other, so that generate() with ``do_sample=False`` samples.

    Parameters
    ----------
    keys : torch.LongTensor, shape (N, 1)
        What the draws of a sequence are made from.
    prompt_length : int
        Tokens before the first that is drawn.
    temperature : float
        Above 0.
    top_p : float
        Draw among the likeliest tokens that together have this probability; 1: among all.
    """

    def __init__(self, keys: torch.Tensor, prompt_length: int, temperature: float, top_p: float) -> None:
        self.keys, self.prompt_length = scramble(keys), prompt_length
        self.warpers = [TemperatureLogitsWarper(float(temperature))]
        if top_p < 1:
            self.warpers.append(TopPLogitsWarper(float(top_p)))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See :class:`transformers.LogitsProcessor`."""
        warped = scores.float()
        for warper in self.warpers:
            warped = warper(input_ids, warped)
        until = warped.softmax(1).cumsum(1)
        step = input_ids.shape[1] - self.prompt_length
        # 23 bits: a product with the last sum stays below it, so that a token of probability 0 is never drawn.
        uniform = ((scramble(self.keys + step) >> 20) & (2**23 - 1)).float() / 2**23
        token = torch.searchsorted(until, uniform * until[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)
