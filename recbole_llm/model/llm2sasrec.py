"""LLM2SASRec (Boz et al., arXiv 2402.01339): SASRec whose item table starts from reduced LLM vectors of the texts.

    E      = reduce(LLM(text of item i)), trainable                                     (n_items, d)
    x_t    = Dropout(LayerNorm(E[item_t] + P[t]))                                       (B, L, d)
    h      = n_layers of causal self-attention and feed-forward network                 (B, L, d)
    scores = h E^T
    loss   = cross-entropy over all items, a target at every position; others: recbole_llm/layer/item_loss.py

Network, parameter names and initial weights are those of RecBole's SASRec. ``llm_init: False`` is the vanilla twin:
the same network, trained the same way, without the text.
"""

from collections.abc import Sequence
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.layers import TransformerEncoder
from torch import nn

from recbole_llm.data.dataset import NEXT
from recbole_llm.errors import ConfigError
from recbole_llm.layer.dropout import dropout
from recbole_llm.layer.item_loss import ItemLoss
from recbole_llm.layer.item_table import ItemTable, TextVectors, text_vectors
from recbole_llm.layer.packing import Packing
from recbole_llm.layer.transformer import run_transformer
from recbole_llm.parameters import choice


class LLM2SASRec(SequentialRecommender):
    """SASRec on an item table that a language model has initialised.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LLM2SASRec.yaml`` and the ``llm`` keys of ``props/overall.yaml``.
    dataset : recbole Dataset
        Its folder holds the ``.item`` file with the texts.

    Raises
    ------
    ConfigError
        For a value that is not allowed.
    """

    train_view = "sequence"
    needs_item_text = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.item_loss = ItemLoss.from_config(config, dataset)
        width, eps = int(config["hidden_size"]), float(config["layer_norm_eps"])
        rate = float(config["hidden_dropout_prob"])
        self.item_embedding = ItemTable(self.n_items, width)
        self.position_embedding = nn.Embedding(self.max_seq_length, width)
        self.trm_encoder = TransformerEncoder(
            n_layers=int(config["n_layers"]),
            n_heads=int(config["n_heads"]),
            hidden_size=width,
            inner_size=int(config["inner_size"]),
            hidden_dropout_prob=rate,
            attn_dropout_prob=float(config["attn_dropout_prob"]),
            hidden_act=config["hidden_act"],
            layer_norm_eps=eps,
        )
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(rate)
        self._initialise(float(config["initializer_range"]))
        self.text: TextVectors | None = None
        if config["llm_init"]:
            text = self.text = text_vectors(config, dataset, width, self.logger)
            self.item_embedding.start_from(
                text.vectors,
                freeze=bool(config["freeze_item_embedding"]),
                residual_id=bool(config["residual_id"]),
                match_base=choice(config, "init_scale", ["none", "match_base"]) == "match_base",
            )
        self.to(self.device)

    def _initialise(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding, ItemTable)):
                assert module.weight is not None
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, table: torch.Tensor, items: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Vectors of every prefix of the histories.

        Parameters
        ----------
        table : torch.Tensor, shape (n_items, d)
            :attr:`item_embedding`'s.
        items : torch.LongTensor, shape (N,)
            The real positions of the batch.
        packing : Packing

        Returns
        -------
        torch.Tensor, shape (N, d)
        """
        x = nn.functional.embedding(items, table) + self.position_embedding(packing.position())
        x = dropout(self.LayerNorm(x), self.dropout.p, self.training)
        return run_transformer(self.trm_encoder, x, packing, causal=True)

    def _last(self, table: torch.Tensor, interaction: Interaction) -> torch.Tensor:
        length, order = interaction[self.ITEM_SEQ_LEN].sort()
        packing = Packing.of(length)
        hidden = self.forward(table, packing.pack(interaction[self.ITEM_SEQ][order]), packing)
        return hidden[length.cumsum(0)[order.argsort()] - 1]

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean loss over the targets of the batch: one at every position, or one a row in other views."""
        table = self.item_embedding()
        if NEXT + self.ITEM_SEQ not in interaction:
            hidden, target = self._last(table, interaction), interaction[self.POS_ITEM_ID]
        else:
            length, order = interaction[self.ITEM_SEQ_LEN].sort()
            packing = Packing.of(length)
            target = packing.pack(interaction[NEXT + self.ITEM_SEQ][order])
            hidden = self.forward(table, packing.pack(interaction[self.ITEM_SEQ][order]), packing)
        return self.item_loss(hidden, table, target)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Score of ``ITEM_ID`` for every row, shape (B,)."""
        table = self.item_embedding()
        return (self._last(table, interaction) * table[interaction[self.ITEM_ID]]).sum(-1)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items); padding is ``-inf``."""
        table = self.item_embedding()
        scores = self._last(table, interaction) @ table[: self.n_items].T
        scores[:, 0] = -torch.inf
        return scores

    # ---- serving

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """Vectors of the histories, (B, d): scores are their products with :meth:`catalogue_vectors`."""
        return self._last(self.item_embedding(), interaction)

    def catalogue_vectors(self) -> torch.Tensor:
        """Vectors of all items, (n_items, d)."""
        return self.item_embedding()[: self.n_items]

    def append_items(self, texts: Sequence[str]) -> None:
        """Grow the catalogue by items known by their texts, each with the vector that it would have started from."""
        if self.text is None:
            raise ConfigError("llm_init=False: this model knows items by their ids only, and a new one by nothing.")
        self.item_embedding.append(self.text.encode(texts))
        self.n_items += len(texts)

    def provenance(self) -> dict[str, Any]:
        """What a result must say about the language model, the texts and the vectors."""
        return {} if self.text is None else self.text.provenance
