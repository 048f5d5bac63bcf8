"""Dropout whose random numbers do not cost more than the network, as torch's do on a CPU."""

from typing import Any

import torch
from torch.nn import functional


def dropout(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Zeros with probability ``rate``, the rest divided by ``1 - rate``.

    On a CPU four decisions come from one draw of 64 bits, several times faster than ``torch.nn.functional.dropout``;
    ``rate`` is then a multiple of 1 / 65536. The draws are those of torch's global generator.

    Parameters
    ----------
    x : torch.Tensor, any shape
    rate : float
        0 to below 1.
    training : bool
        Otherwise ``x`` is returned unchanged.

    Returns
    -------
    torch.Tensor, shape of x
    """
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, rate)
    return _Dropout.apply(x, rate)  # type: ignore[no-untyped-call]


def _keep(count: int, rate: float) -> torch.Tensor:
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    return draws >= round(rate * 2**16) - 2**15


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rate: float) -> torch.Tensor:
        keep = _keep(x.numel(), rate).view(x.shape)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - rate)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), None
