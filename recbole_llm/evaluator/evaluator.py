"""Evaluation of a model on a split: its scores of every row, ranked with and without the history mask."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.utils import calculate_valid_score

from recbole_llm import distributed
from recbole_llm.config import Config
from recbole_llm.contract import LLMRecommender, Reranker
from recbole_llm.data.candidates import CANDIDATES
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import EvaluationLoader
from recbole_llm.data.mask import Pairs, remove_history
from recbole_llm.errors import ConfigError
from recbole_llm.evaluator import metrics
from recbole_llm.evaluator.checked import checked_predictions, checked_scores
from recbole_llm.evaluator.ranks import Evaluation, Metrics, RankCollector, Ranks
from recbole_llm.evaluator.retrieval import Retrieved, summary
from recbole_llm.evaluator.topk import top_items
from recbole_llm.precision import autocast_dtype
from recbole_llm.progress import progress

Collected = list[dict[str, np.ndarray]]


class Evaluator:
    """Evaluator of the configured metrics of a model.

    Scores are made and compared in 32 bits. Models are evaluated without mixed precision, whatever ``amp`` says,
    except those with ``evaluates_in_amp``, which take their last product out of it.

    Parameters
    ----------
    config : Config
        ``metrics``, ``topk``, ``mask_history``, ``amp`` and other settings of evaluation.
    train_counts : numpy.ndarray of shape (item_num,), or function that returns it, optional
        Training interactions per item, for popularity metrics.
    phase : callable, optional
        Context of a named phase, see :class:`recbole_llm.trainer.meter.Meter`; retrieval is a separate phase.

    Examples
    --------
    >>> evaluator = Evaluator(config, train.dataset.train_counts)  # doctest: +SKIP
    >>> evaluator.evaluate(model, test).masked["ndcg@10"]  # doctest: +SKIP
    """

    def __init__(
        self,
        config: Config,
        train_counts: np.ndarray | Callable[[], np.ndarray] | None = None,
        phase: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.config = config
        self.device: torch.device = config["device"]
        self._train_counts: np.ndarray | Callable[[], np.ndarray] | None = train_counts
        self.phase = phase
        self.candidates_dir: Path | None = None
        """Run directory that keeps the candidates of two-step models; None: in memory only."""
        self._amp_dtype = autocast_dtype(config["amp"], config["enable_amp"], self.device)
        self._item_features: Interaction | None = None
        self._retrieved: dict[tuple[str, str], Retrieved] = {}

    @property
    def train_counts(self) -> np.ndarray | None:
        """Training interactions per item, shape (item_num,)."""
        if callable(self._train_counts):
            self._train_counts = self._train_counts()
        return self._train_counts

    @train_counts.setter
    def train_counts(self, counts: np.ndarray | Callable[[], np.ndarray] | None) -> None:
        self._train_counts = counts

    # ---- whole evaluations

    @torch.no_grad()
    def evaluate(self, model: LLMRecommender, data: EvaluationLoader, show_progress: bool = False) -> Evaluation:
        """Evaluate a model on the rows of a loader; every process gets the metrics of all rows.

        Raises
        ------
        ScoreError
            For scores that are NaN or of 16 bits.
        """
        model.eval()
        model.start_evaluation()
        retrieved, reranked = None, 0
        if isinstance(model, Reranker) and model.reranks:
            retrieved = self.retrieve(model, data, model.reranks, show_progress)
            reranked = self._hand_over(model, retrieved, data)
        full = isinstance(data, FullSortEvalDataLoader)

        def scores_of(batch: tuple[Any, ...]) -> torch.Tensor:
            if full:
                return self.scores(model, batch[0], data.dataset)
            return self._scores_of_sampled(model, batch, data.dataset.item_num)

        def tokens() -> int:
            return model.tokens_read

        collected = self._collect(data, scores_of, self._list_length, "Evaluate", show_progress, tokens)
        counts = distributed.gather(model.evaluation_counts())
        return self._evaluation(collected, data.dataset, model, counts, retrieved, reranked)

    @torch.no_grad()
    def evaluate_scores(
        self, scorer: Callable[[Interaction], torch.Tensor], data: FullSortEvalDataLoader, show_progress: bool = False
    ) -> Evaluation:
        """Evaluate a function that gives the scores (B, n_items) of rows."""
        collected = self._collect(
            data, lambda batch: scorer(batch[0].to(self.device)), self._list_length, "Evaluate", show_progress
        )
        return self._evaluation(collected, data.dataset)

    def evaluate_members(
        self, members: Sequence[Any], data: FullSortEvalDataLoader, show_progress: bool = False
    ) -> list[dict[str, Any]]:
        """Return the metrics of a hybrid's members, and the seconds that each took."""
        results = []
        for member in members:
            start = time.perf_counter()
            found = self.evaluate_scores(member.full_sort_predict, data, show_progress)
            seconds = round(time.perf_counter() - start, 3)
            figures = {"test_masked": found.masked, "test_unmasked": found.unmasked, "test_seconds": seconds}
            results.append({"member": member.label, **figures})
        return results

    @torch.no_grad()
    def evaluate_choices(
        self, model: LLMRecommender, data: FullSortEvalDataLoader, show_progress: bool = False
    ) -> list[Metrics]:
        """Metrics of a model under each of its ``choices``, in one pass over the rows."""
        model.eval()
        collectors = [RankCollector(self._list_length) for _ in model.choices]
        for number, batch in enumerate(progress(data, "Choose", show_progress)):
            interaction = batch[0].to(self.device)
            with self.precision(model):
                for collector, scores in zip(collectors, model.full_sort_choices(interaction), strict=True):
                    shape = len(interaction), data.dataset.item_num
                    scores = checked_scores(scores, model, *shape, "full_sort_choices")
                    self._add(collector, scores, batch, batch[1], number)
        parts = [distributed.gather(collector.collected()) for collector in collectors]
        return [self._evaluation(part, data.dataset).metrics for part in parts]

    def choose(
        self,
        model: LLMRecommender,
        data: EvaluationLoader | None,
        metric: str,
        bigger: bool = True,
        show_progress: bool = False,
    ) -> list[dict[str, Any]]:
        """Make a model use the best of its ``choices``, the first if tied; return them all with their scores.

        Raises
        ------
        ConfigError
            Without a validation split, or if it ranks sampled items.
        """
        if not isinstance(data, FullSortEvalDataLoader):
            raise ConfigError(
                f"{self.config['model']} chooses among {len(model.choices)} settings by validation: that needs a "
                "validation split with full ranking (eval_args); or set a single one."
            )
        results = self.evaluate_choices(model, data, show_progress)
        scores = [calculate_valid_score(result, metric) for result in results]
        best = int(np.argmax(scores) if bigger else np.argmin(scores))
        model.choose(best)
        chosen_from = [
            {**model.describe(setting), metric: score} for setting, score in zip(model.choices, scores, strict=True)
        ]
        getLogger().info(f"Chosen on validation, of {len(scores)}: {chosen_from[best]}")
        return chosen_from

    def _collect(
        self,
        data: EvaluationLoader,
        scores_of: Callable[[tuple[Any, ...]], torch.Tensor],
        list_length: int,
        label: str,
        show_progress: bool,
        tokens: Callable[[], int] | None = None,
    ) -> Collected | None:
        """Return the input of :meth:`Ranks.of`, on the main process."""
        cold = data.dataset.cold
        full = isinstance(data, FullSortEvalDataLoader)
        collector = RankCollector(list_length, group=cold.items if cold is not None and full else None)
        for number, batch in enumerate(progress(data, label, show_progress, tokens=tokens)):
            # Among sampled items the history plays no part.
            history = batch[1] if full else (torch.zeros(0, dtype=torch.long),) * 2
            self._add(collector, scores_of(batch), batch, history, number)
        return distributed.gather(collector.collected())

    def _add(
        self, collector: RankCollector, scores: torch.Tensor, batch: tuple[Any, ...], history: Pairs, number: int
    ) -> None:
        interaction, _, _, target = batch
        here = distributed.world()
        collector.collect(
            scores,
            interaction[self.config["USER_ID_FIELD"]][: len(target)].to(self.device),
            target.to(self.device),
            (history[0].to(self.device), history[1].to(self.device)),
            number * here.size + here.rank,
        )

    def _evaluation(
        self,
        collected: Collected | None,
        dataset: HistoryDataset,
        model: LLMRecommender | None = None,
        counts: Sequence[Mapping[str, float]] | None = None,
        retrieved: Retrieved | None = None,
        reranked: int = 0,
    ) -> Evaluation:
        """Figures of what all processes have seen: each row once."""
        kept: list[Ranks] = []

        def figures() -> tuple[Any, ...]:
            assert collected is not None
            ranks = Ranks.of(collected)
            kept.append(ranks)
            summed: Counter[str] = Counter()
            for part in counts or ():
                summed.update(part)
            return (
                self._metrics(ranks.masked, ranks.masked_lists, ranks, dataset),
                self._metrics(ranks.unmasked, ranks.unmasked_lists, ranks, dataset),
                None if model is None else model.evaluation_report(summed),
                None if retrieved is None else summary(self.config, retrieved, ranks, reranked),
            )

        masked, unmasked, report, retrieval = distributed.from_main(figures)
        return Evaluation(
            masked,
            unmasked,
            kept[0] if kept else None,
            report,
            retrieval,
            dataset,
            bool(self.config["mask_history"]),
        )

    @property
    def _list_length(self) -> int:
        return max(self.config["topk"]) if metrics.needs_lists(self.config["metrics"]) else 0

    def _metrics(self, rank: np.ndarray, lists: np.ndarray | None, ranks: Ranks, dataset: HistoryDataset) -> Metrics:
        if lists is None:
            return OrderedDict(metrics.compute(self.config, rank, None, None))
        assert self.train_counts is not None, "popularity metrics need train_counts"
        counts = dataset.all_counts
        return OrderedDict(
            metrics.compute(self.config, rank, lists, self.train_counts, ranks.target, counts, dataset.catalogue_size)
        )

    # ---- scores

    def precision(self, model: LLMRecommender) -> AbstractContextManager[Any]:
        """Context in which a model is evaluated: mixed precision for those that keep their scores out of it."""
        if self._amp_dtype is None or not model.evaluates_in_amp:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._amp_dtype)

    @torch.no_grad()
    def scores(
        self, model: LLMRecommender, interaction: Interaction, dataset: HistoryDataset, n_items: int | None = None
    ) -> torch.Tensor:
        """Scores of the whole catalogue for every row, (B, n_items), padding ``-inf``: what an evaluation ranks.

        Parameters
        ----------
        model : LLMRecommender
        interaction : Interaction
            Rows of ``dataset``, targets not needed.
        dataset : HistoryDataset
        n_items : int, optional
            Default: the items of ``dataset``; a model may have grown by more.

        Raises
        ------
        ScoreError
            For scores of 16 bits.
        """
        n_items = n_items or dataset.item_num
        rows = interaction.to(self.device)
        with self.precision(model):
            try:
                scores = model.full_sort_predict(rows)
            except NotImplementedError:
                scores = self._pair_by_pair(model, rows, dataset, n_items)
        scores = checked_scores(scores, model, len(rows), n_items, "full_sort_predict")
        scores[:, 0] = -torch.inf
        return scores

    def _pair_by_pair(
        self, model: LLMRecommender, rows: Interaction, dataset: HistoryDataset, n_items: int
    ) -> torch.Tensor:
        """Scores of a model that scores pairs of row and item only, a batch of pairs at a time."""
        if self._item_features is None:
            self._item_features = dataset.get_item_feature().to(self.device)
        parts = []
        for part in _pieces(rows, max(1, int(self.config["eval_batch_size"]) // n_items)):
            pairs = part.repeat_interleave(n_items)
            pairs.update(self._item_features.repeat(len(part)))
            parts.append(self._predict(model, pairs))
        return torch.cat(parts)

    def _predict(self, model: LLMRecommender, pairs: Interaction) -> torch.Tensor:
        pieces = _pieces(pairs, int(self.config["eval_batch_size"]))
        return torch.cat([checked_predictions(model.predict(piece), model, len(piece)) for piece in pieces])

    def _scores_of_sampled(self, model: LLMRecommender, batch: tuple[Any, ...], n_items: int) -> torch.Tensor:
        """Scores of sampled items; everything else is ``-inf``."""
        interaction, row, _, target = batch
        pairs = interaction.to(self.device)
        with self.precision(model):
            values = self._predict(model, pairs)
        scores = torch.full((len(target), n_items), -torch.inf, device=self.device)
        scores[row.to(self.device), pairs[self.config["ITEM_ID_FIELD"]]] = values.float()
        return scores

    # ---- two-step models

    def retrieve(self, model: Reranker, data: EvaluationLoader, k: int, show_progress: bool = False) -> Retrieved:
        """Return the first ``k`` candidates of a split's rows; computed once per retriever."""
        key = f"{model.retriever_key()} {k} {self.config['mask_history']} {len(data.dataset)}"
        if (data.phase, key) not in self._retrieved:
            folder = self.candidates_dir
            known = distributed.from_main(lambda: Retrieved.load(folder, data.phase, key) if folder else None)
            if known is None:
                model.eval()
                with self.phase("retrieve"):
                    collected = self._collect(
                        data,
                        lambda batch: model.retriever_scores(batch[0].to(self.device)),
                        k,
                        f"Retrieve {data.phase}",
                        show_progress,
                    )
                    known = distributed.from_main(lambda: self._keep(collected, folder, data.phase, key))
            self._retrieved[data.phase, key] = known
        return self._retrieved[data.phase, key]

    def ranked_rows(self, model: LLMRecommender, data: EvaluationLoader) -> int:
        """Return how many rows of a split a model ranks; a reranker may leave some to its retriever."""
        if not (isinstance(model, Reranker) and model.reranks and model.reranks_retrieved_only(data.phase)):
            return len(data.dataset)
        ranks = self.retrieve(model, data, model.reranks).ranks(self.config["mask_history"])
        return int((ranks <= model.reranks).sum())

    @torch.no_grad()
    def with_candidates(self, model: LLMRecommender, batch: tuple[Any, ...], phase: str) -> Interaction:
        """Rows of a full-sort batch, with the candidates that :meth:`evaluate` hands to a reranker."""
        interaction, history, _, target = batch
        if not isinstance(model, Reranker) or not model.reranks:
            return interaction
        scores = model.retriever_scores(interaction.to(self.device))
        if self.config["mask_history"]:
            remove_history(scores, history)
        items = top_items(scores, model.reranks).to(target.device)
        if model.reranks_retrieved_only(phase):
            items = items.masked_fill(~(items == target[:, None]).any(1, keepdim=True), 0)
        interaction.update(Interaction({CANDIDATES: items}))
        return interaction

    def _keep(self, collected: Collected | None, folder: Path | None, phase: str, key: str) -> Retrieved:
        assert collected is not None
        ranks = Ranks.of(collected)
        lists = ranks.masked_lists if self.config["mask_history"] else ranks.unmasked_lists
        assert lists is not None
        retrieved = Retrieved(torch.from_numpy(lists), ranks.masked, ranks.unmasked)
        if folder:
            retrieved.save(folder, phase, key)
        return retrieved

    def _hand_over(self, model: Reranker, retrieved: Retrieved, data: EvaluationLoader) -> int:
        """Give a loader the candidates of its rows; returns how many rows are re-ranked."""
        items = retrieved.items
        if model.reranks_retrieved_only(data.phase):
            missed = retrieved.ranks(self.config["mask_history"]) > items.shape[1]
            items = items.masked_fill(torch.from_numpy(missed)[:, None], 0)
        data.retrieved = items
        return int((items > 0).any(1).sum())


def _pieces(rows: Interaction, size: int) -> Iterator[Interaction]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
