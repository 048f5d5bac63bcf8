"""Optimizer steps of a stage: loss, gradients over batches and processes, clipping, schedule."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch

from recbole_llm import distributed
from recbole_llm.contract import LLMRecommender
from recbole_llm.errors import ModelError
from recbole_llm.progress import progress
from recbole_llm.trainer.accumulation import GradientMean, LossMean
from recbole_llm.trainer.gradients import clip_gradients
from recbole_llm.trainer.optimizer import build_optimizer
from recbole_llm.trainer.parallel import ParallelLoss
from recbole_llm.trainer.schedule import FACTOR
from recbole_llm.trainer.stage import Stage


class Steps:
    """Optimizer steps of a model in a stage.

    Parameters
    ----------
    model : LLMRecommender
    stage : Stage
    device : torch.device
    find_unused : bool, optional
        As :class:`recbole_llm.trainer.parallel.ParallelLoss`.

    Attributes
    ----------
    count, total : int
        Steps so far, and those of the whole stage, which the learning rate goes by.
    learning_rate : float
        Of the last step.
    """

    def __init__(
        self,
        model: LLMRecommender,
        stage: Stage,
        device: torch.device,
        find_unused: bool | None = None,
    ) -> None:
        self.model, self.stage, self.device = model, stage, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=stage.amp_dtype is torch.float16)
        self.count = self.total = 0
        self.learning_rate = stage.learning_rate
        self._find_unused = find_unused
        self._parallel: ParallelLoss | None = None

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the stage; made when it is first asked for, since torch imports its compiler for the first one."""
        return build_optimizer(self.model, self.stage)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context that the model trains in: mixed precision if ``amp`` enables it."""
        if self.stage.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.stage.amp_dtype)

    def epoch(
        self,
        data: Any,
        first: int = 0,
        sums: Sequence[float] = (),
        after_step: Callable[[int, LossMean], bool] | None = None,
        loss_func: Callable[[Any], Any] | None = None,
        label: str = "Train",
        show_progress: bool = False,
    ) -> list[float]:
        """Go through the batches of an epoch.

        Parameters
        ----------
        data : TrainLoader
        first : int
            Number of its first batch in the epoch.
        sums : sequence of float
            Loss of the batches before that, see :class:`recbole_llm.trainer.accumulation.LossMean`.
        after_step : callable, optional
            Called after every step with the number of batches done and the loss so far; True ends the epoch.
        loss_func : callable, optional
            Replaces the model's ``calculate_loss``.

        Returns
        -------
        list of float
            The loss as sums over all targets.
        """
        self.model.train()
        world = distributed.world()
        if world.size > 1 and self._parallel is None:
            self._parallel = ParallelLoss(self.model, self._find_unused)
        batches, accumulate = len(data), self.stage.accumulate
        mean = LossMean(self.device, sums)
        gradients: GradientMean | None = None
        bar = progress(data, label, show_progress, first, lambda: self.model.tokens_read)
        for number, interaction in enumerate(bar, start=first):
            if gradients is None:
                size = min(accumulate, batches - number // accumulate * accumulate)
                gradients = GradientMean(size, data.step)
            is_last = (number + 1) % accumulate == 0 or number + 1 == batches
            batch = interaction.to(self.device)
            with self._parallel.no_sync() if self._parallel and not is_last else nullcontext():
                parts = self._loss(batch, loss_func)
                # A process without rows in this batch gets some with weight 0.
                own = world.size == 1 or data.share(number) > 0
                weight = self.model.loss_weight(batch) if own else 0
                self.scaler.scale(parts.sum() * gradients.share(weight, self.device)).backward()
            mean.add(parts, weight)
            if is_last:
                if self._parallel:
                    self._parallel.finish_step()
                gradients.finish(self.model.parameters())
                gradients = None
                self.step()
                if after_step and after_step(number + 1, mean):
                    break
        return mean.sums()

    def _loss(self, batch: Any, loss_func: Callable[[Any], Any] | None) -> torch.Tensor:
        """Mean loss of a batch, or the parts of it, shape (parts,)."""
        with self.autocast():
            if self._parallel is not None:
                losses = self._parallel(batch, loss_func)
            else:
                losses = (loss_func or self.model.calculate_loss)(batch)
        return loss_parts(losses, self.model)

    def step(self) -> None:
        """Update the weights by their gradients, then clear the gradients."""
        self.learning_rate = self.stage.learning_rate_at(self.count, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get(FACTOR, 1.0)
        if self.stage.clip_grad_norm:
            # Gradients are scaled under fp16; clipping them before unscaling would clip at another norm.
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.model.parameters(), **self.stage.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.count += 1


def loss_parts(losses: Any, model: LLMRecommender) -> torch.Tensor:
    """Return a loss, or the parts of it, as one tensor of shape (parts,).

    Raises
    ------
    ModelError
        For a part that is not a scalar tensor, or a loss without a gradient.
    """
    losses = losses if isinstance(losses, tuple) else (losses,)
    for part in losses:
        # Some of RecBole's models return a tensor of one element.
        if not isinstance(part, torch.Tensor) or part.numel() != 1:
            is_tensor = isinstance(part, torch.Tensor)
            found = f"a tensor of the shape {tuple(part.shape)}" if is_tensor else type(part).__name__
            raise ModelError(
                f"{type(model).__name__}.calculate_loss returned {found}: it must return a scalar tensor, the mean "
                "over the targets of the batch, or a tuple of scalars that are added up."
            )
    parts = torch.stack([part.reshape(()) for part in losses])
    if torch.is_grad_enabled() and not parts.requires_grad:
        raise ModelError(
            f"{type(model).__name__}.calculate_loss returned a loss without gradient: compute it "
            "without torch.no_grad() and detach(), from parameters with requires_grad."
        )
    return parts
