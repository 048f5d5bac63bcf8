"""What a model returned, checked by shape and type where the package receives it; nothing waits for the device."""

from typing import Any

import torch

from recbole_llm.config.adapter import AdaptedRecommender
from recbole_llm.contract import LLMRecommender
from recbole_llm.errors import ModelError
from recbole_llm.evaluator.ranks import ScoreError


def checked_scores(scores: Any, model: LLMRecommender, n_rows: int, n_items: int, method: str) -> torch.Tensor:
    """Return the scores (n_rows, n_items) that a method of a model gave.

    Parameters
    ----------
    scores : object
        What the method returned. RecBole's models may return it flat.
    model : LLMRecommender
    n_rows, n_items : int
    method : str
        Named in errors.

    Raises
    ------
    ModelError
        For another shape, or what is not a tensor of floating point.
    ScoreError
        For scores of 16 bits.
    """
    scores = _floating(scores, model, method)
    if scores.shape == (n_rows, n_items):
        return scores
    if isinstance(model, AdaptedRecommender) and scores.numel() == n_rows * n_items:
        return scores.view(n_rows, n_items)
    hint = " These are products: catalogue_vectors needs a row for every item." * (model.scores_are_products is True)
    raise ModelError(
        f"{type(model).__name__}.{method} returned scores of the shape {tuple(scores.shape)} for {n_rows} rows and "
        f"{n_items} items: it must return (B, n_items) = {(n_rows, n_items)}, padding (item 0) included.{hint}"
    )


def checked_predictions(values: Any, model: LLMRecommender, n_rows: int) -> torch.Tensor:
    """Return what ``predict`` gave for some rows, shape (n_rows,); errors as :func:`checked_scores`."""
    values = _floating(values, model, "predict")
    if values.numel() != n_rows:
        raise ModelError(
            f"{type(model).__name__}.predict returned the shape {tuple(values.shape)} for {n_rows} rows: it must "
            "return (B,), the score of ITEM_ID in each row."
        )
    return values.reshape(-1)


def _floating(scores: Any, model: LLMRecommender, method: str) -> torch.Tensor:
    if not isinstance(scores, torch.Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ModelError(f"{type(model).__name__}.{method} returned {kind}: it must return a float tensor of scores.")
    if scores.dtype in (torch.float16, torch.bfloat16):
        raise ScoreError(
            f"{type(model).__name__} gave scores of type {scores.dtype}: too many are equal to rank items by them. "
            "Compute their last product in 32 bits (recbole_llm.precision.product)."
        )
    return scores
