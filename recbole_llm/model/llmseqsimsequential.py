"""LLMSeqSim&Sequential (Boz et al., arXiv 2402.01339): a sequential model after popular items, LLMSeqSim after others.

pop(i) = share of the training sessions with item i
list of the sequential model where pop(last item) >= the q-quantile of pop, else list of LLMSeqSim
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.model.hybrid import Hybrid, numbers, popularity_quantiles, session_popularity


class LLMSeqSimSequential(Hybrid):
    """One of two models for each history, by the popularity of its last item.

    The quantile is over items with a training interaction; an item without any has popularity 0. q = 0 always takes
    the sequential model, q = 1 never.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/LLMSeqSimSequential.yaml``.
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
        if not config["popular_model"]:
            raise ConfigError(
                "LLMSeqSimSequential needs popular_model, the run directory of a trained sequential model, such as "
                "--popular_model=saved/LLM2BERT4Rec-..."
            )
        choices = numbers(config, "popularity_quantile", "popularity_quantile_grid", 0, 1)
        super().__init__(config, dataset, [config["popular_model"], config["unpopular_model"]], choices)
        self.register_buffer("popularity", session_popularity(dataset), persistent=False)
        self.start_evaluation()

    def start_evaluation(self) -> None:
        """Reset the number of users that each model served."""
        self._served = torch.zeros(2, dtype=torch.long)

    def evaluation_counts(self) -> Mapping[str, float]:
        """Users that each model served since the evaluation began; the trainer adds up those of several processes."""
        popular, unpopular = self._served.tolist()
        return {"users_of_popular_model": popular, "users_of_unpopular_model": unpopular}

    def evaluation_report(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Return the same counts."""
        return {name: counts[name] for name in self.evaluation_counts()} if counts else {}

    def after_popular(self, interaction: Interaction, setting: torch.Tensor) -> torch.Tensor:
        """Rows that the sequential model serves, bool of shape (B,)."""
        length = interaction[self.ITEM_SEQ_LEN]
        last = interaction[self.ITEM_SEQ].gather(1, (length - 1)[:, None])[:, 0]
        return self.popularity[last] >= popularity_quantiles(self.popularity, setting)

    def parts(self, interaction: Interaction) -> tuple[Interaction, torch.Tensor, torch.Tensor]:
        """Scores of both models."""
        popular, unpopular = (member.full_sort_predict(interaction) for member in self.members)
        return interaction, popular, unpopular

    def combine(self, parts: tuple[Interaction, torch.Tensor, torch.Tensor], setting: torch.Tensor) -> torch.Tensor:
        """Return the scores of one model or the other for each row."""
        interaction, popular, unpopular = parts
        return torch.where(self.after_popular(interaction, setting)[:, None], popular, unpopular)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Score as the base class, but each model scores only the rows that it serves."""
        after_popular = self.after_popular(interaction, self.setting)
        scores = torch.empty(len(after_popular), self.n_items, device=after_popular.device)
        for number, (member, rows) in enumerate(zip(self.members, (after_popular, ~after_popular), strict=True)):
            if rows.any():
                scores[rows] = member.full_sort_predict(
                    Interaction({name: values[rows] for name, values in interaction.interaction.items()})
                )
            self._served[number] += rows.sum().cpu()
        return scores

    def describe(self, setting: torch.Tensor) -> dict[str, Any]:
        """Return the quantile and the matching popularity."""
        threshold = float(popularity_quantiles(self.popularity, setting))
        return {
            "popularity_quantile": float(setting),
            "popularity": threshold if math.isfinite(threshold) else None,
        }
