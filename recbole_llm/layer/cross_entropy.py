"""Cross-entropy over a large catalogue without a table of all scores."""

from typing import Any

import torch
from torch.nn import functional

# Scores of one piece: what fits into a CPU's cache, what keeps a GPU busy.
SCORES_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, target: torch.Tensor, rows: int | None = None
) -> torch.Tensor:
    """Mean of ``cross_entropy(hidden @ weight.T + bias, target)``, differentiable, without the (N, V) scores.

    Rows go through in pieces, and the gradient of a piece is taken at once, while its scores are there: three matrix
    products in all, as with the whole table, and none of them twice.

    Parameters
    ----------
    hidden : torch.Tensor, shape (N, D), N at least 1
    weight : torch.Tensor, shape (V, D)
    bias : torch.Tensor, shape (V,)
    target : torch.LongTensor, shape (N,)
    rows : int, optional
        Rows of a piece; default: as many as :data:`SCORES_AT_ONCE` holds.

    Returns
    -------
    torch.Tensor, scalar
    """
    if rows is None:
        rows = max(1, SCORES_AT_ONCE.get(hidden.device.type, SCORES_AT_ONCE["cuda"]) // len(weight))
    return _LinearCrossEntropy.apply(hidden, weight, bias, target, rows, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        target: torch.Tensor,
        rows: int,
        with_gradient: bool,
    ) -> torch.Tensor:
        total, count = bias.new_zeros(()), len(hidden)
        if with_gradient:
            # Of -(score of the target) / N; the part of the normaliser comes piece by piece.
            grad_hidden = -weight[target].to(hidden.dtype) / count
            grad_weight = torch.zeros_like(weight).index_add_(0, target, hidden.to(weight.dtype), alpha=-1 / count)
            grad_bias = -torch.bincount(target, minlength=len(bias)).to(bias.dtype) / count
        for h, t, start in zip(hidden.split(rows), target.split(rows), range(0, count, rows), strict=True):
            scores = functional.linear(h, weight, bias).to(bias.dtype)  # 16 bits under autocast
            top = scores.amax(1, keepdim=True)
            of_target = scores.gather(1, t[:, None])
            likelihood = scores.sub_(top).exp_()
            norm = likelihood.sum(1, keepdim=True)
            total += (norm.log() + top - of_target).sum()
            if with_gradient:
                # Softmax / N; the division moves from the (rows, V) table to the (rows, D) one.
                scale = 1 / (norm * count)
                grad_hidden[start : start + rows] += (likelihood @ weight) * scale
                grad_weight.addmm_(likelihood.T, (h * scale).to(weight.dtype))
                grad_bias.addmv_(likelihood.T, scale[:, 0])
        if with_gradient:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total / len(hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(grad * saved for saved in ctx.saved_tensors), None, None, None
