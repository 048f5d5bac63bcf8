"""LLMSeqSim&Popularity (Boz et al., arXiv 2402.01339): similar items, filtered by popularity and diversity.

the 100 items that LLMSeqSim likes best
less those below the q-quantile of popularity, the least popular first, while more than 20 remain
optionally less those too similar to one that stands before them
"""

import math
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.schema import untrained as schema
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.model.hybrid import Hybrid, TopList, compose, numbers, popularity_quantiles, session_popularity
from recbole_llm.model.llmseqsim import LLMSeqSim

# Pairs of items whose similarities give the quantile of the diversity step, where a catalogue has more.
PAIRS = 2_000_000
# Rows whose candidates' vectors are in memory at once.
ROWS = 64


class LLMSeqSimPopularity(Hybrid):
    """LLMSeqSim's list with unpopular items removed.

    Removed items are put back at the end where lists would otherwise be too short. The authors' code does not
    say in which order it removes: here the least popular item goes first, of equally popular ones the one lower in the
    list, and what stays keeps its order. Items left out for diversity follow those that stay.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LLMSeqSimPopularity.yaml``.
    dataset : HistoryDataset
        Training split.

    Raises
    ------
    ConfigError
        For an invalid value.
    CheckpointError
        For a run directory on other data or another split.
    """

    popularity: torch.Tensor

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        choices = numbers(config, "popularity_quantile", "popularity_quantile_grid", 0, 1)
        settings = schema.LLMSeqSimPopularity.of(config)
        super().__init__(config, dataset, [settings.similar_model], choices)
        self.candidates = min(settings.candidates, self.n_items - 1)
        self.list_length = settings.list_length
        self.register_buffer("popularity", session_popularity(dataset), persistent=False)
        self.diversity: float | None = None
        quantile = settings.diversity_quantile
        if quantile is not None:
            similar = self.members[0].model
            if not isinstance(similar, LLMSeqSim):
                raise ConfigError(
                    "diversity_quantile needs the item vectors of LLMSeqSim; similar_model is another model."
                )
            self.register_buffer("unit_vectors", functional.normalize(similar.item_vectors, dim=1), persistent=False)
            self.diversity = _similarity_quantile(self.unit_vectors[1:], float(quantile), int(config["seed"]))

    def parts(self, interaction: Interaction) -> tuple[TopList, torch.Tensor]:
        """Return the candidates, and all scores of LLMSeqSim, (B, n_items)."""
        scores = self.members[0].full_sort_predict(interaction)
        return self.best(scores, interaction, self.candidates), scores

    def combine(self, parts: tuple[TopList, torch.Tensor], setting: torch.Tensor) -> torch.Tensor:
        """Scores that fall along the filtered list; below it the order of LLMSeqSim."""
        top, scores = parts
        items, there = top.items, top.scores > -torch.inf
        kept = there & ~self._removed(items, there, popularity_quantiles(self.popularity, setting))
        if self.diversity is not None:
            # Candidates in the order: varied ones, those too similar to one of them, the rest.
            varied = self._varied(items, kept)
            order = (kept.long() + varied.long()).argsort(dim=1, descending=True, stable=True)
            items, kept = items.gather(1, order), kept.gather(1, order)
        return compose(top, items, kept, scores)

    def _removed(self, items: torch.Tensor, there: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        """Candidates removed for their popularity, bool of shape (B, candidates)."""
        popularity = self.popularity[items].masked_fill(~there, torch.inf)
        # From the end of the list, so that a stable sort removes the lower of equally popular items first.
        order = popularity.flip(1).argsort(dim=1, stable=True)
        turn = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        can_go = (there.sum(1, keepdim=True) - self.list_length).clamp(min=0)
        return (popularity < threshold) & (turn.flip(1) < can_go)

    def _varied(self, items: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Select greedily from the top: keep candidates less similar than the threshold to all those kept before."""
        too_similar = torch.cat(  # (B, candidates, candidates)
            [
                (vectors := self.unit_vectors[rows]) @ vectors.transpose(1, 2) >= self.diversity
                for rows in items.split(ROWS)
            ]
        )
        taken = torch.zeros_like(kept)
        for place in range(items.shape[1]):
            taken[:, place] = kept[:, place] & ~(too_similar[:, place] & taken).any(1)
        return taken

    def describe(self, setting: torch.Tensor) -> dict[str, Any]:
        """Return the quantile, the matching popularity, and the similarity of the diversity step."""
        threshold = float(popularity_quantiles(self.popularity, setting))
        return {
            "popularity_quantile": float(setting),
            "popularity": threshold if math.isfinite(threshold) else None,
            "similarity": self.diversity,
        }


def _similarity_quantile(vectors: torch.Tensor, quantile: float, seed: int) -> float:
    """Quantile of the cosines of all pairs of unit vectors, or of a sample of them."""
    n = len(vectors)
    if n * (n - 1) // 2 <= PAIRS:
        first, second = torch.triu_indices(n, n, 1, device=vectors.device)
    else:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randint(n, (PAIRS,), generator=generator)
        # Any other item, all equally likely.
        second = (first + 1 + torch.randint(n - 1, (PAIRS,), generator=generator)) % n
        first, second = first.to(vectors.device), second.to(vectors.device)
    cosines = torch.cat(
        [(vectors[a] * vectors[b]).sum(1) for a, b in zip(first.split(100_000), second.split(100_000), strict=True)]
    )
    return float(torch.quantile(cosines, quantile))
