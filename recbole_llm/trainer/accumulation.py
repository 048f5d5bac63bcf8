"""Batches that share an optimizer step, and the processes that share a batch: one mean over all their targets.

The loss of a batch is a mean over its targets, whose number differs from batch to batch. Gradients are added up with
that number as weight and divided by the sum of all weights, which is exactly the gradient of the joined batch.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from recbole_llm import distributed
from recbole_llm.errors import RecBoleLLMError
from recbole_llm.trainer.gradients import gradient_values


class LossMean:
    """Mean training loss over targets, kept on the device: reading it at every step would wait for the device.

    Parameters
    ----------
    device : torch.device
    sums : sequence of float
        What :meth:`sums` gave before training was interrupted.
    """

    def __init__(self, device: torch.device, sums: Sequence[float] = ()) -> None:
        self._sums: torch.Tensor | None = None
        if sums:
            # Counted once: the sums are those of all processes.
            self._sums = torch.tensor(sums, dtype=torch.float64, device=device) * distributed.world().is_main

    def add(self, parts: torch.Tensor, weight: Any) -> None:
        """Add the mean losses of a batch, shape (parts,), over ``weight`` targets."""
        parts = parts.detach().double()
        weight = torch.as_tensor(weight, dtype=torch.float64, device=parts.device)
        new = torch.cat([parts * weight, weight.reshape(1)])
        self._sums = new if self._sums is None else self._sums + new

    def sums(self) -> list[float]:
        """Return sums of the parts over all targets and processes, with the number of targets last."""
        return [] if self._sums is None else distributed.total(self._sums).tolist()


def mean_of(sums: Sequence[float]) -> tuple[float, ...]:
    """Mean of each part of the loss; ``sums`` as :meth:`LossMean.sums` gives them."""
    *parts, weight = sums or (0.0, 0.0)
    # Rows without any target have the loss 0.
    return tuple(part / weight if weight else part for part in parts)


class DivergedError(RecBoleLLMError, ArithmeticError):
    """The training loss became infinite or NaN."""


def require_finite(sums: Sequence[float], epoch: int, learning_rate: float, run_dir: Any, advice: str = "") -> None:
    """Raise DivergedError where a sum of losses is infinite or NaN; ``advice`` is added to its message."""
    if not all(map(math.isfinite, sums)):
        raise DivergedError(
            f"The training loss of epoch {epoch} is {sum(mean_of(sums))}. Lower learning_rate={learning_rate}, set "
            "clip_grad_norm, or turn mixed precision off (T5 overflows in fp16, not in bf16). The best weights so far "
            f"are kept in {run_dir}.{advice}"
        )


class GradientMean:
    """Normaliser of accumulated gradients: to the mean over the targets of all batches of a step and all processes.

    Parameters
    ----------
    batches : int
        Number of batches to a step. With one of them and one process the gradient is a mean already.
    rows : int
        Rows of a batch, the same on all processes: weights are counted in such batches, so that gradients keep their
        size, above all in 16 bits.
    """

    def __init__(self, batches: int, rows: int) -> None:
        self._trivial = batches == 1 and distributed.world().size == 1
        self._rows = max(1, rows)
        self._total: torch.Tensor | None = None

    def share(self, weight: Any, device: torch.device) -> Any:
        """Return the factor for the mean loss of a batch with ``weight`` targets."""
        if self._trivial:
            return 1.0
        share = torch.as_tensor(weight, dtype=torch.float32, device=device) / self._rows
        self._total = share if self._total is None else self._total + share
        return share

    def finish(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Divide the gradients, which are averages over processes, by the sum of the shares."""
        if self._total is None:
            return
        total = distributed.total(self._total)
        factor = distributed.world().size / total.clamp(min=torch.finfo(total.dtype).tiny)
        for parameter in parameters:
            values = gradient_values(parameter)
            if values is not None:
                values.mul_(factor.to(values.dtype))
        self._total = None
