"""A model of one's own in one file: a GRU over text vectors, scored against the texts themselves.

    v_i    = A t_i, t_i = LLM vector of item i's text                                   (n_items, d)
    h_u    = GRU(v of the history's items), its last state                              (B, d)
    scores = h_u V^T / sqrt(d)
    loss   = cross-entropy over the catalogue

No weight belongs to an item, so items that have no interactions are scored like all others.

From this folder:

    recbole-llm --model=my_model:TextGRU --dataset=ml-100k
    recbole-llm compare --model=my_model:TextGRU,GRU4Rec,MostPopular --dataset=ml-100k
    recbole-llm recommend saved/TextGRU-ml-100k-... --out=lists.csv
"""

from collections.abc import Sequence
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional

from recbole_llm.model.base import LLMRecommender
from recbole_llm.text.item_vectors import item_vectors_of


class TextGRU(LLMRecommender):
    """GRU over projected text vectors with a text-only head.

    Parameters
    ----------
    config : Config
        Keys of :attr:`defaults`, and the keys of item texts in ``props/overall.yaml``.
    dataset : HistoryDataset
        Training split; its folder holds the ``.item`` file with the texts.
    """

    defaults = {
        "hidden_size": 64,
        "num_layers": 1,
        "dropout_prob": 0.2,
        "item_pooling": "auto",
        "item_max_tokens": 64,
        "learning_rate": 0.003,
        "train_batch_size": 512,
    }
    needs_item_text = True
    scores_are_products = True
    accepts_new_items = True
    text_vectors: torch.Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        found = item_vectors_of(dataset, config, "sentence-transformers/all-MiniLM-L6-v2", self.logger)
        self.encode_texts, self.source = found.encode, found.provenance
        # Not saved: the vectors come from the texts, which the run records.
        self.register_buffer("text_vectors", torch.from_numpy(found.vectors), persistent=False)
        width = config["hidden_size"]
        self.adapt = nn.Linear(self.text_vectors.shape[1], width, bias=False)
        self.dropout = nn.Dropout(config["dropout_prob"])
        self.gru = nn.GRU(width, width, config["num_layers"], batch_first=True)
        self.to(self.device)

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """Return the state of the GRU after the newest item, shape (B, d)."""
        items, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        states, _ = self.gru(self.dropout(self.adapt(self.text_vectors[items])))
        # Histories are padded on the right, so that the newest item stands at length - 1.
        return self.gather_indexes(states, length - 1) / self.gru.hidden_size**0.5

    def catalogue_vectors(self) -> torch.Tensor:
        """Return the projected text vectors, shape (n_items, d)."""
        return self.adapt(self.text_vectors)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Return the mean cross-entropy of the next items."""
        logits = self.user_vectors(interaction) @ self.catalogue_vectors().T
        return functional.cross_entropy(self.mask_padding(logits), interaction[self.POS_ITEM_ID])

    def append_items(self, texts: Sequence[str]) -> None:
        """Grow the catalogue by items known by their texts alone."""
        new = torch.from_numpy(self.encode_texts(texts))
        self.text_vectors = torch.cat([self.text_vectors, new.to(self.text_vectors)])
        self.n_items += len(texts)

    def provenance(self) -> dict[str, Any]:
        """Return what a result must say about the language model and the texts."""
        return self.source
