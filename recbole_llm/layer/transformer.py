"""RecBole's Transformer layers on the real positions of a batch alone."""

import math

import torch
from recbole.model.layers import FeedForward, MultiHeadAttention, TransformerEncoder
from torch.nn import functional

from recbole_llm.layer.dropout import dropout
from recbole_llm.layer.packing import Packing


def run_transformer(
    encoder: TransformerEncoder, x: torch.Tensor, packing: Packing, causal: bool, pre_norm: bool = False
) -> torch.Tensor:
    """Run RecBole's encoder on the real positions of right-padded sequences only; padding costs no computation.

    Attention alone needs sequences of one length. On a CPU those of about the same length go together, which takes the
    least time where a packing is sorted by length; on a GPU all of them do, which takes the fewest launches.

    Parameters
    ----------
    encoder : recbole.model.layers.TransformerEncoder
    x : torch.Tensor, shape (N, d)
        Inputs of the real positions, row by row.
    packing : Packing
    causal : bool
        A position sees itself and those before it; otherwise its whole sequence.
    pre_norm : bool
        Normalise what goes into attention and feed-forward network instead of what comes out of the skip connection.

    Returns
    -------
    torch.Tensor, shape (N, d)
    """
    groups = packing.groups() if x.device.type == "cpu" else [packing]
    for layer in encoder.layer:
        attention, network = layer.multi_head_attention, layer.feed_forward
        if pre_norm:
            x = x + _attend(attention, attention.LayerNorm(x), groups, causal)
            x = x + _feed_forward(network, network.LayerNorm(x))
        else:
            x = attention.LayerNorm(x + _attend(attention, x, groups, causal))
            x = network.LayerNorm(x + _feed_forward(network, x))
    return x


def _attend(attention: MultiHeadAttention, x: torch.Tensor, groups: list[Packing], causal: bool) -> torch.Tensor:
    """Self-attention, its output layer and dropout; (N, d) -> (N, d)."""
    weight = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
    bias = torch.cat([attention.query.bias, attention.key.bias, attention.value.bias])
    parts = functional.linear(x, weight, bias).split([group.places.shape[0] for group in groups])
    context = [_context(attention, part, group, causal) for part, group in zip(parts, groups, strict=True)]
    out = attention.dense(context[0] if len(context) == 1 else torch.cat(context))
    return dropout(out, attention.out_dropout.p, attention.training)


def _context(attention: MultiHeadAttention, qkv: torch.Tensor, packing: Packing, causal: bool) -> torch.Tensor:
    """(N, 3 d) -> (N, d)."""
    heads = attention.num_attention_heads
    query, key, value = packing.pad(qkv).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    rate = attention.attn_dropout.p if attention.training else 0.0
    # A causal query sees no padding, which stands on the right.
    mask = None if causal else packing.mask()[:, None, None, :]
    if rate and qkv.device.type == "cpu":
        context = _dropped_attention(query, key, value, mask, rate)
    else:
        context = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=rate, is_causal=causal
        )
    return packing.pack(context.transpose(1, 2).flatten(2))


def _dropped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, rate: float
) -> torch.Tensor:
    """(B, h, L, d/h) each. Torch has no fused kernel with dropout on a CPU, and its other way searches all rows."""
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if mask is None:
        steps = scores.shape[-1]
        mask = torch.ones(steps, steps, dtype=torch.bool, device=scores.device).tril()
    scores = scores + torch.where(mask, 0.0, -torch.inf)
    return dropout(scores.softmax(-1), rate, True) @ value


def _feed_forward(network: FeedForward, x: torch.Tensor) -> torch.Tensor:
    """Both layers and dropout, without skip connection and norm; (N, d) -> (N, d)."""
    act = network.intermediate_act_fn
    # RecBole's gelu is the exact one, in eight passes.
    inner = (functional.gelu if act == network.gelu else act)(network.dense_1(x))
    return dropout(network.dense_2(inner), network.dropout.p, network.training)
