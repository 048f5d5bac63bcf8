"""From scores to ranks and an evaluation: one pass ranks every target with and without the history mask."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.mask import Pairs, remove_history
from recbole_llm.errors import RecBoleLLMError
from recbole_llm.evaluator.topk import top_items

# Scores that are ranked at once on a CPU.
CPU_SCORES = 2**17
# Rank of a target that cannot be recommended: no list is long enough to hold it.
NEVER = 2**31 - 1
# From this share on, tied targets are reported next to the metrics: their order decides them.
MANY_TIES = 0.05


class ScoreError(RecBoleLLMError, ArithmeticError):
    """A model returned scores that cannot be ranked."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of the targets of an evaluation. All arrays have shape (rows,), in the order of the data.

    Attributes
    ----------
    user, target : internal ids.
    masked, unmasked : rank of the target (1 = first) with the user's whole history excluded, and without.
        :data:`NEVER` where it can never be recommended: its score is ``-inf``, or it is itself in the history that is
        excluded.
    history_length : distinct items the user had before the target.
    masked_lists, unmasked_lists : recommended items, shape (rows, k), where they were asked for.
    tied : share of targets with the same score as another item that could take their place.
    among : rank of the target among the items of a group, history excluded, where there is one; 0 for other targets.
    """

    user: np.ndarray
    target: np.ndarray
    masked: np.ndarray
    unmasked: np.ndarray
    history_length: np.ndarray
    masked_lists: np.ndarray | None
    unmasked_lists: np.ndarray | None
    tied: float
    targets_in_history: int
    among: np.ndarray | None = None

    @classmethod
    def of(cls, collected: Sequence[dict[str, np.ndarray]]) -> "Ranks":
        """Ranks of all rows, in the order of the data.

        Parameters
        ----------
        collected : sequence of dict
            :meth:`RankCollector.collected` of every process, that of one without batches empty.

        Raises
        ------
        ScoreError
            If any score was NaN, with the number of rows.
        """
        parts = [part for part in collected if part]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.argsort(whole["number"], kind="stable")
        whole = {name: values[order] for name, values in whole.items()}
        broken = int(whole["broken"].sum())
        if broken:
            raise ScoreError(
                f"The model returned NaN scores for {broken} of {len(whole['broken'])} rows. Training diverged, or "
                "the dtype overflows (T5 in float16 does): lower learning_rate, or use float32 or bfloat16. "
                "recbole_llm.testing.check_model tries a class of your own."
            )
        return cls(
            user=whole["user"],
            target=whole["target"],
            masked=whole["masked"],
            unmasked=whole["unmasked"],
            history_length=whole["history_length"],
            masked_lists=whole.get("masked_lists"),
            unmasked_lists=whole.get("unmasked_lists"),
            tied=float(whole["tied"].mean()),
            targets_in_history=int((whole["repeated"] > 0).sum()),
            among=whole.get("among"),
        )


class RankCollector:
    """Collector of ranks, batch by batch on the device; nothing is synchronised before :meth:`collected`.

    Equal scores are ordered by internal id, smaller first: a total order, so that a recommended list and a rank never
    disagree. The share of tied targets is reported, since such an order is arbitrary.

    Parameters
    ----------
    list_length : int
        Number of top recommended items to keep per row; 0 keeps none.
    group : torch.LongTensor, optional
        Internal ids of items among which their targets are also ranked apart, ascending.
    """

    def __init__(self, list_length: int = 0, group: torch.Tensor | None = None) -> None:
        self.list_length = list_length
        self.group = group
        self._parts: dict[str, list[torch.Tensor]] = {}

    def _add(self, **values: torch.Tensor) -> None:
        for name, value in values.items():
            self._parts.setdefault(name, []).append(value)

    def collect(
        self,
        scores: torch.Tensor,
        user: torch.Tensor,
        target: torch.Tensor,
        history: Pairs,
        number: int = 0,
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        scores : torch.Tensor, shape (B, item_num)
            Changed in place: padding, and then the history, become ``-inf``.
        user, target : torch.LongTensor, shape (B,)
        history : two torch.LongTensor, shape (pairs,)
            Row and item of everything the users had before, each pair once.
        number : int
            Place of the batch among those of all processes.
        """
        rows, items = history
        scores = scores.float()
        scores[:, 0] = -torch.inf
        own = scores.gather(1, target[:, None])
        unmasked, equal, broken = _places(scores, own, target)

        seen = scores[rows, items]
        own_seen, target_seen = own[rows, 0], target[rows]
        above = (seen > own_seen) | ((seen == own_seen) & (items < target_seen))
        masked = unmasked - torch.zeros_like(unmasked).index_add_(0, rows, above.long())
        is_target = (items == target_seen).long()
        repeated = torch.zeros_like(unmasked).index_add_(0, rows, is_target)
        possible = own[:, 0] > -torch.inf  # NaN neither
        unmasked = unmasked.where(possible, NEVER)
        masked = masked.where(possible & (repeated == 0), NEVER)

        self._add(
            user=user,
            target=target,
            masked=masked,
            unmasked=unmasked,
            history_length=torch.zeros_like(unmasked).index_add_(0, rows, torch.ones_like(rows)),
            tied=(equal > 1) & possible,
            repeated=repeated,
            broken=broken,
            number=torch.full_like(unmasked, number),
        )
        if self.group is not None:
            group = self.group.to(scores.device)
            member = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device).index_fill_(0, group, True)
            inside = scores[:, group]
            rank = 1 + (inside > own).sum(1) + ((inside == own) & (group < target[:, None])).sum(1)
            rank = rank - torch.zeros_like(rank).index_add_(0, rows, (above & member[items]).long())
            rank = rank.where(possible, NEVER)
            self._add(among=torch.where(member[target], rank, 0))
        if self.list_length:
            self._add(unmasked_lists=top_items(scores, self.list_length))
            remove_history(scores, history)
            self._add(masked_lists=top_items(scores, self.list_length))

    def collected(self) -> dict[str, np.ndarray]:
        """Return what was collected, on the CPU: the input of :meth:`Ranks.of` from every process."""
        return {name: torch.cat(parts).cpu().numpy() for name, parts in self._parts.items()}

    def finish(self) -> Ranks:
        """Ranks of this process alone."""
        return Ranks.of([self.collected()])


def _places(
    scores: torch.Tensor, own: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rank of each target, how many scores equal its own, and whether any is NaN; each of shape (B,).

    On a CPU in pieces that its cache holds: counts take eight bytes a score on the way.
    """
    rows = max(1, CPU_SCORES // scores.shape[1]) if scores.device.type == "cpu" else len(scores)
    ids = torch.arange(scores.shape[1], device=scores.device)
    parts = []
    for part, mine, item in zip(scores.split(rows), own.split(rows), target.split(rows), strict=True):
        equal = part == mine
        rank = 1 + (part > mine).sum(1) + (equal & (ids < item[:, None])).sum(1)
        parts.append((rank, equal.sum(1), part.amax(1).isnan()))
    rank, equal, broken = (torch.cat(values) for values in zip(*parts, strict=True))
    return rank, equal, broken


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
