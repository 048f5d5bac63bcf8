"""LLMSeqSim (Harte et al., RecSys 2023, arXiv 2309.09261; Boz et al., arXiv 2402.01339): similar text, no training.

    e_i    = normalise(reduce(LLM(text of item i)))                  (n_items, d)
    s      = sum_r w(r) e_r / sum_r w(r), or the last item's vector   (B, d)
    y_i    = similarity(s, e_i)                                      (B, n_items)

r counts the items of the history from its end, 1 = the last. ``mask_history`` excludes items of the history.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.schema import untrained as schema
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.layer.item_table import STAND_IN_LLM, item_classes
from recbole_llm.layer.packing import longest
from recbole_llm.precision import full_precision
from recbole_llm.text.item_vectors import item_vectors_of
from recbole_llm.text.reduction import fit_reduction, normalize_rows

# No item of a history ever weighs nothing.
SMALLEST_WEIGHT = 1e-5


def _scaling_linear(r: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    return (1 - (r - 1) / length).clamp(min=SMALLEST_WEIGHT)


# w(r) of r = 1 (last item), 2, ... in a history of `length` items.
DECAYS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "none": lambda r, length: torch.ones_like(r),
    "constant_linear": lambda r, length: (1 - 0.1 * (r - 1)).clamp(min=SMALLEST_WEIGHT),
    "scaling_linear": _scaling_linear,
    "scaling_quadratic": lambda r, length: _scaling_linear(r, length) ** 2,
    "scaling_cubic": lambda r, length: _scaling_linear(r, length) ** 3,
    "log": lambda r, length: 1 / (1 + r.log()),
    "harmonic": lambda r, length: 1 / r,
    "harmonic_squared": lambda r, length: 1 / r**2,
}


def decay_weights(decay: str, length: torch.Tensor, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Weight of every position of right padded histories; not normalised.

    Parameters
    ----------
    decay : str
        A key of :data:`DECAYS`.
    length : torch.LongTensor, shape (B,)
    width : int
        L, positions of a padded history.
    dtype : torch.dtype

    Returns
    -------
    torch.Tensor, shape (B, L)
        0 at padding.
    """
    position = torch.arange(width, device=length.device)
    count = length[:, None]
    r = (count - position).clamp(min=1).to(dtype)
    return DECAYS[decay](r, count.to(dtype)) * (position < count)


def session_vectors(
    vectors: torch.Tensor, item_seq: torch.Tensor, length: torch.Tensor, combine: str, decay: str
) -> torch.Tensor:
    """Weighted mean of the history's item vectors, or the last one; not normalised.

    Parameters
    ----------
    vectors : torch.Tensor, shape (n_items, d)
    item_seq : torch.LongTensor, shape (B, L), right padded with 0
        A repeated item counts each time.
    length : torch.LongTensor, shape (B,)
    combine : {"mean", "last"}
    decay : str
        Weights of the mean; "last" has none.

    Returns
    -------
    torch.Tensor, shape (B, d)
    """
    if combine == "last":
        return vectors[item_seq.gather(1, (length - 1)[:, None]).squeeze(1)]
    item_seq = item_seq[:, : longest(length, item_seq.shape[1])]
    weights = decay_weights(decay, length, item_seq.shape[1], vectors.dtype)
    weights = weights / weights.sum(1, keepdim=True)
    # The vectors of a history are summed where they are read, never held as (B, L, d).
    return functional.embedding_bag(item_seq, vectors, per_sample_weights=weights, mode="sum")


def similarity(sessions: torch.Tensor, items: torch.Tensor, kind: str) -> torch.Tensor:
    """Similarity of each session with each item.

    Parameters
    ----------
    sessions : torch.Tensor, shape (..., B, d)
    items : torch.Tensor, shape (..., n, d)
    kind : {"dot", "cosine", "euclidean"}
        Euclidean is 1 / (1 + distance); the cosine with a zero vector is 0.

    Returns
    -------
    torch.Tensor, shape (..., B, n)
    """
    with full_precision(sessions.device):
        return _similarity(sessions, items, kind)


