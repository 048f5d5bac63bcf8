"""Which products are computed in 16 bits under mixed precision, and which never are."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn import functional


def autocast_dtype(amp: str | None, enable_amp: bool, device: torch.device) -> torch.dtype | None:
    """Dtype of mixed precision, or None for full precision."""
    if amp is None:
        if not enable_amp:
            return None
        return torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Context without mixed precision, inside one with it."""
    return torch.autocast(device.type, enabled=False)


def product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute scores ``hidden @ weight.T + bias`` in float32 or better, whatever the types and however the model runs.

    A score of 16 bits has 8 or 11 significant bits: many items share one, and their order is arbitrary.

    Parameters
    ----------
    hidden : torch.Tensor, shape (..., d)
    weight : torch.Tensor, shape (n, d)
    bias : torch.Tensor, shape (n,), optional

    Returns
    -------
    torch.Tensor, shape (..., n)
        float64 where an input is, else float32.

    Examples
    --------
    >>> hidden, items = torch.randn(2, 8).bfloat16(), torch.randn(5, 8)
    >>> product(hidden, items).dtype
    torch.float32
    """
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    with full_precision(hidden.device):
        return functional.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
