"""Settings of our models without training: one section per model, named after it."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from recbole_llm.config.schema.blocks import Decay, Grid, InnerModel, Reduced, Untrained
from recbole_llm.config.types import (
    AboveZero,
    Bounds,
    Count,
    Name,
    NonNegative,
    Positive,
    Rule,
    Seed,
    Share,
)


@dataclass(frozen=True, kw_only=True)
class LLMSeqSim(Reduced, Untrained):
    """Items most similar to the history."""

    reduced_dim: Positive
    combine: Literal["mean", "last"]
    decay: Decay
    similarity: Literal["dot", "cosine", "euclidean"]


@dataclass(frozen=True, kw_only=True)
class VSKNN(Untrained):
    """Nearest neighbours among sessions."""

    neighbors: Positive
    sample_size: Positive
    sampling: Literal["random", "recent"]
    similarity: Literal["dot", "cosine"]
    decay: Decay
    idf: bool
    sequential_weight: bool
    followers_only: bool


@dataclass(frozen=True, kw_only=True)
class MaxIdRule(Untrained):
    """The rule of the largest id."""

    item_index: Literal["random", "sequential_train", "sequential_full", "internal"]
    item_index_seed: Seed
    loss_type: Literal["CE"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingEnsemble(Untrained):
    """The head of one list, then another."""

    first_model: InnerModel
    second_model: InnerModel
    ensemble_mode: Literal["rank", "confidence"]
    cutoff: Count
    cutoff_grid: Count | Annotated[list[Count], Rule(bool, "a non-empty list of whole numbers")] | None
    confidence: Annotated[float, Bounds(ge=-1, le=1)]
    confidence_grid: Annotated[list[float], Rule(bool, "a non-empty list of numbers")] | float | None
    confidence_kind: Literal["score", "quantile"]
    list_length: Positive


@dataclass(frozen=True, kw_only=True)
class LLMSeqSimPopularity(Untrained):
    """LLMSeqSim without unpopular items."""

    similar_model: InnerModel
    candidates: Positive
    popularity_quantile: Share
    popularity_quantile_grid: Grid
    list_length: Positive
    diversity_quantile: Share | None


@dataclass(frozen=True, kw_only=True)
class LLMSeqSimSequential(Untrained):
    """A sequential model for popular items, LLMSeqSim for the others."""

    popular_model: InnerModel | None
    unpopular_model: InnerModel
    popularity_quantile: Share
    popularity_quantile_grid: Grid


@dataclass(frozen=True, kw_only=True)
class ScoreEnsemble(Untrained):
    """Weighted mean of the scores of several models."""

    members: list[InnerModel] | Name | None
    weights: Annotated[list[NonNegative], Rule(lambda weights: sum(weights) > 0, "weights, not all 0")] | None
    weights_grid: Positive | list[Any] | None
    score_norm: Literal["zscore", "minmax", "softmax", "rank", "none"]
    softmax_temperature: AboveZero
    rank_constant: AboveZero
