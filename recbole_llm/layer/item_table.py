"""Item vectors that a sequential model reads and scores with: random ids, or a language model's vectors of texts."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.text.item_text import item_text_of
from recbole_llm.text.item_vectors import ItemVectors, item_vectors_of
from recbole_llm.text.reduction import Transform, fit_reduction, fit_whitening, normalize_rows

# The encoders of arXiv 2402.01339 are paid services (ada-002, gecko@002); this one can be run anywhere.
STAND_IN_LLM = "sentence-transformers/all-MiniLM-L6-v2"


def text_vectors(config: Config, dataset: HistoryDataset, width: int, logger: Any) -> ItemVectors:
    """Encode the item texts, then reduce, whiten and normalise as the configuration says.

    Parameters
    ----------
    config : Config
        What :func:`recbole_llm.text.item_vectors.item_vectors_of` reads, and ``dim_reduction``, ``reduced_dim``,
        ``reduction_fit``, ``lda_class_field``, ``whiten``, ``normalize``.
    dataset : recbole Dataset
        A training split; its folder holds the ``.item`` file.
    width : int
        Meaning of ``reduced_dim: ~``.
    logger : logging.Logger

    Raises
    ------
    ConfigError
        For an invalid value, or a reduction without the data that it is fitted on.
    """
    method, fit = config["dim_reduction"], config["reduction_fit"]
    found = item_vectors_of(dataset, config, STAND_IN_LLM, logger)
    counts: np.ndarray | None = getattr(dataset, "train_counts", None)
    if fit == "train" and counts is None:
        raise ConfigError("reduction_fit=train needs a dataset with train_counts (recbole_llm's HistoryDataset).")
    fit_rows = counts[1:] > 0 if fit == "train" and counts is not None else None
    dim = width if config["reduced_dim"] is None else int(config["reduced_dim"])
    reduce = fit_reduction(
        found.vectors[1:],
        method,
        dim,
        fit_rows=fit_rows,
        classes=item_classes(dataset, config) if method == "lda" else None,
        seed=int(config["seed"]),
    )
    steps: list[Transform] = [reduce]
    if config["whiten"]:
        steps.append(fit_whitening(reduce(found.vectors[1:]), fit_rows))
    if config["normalize"]:
        steps.append(normalize_rows)
    about = {
        "dim_reduction": method,
        "reduction_fit": fit,
        "whitened": bool(config["whiten"]),
        "normalized": bool(config["normalize"]),
    }
    reduced = found.transformed(steps, about)
    unseen = None if counts is None else int((counts[1:] == 0).sum())
    return replace(reduced, provenance={**reduced.provenance, "items_not_in_training": unseen})


def item_classes(dataset: HistoryDataset, config: Config) -> list[str]:
    """Class of each item but padding: the distinct words of ``lda_class_field``, in any order."""
    field = config["lda_class_field"]
    if not field:
        raise ConfigError("dim_reduction=lda needs lda_class_field: the name of a field of the .item file.")
    texts = item_text_of(dataset, {**config.final_config_dict, "item_text": "{" + str(field) + "}"}).texts
    return [" ".join(sorted(set(text.split()))) for text in texts[1:]]


class TiedItemTable(nn.Module):
    """Vectors of all items, read as input and tied to the output.

    A new table is a table of ids, with the parameter name of an ``nn.Embedding``. :meth:`start_from` brings text
    vectors in.

    Parameters
    ----------
    n_items : int
        Padding included.
    width : int
        d.
    extra_rows : int
        Learned rows after the items, such as a mask token's.
    """

    def __init__(self, n_items: int, width: int, extra_rows: int = 0) -> None:
        super().__init__()
        self.n_items, self.width, self.extra_rows = n_items, width, extra_rows
        # Drawn as nn.Embedding draws it: the same seed then gives the same weights as in RecBole's model.
        self.weight: nn.Parameter | None = nn.Parameter(torch.randn(n_items + extra_rows, width))
        self.vectors: torch.Tensor | None
        self.register_buffer("vectors", None)
        self.adaptor: nn.Module | None = None
        self.text_scale = 1.0

    def start_from(
        self,
        vectors: torch.Tensor,
        adaptor: nn.Module | None = None,
        freeze: bool = False,
        residual_id: bool = False,
        match_base: bool = False,
    ) -> None:
        """Replace the random vectors that the model was initialised with by text vectors, or add these.

        Parameters
        ----------
        vectors : torch.FloatTensor, shape (n_items, d_text)
        adaptor : nn.Module, optional
            (n, d_text) -> (n, d). Without it d_text must not be above d; columns that the text leaves free stay random
            ids, or zero where the text vectors are kept apart from the ids.
        freeze : bool
            The text vectors are not trained.
        residual_id : bool
            Add a trainable vector of each id, the random ones.
        match_base : bool
            Scale the text vectors to the standard deviation of the random ones.

        Raises
        ------
        ConfigError
            If the text vectors are too wide.
        """
        assert self.weight is not None
        if adaptor is None and vectors.shape[1] > self.width:
            raise ConfigError(
                f"The text vectors have {vectors.shape[1]} columns and the model only {self.width}: reduce them "
                "(dim_reduction, reduced_dim), widen the model, or choose an adaptor."
            )
        random = self.weight.detach()
        if match_base:
            self.text_scale = float(random[1 : self.n_items].std() / vectors[1:].std().clamp(min=1e-12))
        vectors = vectors * self.text_scale
        if adaptor is None and not freeze and not residual_id:
            random[: self.n_items, : vectors.shape[1]] = vectors
            return
        if adaptor is None:
            vectors = nn.functional.pad(vectors, (0, self.width - vectors.shape[1]))
        if freeze:
            # Saved with the weights that were learned on it: another machine may rotate equal principal components.
            self.vectors = vectors.to(random)
        else:
            del self.vectors  # a buffer cannot become a parameter
            self.vectors = nn.Parameter(vectors.to(random))
        self.adaptor = adaptor
        if not residual_id:
            rest = random[self.n_items :].clone()
            self.weight = nn.Parameter(rest) if len(rest) else None

    def forward(self) -> torch.Tensor:
        """Return the whole table with gradient, (n_items + extra_rows, d)."""
        if self.vectors is None:
            assert self.weight is not None
            return self.weight
        text = self.vectors if self.adaptor is None else self.adaptor(self.vectors)
        if self.weight is None:
            return text
        if len(self.weight) == self.extra_rows:
            return torch.cat([text, self.weight])
        return nn.functional.pad(text, (0, 0, 0, self.extra_rows)) + self.weight

    @torch.no_grad()
    def append(self, vectors: torch.Tensor) -> None:
        """Add items known by text alone, each with its initial vector, without an id part.

        Parameters
        ----------
        vectors : torch.FloatTensor, shape (n, d_text)
            Of the kind that :meth:`start_from` got.
        """
        new = vectors * self.text_scale
        if self.adaptor is None:
            new = nn.functional.pad(new, (0, self.width - new.shape[1]))
        if self.vectors is not None:
            new = new.to(self.vectors)
            grown = torch.cat([self.vectors, new])
            if isinstance(self.vectors, nn.Parameter):
                self.vectors = nn.Parameter(grown)
            else:
                self.vectors = grown
            new = new.new_zeros(len(new), self.width)
        if self.weight is not None and len(self.weight) > self.extra_rows:
            ids, extra = self.weight[: self.n_items], self.weight[self.n_items :]
            self.weight = nn.Parameter(torch.cat([ids, new.to(ids), extra]))
        self.n_items += len(vectors)
