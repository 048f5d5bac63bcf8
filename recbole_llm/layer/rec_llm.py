"""The Recommendation LLM: a pretrained network that reads item vectors instead of token embeddings."""

import inspect

import torch
from torch import nn

from recbole_llm.errors import ConfigError
from recbole_llm.layer.packing import Packing
from recbole_llm.typing import LanguageModel


def keep_layers(llm: LanguageModel, count: int, name: str) -> None:
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


def states(llm: LanguageModel, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the outputs at every position, shape (B, L, d).

    Parameters
    ----------
    llm : transformers model
    x : torch.Tensor, shape (B, L, d)
        Item vectors; 0 at padding.
    mask : torch.BoolTensor, shape (B, L)
        Real positions.
    """
    x = x.to(next(llm.parameters()).dtype)
    return llm(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state


def causal_states(llm: LanguageModel, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the outputs at every position, each of which reads its own sequence up to itself; 0 at padding.

    Short sequences share a row of the pass, so that hardly any padding is computed; the attention mask keeps them
    apart, and the position ids of each start anew.

    Parameters
    ----------
    llm : transformers model
        Decoder, or encoder that heeds a mask of shape (rows, 1, L, L).
    x : torch.Tensor, shape (B, L, d)
        Item vectors.
    mask : torch.BoolTensor, shape (B, L)
        Real positions, on the left.

    Returns
    -------
    torch.Tensor, shape (B, L, d)
    """
    packing = Packing.of(mask.sum(1))
    shape, place = packing.shared_rows()
    rows = x.new_zeros(shape.numel(), x.shape[2], dtype=next(llm.parameters()).dtype)
    rows = rows.index_copy(0, place, packing.pack(x).to(rows.dtype)).view(*shape, -1)
    sequence = torch.full((shape.numel(),), -1, device=x.device).index_copy(0, place, packing.row()).view(shape)
    position = torch.zeros_like(sequence).flatten().index_copy(0, place, packing.position()).view(shape)
    allowed = (sequence[:, :, None] == sequence[:, None, :]).tril()
    attention = torch.zeros_like(allowed, dtype=rows.dtype).masked_fill(~allowed, torch.finfo(rows.dtype).min)
    options = {"position_ids": position + first_position(llm)} if takes_positions(llm) else {}
    z = llm(inputs_embeds=rows, attention_mask=attention[:, None], **options).last_hidden_state
    z = packing.pad(z.flatten(0, 1).index_select(0, place))
    return nn.functional.pad(z, (0, 0, 0, x.shape[1] - z.shape[1]))


def takes_positions(llm: LanguageModel) -> bool:
    """Whether a model is told the positions; one with relative positions only, such as T5, is not."""
    return "position_ids" in inspect.signature(_without_adapters(llm).forward).parameters


def first_position(llm: LanguageModel) -> int:
    """Return the id of the first position: RoBERTa and its kin count from the one after that of padding."""
    padding = getattr(getattr(_without_adapters(llm), "embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def _without_adapters(llm: LanguageModel) -> LanguageModel:
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm


@torch.no_grad()
def reads_others(llm: LanguageModel, width: int) -> bool:
    """Whether an output of :func:`causal_states` depends on later items or on another sequence of its row.

    Tried on four positions and on their halves, which share a row, in evaluation mode.
    """
    x = torch.linspace(-1, 1, 4 * width, device=llm.device).view(4, width)
    batch = torch.stack([x, x.roll(2, 0), x.flip(1)])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, True, False, False]], device=llm.device)
    was_training = llm.training
    llm.eval()
    together = causal_states(llm, batch, mask)
    apart = [causal_states(llm, batch[i : i + 1, :2], mask[i : i + 1, :2])[0] for i in range(3)]
    llm.train(was_training)
    return not torch.allclose(together[:, :2], torch.stack(apart), rtol=1e-3, atol=1e-4)
