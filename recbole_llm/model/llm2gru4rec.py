"""LLM2GRU4Rec (Boz et al., arXiv 2402.01339): GRU4Rec whose item table starts from reduced LLM vectors of the texts.

    E      = reduce(LLM(text of item i)), trainable                                     (n_items, d)
    h_t    = GRU(Dropout(E[item_1]), ..., Dropout(E[item_t]))                           (B, L, hidden)
    scores = (W h + b) E^T
    loss   = cross-entropy over all items, a target at every position; others: recbole_llm/layer/item_loss.py

Network, parameter names and initial weights are those of RecBole's GRU4Rec. ``llm_init: False`` is the vanilla twin:
the same network, trained the same way, without the text. ``backbone: paper`` is the authors' network: dropout also
after the GRU, biases in it, and an activation on W h + b.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.errors import ConfigError
from recbole_llm.layer.dropout import dropout
from recbole_llm.layer.packing import Packing, has_static_shapes
from recbole_llm.model.llm2sequential import LLM2Sequential


class LLM2GRU4Rec(LLM2Sequential):
    """GRU4Rec on an item table that a language model has initialised.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LLM2GRU4Rec.yaml`` and the ``llm`` keys of ``props/overall.yaml``.
    dataset : recbole Dataset
        Its folder holds the ``.item`` file with the texts.

    Raises
    ------
    ConfigError
        For an invalid value, or two that contradict each other.
    """

    recbole_has_head = True
    gru_layers: nn.GRU
    dense: nn.Linear

    def build(self, config: Config) -> None:
        """Item table, recurrent layers, dense layer; names and order of RecBole's GRU4Rec."""
        settings = schema.LLM2GRU4Rec.of(config)
        width, hidden = settings.embedding_size, settings.hidden_size
        self.dropout_rate = settings.dropout_prob
        self.item_embedding = self.new_table(width)
        self.gru_layers = nn.GRU(width, hidden, settings.num_layers, bias=self.paper, batch_first=True)
        if self.has_head:
            self.dense = nn.Linear(hidden, width)
        elif hidden != width:
            raise ConfigError(
                f"output_head=False needs hidden_size={hidden} to be embedding_size={width}: nothing else brings the "
                "state of the GRU to the width of the item table."
            )

    def initialise(self, config: Config) -> None:
        """Draw the initial weights: RecBole's or, for the authors' network, Keras' defaults."""
        weight = self.item_embedding.weight
        assert weight is not None
        if not self.paper:
            nn.init.xavier_normal_(weight)
            for name in ("weight_hh_l0", "weight_ih_l0"):  # RecBole leaves other layers as torch has them
                nn.init.xavier_uniform_(self.gru_layers.get_parameter(name))
            return
        nn.init.uniform_(weight, -0.05, 0.05)
        for name, parameter in self.gru_layers.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            elif "_hh_" in name:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)
        if self.has_head:
            nn.init.xavier_uniform_(self.dense.weight)
            nn.init.zeros_(self.dense.bias)

    def encode(self, table: torch.Tensor, items: torch.Tensor, packing: Packing) -> torch.Tensor:
        """States of the GRU at every position, shape (N, hidden_size); rows are in order of length."""
        x = dropout(self.look_up(table, items), self.dropout_rate, self.training)
        if x.device.type == "cpu" and not has_static_shapes():
            # Step by step over the rows that are long enough: no step for padding.
            position = packing.position()
            order = position.argsort(stable=True)
            states = self.gru_layers(PackedSequence(x[order], position.bincount().cpu()))[0].data
            states = states[order.argsort()]
        else:
            states = packing.pack(self.gru_layers(packing.pad(x))[0])
        return dropout(states, self.dropout_rate, self.training) if self.paper else states

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the dense layer; (N, hidden_size) -> (N, embedding_size)."""
        if not self.has_head:
            return hidden
        return self.head_act(self.dense(hidden)) if self.paper else self.dense(hidden)
