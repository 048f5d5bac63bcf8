"""Result of an evaluation."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.evaluator.ranks import Ranks

Metrics = OrderedDict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """One pass over the rows of a split.

    Attributes
    ----------
    masked, unmasked : OrderedDict
        Metrics, unrounded, with the users' whole history excluded from the lists, and included.
    ranks : Ranks, optional
        Of every row; None on processes other than the main one.
    report : dict, optional
        The model's own figures, such as shares of invalid answers.
    retrieval : dict, optional
        Figures of a two-step model's retriever.
    dataset : HistoryDataset
        The split.
    mask_history : bool
        Which of the two metrics the run goes by.
    """

    masked: Metrics
    unmasked: Metrics
    ranks: Ranks | None
    report: Mapping[str, Any] | None
    retrieval: Mapping[str, Any] | None
    dataset: HistoryDataset
    mask_history: bool

    @property
    def metrics(self) -> Metrics:
        """The metrics that the run goes by, under ``mask_history``."""
        return self.masked if self.mask_history else self.unmasked
