"""ScoreEnsemble: scores of independently trained models, averaged (the idea of EnsRec, arXiv 2512.17820).

    y = sum_m w_m norm(y_m)                     (B, n_items)

Only the abstract of EnsRec was available; norms, weights and their selection are ours.
"""

import itertools
import math
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.config.schema import untrained as schema
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.model.hybrid import Hybrid

MOST_CHOICES = 2000


def normalize_scores(
    scores: torch.Tensor, allowed: torch.Tensor, norm: str, temperature: float = 1.0, rank_constant: float = 60.0
) -> torch.Tensor:
    """Scores of different models on one scale, row by row.

    Statistics are those of the allowed items with a finite score; the others are put on the same scale (so that
    rankings without history mask stay those of the model), except that ``-inf`` stays ``-inf``, and is 0 under "rank".

    Parameters
    ----------
    scores : torch.Tensor, shape (B, n_items)
    allowed : torch.BoolTensor, shape (B, n_items)
        Items that may be recommended.
    norm : {"zscore", "minmax", "softmax", "rank", "none"}
        "softmax" gives log-probabilities; "rank" gives 1 / (rank_constant + rank), rank 1 = best, equal scores by
        smaller id (reciprocal rank fusion).

    Returns
    -------
    torch.Tensor, shape (B, n_items)
    """
    known = allowed & (scores > -torch.inf)
    if norm == "none":
        return scores
    if norm == "rank":
        order = scores.sort(dim=1, descending=True, stable=True).indices
        counts = known.gather(1, order)
        # An item that cannot be recommended stands between those beside it.
        rank = counts.cumsum(1) + 0.5 * ~counts
        value = torch.empty_like(scores).scatter_(1, order, 1 / (rank_constant + rank).to(scores.dtype))
        return value.masked_fill_(scores == -torch.inf, 0)
    if norm == "softmax":
        logits = scores / temperature
        return logits - logits.masked_fill(~known, -torch.inf).logsumexp(1, keepdim=True)
    tiny = torch.finfo(scores.dtype).tiny
    if norm == "minmax":
        low = scores.masked_fill(~known, torch.inf).amin(1, keepdim=True)
        high = scores.masked_fill(~known, -torch.inf).amax(1, keepdim=True)
        return (scores - low) / (high - low).clamp(min=tiny)
    count = known.sum(1, keepdim=True).clamp(min=1)
    centred = scores - scores.masked_fill(~known, 0).sum(1, keepdim=True) / count
    deviation = (centred.masked_fill(~known, 0).square().sum(1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=tiny**0.5)


class ScoreEnsemble(Hybrid):
    """Weighted mean of the normalised scores of two or more models.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/ScoreEnsemble.yaml``.
    dataset : HistoryDataset
        Training split.

    Raises
    ------
    ConfigError
        For an invalid value, or invalid members.
    CheckpointError
        For members that were trained on other data or another split.
    """

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        members = config["members"]
        members = members.split() if isinstance(members, str) else members
        if not isinstance(members, (list, tuple)) or len(members) < 2:
            raise ConfigError(
                f"members={members!r} must be a list of two or more run directories (or models that need no "
                'training), such as --members="[saved/SASRec-ml-100k-..., LLMSeqSim]".'
            )
        settings = schema.ScoreEnsemble.of(config)
        super().__init__(config, dataset, members, _weights(config, len(members)))
        self.norm = settings.score_norm
        self.temperature, self.rank_constant = settings.softmax_temperature, settings.rank_constant

    def parts(self, interaction: Interaction) -> list[torch.Tensor]:
        """Normalised scores of each member, (B, n_items) each."""
        allowed = self.recommendable(interaction)
        return [
            normalize_scores(
                member.full_sort_predict(interaction), allowed, self.norm, self.temperature, self.rank_constant
            )
            for member in self.members
        ]

    def combine(self, parts: list[torch.Tensor], setting: torch.Tensor) -> torch.Tensor:
        """Weighted sum; under "softmax" the logarithm of the mixture of the distributions."""
        weighted = [(weight, part) for weight, part in zip(setting.tolist(), parts, strict=True) if weight > 0]
        if self.norm == "softmax":
            scores = torch.stack([part + math.log(weight) for weight, part in weighted]).logsumexp(0)
        else:
            scores = weighted[0][0] * weighted[0][1]
            for weight, part in weighted[1:]:
                scores = scores.add_(part, alpha=weight)
        return self.mask_padding(scores)

    def describe(self, setting: torch.Tensor) -> dict[str, Any]:
        """``{"weights": [...]}``."""
        return {"weights": setting.tolist()}


def _weights(config: Config, count: int) -> list[list[float]]:
    """Weights to choose from."""
    given, grid = config["weights"], config["weights_grid"]
    if given is not None and grid is not None:
        raise ConfigError(f"weights={given!r} and weights_grid={grid!r}: drop one of them.")
    key, candidates = ("weights", [given]) if given is not None else ("weights_grid", grid)
    if candidates is None:
        return [[1 / count] * count]
    if type(candidates) is int and candidates > 0:
        if math.comb(candidates + count - 1, count - 1) > MOST_CHOICES:
            raise ConfigError(f"weights_grid={grid} gives more than {MOST_CHOICES} weightings of {count} members.")
        steps = itertools.product(range(candidates + 1), repeat=count)
        return [[step / candidates for step in row] for row in steps if sum(row) == candidates]
    rows = candidates if isinstance(candidates, (list, tuple)) else [candidates]
    for row in rows:
        numbers = isinstance(row, (list, tuple)) and all(type(weight) in (int, float) for weight in row)
        if not numbers or len(row) != count or not all(0 <= weight < math.inf for weight in row) or sum(row) == 0:
            allowed = "or a list of such lists, or a number of steps" if key == "weights_grid" else ""
            raise ConfigError(
                f"{key}={config[key]!r}: {row!r} is not a list of {count} weights, one per member, none below 0 and "
                f"not all 0 {allowed}".rstrip()
                + "."
            )
    if not rows:
        raise ConfigError("weights_grid=[] has no weights to choose from.")
    return [list(map(float, row)) for row in rows]
