"""Controls: the same model, trained the same way, without the signal that is claimed to help it.

``random_vectors``
    Item vectors get random directions. Each keeps its norm and, on average, its component along the direction that all
    vectors share, so that centring them (PCA) removes as much as from the real ones.
``shuffled_text``
    Items with a text exchange texts: all statistics of the texts and their vectors stay, only the assignment is wrong.
``shuffled_history``
    Trained and validated as usual, tested on histories whose items are in random order; times stay in place.
``shuffled_history_train``
    The same in training and validation, too.

A control is drawn from ``control_seed`` and the raw item ids; nothing made for one reaches the embedding cache.
"""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from recbole_llm.config import Config
from recbole_llm.config.schema.general import Control
from recbole_llm.config.values import choice
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.typing import Settings

OF_TEXT = ("random_vectors", "shuffled_text")


def control_of(config: Settings) -> str:
    """Return the configured control; ``"none"`` where the configuration lacks the key."""
    value = config.get("control") if isinstance(config, Mapping) else config["control"]
    return "none" if value is None else choice({"control": value}, "control", get_args(Control))


def label(config: Config) -> str:
    """Return the display name of a result: ``LLM2SASRec``, or ``LLM2SASRec [shuffled_text]`` under a control."""
    control = control_of(config)
    return config["model"] if control == "none" else f"{config['model']} [{control}]"


def mark_applied(dataset: HistoryDataset, key: str) -> None:
    """Note that a control, or a file of vectors, has reached the model that is being built on a dataset."""
    dataset.applied = {*getattr(dataset, "applied", ()), key}


def check_applied(config: Config, dataset: HistoryDataset | None) -> None:
    """Raise ConfigError if a control of the text, or ``item_vectors``, has not reached the model.

    Otherwise the result would be mislabelled.
    """
    applied, control, name = getattr(dataset, "applied", ()), control_of(config), config["model"]
    if config["item_vectors"] and "item_vectors" not in applied:
        raise ConfigError(
            f"item_vectors={config['item_vectors']!r} has no effect: {name} does not use precomputed item "
            "vectors with these settings. LLMSeqSim, LLM2SASRec and LiteLLM4Rec do."
        )
    if control in OF_TEXT and control not in applied:
        what = "precomputed item vectors" if control == "random_vectors" else "item text"
        raise ConfigError(
            f"control={control!r} has no effect: {name} has no {what}, with these settings. Take a model or settings "
            "that do, or control=shuffled_history, which works for every model."
        )


def refuse_without_text(config: Config) -> None:
    """Call :func:`check_applied` before anything is read, for RecBole's own models, which never use one."""
    if config.model_class.__module__.startswith("recbole."):
        check_applied(config, None)


def exchanged(tokens: Sequence[str], has: np.ndarray, seed: int) -> np.ndarray:
    """Return a permutation: whose text, or vector, each item gets.

    Parameters
    ----------
    tokens : sequence of str, length n
        Raw ids: the order of the items plays no part.
    has : numpy.ndarray of bool, shape (n,)
        Items that take part; the others keep what they have.
    seed : int

    Returns
    -------
    numpy.ndarray of int64, shape (n,)
        A permutation without fixed points among the items that take part.
    """
    order = _by_token(tokens)[np.random.default_rng(seed).permutation(len(tokens))]
    order = order[np.asarray(has)[order]]
    source = np.arange(len(tokens))
    source[order] = np.roll(order, 1)  # one cycle through all of them
    return source


def random_vectors(vectors: np.ndarray, tokens: Sequence[str], seed: int) -> np.ndarray:
    """Return random vectors with the same norms and the same mean cosine to the common direction.

    Parameters
    ----------
    vectors : numpy.ndarray, shape (n, d)
        A zero row stays zero.
    tokens : sequence of str, length n
        Raw ids: the order of the items plays no part.
    seed : int

    Returns
    -------
    numpy.ndarray, shape (n, d), float32
    """
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms == 0, 1, norms)
    common = unit.sum(axis=0)
    common /= max(np.linalg.norm(common), 1e-12)
    cosine = (unit @ common).sum() / max((norms > 0).sum(), 1)
    noise = np.empty_like(vectors)
    noise[_by_token(tokens)] = np.random.default_rng(seed).standard_normal(vectors.shape)
    noise -= np.outer(noise @ common, common)
    noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
    return (norms * (cosine * common + np.sqrt(max(1 - cosine**2, 0)) * noise)).astype(np.float32)


def _by_token(tokens: Sequence[str]) -> np.ndarray:
    return np.argsort(np.asarray(tokens, dtype=str), kind="stable")
