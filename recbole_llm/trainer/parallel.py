"""The loss of several processes: gradients are averaged over them, dense ones by DistributedDataParallel."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recbole_llm.contract import LLMRecommender
from recbole_llm.distributed import total, world
from recbole_llm.errors import ConfigError
from recbole_llm.trainer.gradients import average_rows


class _Loss(nn.Module):
    """The loss as a forward pass, which is where DistributedDataParallel listens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, interaction: Any, loss: Callable[[Any], Any] | None) -> Any:
        return (loss or self.model.calculate_loss)(interaction)  # type: ignore[operator]


class ParallelLoss:
    """``calculate_loss`` of any model, with gradients averaged over the processes.

    Parameters
    ----------
    model : LLMRecommender
        The same on all processes (:func:`recbole_llm.distributed.broadcast_state`).
    find_unused : bool, optional
        Whether some parameters may get no gradient, which takes time to find out at every step. None: the first step,
        whose gradients are averaged without DistributedDataParallel, tells.
    """

    def __init__(self, model: LLMRecommender, find_unused: bool | None = None) -> None:
        self._model = model
        self._by_rows = model.row_sparse_parameters()
        self._parallel: Any = None if find_unused is None else self._wrapped(find_unused)

    def __call__(self, interaction: Any, loss: Callable[[Any], Any] | None = None) -> Any:
        """Loss, or parts of it, of this process's rows."""
        if self._parallel is None:
            return (loss or self._model.calculate_loss)(interaction)
        try:
            return self._parallel(interaction, loss)
        except RuntimeError as error:
            if "find_unused_parameters" not in str(error):
                raise
            raise ConfigError(
                "Some parameters had a gradient in the first training step and none in a later one. Set "
                "find_unused_parameters=True."
            ) from error

    def no_sync(self) -> Any:
        """Context of a batch whose gradients are only added up; the next one outside of it averages them."""
        return nullcontext() if self._parallel is None else self._parallel.no_sync()

    def finish_step(self) -> None:
        """After the backward pass of a batch outside of :meth:`no_sync`: its gradients are averaged."""
        for parameter in self._by_rows:
            average_rows(parameter)
        if self._parallel is None:
            self._parallel = self._wrapped(find_unused=not _average_gradients(self._others()))

    def _others(self) -> list[nn.Parameter]:
        """Return the trained parameters whose gradients are dense."""
        by_rows = {id(parameter) for parameter in self._by_rows}
        return [each for each in self._model.parameters() if each.requires_grad and id(each) not in by_rows]

    def _wrapped(self, find_unused: bool) -> DistributedDataParallel:
        module = _Loss(self._model)
        by_rows = {id(parameter) for parameter in self._by_rows}
        names = [name for name, each in module.named_parameters(remove_duplicate=False) if id(each) in by_rows]
        # Its buckets are dense.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has another name for broadcast_buffers
            # Buffers are broadcast once an epoch, not at every step: item vectors are buffers.
            return DistributedDataParallel(
                module, find_unused_parameters=find_unused, broadcast_buffers=False, init_sync=False
            )


def _average_gradients(parameters: Sequence[nn.Parameter]) -> bool:
    """Average dense gradients over the processes; whether all processes have used all parameters."""
    used = total(torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32))
    size = world().size
    for parameter, users in zip(parameters, used.tolist(), strict=True):
        if users > 0:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= size
            dist.all_reduce(parameter.grad)
    return bool((used == size).all())
