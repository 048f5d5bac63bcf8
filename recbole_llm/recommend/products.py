"""Scores as products of user and item vectors, for the models that have them.

A model of this package may have

    user_vectors(interaction) -> (B, d), catalogue_vectors() -> (n_items, d)

and, where there is one, ``catalogue_bias() -> (n_items,)``; then ``full_sort_predict`` is
``user_vectors @ catalogue_vectors.T + catalogue_bias`` but for padding. An attribute ``scores_are_products`` that is
False says that, as it is configured, it is not. RecBole's models say nothing of the kind; those that score
``forward(item_seq, item_seq_len)`` against their item embedding are recognised, and their own scores on a batch of
real histories must confirm it.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import nn


@dataclass(frozen=True)
class Products:
    """How to score by vectors. A bias is one more column of the items, and a 1 of the users."""

    model: Any
    has_bias: bool
    hidden: Callable[[Interaction], torch.Tensor]
    table: Callable[[], torch.Tensor]

    @torch.no_grad()
    def users(self, interaction: Interaction) -> torch.Tensor:
        """Vectors of histories, float32, (B, d) or (B, d + 1)."""
        vectors = self.hidden(interaction).float()
        return nn.functional.pad(vectors, (0, 1), value=1.0) if self.has_bias else vectors

    @torch.no_grad()
    def items(self) -> torch.Tensor:
        """Vectors of all items, padding included, float32, (n_items, d) or (n_items, d + 1)."""
        table = self.table().detach().float()
        return torch.cat([table, self.model.catalogue_bias().float()[:, None]], dim=1) if self.has_bias else table


def products_of(
    model: Any,
    probe: Callable[[], Interaction],
    scores: Callable[[Interaction], torch.Tensor],
    autocast: Callable[[], AbstractContextManager],
) -> Products | None:
    """How a model scores by vectors; None where it does not, or where that is not known.

    Parameters
    ----------
    model : recbole SequentialRecommender, in evaluation mode
    probe : callable
        Gives a batch of histories on the model's device, for models that have to be tried.
    scores : callable
        The model's own scores of such a batch, (B, n_items).
    autocast : callable
        Gives the context to run the model in.
    """
    if hasattr(model, "user_vectors"):
        if not getattr(model, "scores_are_products", True):
            return None

        def hidden(interaction: Interaction) -> torch.Tensor:
            with autocast():
                return model.user_vectors(interaction)

        has_bias = hasattr(model, "catalogue_bias") and bool((model.catalogue_bias() != 0).any())
        return Products(model, has_bias, hidden, model.catalogue_vectors)
    return _tied(model, probe, scores, autocast)


def _tied(
    model: Any,
    probe: Callable[[], Interaction],
    scores: Callable[[Interaction], torch.Tensor],
    autocast: Callable[[], AbstractContextManager],
) -> Products | None:
    table = getattr(model, "item_embedding", None)
    if not isinstance(table, nn.Embedding) or not type(model).__module__.startswith("recbole."):
        return None
    if [*inspect.signature(model.forward).parameters] != ["item_seq", "item_seq_len"]:
        return None

    def hidden(interaction: Interaction) -> torch.Tensor:
        with autocast():
            return model.forward(interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN])

    found = Products(model, False, hidden, lambda: table.weight[: model.n_items])
    batch = probe()
    users = found.users(batch)
    if users.shape != (len(batch), table.embedding_dim):
        return None
    own, ours = scores(batch)[:, 1:].float(), (users @ found.items().T)[:, 1:]
    agree = own.shape == ours.shape and torch.allclose(own, ours, rtol=1e-4, atol=1e-5 * float(own.abs().max()))
    return found if agree else None
