"""Scores as products of user and item vectors, for the models that have them.

A model says so by ``scores_are_products`` (:class:`recbole_llm.contract.LLMRecommender`). RecBole's models say
nothing of the kind; those that score ``forward(item_seq, item_seq_len)`` against their item embedding are recognised,
and their own scores on a batch of real histories must confirm it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_llm.contract import LLMRecommender
from recbole_llm.errors import UnsupportedError


@dataclass(frozen=True)
class Products:
    """How to score by vectors. A bias is one more column of the items, and a 1 of the users."""

    model: LLMRecommender
    has_bias: bool
    autocast: Callable[[], AbstractContextManager[Any]]

    @torch.no_grad()
    def users(self, interaction: Interaction) -> torch.Tensor:
        """Vectors of histories, float32, (B, d) or (B, d + 1)."""
        with self.autocast():
            vectors = self.model.user_vectors(interaction).float()
        return nn.functional.pad(vectors, (0, 1), value=1.0) if self.has_bias else vectors

    @torch.no_grad()
    def items(self) -> torch.Tensor:
        """Vectors of all items, padding included, float32, (n_items, d) or (n_items, d + 1)."""
        table = self.model.catalogue_vectors().detach().float()
        bias = self.model.catalogue_bias()
        return torch.cat([table, bias.float()[:, None]], dim=1) if self.has_bias and bias is not None else table


def products_of(
    model: LLMRecommender,
    probe: Callable[[], Interaction],
    scores: Callable[[Interaction], torch.Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Products | None:
    """How a model scores by vectors; None where it does not, or where that is not known.

    Parameters
    ----------
    model : LLMRecommender, in evaluation mode
    probe : callable
        Gives a batch of histories on the model's device, for models that have to be tried.
    scores : callable
        The model's own scores of such a batch, (B, n_items).
    autocast : callable
        Gives the context to run the model in.
    """
    if model.scores_are_products is False:
        return None
    bias = model.catalogue_bias()
    products = Products(model, bias is not None and bool((bias != 0).any()), autocast)
    return products if model.scores_are_products or _confirmed(products, probe(), scores) else None


def _confirmed(products: Products, batch: Interaction, scores: Callable[[Interaction], torch.Tensor]) -> bool:
    """Whether a model's own scores of a batch are the products of its vectors."""
    try:
        users, items = products.users(batch), products.items()
    except UnsupportedError:
        return False
    if users.shape != (len(batch), items.shape[1]):
        return False
    own, ours = scores(batch)[:, 1:].float(), (users @ items.T)[:, 1:]
    return own.shape == ours.shape and torch.allclose(own, ours, rtol=1e-4, atol=1e-5 * float(own.abs().max()))
