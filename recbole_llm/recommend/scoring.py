"""Rows that a model reads, and its best items for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.data.transform import construct_transform
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from recbole_llm.data.mask import exclude_from_choice, remove_history
from recbole_llm.errors import UnsupportedError
from recbole_llm.evaluator.ranks import ScoreError
from recbole_llm.evaluator.topk import SCORES_AT_ONCE, top_k, top_k_of_products
from recbole_llm.own_code import explain_own_code
from recbole_llm.recommend.catalogue import Catalogue
from recbole_llm.recommend.products import Products, products_of
from recbole_llm.run.load import Run

# Row and item of every history entry.
Pairs = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class TopK:
    """Lists of a batch, in internal ids; item 0 marks an empty place.

    Attributes
    ----------
    item, score : torch.Tensor, shape (B, k)
        Best first; equal scores by smaller id.
    user, target : torch.LongTensor, shape (B,), optional
        For users of the dataset: targets of the evaluation rows.
    """

    item: torch.Tensor
    score: torch.Tensor
    user: torch.Tensor | None = None
    target: torch.Tensor | None = None


class Scorer:
    """The model of a run over a catalogue.

    Where it scores by user and item vectors (:mod:`recbole_llm.recommend.products`), lists come from blocks of items
    with a running top k; otherwise from a table of scores, below ``eval_score_memory_mb``.
    """

    def __init__(self, run: Run, catalogue: Catalogue) -> None:
        self.run, self.model, self.config, self.catalogue = run, run.model, run.config, catalogue
        self.dataset = run.training
        self.device = torch.device(run.config["device"])
        self._scores_in_memory = int(run.config["eval_score_memory_mb"]) * 2**20 // 4
        self._batch = int(run.config["eval_batch_size"])
        self._transform = construct_transform(run.config)

    def forget_items(self) -> None:
        """Discard item vectors after the catalogue has grown."""
        for name in ("item_vectors", "unit_vectors"):
            self.__dict__.pop(name, None)
        self._last_allowed = None

    @property
    def batch(self) -> int:
        """Number of rows to score at once."""
        return self._batch if self.products else self.rows

    @property
    def rows(self) -> int:
        """Maximum number of rows whose scores of the whole catalogue fit in memory."""
        return max(1, min(self._batch, self._scores_in_memory // len(self.catalogue)))

    def rows_of(self, histories: Sequence[Sequence[int]]) -> tuple[Interaction, Pairs]:
        """Rows of some histories of internal ids, and the history of each."""
        dataset = self.dataset
        limit = int(dataset.max_item_list_len)
        newest = [torch.tensor(history[-limit:]) for history in histories]
        padded = nn.functional.pad(pad_sequence(newest, batch_first=True), (0, limit - max(map(len, newest))))
        length = torch.tensor([len(part) for part in newest])
        rows = Interaction({dataset.item_id_list_field: padded, dataset.item_list_length_field: length})
        counts = torch.tensor([len(history) for history in histories])
        row = torch.repeat_interleave(torch.arange(len(histories)), counts)
        item = torch.tensor([item for history in histories for item in history])
        return self.transformed(rows, (row, item)), (row, item)

    def transformed(self, rows: Interaction, history: Pairs) -> Interaction:
        """Rows as the model reads them, like a batch of the evaluation."""
        try:
            rows = self._transform(self.dataset, rows)
        except KeyError as error:
            raise self._reads_more(error) from error
        if not self.config.model_class.reads_excluded:
            return rows
        # As in the run, whatever the lists leave out in the end: it is part of the model's scores.
        return exclude_from_choice(rows, history, bool(self.config["mask_history"]))

    # ---- scores

    def run_model(self, function: Callable[[Interaction], torch.Tensor], rows: Interaction) -> torch.Tensor:
        """Call a function of the model on rows, on the model's device."""
        with explain_own_code():
            try:
                return function(rows.to(self.device))
            except KeyError as error:
                if isinstance(error.args[0], str) and error.args[0] not in rows:
                    raise self._reads_more(error) from error
                raise

    def _reads_more(self, error: KeyError) -> UnsupportedError:
        return UnsupportedError(
            f"{self.config['model']} reads {error.args[0]!r} of every row, which a history of items does not have: it "
            "can recommend to the users of the dataset only, and only before a target (history=test) if it reads "
            "more than the user."
        )

    def scores(self, rows: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue for every row, (B, n)."""
        return self.run_model(
            lambda batch: self.run.trainer.evaluator.scores(self.model, batch, self.dataset, len(self.catalogue)), rows
        )

    @cached_property
    def products(self) -> Products | None:
        """User and item vectors whose products are the scores, where the model scores so."""

        def probe() -> Interaction:
            dataset = self.run.everything
            users = torch.from_numpy(np.flatnonzero(np.diff(dataset.offsets))[:32])
            return self.transformed(*dataset.after_last(users)).to(self.device)

        return products_of(self.model, probe, self.scores, lambda: self.run.trainer.evaluator.precision(self.model))

    def needed_products(self) -> Products:
        """:attr:`products`; UnsupportedError where there are none."""
        if self.products is None:
            raise UnsupportedError(
                f"The scores of {self.config['model']}, as configured, are not known to be products of user and "
                "item vectors, so there are no vectors to export. Lists are still available (recommend)."
            )
        return self.products

    @cached_property
    def item_vectors(self) -> torch.Tensor:
        """Vectors of the catalogue, (n, d); row 0 is padding."""
        with explain_own_code():
            table = self.needed_products().items()
        if not torch.isfinite(table).all():
            raise ScoreError(f"The item vectors of {self.config['model']} are not finite: training diverged.")
        return table

    @cached_property
    def unit_vectors(self) -> torch.Tensor:
        """Vectors of the catalogue of length 1, (n, d): what similar items are found by."""
        with explain_own_code():
            vectors = self.model.catalogue_vectors()
        return nn.functional.normalize(vectors.detach()[: len(self.catalogue)].float(), dim=1)

    def best(self, rows: Interaction, history: Pairs | None, k: int, allowed: torch.Tensor | None) -> TopK:
        """Return the best items of every row, without its history and without items that are not allowed."""
        if self.products is None:
            return self.from_scores(self.scores(rows), history, k, allowed)
        users = self.run_model(self.products.users, rows)
        if not torch.isfinite(users).all():
            raise ScoreError(f"{self.config['model']} gave a user vector that is not finite: training diverged.")
        ids, table, place = self._candidates(allowed)
        excluded = None
        if history is not None:
            row, column = history[0].to(self.device), place[history[1].to(self.device)]
            excluded = row[column >= 0], column[column >= 0]
        at_once = min(SCORES_AT_ONCE["cpu" if self.device.type == "cpu" else "gpu"], self._scores_in_memory)
        scores, columns = top_k_of_products(users, table, k, excluded, at_once)
        return TopK(ids[columns].where(scores > -torch.inf, 0), scores)

    def _candidates(self, allowed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the ids that may be recommended, their vectors, and every id's position among them or -1."""
        if allowed is None:
            ids = torch.arange(1, len(self.catalogue), device=self.device)
            return ids, self.item_vectors[1:], torch.arange(-1, len(ids), device=self.device)
        if self._last_allowed is None or not torch.equal(self._last_allowed[0], allowed):
            ids = allowed.nonzero()[:, 0].to(self.device)
            place = torch.full((len(self.catalogue),), -1, device=self.device)
            place[ids] = torch.arange(len(ids), device=self.device)
            self._last_allowed = allowed, (ids, self.item_vectors[ids], place)
        return self._last_allowed[1]

    _last_allowed: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None

    def from_scores(self, scores: torch.Tensor, history: Pairs | None, k: int, allowed: torch.Tensor | None) -> TopK:
        """Return the best items by the given scores, which are modified in place."""
        scores = scores.float()
        if torch.isnan(scores[:, 1:]).any():
            raise ScoreError(f"{self.config['model']} gave scores that are NaN: training diverged.")
        if history is not None:
            remove_history(scores, history)
        if allowed is not None:
            scores[:, ~allowed.to(self.device)] = -torch.inf
        values, items = top_k(scores, k)
        return TopK(items.where(values > -torch.inf, 0), values)
