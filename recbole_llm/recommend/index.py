"""A FAISS index of item vectors, and how many of the exact lists it finds."""

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from recbole_llm.errors import ConfigError
from recbole_llm.evaluator.topk import top_k_of_products
from recbole_llm.extras import optional
from recbole_llm.files import whole
from recbole_llm.recommend.recommender import Recommender

# Users whose exact lists are compared with the index's, and the length of the lists.
SAMPLE, K = 1000, 10
# Of the size of a score: two computations of one product differ by less.
ROUNDING = 1e-5


def faiss_package() -> ModuleType:
    """Return faiss.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    return optional("faiss", "faiss", "a FAISS index")


def write_index(recommender: Recommender, factory: str, search: str, history: str, file: Path) -> dict[str, Any]:
    """Write a FAISS index of the item vectors, and measure its recall against exact lists of a sample of users.

    Parameters
    ----------
    recommender : Recommender
        Of a model that scores by products. Row i of its item vectors has id i.
    factory : str
        As :func:`build_index` takes it.
    search : str
        As :func:`build_index` takes it.
    history : {"all", "valid", "test"}
        As in :meth:`Recommender.vectors_of_users`.
    file : pathlib.Path

    Returns
    -------
    dict
        For ``export.json``: factory, search, recall@10 and the number of users that it is a mean over.

    Raises
    ------
    MissingExtraError, ConfigError
        As :func:`build_index`.
    """
    items = np.ascontiguousarray(recommender.item_vectors(), dtype=np.float32)
    index = build_index(items, factory, search)
    users = recommender.users[:: -(-len(recommender.users) // SAMPLE)]
    sample = np.concatenate([part for _, part in recommender.vectors_of_users(users, history, unknown="skip")])
    share = recall(index, items, sample, K)
    logging.getLogger().info(f"{factory}: recall@{K} {share:.4f} of exact lists of {len(sample)} users")
    with whole(file) as partial:
        faiss_package().write_index(index, str(partial))
    return {"factory": factory, "search": search, f"recall@{K}": share, "users": len(sample)}


def build_index(vectors: np.ndarray, factory: str, search: str = "") -> Any:
    """Return a FAISS inner-product index; row i of the vectors has id i.

    Parameters
    ----------
    vectors : numpy.ndarray, float32, shape (n, d), rows one after the other in memory
    factory : str
        As ``faiss.index_factory`` reads it: Flat (exact), HNSW32, "IVF1024,Flat", ...
    search : str
        As ``faiss.ParameterSpace`` reads it, kept in the index: "nprobe=32" (IVF), "efSearch=128" (HNSW).

    Raises
    ------
    MissingExtraError
        If faiss is not installed.
    ConfigError
        For a factory or parameters that FAISS rejects.
    """
    faiss = faiss_package()
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        raise ConfigError(
            f"faiss={factory!r} cannot be built for {len(vectors)} vectors of width {vectors.shape[1]}: "
            f"{_reason(error)} Flat is exact; HNSW32 or 'IVF256,Flat' are faster on large catalogues."
        ) from error
    try:
        if search:
            faiss.ParameterSpace().set_index_parameters(index, search)
        index.search(vectors[:1], 1)
    except RuntimeError as error:
        raise ConfigError(
            f"faiss_search={search!r} is nothing that an index {factory!r} can search with: {_reason(error)} "
            "IVF takes nprobe=32, HNSW efSearch=128, Flat nothing; commas separate several."
        ) from error
    return index


def recall(index: Any, items: np.ndarray, users: np.ndarray, k: int) -> float:
    """Share of the exact ``min(k, n)`` best items that an index finds, mean over users.

    An item that the index finds counts if its score reaches the last one of the exact list: of equal scores any do.

    Parameters
    ----------
    index : faiss.Index
    items : numpy.ndarray, float32, shape (n, d)
    users : numpy.ndarray, float32, shape (B, d)
    k : int
    """
    k = min(k, len(items))
    exact = top_k_of_products(torch.from_numpy(users), torch.from_numpy(items), k)[0].numpy()
    _, found = index.search(users, k)  # -1 where it finds fewer
    scores = np.einsum("ud,ukd->uk", users, items[found.clip(min=0)])
    floor = exact[:, -1:] - ROUNDING * np.abs(exact).max(axis=1, keepdims=True)
    return float(((scores >= floor) & (found >= 0)).mean())


def _reason(error: RuntimeError) -> str:
    # FAISS puts the function and the line of its source before what was wrong.
    return str(error).splitlines()[0].rpartition(": ")[2].rstrip(".") + "."
