"""Candidates of a two-step model: its retriever's top items, computed once per split, stored in the run directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recbole_llm.config import Config
from recbole_llm.errors import CheckpointError
from recbole_llm.evaluator.metrics import of_ranks
from recbole_llm.evaluator.ranks import Ranks

FOLDER = "candidates"


@dataclass(frozen=True)
class Retrieved:
    """Candidates that a retriever selects for the rows of a split.

    Attributes
    ----------
    items : torch.LongTensor, shape (rows, k)
        Best first; 0 where fewer can be recommended.
    masked, unmasked : numpy.ndarray, shape (rows,)
        Rank that the retriever gives the target, as in :class:`recbole_llm.evaluator.ranks.Ranks`.
    """

    items: torch.Tensor
    masked: np.ndarray
    unmasked: np.ndarray

    def save(self, run_dir: Path, name: str, key: str) -> None:
        """Write ``candidates/<name>.safetensors``; ``key`` says what it was made by."""
        file = run_dir / FOLDER / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        ranks = {"masked": self.masked, "unmasked": self.unmasked}
        tensors = {"items": self.items.int(), **{kind: torch.from_numpy(rank).int() for kind, rank in ranks.items()}}
        try:
            save_file(tensors, file.with_suffix(".tmp"), metadata={"key": key})
            file.with_suffix(".tmp").replace(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"The candidates cannot be written to {file}: {error}. Free some space.") from error

    @classmethod
    def load(cls, run_dir: Path, name: str, key: str) -> "Retrieved | None":
        """Return what :meth:`save` wrote; None if the file is missing, damaged or saved under another key."""
        file = run_dir / FOLDER / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as opened:
                if (opened.metadata() or {}).get("key") != key:
                    return None
                tensors = {field: opened.get_tensor(field).long() for field in ("items", "masked", "unmasked")}
        except SafetensorError as error:
            getLogger().warning(f"{file} is damaged ({error}); the candidates are retrieved again.")
            return None
        return cls(tensors["items"], tensors["masked"].numpy(), tensors["unmasked"].numpy())

    def ranks(self, mask_history: bool) -> np.ndarray:
        """Ranks with or without the history."""
        return self.masked if mask_history else self.unmasked


def summary(config: Config, retrieved: Retrieved, ranks: Ranks, reranked: int) -> dict[str, Any]:
    """Rows of a two-step result, each an exact mean over users.

    The retriever alone, masked and not; and on the users whose target it retrieved, the whole model and the retriever.

    Parameters
    ----------
    config : Config
    retrieved : Retrieved
    ranks : Ranks
        Of the whole model.
    reranked : int
        How many rows were re-ranked.
    """
    k = retrieved.items.shape[1]
    first = retrieved.ranks(config["mask_history"])
    found = first <= k
    final = ranks.masked if config["mask_history"] else ranks.unmasked

    def means(rank: np.ndarray) -> Mapping[str, float] | None:
        return of_ranks(config, rank) if len(rank) else None

    return {
        "candidates": k,
        "users": len(found),
        "users_retrieved": int(found.sum()),
        "users_reranked": reranked,
        f"retriever_recall@{k}": float(found.mean()),
        "retriever_masked": means(retrieved.masked),
        "retriever_unmasked": means(retrieved.unmasked),
        "retrieved_users": means(final[found]),
        "retrieved_users_retriever": means(first[found]),
    }
