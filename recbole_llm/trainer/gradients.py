"""Gradients, dense or row-sparse: what training does to either kind in one place."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from recbole_llm import distributed


def gradient_values(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return the numbers of a parameter's gradient, to be changed in place; None without gradient.

    Of a row-sparse gradient these are its rows, each of them once.
    """
    grad = parameter.grad
    if grad is None or not grad.is_sparse:
        return grad
    if not grad.is_coalesced():
        parameter.grad = grad = grad.coalesce()
    return grad._values()


def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float, **options: Any) -> None:
    """Scale gradients down to a common norm, as :func:`torch.nn.utils.clip_grad_norm_`, which takes no sparse ones.

    Parameters
    ----------
    parameters : iterable of torch.Tensor
    max_norm : float
    **options
        ``norm_type``, ``error_if_nonfinite`` and ``foreach`` of torch's function.
    """
    values = [part for part in map(gradient_values, parameters) if part is not None]
    norm = nn.utils.get_total_norm(values, **options)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for part in values:
        part.mul_(scale.to(part.device))


def average_rows(parameter: torch.Tensor) -> None:
    """Average a row-sparse gradient over the processes, each of which may have other rows, or none."""
    size = distributed.world().size
    if size == 1:
        return
    values = gradient_values(parameter)
    if values is None:
        rows = torch.empty(0, dtype=torch.long, device=parameter.device)
        values = parameter.new_empty((0, *parameter.shape[1:]))
    else:
        assert parameter.grad is not None
        rows = parameter.grad.indices()[0]
    counts = torch.zeros(size, dtype=torch.long, device=parameter.device)
    counts[distributed.world().rank] = len(rows)
    dist.all_reduce(counts)
    longest = int(counts.max())
    if longest == 0:
        return
    of_all = zip(_gathered(rows, longest), _gathered(values / size, longest), counts.tolist(), strict=True)
    parts = [(ids[:count], part[:count]) for ids, part, count in of_all]
    ids, means = torch.cat([ids for ids, _ in parts]), torch.cat([part for _, part in parts])
    # In the order of the ranks everywhere, so that the sums are the same to the last bit.
    parameter.grad = torch.sparse_coo_tensor(ids[None], means, parameter.shape, check_invariants=False).coalesce()


def _gathered(tensor: torch.Tensor, length: int) -> list[torch.Tensor]:
    """Return the tensors of all processes, each filled up to a common length."""
    padded = tensor.new_zeros((length, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    found = [torch.empty_like(padded) for _ in range(distributed.world().size)]
    dist.all_gather(found, padded)
    return found
