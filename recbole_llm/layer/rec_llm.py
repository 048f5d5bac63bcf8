"""The Recommendation LLM: a pretrained network that reads item vectors instead of token embeddings."""

from typing import Any

import torch
from torch import nn

from recbole_llm.errors import ConfigError


def keep_layers(llm: Any, count: int, name: str) -> None:
    """Keep the first layers of a deep network; final normalisation and everything else stay.

    Parameters
    ----------
    llm : transformers model
    count : int
        At least 1.
    name : str
        Of the model, for the message.

    Raises
    ------
    ConfigError
        If it has fewer layers, or its layers cannot be found.
    """
    total = llm.config.num_hidden_layers
    if not 1 <= count <= total:
        raise ConfigError(f"rec_llm_layers={count!r}: {name} has {total} layers; choose 1 to {total}, or ~ for all.")
    stacks: dict[str, nn.ModuleList] = {}
    for path, module in llm.named_modules():  # outer modules come first; a layer may itself hold a list of that length
        if isinstance(module, nn.ModuleList) and len(module) == total and not path.startswith((*stacks,)):
            stacks[path + "."] = module
    if len(stacks) != 1:
        raise ConfigError(f"rec_llm_layers={count!r}: the layers of {name} are not found. Use another rec_llm, or ~.")
    for stack in stacks.values():
        del stack[count:]
    llm.config.num_hidden_layers = count


def states(llm: Any, x: torch.Tensor, mask: torch.Tensor, causal_mask: bool = False) -> torch.Tensor:
    """Return the outputs at every position, shape (B, L, d).

    Parameters
    ----------
    llm : transformers model
    x : torch.Tensor, shape (B, L, d)
        Item vectors; 0 at padding.
    mask : torch.BoolTensor, shape (B, L)
        Real positions.
    causal_mask : bool
        Let each position of an encoder attend only to those before it, as in a decoder. Histories are padded on
        the right: padding comes after every real position and is read by none.
    """
    x = x.to(next(llm.parameters()).dtype)
    attention = mask.long()
    if causal_mask:
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        attention = torch.zeros(length, length, dtype=x.dtype, device=x.device)
        attention = attention.masked_fill(later, torch.finfo(x.dtype).min).expand(len(x), 1, -1, -1)
    return llm(inputs_embeds=x, attention_mask=attention).last_hidden_state


@torch.no_grad()
def reads_ahead(llm: Any, width: int, causal_mask: bool) -> bool:
    """Whether the output at a position depends on a later one: tried on three positions, in evaluation mode."""
    x = torch.linspace(-1, 1, 3 * width, device=llm.device).view(1, 3, width)
    other = x.clone()
    other[:, 2] = -other[:, 2]
    mask = torch.ones(1, 3, dtype=torch.bool, device=llm.device)
    was_training = llm.training
    llm.eval()
    first, second = (states(llm, vectors, mask, causal_mask)[:, :2] for vectors in (x, other))
    llm.train(was_training)
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-4)
