"""Settings of one stage of training, read once, and what the caller of ``fit`` asked for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from recbole_llm.config import Config
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.loader import EvaluationLoader
from recbole_llm.errors import ConfigError
from recbole_llm.precision import autocast_dtype
from recbole_llm.trainer.schedule import learning_rate_factor


@dataclass(frozen=True)
class Stage:
    """Settings of training and validation in a stage.

    Attributes
    ----------
    number, name : int, str
        Place among the stages, from 0, and name.
    settings : Config
        The run's, or the stage's own (``stage_config`` of the model).
    own_settings : bool
        Whether they are the stage's own, with separate batches.
    epochs, learning_rate
        Those of ``<name>_epochs`` and ``<name>_learning_rate`` where the run has such keys.
    eval_step, eval_updates : int
        Epochs and optimizer steps between validations; 0: none by that count.
    updates, planned_updates : int, optional
        Of a final fit: optimizer steps after which training ends, and those that the learning rate goes by.
    accumulate : int
        Batches to an optimizer step.
    clip_grad_norm : dict, optional
        Arguments of ``torch.nn.utils.clip_grad_norm_``.
    amp_dtype : torch.dtype, optional
        Of mixed precision.
    """

    number: int
    name: str
    settings: Any
    own_settings: bool
    epochs: int
    learning_rate: float
    eval_step: int
    eval_updates: int
    stopping_step: int
    valid_metric: str
    valid_metric_bigger: bool
    learner: str
    weight_decay: float
    decay_groups: str
    adam_eps: float
    accumulate: int
    clip_grad_norm: dict[str, Any] | None
    amp_dtype: torch.dtype | None
    lr_schedule: str
    warmup_updates: int | None
    warmup_ratio: float
    updates: int | None = None
    planned_updates: int | None = None

    @classmethod
    def of(cls, config: Config, model: LLMRecommender, number: int) -> "Stage":
        """Read the settings of a model's stage."""
        name = model.training_stages[number]
        own = model.stage_config(name)
        settings = config if own is None else own

        def of_stage(key: str) -> Any:
            value = config[f"{name}_{key}"]
            return settings[key] if value is None else value

        clip = settings["clip_grad_norm"]
        if isinstance(clip, (int, float)) and not isinstance(clip, bool):
            clip = {"max_norm": clip}
        epochs = int(of_stage("epochs"))
        return cls(
            number=number,
            name=name,
            settings=settings,
            own_settings=own is not None,
            epochs=epochs,
            learning_rate=float(of_stage("learning_rate")),
            eval_step=min(int(settings["eval_step"]), epochs),
            eval_updates=int(settings["eval_updates"] or 0),
            stopping_step=int(settings["stopping_step"]),
            valid_metric=settings["valid_metric"].lower(),
            valid_metric_bigger=bool(settings["valid_metric_bigger"]),
            learner=settings["learner"].lower(),
            weight_decay=settings["weight_decay"],
            decay_groups=settings["decay_groups"],
            adam_eps=settings["adam_eps"],
            accumulate=settings["accumulate_grad_batches"],
            clip_grad_norm=clip or None,
            amp_dtype=autocast_dtype(settings["amp"], settings["enable_amp"], settings["device"]),
            lr_schedule=settings["lr_schedule"],
            warmup_updates=settings["warmup_updates"],
            warmup_ratio=settings["warmup_ratio"],
            **_final_updates(config["final_fit"], name),
        )

    def over(self, batches: int) -> "Stage":
        """Return the stage on a loader of so many batches: of a final fit, updates decide on the epochs."""
        if self.updates is None:
            return self
        return replace(self, epochs=-(-self.updates // -(-batches // self.accumulate)), eval_step=0, eval_updates=0)

    def total_updates(self, batches: int) -> int:
        """Optimizer steps of the whole stage, given the number of batches per epoch."""
        if self.planned_updates is not None:
            return self.planned_updates
        return -(-batches // self.accumulate) * self.epochs

    def warmup_of(self, total_updates: int) -> int:
        """Optimizer steps of the warm-up."""
        return int(self.warmup_ratio * total_updates) if self.warmup_updates is None else self.warmup_updates

    def warmup_notice(self, total_updates: int) -> str | None:
        """Return a warning about a warm-up that takes the whole training; None where it does not."""
        warmup = self.warmup_of(total_updates)
        if not self.epochs or warmup < total_updates:
            return None
        return (
            f"The warm-up of {warmup:,} updates (warmup_updates, warmup_ratio) is as long as the training of "
            f"{total_updates:,} or longer: the learning rate is reached at its end, if at all."
        )

    def learning_rate_at(self, update: int, total_updates: int) -> float:
        """Learning rate of an optimizer step, counted from 0."""
        warmup = self.warmup_of(total_updates)
        return self.learning_rate * learning_rate_factor(update, self.lr_schedule, warmup, total_updates)


def _final_updates(plan: Any, stage: str) -> dict[str, int]:
    """Return the updates of a stage of a final fit; nothing for other runs."""
    if not plan:
        return {}
    try:
        found = plan["stages"][stage]
        return {key: int(found[key]) for key in ("updates", "planned_updates")}
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"final_fit={plan!r} does not give updates and planned_updates of the stage {stage!r}: let `recbole-llm "
            "refit RUN_DIR` write it."
        ) from error


@dataclass(frozen=True)
class FitArguments:
    """What :meth:`~recbole_llm.trainer.trainer.RunTrainer.fit` was asked for, besides the training data."""

    valid_data: EvaluationLoader | None
    verbose: bool
    show_progress: bool
    callback_fn: Callable[[int, float], None] | None

    def report(self, epoch: int, score: float) -> None:
        """Pass a validation score to the caller's function."""
        if self.callback_fn:
            self.callback_fn(epoch, score)
