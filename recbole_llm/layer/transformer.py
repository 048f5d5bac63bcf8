"""RecBole's Transformer layers on the real positions of a batch alone."""

import torch
from recbole.model.layers import MultiHeadAttention, TransformerEncoder
from torch.nn import functional

from recbole_llm.layer.packing import Packing


def run_transformer(
    encoder: TransformerEncoder, x: torch.Tensor, packing: Packing, causal: bool, pre_norm: bool = False
) -> torch.Tensor:
    """What RecBole's encoder gives at the real positions of right-padded sequences; nothing is computed for the rest.

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
    real = None if causal else packing.mask()[:, None, None, :]
    for layer in encoder.layer:
        attention, network = layer.multi_head_attention, layer.feed_forward
        if pre_norm:
            x = x + attention.out_dropout(_attend(attention, attention.LayerNorm(x), packing, real))
            inner = network.intermediate_act_fn(network.dense_1(network.LayerNorm(x)))
            x = x + network.dropout(network.dense_2(inner))
        else:
            x = attention.LayerNorm(x + attention.out_dropout(_attend(attention, x, packing, real)))
            x = network(x)
    return x


def _attend(
    attention: MultiHeadAttention, x: torch.Tensor, packing: Packing, real: torch.Tensor | None
) -> torch.Tensor:
    """Self-attention and its output layer, (N, d) -> (N, d); ``real`` (B, 1, 1, L) marks keys, None means causal."""
    heads = attention.num_attention_heads
    weight = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
    bias = torch.cat([attention.query.bias, attention.key.bias, attention.value.bias])
    qkv = packing.pad(functional.linear(x, weight, bias))  # (B, L, 3d)
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    rate = attention.attn_dropout.p if attention.training else 0.0
    context = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=real, dropout_p=rate, is_causal=real is None
    )
    return attention.dense(packing.pack(context.transpose(1, 2).flatten(2)))
