"""Learning rates as a function of the step number, and which parameters decay."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

FACTOR = "learning_rate_factor"  # of a parameter group: its learning rate as a multiple of the stage's


def learning_rate_factor(step: int, name: str, warmup_steps: int, total_steps: int) -> float:
    """Return the factor for the base learning rate at a step (counted from 0).

    ``warmup_steps`` of linear rise, then constant, linear decay to 0 at ``total_steps``, or half a cosine to 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if name == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - progress if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(
    model: nn.Module, decay_groups: str, weight_decay: float, factors: Mapping[nn.Parameter, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters for the optimizer, each once, by weight decay and by factor of the learning rate.

    ``no_bias_norm`` disables weight decay for biases (T5's ``relative_attention_bias`` included) and the weights
    of normalisation layers, found by the class of their module: T5 calls them ``layer_norm``, BERT ``LayerNorm``.
    """
    spared: set[nn.Parameter] = set() if decay_groups == "all" else _biases_and_norms(model)
    factors = factors or {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, weight_decay): [], (1.0, 0.0): []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = factors.get(parameter, 1.0), 0.0 if parameter in spared else weight_decay
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, FACTOR: factor}
        for (factor, decay), parameters in groups.items()
        if parameters
    ]


def _biases_and_norms(model: nn.Module) -> set[nn.Parameter]:
    found: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if norm or "bias" in name or "relative_attention_bias" in module_name:
                found.add(parameter)
    return found
