"""LLM2SASRec (Boz et al., arXiv 2402.01339): SASRec whose item table starts from reduced LLM vectors of the texts.

    E      = reduce(LLM(text of item i)), trainable                                     (n_items, d)
    x_t    = Dropout(LayerNorm(E[item_t] + P[t]))                                       (B, L, d)
    h      = n_layers of causal self-attention and feed-forward network                 (B, L, d)
    scores = h E^T
    loss   = cross-entropy over all items, a target at every position; others: recbole_llm/layer/item_loss.py

Network, parameter names and initial weights are those of RecBole's SASRec. ``llm_init: False`` is the vanilla twin:
the same network, trained the same way, without the text. ``backbone: paper`` is the authors' network: no LayerNorm on
the input, each LayerNorm before its layer and none at the end, positions counted from the end, and a dense output
layer.
"""

import torch
from torch import nn

from recbole_llm.config import Config
from recbole_llm.config.schema import models as schema
from recbole_llm.layer.packing import Packing
from recbole_llm.layer.transformer import run_transformer
from recbole_llm.model.llm2sequential import LLM2Transformer


class LLM2SASRec(LLM2Transformer):
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
        For an invalid value, or two that contradict each other.
    """

    def build(self, config: Config) -> None:
        """Item table, positions, blocks; names and order of RecBole's SASRec."""
        settings = schema.LLM2SASRec.of(config)
        self.build_transformer(settings)
        if self.has_head:
            self.output_dense = nn.Linear(settings.hidden_size, settings.hidden_size)

    def encode(self, table: torch.Tensor, items: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Vectors of every prefix of the histories, shape (N, d)."""
        x = self.embedded(table, items, packing)
        return run_transformer(self.trm_encoder, x, packing, causal=True, pre_norm=self.paper)

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the dense layer, if there is one; (N, d) -> (N, d)."""
        return self.head_act(self.output_dense(hidden)) if self.has_head else hidden
