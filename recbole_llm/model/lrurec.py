"""LRURec (Yue et al., arXiv 2310.02367): linear recurrent units over item embeddings.

    x   = LayerNorm(Dropout(E[item]))                           (B, L, D)
    h_t = lambda h_{t-1} + gamma (B x_t + b)                    (B, L, H) complex      Eq. 5
    y   = LayerNorm(Dropout(Re(C h + c)) + x)                   (B, L, D)
    z   = LayerNorm(Dropout(W2 Dropout(GELU(W1 y))) + y)        (B, L, D)              Eq. 8
    scores = z E^T + item bias, after n_layers blocks of y and z
    loss = cross-entropy over all items, a target at every position; others: recbole_llm/layer/item_loss.py

As the authors' code: gamma also at the first step (not in Eq. 5), one GELU (two in Eq. 8), id 0 is a class of the
softmax and a row of E like any other, and starts no history. Padding is on the right here, so no mask is needed.
"""

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.rows import NEXT
from recbole_llm.errors import ConfigError
from recbole_llm.layer.gathering import gather_rows
from recbole_llm.layer.item_loss import ItemLoss
from recbole_llm.layer.lru import LRU
from recbole_llm.layer.packing import Packing


class LRURec(LLMRecommender):
    """Stacked linear recurrent units with a tied output layer.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LRURec.yaml``.
    dataset : recbole Dataset

    Raises
    ------
    ConfigError
        For an invalid value.
    """

    train_view = "sequence"
    scores_are_products = True

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        self.item_loss = ItemLoss.from_config(config, dataset, pad_class=True, reads_rows=True)
        settings = schema.LRURec.of(config)
        width, rate = settings.hidden_size, settings.dropout
        self.first_item_target = settings.first_item_target
        if self.first_item_target and config["train_view"] not in (None, "sequence"):
            raise ConfigError(
                f"first_item_target=True needs train_view=sequence, not {config['train_view']!r}: other rows do not "
                "say whether they are the first of their user."
            )
        self.item_embedding = nn.Embedding(self.n_items, width)
        self.item_bias = nn.Parameter(torch.empty(self.n_items))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(rate)
        self.blocks = nn.ModuleList(
            LRUBlock(LRU(width, settings.state_size, settings.r_min, settings.r_max), width, settings.inner_size, rate)
            for _ in range(settings.n_layers)
        )
        self._initialise(settings.initializer_range)
        self.to(self.device)

    def _initialise(self, std: float) -> None:
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not isinstance(module, nn.LayerNorm) and not name.endswith("_log"):
                    nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)

    # ---- sequences

    def forward(
        self, items: torch.Tensor, state: torch.Tensor | None = None, packing: Packing | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Vectors of every prefix of the sequences.

        Parameters
        ----------
        items : torch.LongTensor, shape (B, L), or (N,) with a packing
            From left to right; what follows a position does not change it.
        state : torch.Tensor, complex, shape (B, n_layers, H), optional
            State after the earlier items.
        packing : Packing, optional
            Which positions of a padded batch the items are.

        Returns
        -------
        hidden : torch.Tensor, shape of items and D
        states : list of torch.Tensor, complex, n_layers times (B, L, H)
        """
        x = gather_rows(self.item_embedding.weight, items, self.item_loss.sparse)
        x = self.norm(self.dropout(x))
        states = []
        for layer, block in enumerate(self.blocks):
            x, after = block(x, None if state is None else state[:, layer], packing)
            states.append(after)
        return x, states

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the catalogue, padding ``-inf``; (..., D) -> (..., n_items)."""
        return self.mask_padding(functional.linear(hidden, self.item_embedding.weight, self.item_bias))

    def _last(self, interaction: Interaction) -> torch.Tensor:
        length = interaction[self.ITEM_SEQ_LEN]
        packing = Packing.of(length, interaction[self.ITEM_SEQ].shape[1])
        hidden, _ = self.forward(packing.pack(interaction[self.ITEM_SEQ]), packing=packing)
        return hidden[length.cumsum(0) - 1]

    # ---- training

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean loss over the targets of the batch.

        With ``train_view: sequence`` every item has the next one as its target; with ``prefix`` and ``segment`` a row
        has one target, at its end.
        """
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if NEXT + self.ITEM_SEQ not in interaction:
            hidden, target = self._last(interaction), interaction[self.POS_ITEM_ID]
        else:
            packing = Packing.of(length)
            target = packing.pack(interaction[NEXT + self.ITEM_SEQ])
            hidden, _ = self.forward(packing.pack(item_seq), packing=packing)
            hidden, target = hidden[target > 0], target[target > 0]
            if self.first_item_target:
                # A row that is not full starts where its user starts, or is a window of windows: original, whose first
                # item the authors' code predicts in the same way. Padding hands no state on.
                first = item_seq[length < self.max_seq_length, 0]
                hidden = torch.cat([hidden, self.forward(torch.zeros_like(first)[:, None])[0][:, 0]])
                target = torch.cat([target, first])
        return self.item_loss(hidden, self.item_embedding.weight, target, self.item_bias)

    def row_sparse_parameters(self) -> list[torch.Tensor]:
        """Return item vectors and biases, where the loss samples from a large catalogue."""
        return [self.item_embedding.weight, self.item_bias] if self.item_loss.sparse else []

    def loss_weight(self, interaction: Interaction) -> torch.Tensor | int:
        """Return how many targets :meth:`calculate_loss` averaged over: the weight of the gradients of a process."""
        length = interaction[self.ITEM_SEQ_LEN]
        if NEXT + self.ITEM_SEQ not in interaction:
            return len(length)
        first = (length < self.max_seq_length).sum() if self.first_item_target else 0
        return (interaction[NEXT + self.ITEM_SEQ] > 0).sum() + first

    # ---- evaluation and serving

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """Vectors of the histories, (B, D): scores are products with :meth:`catalogue_vectors`, and the bias."""
        return self._last(interaction)

    def catalogue_vectors(self) -> torch.Tensor:
        """Vectors of all items, (n_items, D)."""
        return self.item_embedding.weight

    def catalogue_bias(self) -> torch.Tensor:
        """Return the bias added to the score of each item, (n_items,)."""
        return self.item_bias

    def state_of(self, item_seq: torch.Tensor, item_seq_len: torch.Tensor) -> torch.Tensor:
        """Return the state needed to continue a history, (B, n_layers, H) complex; see :meth:`step`.

        ``item_seq`` may be of any length. A history without items has the state 0.
        """
        _, layers = self.forward(item_seq)
        row = torch.arange(len(item_seq), device=item_seq.device)
        return torch.stack([functional.pad(states, (0, 0, 1, 0))[row, item_seq_len] for states in layers], dim=1)

    def step(self, item: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append an item to each history, at a cost independent of the length of the history.

        Parameters
        ----------
        item : torch.LongTensor, shape (B,)
        state : torch.Tensor, complex, shape (B, n_layers, H)

        Returns
        -------
        scores : torch.Tensor, shape (B, n_items)
        state : torch.Tensor, complex, shape (B, n_layers, H)
        """
        hidden, states = self.forward(item[:, None], state)
        return self.scores(hidden[:, 0]), torch.stack([layer[:, 0] for layer in states], dim=1)


class LRUBlock(nn.Module):
    """Linear recurrent unit and feed-forward network, each with dropout, skip and LayerNorm."""

    def __init__(self, lru: LRU, width: int, inner_size: int, dropout: float) -> None:
        super().__init__()
        self.lru = lru
        self.lru_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, inner_size)
        self.outer = nn.Linear(inner_size, width)
        self.outer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: torch.Tensor, state: torch.Tensor | None, packing: Packing | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors in the shape of ``x``, and the states (B, L, H); see :class:`recbole_llm.layer.lru.LRU`."""
        y, states = self.lru(x, state, packing)
        y = self.lru_norm(self.dropout(y) + x)
        z = self.outer(self.dropout(functional.gelu(self.inner(y))))
        return self.outer_norm(self.dropout(z) + y), states
