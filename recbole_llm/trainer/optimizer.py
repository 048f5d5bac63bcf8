"""The optimizer of a stage."""

from collections.abc import Callable
from typing import Any

import torch

from recbole_llm.errors import ConfigError
from recbole_llm.trainer.schedule import parameter_groups
from recbole_llm.trainer.stage import Stage

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sparse_adam": torch.optim.SparseAdam,
}


def build_optimizer(model: torch.nn.Module, stage: Stage) -> torch.optim.Optimizer | None:
    """Create the optimizer of a stage for the trainable parameters; None if there are none.

    Raises
    ------
    ConfigError
        For weights of 16 bits.
    """
    groups = parameter_groups(model, stage.decay_groups, stage.weight_decay)
    trained = [parameter for group in groups for parameter in group["params"]]
    if not trained:
        return None
    half = [parameter for parameter in trained if parameter.dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise ConfigError(
            f"{type(model).__name__} trains {sum(p.numel() for p in half):,} weights of type {half[0].dtype}, in "
            "which most updates are lost. Keep them in float32 (llm_dtype); amp=bf16 computes in 16 bits."
        )
    options: dict[str, Any] = {}
    if stage.learner in ("adam", "adamw"):
        options = {"eps": stage.adam_eps, "fused": True}
    if stage.learner == "sparse_adam":
        groups = [{"params": group["params"]} for group in groups]  # it knows no weight decay
    return OPTIMIZERS[stage.learner](groups, lr=stage.learning_rate, **options)
