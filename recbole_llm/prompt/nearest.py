"""Items whose names are similar to a text."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.evaluator.topk import top_k
from recbole_llm.llm.spec import ResolvedLLM
from recbole_llm.text.encoder import TextEncoder, encode_items

# Vectors of written names that are kept at once.
KEPT_NAMES = 50_000


class NearestItems:
    """Items whose names are most similar to a text, by the dot product of embeddings.

    Parameters
    ----------
    vectors : numpy.ndarray, shape (n_items, d)
        Of the items' names; row 0 is padding. A zero row is never found.
    encode : callable
        Texts -> (n, d) vectors; each distinct text once.
    device : torch.device
    """

    def __init__(self, vectors: np.ndarray, encode: Callable[[list[str]], np.ndarray], device: Any) -> None:
        # Products in double precision, rounded: equal ones stay equal whatever they are computed with.
        self.vectors = torch.from_numpy(vectors).to(device).double()
        self._nothing = ~(self.vectors != 0).any(1)
        self._encode = encode
        self._known: dict[str, torch.Tensor] = {}

    def order(self, names: Sequence[str], k: int) -> list[list[int]]:
        """Return the ``k`` nearest items of each name, best first."""
        if len(self._known) > KEPT_NAMES:
            self._known.clear()
        absent = list(dict.fromkeys(name for name in names if name not in self._known))
        if absent:
            new = torch.from_numpy(self._encode(absent)).to(self.vectors)
            self._known.update(zip(absent, new, strict=True))
        query = torch.stack([self._known[name] for name in names])
        rows = []
        for part in query.split(256):
            similar = (part @ self.vectors.T).float().masked_fill(self._nothing, -torch.inf)
            values, items = top_k(similar, k)
            found = zip(items.tolist(), (values > -torch.inf).sum(1).tolist(), strict=True)
            rows += [row[:count] for row, count in found]
        return rows


def nearest_by_text(
    titles: Sequence[str],
    resolved: ResolvedLLM,
    settings: schema.LLMSeqPrompt,
    config: Config,
    device: torch.device,
    logger: logging.Logger,
) -> NearestItems:
    """Return a search among the titles of a catalogue, embedded by a language model.

    Parameters
    ----------
    titles : sequence of str
        By internal id; empty where an item has none.
    resolved : ResolvedLLM
        The encoder.
    settings : LLMSeqPrompt
        Its ``item_pooling`` and ``item_max_tokens``.
    config : Config
        Of the run: cache and progress bar.
    """
    reading: dict[str, Any] = {
        "pooling": settings.item_pooling,
        "max_tokens": settings.item_max_tokens,
        "device": device,
        "logger": logger,
    }
    cache = {"cache_dir": config["embedding_cache_dir"], "show_progress": config["show_progress"]}
    vectors, _ = encode_items(titles, resolved, **reading, **cache)
    encoder: list[TextEncoder] = []

    def encode(names: list[str]) -> np.ndarray:
        # Loaded with the first name that no item has; what a model makes up does not belong into the cache.
        if not encoder:
            encoder.append(TextEncoder(resolved, **reading))
        return encoder[0].encode(names, show_progress=False)

    return NearestItems(vectors, encode, device)
