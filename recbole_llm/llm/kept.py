"""Keys and values of what a causal language model has read, kept for texts that begin with it."""

import inspect
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from recbole_llm.typing import LanguageModel


class Kept(NamedTuple):
    """Keys and values of beginnings: of every layer, each (B, heads, W, size), and the ``mask`` (B, W) of the tokens.

    With B = 1 they are the beginning of any number of texts.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor

    def of(self, rows: int) -> "Kept":
        """Return those of ``rows`` texts."""
        layers = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in self.layers]
        return Kept(layers, self.mask.expand(rows, -1))


def can_share(lm: LanguageModel) -> bool:
    """Whether a language model can go on from kept keys and values, with padding between them and what follows.

    Layers with a sliding window count places rather than tokens, and recurrent ones keep no keys.
    """
    layers = DynamicCache(config=lm.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def arguments(lm: LanguageModel, mask: torch.Tensor, kept: Kept | None, keep: bool = False) -> dict[str, Any]:
    """Return what a language model is called with, beside left-padded texts (B, W) whose beginnings it has read.

    Parameters
    ----------
    lm : transformers causal language model, or a PEFT model around it
    mask : torch.LongTensor, shape (B, W)
        Of the texts without their beginnings.
    kept : Kept, optional
        Their beginnings; None: there are none.
    keep : bool
        Fill a cache with keys and values where there are no beginnings, too.
    """
    places = (mask.cumsum(1) - 1).clamp(min=0)
    if kept is None and not keep:
        return {"attention_mask": mask, "position_ids": places, "use_cache": False}
    cache = DynamicCache(config=lm.config)
    if kept is not None:
        known = kept.of(len(mask))
        for number, (keys, values) in enumerate(known.layers):
            cache.update(keys, values, number)
        places = places + known.mask.sum(1, keepdim=True)
        mask = torch.cat([known.mask, mask], dim=1)
    return {"attention_mask": mask, "position_ids": places, "use_cache": True, cache_name(lm): cache}


def cache_name(lm: LanguageModel) -> str:
    """Return the name of the argument that takes a cache; transformers 5.0 calls it past_key_values."""
    return "cache" if "cache" in inspect.signature(_plain(lm).forward).parameters else "past_key_values"


@torch.no_grad()
def read(lm: LanguageModel, ids: torch.Tensor, mask: torch.Tensor, kept: Kept | None = None) -> Kept:
    """Read left-padded texts (B, W) behind those that were kept, and return both."""
    given = arguments(lm, mask, kept, keep=True)
    cache = given[cache_name(lm)]
    _plain(lm).base_model(input_ids=ids, **given)  # without its head
    return Kept([(layer.keys, layer.values) for layer in cache.layers], given["attention_mask"])


def _plain(lm: LanguageModel) -> LanguageModel:
    """Return a model without PEFT's wrapper; its layers keep their adapters."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm
