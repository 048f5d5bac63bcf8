"""Learning rates as a function of the step number, and which parameters decay."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

SCHEDULES = ("constant", "linear", "cosine")


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


def parameter_groups(model: nn.Module, decay_groups: str, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for the optimizer, each once.

    ``no_bias_norm`` disables weight decay for biases (T5's ``relative_attention_bias`` included) and the weights
    of normalisation layers, found by the class of their module: T5 calls them ``layer_norm``, BERT ``LayerNorm``.
    """
    if decay_groups == "all" or not weight_decay:
        return [{"params": _trainable(model.parameters()), "weight_decay": weight_decay}]
    without: set[int] = set()
    for module_name, module in model.named_modules():
        norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if norm or "bias" in name or "relative_attention_bias" in module_name:
                without.add(id(parameter))
    parameters = _trainable(model.parameters())
    return [
        {"params": [p for p in parameters if id(p) not in without], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in without], "weight_decay": 0.0},
    ]


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
