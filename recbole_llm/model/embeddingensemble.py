"""EmbeddingEnsemble (Boz et al., arXiv 2402.01339): the head of one similarity list, then the list of another.

    rank        the first c items of model 1, then the list of model 2
    confidence  the items of model 1 with a score of at least t, then the list of model 2

Repeated items are kept at their first place. Both models usually are two settings of LLMSeqSim.
"""

import math
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.config.schema import untrained as schema
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.mask import exclude_from_choice
from recbole_llm.data.rows import POSITION
from recbole_llm.errors import ConfigError
from recbole_llm.model.hybrid import Hybrid, TopList, compose, numbers
from recbole_llm.model.llmseqsim import LLMSeqSim

# Training sessions on which the first model's scores are looked at for a quantile.
SESSIONS = 2000


class EmbeddingEnsemble(Hybrid):
    """Lists of two models, one after the other.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/EmbeddingEnsemble.yaml``.
    dataset : HistoryDataset
        Training split.

    Raises
    ------
    ConfigError
        For an invalid value, or a threshold on unbounded scores.
    CheckpointError
        For a run directory on other data or another split.
    """

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        settings = schema.EmbeddingEnsemble.of(config)
        mode, kind = settings.ensemble_mode, settings.confidence_kind
        if mode == "rank":
            choices = numbers(config, "cutoff", "cutoff_grid", 0, settings.list_length, whole=True)
        else:
            choices = numbers(config, "confidence", "confidence_grid", 0 if kind == "quantile" else -1, 1)
        super().__init__(config, dataset, [settings.first_model, settings.second_model], choices)
        self.mode, self.kind = mode, kind
        self.list_length = min(settings.list_length, self.n_items - 1)
        self.quantiles: list[float] | None = None
        if mode == "confidence" and kind == "quantile":
            self.quantiles = self.choices[:, 0].tolist()
            self.choices[:, 0] = self._score_quantiles(dataset, self.choices[:, 0])
            self.choose(0)
        elif mode == "confidence" and not _scores_are_cosines(self.members[0].model):
            raise ConfigError(
                "confidence_kind=score needs scores between -1 and 1 of first_model: LLMSeqSim, similarity=cosine. "
                "With others use confidence_kind=quantile."
            )

    @torch.no_grad()
    def _score_quantiles(self, dataset: HistoryDataset, quantiles: torch.Tensor) -> torch.Tensor:
        """Quantiles of the first model's list scores on training sessions."""
        position = dataset.inter_feat[POSITION]
        last = torch.full((dataset.user_num,), -1).scatter_reduce(
            0, dataset.inter_feat[dataset.uid_field], position, "amax"
        )
        users = (last >= 0).nonzero()[:, 0]
        users = users[torch.linspace(0, len(users) - 1, min(SESSIONS, len(users))).long()]
        length = last[users] - torch.from_numpy(dataset.offsets)[users]
        found = []
        for rows in torch.arange(len(users)).split(256):
            limit = length[rows].clamp(max=dataset.max_item_list_len)
            batch = dataset.rows_at(last[users][rows], limit)
            before = dataset.items_before(users[rows], last[users][rows])
            batch = exclude_from_choice(batch, before, self.mask_history).to(self.device)
            scores = self.members[0].full_sort_predict(batch).masked_fill(~self.recommendable(batch), -torch.inf)
            found.append(scores.topk(self.list_length).values.flatten().cpu())
        scores = torch.cat(found)
        thresholds = torch.quantile(scores[scores > -torch.inf].double(), quantiles)
        # The lowest share is everything, the highest is nothing.
        thresholds[quantiles <= 0], thresholds[quantiles >= 1] = -torch.inf, torch.inf
        return thresholds

    def parts(self, interaction: Interaction) -> tuple[TopList, torch.Tensor]:
        """Return the first model's best items, and the second's scores, (B, n_items)."""
        first, second = (member.full_sort_predict(interaction) for member in self.members)
        return self.best(first, interaction, self.list_length), second

    def combine(self, parts: tuple[TopList, torch.Tensor], setting: torch.Tensor) -> torch.Tensor:
        """Scores that fall along the composed list."""
        top, second = parts
        bound = float(setting)
        if self.mode == "rank":
            chosen = (torch.arange(self.list_length, device=second.device) < bound).expand_as(top.items)
        else:
            chosen = top.scores >= bound
        return compose(top, top.items, chosen & (top.scores > -torch.inf), second)

    def describe(self, setting: torch.Tensor) -> dict[str, Any]:
        """``{"cutoff": c}`` or ``{"confidence": t}``, the latter a score, with the quantile it comes from."""
        if self.mode == "rank":
            return {"cutoff": int(setting)}
        bound = float(setting)
        described: dict[str, Any] = {"confidence": bound if math.isfinite(bound) else None}
        if self.quantiles is not None:
            same = [q for q, t in zip(self.quantiles, self.choices[:, 0].tolist(), strict=True) if t == bound]
            described["quantile"] = same[0] if same else None
        return described


def _scores_are_cosines(model: LLMRecommender) -> bool:
    return isinstance(model, LLMSeqSim) and model.similarity == "cosine"
