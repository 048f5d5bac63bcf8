"""The optimizer of a stage."""

from collections.abc import Callable
from logging import getLogger
from typing import Any

import torch

from recbole_llm.contract import LLMRecommender
from recbole_llm.errors import ConfigError
from recbole_llm.trainer.lazy_adam import LazyAdam, LazyAdamW
from recbole_llm.trainer.schedule import parameter_groups
from recbole_llm.trainer.stage import Stage

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sparse_adam": LazyAdam,
}
LAZY: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": LazyAdam, "adamw": LazyAdamW}


def build_optimizer(model: LLMRecommender, stage: Stage) -> torch.optim.Optimizer:
    """Create the optimizer of a stage for the trainable parameters; of nothing if there are none.

    Raises
    ------
    ConfigError
        For weights of 16 bits, or ``sparse_item_gradients=True`` where gradients cannot be row-sparse.
    """
    factors = {each: rate / stage.learning_rate for each, rate in model.own_learning_rates().items()}
    groups = parameter_groups(model, stage.decay_groups, stage.weight_decay, factors)
    trained = [parameter for group in groups for parameter in group["params"]]
    if not trained:
        return torch.optim.SGD([torch.zeros(0, requires_grad=True)], lr=stage.learning_rate)
    half = [parameter for parameter in trained if parameter.dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise ConfigError(
            f"{type(model).__name__} trains {sum(p.numel() for p in half):,} weights of type {half[0].dtype}, in "
            "which most updates are lost. Keep them in float32 (llm_dtype); amp=bf16 computes in 16 bits."
        )
    options: dict[str, Any] = {}
    if stage.learner in ("adam", "adamw", "sparse_adam"):
        options = {"eps": stage.adam_eps, "fused": True}
    create = OPTIMIZERS[stage.learner]
    if not model.row_sparse_parameters():
        _refuse_sparse_gradients(model, stage)
    else:
        getLogger().info("Row-sparse gradients of the item table: a step updates the rows that it reads.")
        create = LAZY.get(stage.learner, create)
    return create(groups, lr=stage.learning_rate, **options)


def _refuse_sparse_gradients(model: LLMRecommender, stage: Stage) -> None:
    if stage.settings["sparse_item_gradients"] is True:
        raise ConfigError(
            f"sparse_item_gradients=True: training {type(model).__name__}, as configured, reads the whole item "
            f"table, or learner={stage.learner} takes dense gradients only. It needs loss=sampled_softmax or gbce, "
            "learner=adam or adamw, and item vectors that are trained themselves (without adaptor or residual_id). "
            "Leave the key at auto to have such gradients where they are possible."
        )
