"""What LLM2SASRec, LLM2BERT4Rec and LLM2GRU4Rec share: item table, packed batches, output layer, scores.

They differ from SASRec, BERT4Rec and GRU4Rec only in the initial value of the item table (Boz et al., arXiv
2402.01339); with ``llm_init: False`` in nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from recbole.data.interaction import Interaction
from recbole.model.layers import TransformerEncoder
from torch import nn
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.rows import NEXT
from recbole_llm.errors import ConfigError
from recbole_llm.layer.adaptor import build_adaptor
from recbole_llm.layer.dropout import dropout
from recbole_llm.layer.gathering import gather_rows
from recbole_llm.layer.item_loss import ItemLoss
from recbole_llm.layer.item_table import TiedItemTable, text_vectors
from recbole_llm.layer.packing import Packing
from recbole_llm.text.item_vectors import ItemVectors

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "swish": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class Batch(NamedTuple):
    """Sequences of a batch, the longest first, without their padding.

    ``items`` (N,) row by row; ``order`` (B,) says which row of the interaction each is; ``real`` (N,) bool is given
    where ``items`` also holds the authors' padding.
    """

    items: torch.Tensor
    packing: Packing
    order: torch.Tensor
    real: torch.Tensor | None


class LLM2Sequential(LLMRecommender):
    """A sequential model on an item table that a language model may have initialised.

    A subclass builds its layers in :meth:`build`, draws their weights in :meth:`initialise`, and turns a batch into
    vectors in :meth:`encode`.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/<Model>.yaml`` and the ``llm`` keys of ``props/overall.yaml``.
    dataset : recbole Dataset
        Its folder holds the ``.item`` file with the texts.

    Raises
    ------
    ConfigError
        For an invalid value, or two that contradict each other.
    """

    needs_item_text = True
    scores_are_products = True
    accepts_new_items = True
    train_view = "sequence"
    has_mask_token = False
    recbole_has_head = False  # whether RecBole's network has a layer between sequence and item table
    item_embedding: TiedItemTable

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.item_loss = ItemLoss.from_config(config, dataset, reads_rows=True)
        settings = schema.TextTable.of(config)
        self.paper, self.unmasked_padding = settings.backbone == "paper", settings.paper_unmasked_padding
        default_head = self.paper or self.recbole_has_head
        self.has_head = default_head if settings.output_head is None else settings.output_head
        self.head_act = ACTIVATIONS[settings.hidden_act]
        self.build(config)
        self.output_bias = nn.Parameter(torch.zeros(self.n_items)) if settings.output_bias == "item" else None
        self.initialise(config)

        self.text: ItemVectors | None = None
        self._eval_table: torch.Tensor | None = None
        # After every draw of the network's weights, which are then the same with and without the text.
        if settings.llm_init:
            self._bring_in_text(config, settings, dataset)
        self.to(self.device)

    def _bring_in_text(self, config: Config, settings: schema.TextTable, dataset: HistoryDataset) -> None:
        width = self.item_embedding.width
        text = self.text = text_vectors(config, dataset, width, self.logger)
        columns = text.vectors.shape[1]
        adaptor = build_adaptor(settings, columns, width)
        text.provenance["item_vectors"]["columns_without_text"] = 0 if adaptor else max(0, width - columns)
        if adaptor is None and columns < width:
            self.logger.warning(
                f"The text vectors have {columns} columns and the model {width}: the other {width - columns} hold no "
                "text."
            )
        self.item_embedding.start_from(
            torch.from_numpy(text.vectors),
            adaptor,
            freeze=settings.freeze_item_embedding,
            residual_id=settings.residual_id,
            match_base=settings.init_scale == "match_base",
        )

    # ---- what a subclass says

    def build(self, config: Config) -> None:
        """Make the layers, :attr:`item_embedding` first."""
        raise NotImplementedError

    def initialise(self, config: Config) -> None:
        """Draw the initial weights."""
        raise NotImplementedError

    def encode(self, table: torch.Tensor, items: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Vectors at every position, shape (N, d), before the output layer.

        Parameters
        ----------
        table : torch.Tensor, shape (n_items or more, d)
        items : torch.LongTensor, shape (N,)
        packing : Packing
        """
        raise NotImplementedError

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the factor of the item table, shape (N, d); called for positions with a target only."""
        return hidden

    # ---- sequences

    def new_table(self, width: int) -> TiedItemTable:
        """Create a table of random ids, followed by a row for the mask token or for the authors' padding."""
        return TiedItemTable(self.n_items, width, extra_rows=int(self.has_mask_token or self.unmasked_padding))

    def table(self) -> torch.Tensor:
        """All item vectors, shape (n_items + extra rows, d); in evaluation those of texts are kept."""
        if self.item_embedding.vectors is None or self.training or torch.is_grad_enabled():
            return self.item_embedding()
        if self._eval_table is None:
            self._eval_table = self.item_embedding()
        return self._eval_table

    def train(self, mode: bool = True) -> "LLM2Sequential":
        """Set the mode as ``nn.Module.train``; drop what an evaluation cached."""
        self._eval_table = None
        return super().train(mode)

    def batch(self, item_seq: torch.Tensor, length: torch.Tensor) -> Batch:
        """Sort by length and drop the padding.

        With ``paper_unmasked_padding`` rows are instead filled up on the left, with the mask token, to
        ``MAX_ITEM_LIST_LENGTH``, and the filling counts as items do.
        """
        length, order = length.sort(descending=True)
        item_seq = item_seq[order]
        if not self.unmasked_padding:
            packing = Packing.of(length, item_seq.shape[1])
            return Batch(packing.pack(item_seq), packing, order, None)
        steps = self.max_seq_length
        start = steps - length[:, None]
        place = torch.arange(steps, device=length.device) - start
        items = item_seq.gather(1, place.clamp(min=0)).masked_fill(place < 0, self.n_items)
        packing = Packing.of(torch.full_like(length, steps))
        return Batch(items.flatten(), packing, order, (place >= 0).flatten())

    def last(self, table: torch.Tensor, item_seq: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Output vector at the end of every history, shape (B, d), in the order of the interaction."""
        batch = self.batch(item_seq, length)
        hidden = self.encode(table, batch.items, batch.packing)
        return self.output(hidden[batch.packing.last()[batch.order.argsort()]])

    def history_vector(self, table: torch.Tensor, interaction: Interaction) -> torch.Tensor:
        """Return the vectors that the next item is predicted from, shape (B, d)."""
        return self.last(table, interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    # ---- training

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean loss over the targets of the batch: one at every position, or one per row in other views."""
        table = self.table()
        if NEXT + self.ITEM_SEQ not in interaction:
            return self.loss_of(table, self.history_vector(table, interaction), interaction[self.POS_ITEM_ID])
        batch = self.batch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        following = interaction[NEXT + self.ITEM_SEQ][batch.order]
        real = Packing.of(interaction[self.ITEM_SEQ_LEN][batch.order])
        hidden = self.encode(table, batch.items, batch.packing)
        hidden = hidden if batch.real is None else hidden[batch.real]
        return self.loss_of(table, self.output(hidden), real.pack(following))

    def look_up(self, table: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Rows of :meth:`table`, shape (N, d)."""
        return gather_rows(table, items, self.item_loss.sparse)

    def row_sparse_parameters(self) -> list[torch.Tensor]:
        """Return the item table and biases, where the loss samples and the table is not computed from texts."""
        table = self.item_embedding.weight
        if not self.item_loss.sparse or table is None or self.item_embedding.vectors is not None:
            return []
        return [table] if self.output_bias is None else [table, self.output_bias]

    def loss_weight(self, interaction: Interaction) -> torch.Tensor | int:
        """Return how many targets :meth:`calculate_loss` averaged over: the weight of the gradients of a process."""
        length = interaction[self.ITEM_SEQ_LEN]
        return length.sum() if NEXT + self.ITEM_SEQ in interaction else len(length)

    def loss_of(self, table: torch.Tensor, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean loss of output vectors (N, d) with targets (N,)."""
        return self.item_loss(output, table, target, self.output_bias)

    # ---- serving

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """Vectors of the histories, (B, d): scores are their products with :meth:`catalogue_vectors`, and a bias."""
        return self.history_vector(self.table(), interaction)

    def catalogue_vectors(self) -> torch.Tensor:
        """Vectors of all items, (n_items, d)."""
        return self.table()[: self.n_items]

    def catalogue_bias(self) -> torch.Tensor | None:
        """Bias of each item's score, (n_items,), where there is one."""
        return self.output_bias

    def append_items(self, texts: Sequence[str]) -> None:
        """Add items to the catalogue by their texts, each with the vector that it would have started from."""
        if self.text is None:
            raise ConfigError("llm_init=False: this model knows items only by their ids and cannot add new ones.")
        self.item_embedding.append(torch.from_numpy(self.text.encode(texts)))
        if self.output_bias is not None:
            self.output_bias = nn.Parameter(functional.pad(self.output_bias.detach(), (0, len(texts))))
        self.n_items += len(texts)
        self._eval_table = None

    def provenance(self) -> dict[str, Any]:
        """Return what a result must report about the language model, the texts and the vectors."""
        return {} if self.text is None else self.text.provenance


class LLM2Transformer(LLM2Sequential):
    """A transformer on the item table, for LLM2SASRec and LLM2BERT4Rec: positions, blocks, initial weights."""

    def build_transformer(self, settings: schema.LLM2SASRec) -> None:
        """Item table, positions, blocks; names and order of RecBole's networks."""
        width = settings.hidden_size
        self.item_embedding = self.new_table(width)
        self.position_embedding = nn.Embedding(self.max_seq_length, width)
        self.trm_encoder = TransformerEncoder(
            n_layers=settings.n_layers,
            n_heads=settings.n_heads,
            hidden_size=width,
            inner_size=settings.inner_size,
            hidden_dropout_prob=settings.hidden_dropout_prob,
            attn_dropout_prob=settings.attn_dropout_prob,
            hidden_act=settings.hidden_act,
            layer_norm_eps=settings.layer_norm_eps,
        )
        if not self.paper:
            self.LayerNorm = nn.LayerNorm(width, eps=settings.layer_norm_eps)
        self.dropout_rate = settings.hidden_dropout_prob

    def initialise(self, config: Config) -> None:
        """Draw the weights as RecBole's SASRec and BERT4Rec, or as Keras for the authors' networks; biases are 0."""
        std = float(config["initializer_range"])
        for module in self.modules():
            if isinstance(module, (nn.Embedding, TiedItemTable)):
                assert module.weight is not None
                if self.paper:
                    nn.init.uniform_(module.weight, -0.05, 0.05)
                else:
                    nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                if self.paper:
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def embedded(self, table: torch.Tensor, items: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Input of the first block at every position, shape (N, d)."""
        position = packing.position(ending_at=self.max_seq_length - 1 if self.paper else None)
        x = self.look_up(table, items) + self.position_embedding(position)
        if not self.paper:
            x = self.LayerNorm(x)
        return dropout(x, self.dropout_rate, self.training)
