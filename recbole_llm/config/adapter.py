"""RecBole's own models under the model contract."""

import functools
import inspect
from typing import ClassVar

import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import nn

from recbole_llm.contract import LLMRecommender


class AdaptedRecommender(LLMRecommender):
    """Defaults of the contract for a class that does not implement it; see :func:`adapt`."""

    adapts: ClassVar[type]
    """The original class."""

    input_type: ClassVar[InputType | None] = None
    scores_are_products: bool | None = None

    def loss_weight(self, interaction: Interaction) -> torch.Tensor | float:
        """Return the number of masked positions, which BERT4Rec's loss averages over, or one per row."""
        masked = vars(self).get("MASK_INDEX")
        return (interaction[masked] > 0).sum() if masked in interaction else len(interaction)

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        """Return the network's output vectors of the histories, shape (B, d)."""
        if list(inspect.signature(self.forward).parameters) != ["item_seq", "item_seq_len"]:
            return super().user_vectors(interaction)
        return self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def catalogue_vectors(self) -> torch.Tensor:
        """Return the rows of the item embedding, shape (n_items, d)."""
        table = dict(self.named_children()).get("item_embedding")
        return table.weight[: self.n_items] if isinstance(table, nn.Embedding) else super().catalogue_vectors()


@functools.cache
def adapt(cls: type) -> type[LLMRecommender]:
    """Return a class that meets the contract: the class itself, or one derived from it and the defaults.

    Definitions of the class take precedence over defaults. Name, module, ``state_dict`` and results are those of the
    class, which is not modified.

    Examples
    --------
    >>> from recbole.model.sequential_recommender import SASRec
    >>> adapt(SASRec).training_stages
    ('train',)
    """
    if issubclass(cls, LLMRecommender):
        return cls
    kept = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls, AdaptedRecommender), {**kept, "adapts": cls})
