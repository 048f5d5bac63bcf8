"""Item vectors of a catalogue as configured: encoded texts, or a file provided by the user."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.config import Config
from recbole_llm.data.controls import control_of, exchanged, mark_applied, random_vectors
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.files import file_sha256
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.text.encoder import encode_items
from recbole_llm.text.item_text import ItemText, format_of, item_text_of
from recbole_llm.text.pooling import pooling_of
from recbole_llm.text.reduction import Transform
from recbole_llm.text.vector_file import read_item_vectors


def _refuse(texts: Sequence[str]) -> np.ndarray:
    raise ConfigError(
        "The item vectors of this model were not made by a language model from texts (item_vectors, or control="
        "random_vectors), so there is none for a new text. Train with the texts and an llm to score new items."
    )


@dataclass(frozen=True)
class ItemVectors:
    """One vector per item, and where it came from.

    Attributes
    ----------
    vectors : numpy.ndarray, shape (n_items, d), float32
        Row 0 (PAD) is zero, as is that of an item without text.
    provenance : dict
        What a result must report about the language model, the texts and the vectors.
    text : ItemText or None
        The texts; None if the vectors come from a file.
    encode : callable
        Encode other texts the same way: n str -> (n, d) float32. ConfigError if that is impossible.
    """

    vectors: np.ndarray
    provenance: dict[str, Any]
    text: ItemText | None = None
    encode: Callable[[Sequence[str]], np.ndarray] = _refuse

    def transformed(self, steps: Sequence[Transform], info: Mapping[str, Any]) -> "ItemVectors":
        """Return the vectors after fitted steps, which other texts go through, too; ``info`` joins ``item_vectors``.

        The row of padding stays zero.
        """

        def apply(vectors: np.ndarray) -> np.ndarray:
            for step in steps:
                vectors = step(vectors)
            return vectors.astype(np.float32)

        inner = apply(self.vectors[1:])
        about = {**self.provenance["item_vectors"], **info, "reduced_dim": inner.shape[1]}
        return replace(
            self,
            vectors=np.concatenate([np.zeros((1, inner.shape[1]), dtype=np.float32), inner]),
            provenance={**self.provenance, "item_vectors": about},
            encode=lambda texts: apply(self.encode(texts)),
        )


def item_vectors_of(dataset: HistoryDataset, config: Config, preferred: str, logger: logging.Logger) -> ItemVectors:
    """Vectors of a dataset's items as ``item_vectors``, or else ``item_text`` and ``llm``, say, under ``control``.

    Parameters
    ----------
    dataset : recbole Dataset
        Its folder holds the ``.item`` file with the texts, unless ``item_vectors`` names a file.
    config : Config
        ``item_vectors``, ``item_vectors_missing``, ``llm`` and its options, ``item_text``, ``item_pooling``,
        ``item_max_tokens``, ``embedding_cache_dir``, ``control``, ``control_seed``.
    preferred : str
        Model that ``llm: auto`` prefers.
    logger : logging.Logger

    Raises
    ------
    ConfigError, DataError, ModelNotFoundError
        A value is not allowed; the texts or the file lack something; the language model cannot be had.
    """
    tokens, seed = dataset.field2id_token[dataset.iid_field], config["control_seed"]
    made = (
        _from_file(dataset, config, logger) if config["item_vectors"] else _encoded(dataset, config, preferred, logger)
    )
    control = control_of(config)
    if control == "random_vectors":
        mark_applied(dataset, control)
        return replace(made, vectors=random_vectors(made.vectors, tokens, int(seed)), encode=_refuse)
    return made


def _encoded(dataset: HistoryDataset, config: Config, preferred: str, logger: logging.Logger) -> ItemVectors:
    absent = [key for key in ("item_pooling", "item_max_tokens") if config[key] is None]
    if absent:
        raise ConfigError(
            f"item_vectors_of reads {' and '.join(absent)}, which {config['model']} does not declare: list "
            'item_pooling and item_max_tokens in its `defaults` ("auto" and 64 are good values).'
        )
    text = item_text_of(dataset, config)
    resolved = resolve_llm(LLMSpec.from_config(config, key="llm", preferred=preferred), logger=logger)
    read = partial(
        encode_items,
        llm=resolved,
        pooling=pooling_of(config, resolved),
        max_tokens=int(config["item_max_tokens"]),
        device=config["device"],
        cache_dir=config["embedding_cache_dir"],
        show_progress=config["show_progress"],
        logger=logger,
    )
    vectors, info = read(text.texts)
    provenance = {
        "llm": resolved.label(),
        "llm_revision": resolved.revision,
        "item_text": text.template,
        "item_text_fingerprint": text.fingerprint(),
        "items_without_text": text.n_missing,
        "item_vectors": info,
    }
    return ItemVectors(vectors, provenance, text, lambda texts: read(texts)[0])


def _from_file(dataset: HistoryDataset, config: Config, logger: logging.Logger) -> ItemVectors:
    mark_applied(dataset, "item_vectors")
    tokens = dataset.field2id_token[dataset.iid_field]
    vectors, info = read_item_vectors(
        config["item_vectors"],
        tokens,
        missing=config["item_vectors_missing"],
        **format_of(config),
        logger=logger,
    )
    if control_of(config) == "shuffled_text":
        # What a text is to a language model, a vector is here.
        mark_applied(dataset, "shuffled_text")
        vectors = vectors[exchanged(tokens, (vectors != 0).any(1), int(config["control_seed"]))]
    provenance = {
        "llm": f"none: vectors from {config['item_vectors']}",
        "llm_revision": f"sha256:{file_sha256(Path(info['file']))}",
        "items_without_text": info["missing"],
        "item_vectors": info,
    }
    return ItemVectors(vectors, provenance)