def _similarity(sessions: torch.Tensor, items: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "cosine":
        sessions, items = functional.normalize(sessions, dim=-1), functional.normalize(items, dim=-1)
    if kind != "euclidean":
        return sessions @ items.transpose(-1, -2)
    # Through one product of matrices, which in single precision loses the small distances: the ones that count.
    distance = torch.cdist(sessions.double(), items.double())
    return distance.add_(1).reciprocal_().to(sessions.dtype)


class LLMSeqSim(LLMRecommender):
    """Recommend the items whose text is closest to the history's.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LLMSeqSim.yaml`` and the ``llm`` keys of ``props/overall.yaml``.
    dataset : recbole Dataset
        Its folder holds the ``.item`` file with the texts, unless ``item_vectors`` names a file of vectors.

    Raises
    ------
    ConfigError
        For an invalid value, or a reduction without the data that it is fitted on.
    """

    needs_item_text = True
    accepts_new_items = True
    item_vectors: torch.Tensor

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        settings = schema.LLMSeqSim.of(config)
        self.combine, self.decay, self.similarity = settings.combine, settings.decay, settings.similarity
        self.dim_reduction, self.reduction_fit = settings.dim_reduction, settings.reduction_fit

        found = item_vectors_of(dataset, config, STAND_IN_LLM, self.logger)
        self.item_text, self.source, self._encode = found.text, found.provenance, found.encode
        # Items without training interactions get vectors like all others; how many there are belongs to the result.
        self.train_counts: np.ndarray | None = getattr(dataset, "train_counts", None)
        self._reduce = fit_reduction(
            found.vectors[1:],
            self.dim_reduction,
            settings.reduced_dim,
            fit_rows=self._trained_items() if self.reduction_fit == "train" else None,
            classes=item_classes(dataset, config) if self.dim_reduction == "lda" else None,
            seed=int(config["seed"]),
        )
        # The authors normalise what they have reduced and nothing else.
        self.normalized = settings.normalize and self.dim_reduction != "none"
        vectors = self._reduced(found.vectors[1:])
        # Not saved: they come from the texts and the cached vectors, which the run records.
        table = functional.pad(vectors, (0, 0, 1, 0))
        self.register_buffer("item_vectors", table, persistent=False)
        # A distance is no product of vectors.
        self.scores_are_products = self.similarity != "euclidean"
        self.to(self.device)

    def _reduced(self, vectors: np.ndarray) -> torch.Tensor:
        reduced = self._reduce(vectors)
        return torch.from_numpy(normalize_rows(reduced) if self.normalized else reduced).float()

    def _trained_items(self) -> np.ndarray:
        if self.train_counts is None:
            raise ConfigError("reduction_fit=train needs a dataset with train_counts (recbole_llm's HistoryDataset).")
        return self.train_counts[1:] > 0

    def forward(self, item_seq: torch.Tensor, item_seq_len: torch.Tensor) -> torch.Tensor:
        """Session vectors s.

        Parameters
        ----------
        item_seq : torch.LongTensor, shape (B, L), right padded with 0
        item_seq_len : torch.LongTensor, shape (B,)

        Returns
        -------
        torch.Tensor, shape (B, d)
        """
        return session_vectors(self.item_vectors, item_seq, item_seq_len, self.combine, self.decay)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Score of ``ITEM_ID`` for every row, shape (B,)."""
        sessions = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        items = self.item_vectors[interaction[self.ITEM_ID]]
        return similarity(sessions[:, None], items[:, None], self.similarity)[:, 0, 0]

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items); padding is ``-inf``."""
        sessions = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return self.mask_padding(similarity(sessions, self.item_vectors, self.similarity))

    # ---- serving

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """Session vectors, (B, d), of length 1 under cosine: scores are products with :meth:`catalogue_vectors`."""
        return self._scored(self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]))

    def catalogue_vectors(self) -> torch.Tensor:
        """Vectors of all items, (n_items, d), of length 1 under the cosine."""
        return self._scored(self.item_vectors)

    def _scored(self, vectors: torch.Tensor) -> torch.Tensor:
        return functional.normalize(vectors, dim=-1) if self.similarity == "cosine" else vectors

    def append_items(self, texts: Sequence[str]) -> None:
        """Add items to the catalogue by their texts; the fitted reduction stays unchanged."""
        new = self._reduced(self._encode(texts))
        self.item_vectors = torch.cat([self.item_vectors, new.to(self.item_vectors)])
        self.n_items += len(texts)

    def provenance(self) -> dict[str, Any]:
        """Return what a result must report about the language model, the texts and the vectors."""
        untrained = None if self.train_counts is None else int((self.train_counts[1:] == 0).sum())
        return {
            **self.source,
            "items_not_in_training": untrained,
            "item_vectors": {
                **self.source["item_vectors"],
                "dim_reduction": self.dim_reduction,
                "reduced_dim": self.item_vectors.shape[1],
                "reduction_fit": self.reduction_fit,
                "normalized": self.normalized,
            },
        }
