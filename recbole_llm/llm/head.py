"""The head of a language model: logits in 32 bits, and of some tokens only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from recbole_llm.precision import full_precision, product
from recbole_llm.typing import LanguageModel


@contextmanager
def float32_logits(lm: LanguageModel, tokens: torch.Tensor | None = None) -> Iterator[None]:
    """Inside, a language model computes its logits in float32, whatever its weights are stored in; without gradient.

    Logits of 16 bits tie: 20 letters have some 14 different values in bfloat16. The products are those of the weights
    as they are stored; of a quantised head, or one with adapters, as it multiplies.

    Parameters
    ----------
    lm : transformers.PreTrainedModel or peft.PeftModel
        No other thread may call it meanwhile.
    tokens : torch.LongTensor, shape (n,), optional
        Only the logits of these tokens, in their order: they become (B, L, n).
    """
    with replaced_head(lm, lambda head: _Float32Head(head, tokens)):
        yield


@contextmanager
def replaced_head(lm: LanguageModel, replacement: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    """Put another module in the place of a language model's head, and the head back at the end.

    Parameters
    ----------
    lm : transformers.PreTrainedModel or peft.PeftModel
        No other thread may call it meanwhile.
    replacement : callable
        Makes the module from the head.
    """
    base = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    head = base.get_output_embeddings()
    base.set_output_embeddings(replacement(head))
    try:
        yield
    finally:
        base.set_output_embeddings(head)


class _Float32Head(nn.Module):
    """The linear map of a head, as a matrix in float32."""

    def __init__(self, head: nn.Module, tokens: torch.Tensor | None) -> None:
        super().__init__()
        # Not registered: the head stays the model's own.
        self._head = (head,)
        self._tokens = slice(None) if tokens is None else tokens
        self._map: tuple[torch.Tensor, torch.Tensor | None] | None = None

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._map is None:
            self._map = self._matrix(hidden)
        return product(hidden, *self._map)

    def _matrix(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight (n, d) and bias (n,) in float32."""
        (head,) = self._head
        if type(head) is nn.Linear:
            bias = None if head.bias is None else head.bias[self._tokens].float()
            return head.weight[self._tokens].float(), bias
        # Quantised, or with adapters: what it makes of zero and of the unit vectors.
        with full_precision(hidden.device):
            bias = head(hidden.new_zeros(1, hidden.shape[-1]))[0].float()
            weight = head(torch.eye(hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)).float() - bias
        return weight.T[self._tokens], bias[self._tokens]
