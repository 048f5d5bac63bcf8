"""Cross-entropy over a large catalogue without a table of all scores."""

from typing import Any

import torch
from torch.nn import functional

# Numbers of one piece: what fits into a CPU's cache, what keeps a GPU busy.
AT_ONCE = {"cpu": 2**20, "gpu": 2**26}


def at_once(tensor: torch.Tensor) -> int:
    """Return the value of :data:`AT_ONCE` for the device of a tensor."""
    return AT_ONCE["cpu" if tensor.device.type == "cpu" else "gpu"]


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    rows: int | None = None,
    pad_class: bool = True,
) -> torch.Tensor:
    """Mean of ``cross_entropy(hidden @ weight.T + bias, target)``, differentiable, without the (N, V) scores.

    Rows are processed in chunks, and the gradient of a chunk is computed while its scores are in memory: three matrix
    products in all, as with the whole table.

    Parameters
    ----------
    hidden : torch.Tensor, shape (N, D), N at least 1
    weight : torch.Tensor, shape (V, D)
    bias : torch.Tensor, shape (V,), or None
    target : torch.LongTensor, shape (N,)
    rows : int, optional
        Rows of a piece; default: as many as :data:`AT_ONCE` holds, but D at least, so that a piece takes no
        more memory than ``weight`` and the gradient of ``weight`` is not passed through for a few rows each time.
    pad_class : bool
        False leaves class 0 out of the softmax.

    Returns
    -------
    torch.Tensor, scalar
    """
    if rows is None:
        rows = max(at_once(hidden) // len(weight), hidden.shape[1])
    return _LinearCrossEntropy.apply(hidden, weight, bias, target, rows, pad_class, torch.is_grad_enabled())  # type: ignore[no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        target: torch.Tensor,
        rows: int,
        pad_class: bool,
        with_gradient: bool,
    ) -> torch.Tensor:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        total, count = weight.new_zeros((), dtype=dtype), len(hidden)
        grad_bias = None
        if with_gradient:
            # Of -(score of the target) / N; the part of the normaliser comes piece by piece.
            grad_hidden = -weight[target].to(hidden.dtype) / count
            grad_weight = torch.zeros_like(weight, dtype=dtype).index_add_(
                0, target, hidden.to(dtype), alpha=-1 / count
            )
            if bias is not None:
                grad_bias = -torch.bincount(target, minlength=len(bias)).to(dtype) / count
        for h, t, start in zip(hidden.split(rows), target.split(rows), range(0, count, rows), strict=True):
            scores = functional.linear(h, weight, bias).to(dtype)  # 16 bits under autocast
            if not pad_class:
                scores[:, 0] = -torch.inf
            top = scores.amax(1, keepdim=True)
            of_target = scores.gather(1, t[:, None])
            likelihood = scores.sub_(top).exp_()
            norm = likelihood.sum(1, keepdim=True)
            total += (norm.log() + top - of_target).sum()
            if with_gradient:
                # Softmax / N; the division moves from the (rows, V) table to the (rows, D) one.
                scale = 1 / (norm * count)
                grad_hidden[start : start + rows] += (likelihood @ weight.to(dtype)) * scale
                grad_weight.addmm_(likelihood.T, (h * scale).to(dtype))
                if grad_bias is not None:
                    grad_bias.addmv_(likelihood.T, scale[:, 0])
        if with_gradient:
            grad_bias = None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype), grad_bias)
        return total / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        return grad * hidden, grad * weight, None if bias is None else grad * bias, None, None, None, None
