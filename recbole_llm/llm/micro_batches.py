"""Batches of a causal language model in parts that fit into memory, with the gradient of the whole batch.

Activations of a part are freed before the next one begins: its gradient is taken at once and kept. So the memory of a
step is that of its largest part, and no row is padded to the longest of the batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from recbole_llm.llm.backbone import hidden_size, transformer_layers
from recbole_llm.typing import LanguageModel, ModelConfig

# Bytes of activations at a time on a CPU; a GPU takes this share of its memory. Constants of a machine, so that parts,
# and with them rounding, are the same in every run on it.
CPU_BYTES, GPU_SHARE = 1.0 * 2**30, 0.4

Loss = Callable[[], torch.Tensor]


class MicroBatches:
    """Splitter of batches of texts, which adds up the losses of the parts.

    Parameters
    ----------
    lm : transformers causal language model, or a PEFT model around it
    tokens : int, optional
        Maximum number of tokens of a part, padding included; a longer text is a part by itself. None: what an estimate
        of the activations says fits into :data:`CPU_BYTES` or :data:`GPU_SHARE`.
    checkpointed : bool
        Activations are computed again in the backward pass, layer by layer.
    """

    @classmethod
    def of(cls, lm: LanguageModel, settings: Any) -> "MicroBatches":
        """Return those of the settings ``micro_batch_tokens`` and ``gradient_checkpointing``."""
        return cls(lm, settings.micro_batch_tokens, settings.gradient_checkpointing)

    def __init__(self, lm: LanguageModel, tokens: int | None, checkpointed: bool) -> None:
        self.parameters = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        config = lm.config.get_text_config()
        layer, kept = layer_bytes(config, lm.dtype.itemsize)
        layers = _layers_with_gradients(lm)
        layer += adapter_bytes(lm) / layers
        # A position whose logits are computed costs them in 32 bits, their softmax and their gradient.
        self.bytes = (kept * layers + layer if checkpointed else layer * layers, 12.0 * config.vocab_size)
        self.costs = self.bytes
        self.limit = _activation_bytes(lm.device)
        if tokens is not None:
            self.costs, self.limit = (1.0, 0.0), float(tokens)

    def parts(self, length: torch.Tensor, answer: torch.Tensor | int = 0) -> list[torch.Tensor]:
        """Return the rows of each part, of similar length, shortest first.

        Parameters
        ----------
        length : torch.LongTensor, shape (B,)
            Tokens of each text.
        answer : torch.LongTensor, shape (B,), or int
            Positions of each whose logits over the vocabulary are computed.
        """
        cost = (length * self.costs[0] + answer * self.costs[1]).double()
        order = cost.argsort(stable=True)
        parts: list[torch.Tensor] = []
        start = 0
        for end, largest in enumerate(cost[order].tolist(), start=1):
            if end - 1 > start and (end - start) * largest > self.limit:
                parts.append(order[start : end - 1])
                start = end - 1
        return [*parts, order[start:]]

    def bytes_of(self, length: torch.Tensor, answer: torch.Tensor | int = 0) -> float:
        """Estimate the bytes of activations of the largest of the :meth:`parts`; parameters as there."""
        cost = (length * self.bytes[0] + answer * self.bytes[1]).double()
        return max(float(cost[rows].max()) * len(rows) for rows in self.parts(length, answer))

    def summed(
        self,
        loss: Callable[..., torch.Tensor],
        ids: torch.Tensor,
        mask: torch.Tensor,
        *rows: torch.Tensor,
        answer: torch.Tensor | int = 0,
    ) -> torch.Tensor:
        """Return the sum of ``loss(ids, mask, *rows)`` over the parts of a batch, no part wider than its texts.

        Parameters
        ----------
        loss : callable
            Sums over its rows.
        ids, mask : torch.LongTensor, shape (B, W)
            Left-padded texts.
        *rows : torch.Tensor, shape (B, ...)
            What else belongs to each text.
        answer
            As in :meth:`parts`.
        """
        length = mask.sum(1)
        losses = []
        for part in self.parts(length, answer):
            width = int(length[part].max())
            kept = (values[part] for values in rows)
            losses.append(partial(loss, ids[part, -width:], mask[part, -width:], *kept))
        return self.total(losses)

    def total(self, losses: Sequence[Loss]) -> torch.Tensor:
        """Return the sum of the losses of the parts, each of which is called once.

        Its backward pass gives every trainable weight of the language model the gradient of the sum.
        """
        if len(losses) == 1 or not torch.is_grad_enabled() or not self.parameters or _half_precision():
            return torch.stack([loss() for loss in losses]).sum()
        return _Sum.apply(losses, *self.parameters)  # type: ignore[no-untyped-call]


def _layers_with_gradients(lm: LanguageModel) -> int:
    """Return how many layers keep activations for the backward pass: those from the first trainable weight on."""
    found = transformer_layers(lm)
    if found is None:
        return int(lm.config.get_text_config().num_hidden_layers)
    name, layers = found
    learns = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    outside = (p.requires_grad for part, p in lm.named_parameters() if not part.startswith(f"{name}."))
    return len(layers) if any(outside) or not any(learns) else len(layers) - learns.index(True)


def layer_bytes(config: ModelConfig, itemsize: int) -> tuple[float, float]:
    """Estimate the bytes of activations that a layer keeps for each token, and of its input alone."""
    width = hidden_size(config)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    return itemsize * (16.0 * width + 4 * inner), itemsize * float(width)


def adapter_bytes(lm: LanguageModel) -> float:
    """Estimate the bytes that adapters keep for each token: inputs in 32 bits, and what dropout makes of them."""
    total = 0.0
    for part in lm.modules():
        adapters = getattr(part, "lora_A", None)
        for name in adapters if isinstance(adapters, nn.ModuleDict) else ():
            copied, dropped = lm.dtype.itemsize < 4, isinstance(part.lora_dropout[name], nn.Dropout)
            total += part.in_features * (4.0 * copied + 5.0 * dropped)
    return total


def _activation_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    return CPU_BYTES


def _half_precision() -> bool:
    """Whether losses will be scaled against underflow, which gradients that are taken here would not be."""
    kinds = ("cuda", "cpu")
    return any(torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16 for kind in kinds)


class _Sum(torch.autograd.Function):
    """The sum of losses whose graphs are freed one after the other."""

    @staticmethod
    def forward(ctx: Any, losses: Sequence[Loss], *parameters: nn.Parameter) -> torch.Tensor:
        total: torch.Tensor | None = None
        gradients: list[torch.Tensor | None] = [None] * len(parameters)
        for loss in losses:
            with torch.enable_grad():
                value = loss()
            for number, part in enumerate(torch.autograd.grad(value, parameters, allow_unused=True)):
                known = gradients[number]
                gradients[number] = part if known is None else known if part is None else known.add_(part)
            total = value.detach() if total is None else total + value.detach()
            # Casts of weights are kept with the graph that has just been freed.
            torch.clear_autocast_cache()
        ctx.gradients = gradients
        assert total is not None
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = outputs
        return (None, *(None if part is None else part * scale.to(part.dtype) for part in ctx.gradients))
