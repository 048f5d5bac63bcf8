"""LLM2BERT4Rec (Harte et al., RecSys 2023, arXiv 2309.09261; Boz et al., arXiv 2402.01339).

    E      = reduce(LLM(text of item i)), trainable, and a random row for the mask token    (n_items + 1, d)
    x_t    = Dropout(LayerNorm(E[item_t or mask] + P[t]))                                   (B, L, d)
    h      = n_layers of bidirectional self-attention and feed-forward network              (B, L, d)
    scores = LayerNorm(GELU(W h)) E^T + item bias
    loss   = cross-entropy over all items at the masked positions

Network, parameter names and initial weights are those of RecBole's BERT4Rec; the sequences that it is trained on are
not: every batch masks whole sequences anew on the device, ``n_mask_copies`` of each with every item masked with
probability ``mask_ratio`` and ``n_last_copies`` with only the last one, and no masked position is skipped.
``backbone: paper`` is the authors' network: neither LayerNorm nor dropout on the input, positions counted from the
end, and a dense output layer with the activation of the blocks.
"""

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.layer.packing import Packing
from recbole_llm.layer.transformer import run_transformer
from recbole_llm.model.llm2sequential import LLM2Transformer


class LLM2BERT4Rec(LLM2Transformer):
    """BERT4Rec on an item table that a language model has initialised.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LLM2BERT4Rec.yaml`` and the ``llm`` keys of ``props/overall.yaml``.
    dataset : recbole Dataset
        Its folder holds the ``.item`` file with the texts.

    Raises
    ------
    ConfigError
        For an invalid value, or two that contradict each other.
    """

    has_mask_token = True
    recbole_has_head = True

    @property
    def mask_token(self) -> int:
        """Row of the mask token: after the items, however many there are."""
        return self.n_items

    def build(self, config: Config) -> None:
        """Item table, positions, blocks, output layer; names and order of RecBole's BERT4Rec."""
        settings = schema.LLM2BERT4Rec.of(config)
        width = settings.hidden_size
        self.mask_ratio = settings.mask_ratio
        self.n_mask_copies, self.n_last_copies = settings.n_mask_copies, settings.n_last_copies
        self.build_transformer(settings)
        if self.paper:
            self.dropout_rate = 0.0
        if self.has_head:
            self.output_ffn = nn.Linear(width, width)
        if self.has_head and not self.paper:
            self.output_ln = nn.LayerNorm(width, eps=settings.layer_norm_eps)

    def encode(self, table: torch.Tensor, items: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Vectors at every position, shape (N, d)."""
        x = self.embedded(table, items, packing)
        return run_transformer(self.trm_encoder, x, packing, causal=False)

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the output layer; (N, d) -> (N, d)."""
        if not self.has_head:
            return hidden
        if self.paper:
            return self.head_act(self.output_ffn(hidden))
        return self.output_ln(functional.gelu(self.output_ffn(hidden)))

    def appended(
        self, item_seq: torch.Tensor, length: torch.Tensor, item: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append an item to every history; drop the oldest items beyond the maximum length.

        Parameters
        ----------
        item_seq : torch.LongTensor, shape (B, L), right padded with 0
        length : torch.LongTensor, shape (B,)
        item : torch.LongTensor, shape (B,)

        Returns
        -------
        item_seq : torch.LongTensor, shape (B, L')
        length : torch.LongTensor, shape (B,)
            At most ``MAX_ITEM_LIST_LENGTH``.
        """
        item_seq = functional.pad(item_seq, (0, 1)).scatter(1, length[:, None], item[:, None])
        gone = (length + 1 - self.max_seq_length).clamp(min=0)
        place = torch.arange(min(item_seq.shape[1], self.max_seq_length), device=length.device) + gone[:, None]
        return item_seq.gather(1, place), length + 1 - gone

    def history_vector(self, table: torch.Tensor, interaction: Interaction) -> torch.Tensor:
        """Output vector of a mask token after the history, shape (B, d)."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        return self.last(table, *self.appended(item_seq, length, torch.full_like(length, self.mask_token)))

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean loss over the masked positions of the batch; the target of a row is the last item of its sequence."""
        table = self.table()
        item_seq, length = self.appended(
            interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], interaction[self.POS_ITEM_ID]
        )
        copies = self.n_mask_copies + self.n_last_copies
        batch = self.batch(item_seq.repeat_interleave(copies, 0), length.repeat_interleave(copies))
        masked = self.draw_masks(batch.packing, batch.real, batch.order % copies < self.n_last_copies)
        hidden = self.encode(table, batch.items.masked_fill(masked, self.mask_token), batch.packing)
        target = batch.items[masked]
        self.n_masked = len(target)
        return self.loss_of(table, self.output(hidden[masked]), target)

    def loss_weight(self, interaction: Interaction) -> int:
        """Return how many masked positions the last :meth:`calculate_loss` averaged over."""
        return self.n_masked

    def draw_masks(self, packing: Packing, real: torch.Tensor | None, last_only: torch.Tensor) -> torch.Tensor:
        """Draw the positions to mask, bool (N,): at least one per row.

        Parameters
        ----------
        packing : Packing
        real : torch.Tensor, bool, shape (N,), optional
            Positions that are items; default: all.
        last_only : torch.Tensor, bool, shape (B,)
            Rows of which only the last position is masked.
        """
        row, end = packing.row(), packing.last()
        masked = (torch.rand(len(row), device=row.device) < self.mask_ratio) & ~last_only[row]
        if real is not None:
            masked &= real
        count = torch.zeros(packing.rows, device=row.device).index_add_(0, row, masked.float())
        masked[end] |= count == 0
        return masked
