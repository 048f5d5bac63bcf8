"""The optimizer of a stage, and Adam over the rows that a batch reads."""

from collections.abc import Callable
from logging import getLogger
from typing import Any, overload

import torch

from recbole_llm.contract import LLMRecommender
from recbole_llm.errors import ConfigError
from recbole_llm.trainer.schedule import parameter_groups
from recbole_llm.trainer.stage import Stage


class _Lazy(torch.optim.Optimizer):
    """Adam that leaves rows without gradient alone; the other base class steps whole parameters, on the same state.

    Dense gradients are handled by torch's own (fused) optimizer. Of a parameter with a row-sparse gradient, such as
    the table of a large catalogue, only the rows of the batch are read and written, with the same arithmetic::

        m_r = b1 m_r + (1 - b1) g_r
        v_r = b2 v_r + (1 - b2) g_r^2
        w_r = w_r - lr (m_r / (1 - b1^t)) / (sqrt(v_r / (1 - b2^t)) + eps)

    t counts the steps of the optimizer, as in :class:`torch.optim.SparseAdam` and TensorFlow's LazyAdam. This is not
    what Adam does with a dense gradient that is 0 in a row. There the row's moments decay and what is left of m still
    moves the row; here the row, its moments and its weight decay wait until the row is read again. A row that every
    batch reads is trained exactly as by Adam.
    """

    decoupled: bool

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        # Gradients of rows are unscaled by the gradient scaler itself, and so are the others.
        self._step_supports_amp_scaling = False

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters by their gradients, dense or row-sparse."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    grad = parameter.grad.coalesce()
                    self._step_rows(parameter, grad.indices()[0], grad.values(), group)
                    by_rows.append((parameter, grad))
                    parameter.grad = None
        super().step()
        for parameter, grad in by_rows:
            parameter.grad = grad
        return loss

    def _step_rows(
        self, parameter: torch.Tensor, rows: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        if not state:  # torch's names, so that either kind of gradient may follow the other
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
        state["step"] += 1
        step = float(state["step"])
        if decay and self.decoupled:
            parameter.index_copy_(0, rows, parameter.index_select(0, rows).mul_(1 - lr * decay))
        elif decay:
            grad = grad.add(parameter.index_select(0, rows), alpha=decay)
        mean = state["exp_avg"].index_select(0, rows).lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        scale = square.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        parameter.index_add_(0, rows, mean.div_(scale), alpha=-lr / (1 - beta1**step))


class LazyAdam(_Lazy, torch.optim.Adam):
    """Adam; weight decay is an L2 penalty on the rows that are read."""

    decoupled = False


class LazyAdamW(_Lazy, torch.optim.AdamW):
    """AdamW; the rows that are read decay."""

    decoupled = True


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
