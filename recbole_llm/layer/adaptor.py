"""From the width of text vectors to the width of a recommender."""

import torch
from torch import nn

from recbole_llm.config.schema.blocks import Adaptor
from recbole_llm.errors import ConfigError
from recbole_llm.layer.dropout import dropout


def build_adaptor(settings: Adaptor, in_width: int, out_width: int) -> nn.Module | None:
    """Return the configured adaptor, (..., in_width) -> (..., out_width); None for ``adaptor: none``."""
    kind, rate = settings.adaptor, settings.adaptor_dropout
    if kind == "linear":
        return nn.Linear(in_width, out_width)
    if kind == "mlp":
        return MLPAdaptor(in_width, settings.adaptor_hidden_size or out_width, out_width, rate)
    if kind == "moe":
        return MoEAdaptor(in_width, out_width, settings.adaptor_experts, rate)
    return None


class MLPAdaptor(nn.Module):
    """Linear layer, GELU, dropout, linear layer."""

    def __init__(self, in_width: int, hidden: int, out_width: int, rate: float) -> None:
        super().__init__()
        self.inner, self.outer, self.rate = nn.Linear(in_width, hidden), nn.Linear(hidden, out_width), rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_width) -> (..., out_width)."""
        return self.outer(dropout(nn.functional.gelu(self.inner(x)), self.rate, self.training))


class MoEAdaptor(nn.Module):
    """UniSRec's mixture of parametric whitenings (Hou et al., KDD 2022, arXiv 2206.05941, Eq. 2-4).

        expert_k(x) = (Dropout(x) - b_k) W_k
        g           = softmax(x W_gate + noise * softplus(x W_noise)), noise ~ N(0, 1) in training, 0 afterwards
        output      = sum_k g_k expert_k(x)

    Parameters
    ----------
    in_width, out_width : int
    experts : int
    rate : float
        Dropout of each expert's input.
    """

    def __init__(self, in_width: int, out_width: int, experts: int, rate: float) -> None:
        super().__init__()
        if experts < 1:
            raise ConfigError(f"adaptor_experts={experts!r} is too small: at least 1 is needed.")
        self.rate = rate
        self.shift = nn.Parameter(torch.zeros(experts, in_width))
        self.weight = nn.Parameter(torch.randn(experts, out_width, in_width) * 0.02)
        self.gate = nn.Parameter(torch.zeros(experts, in_width))
        self.noise = nn.Parameter(torch.zeros(experts, in_width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_width) -> (..., out_width)."""
        logits = x @ self.gate.T
        if self.training:
            deviation = nn.functional.softplus(x @ self.noise.T) + 1e-2
            logits = logits + deviation * torch.randn_like(logits)
        share = logits.softmax(-1)  # (..., experts)
        parts = [
            share[..., k, None] * nn.functional.linear(dropout(x, self.rate, self.training) - shift, weight)
            for k, (shift, weight) in enumerate(zip(self.shift, self.weight, strict=True))
        ]
        return torch.stack(parts).sum(0)
