"""Lists, similar items and vectors from a finished run, with raw ids.

recommender = Recommender.load("saved/LRURec-ml-100k-...")
recommender.recommend([["50", "181"], ["222"]], k=10)       # histories that training has never seen
for frame in recommender.recommend_users(k=10): ...         # all users, a batch at a time
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from recbole_llm.config.values import choice
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import FullSortLoader
from recbole_llm.errors import DataError, UnsupportedError
from recbole_llm.evaluator.mask import Pairs, exclude_from_choice, remove_history
from recbole_llm.evaluator.ranks import ScoreError
from recbole_llm.evaluator.topk import SCORES_AT_ONCE, top_k, top_k_of_products
from recbole_llm.recommend.products import Products, products_of
from recbole_llm.recommend.reading import as_id
from recbole_llm.run.load import Run, load_run
from recbole_llm.text.item_text import item_text_of

HISTORIES = ("all", "valid", "test")
UNKNOWN = ("error", "skip")


class Recommendation(NamedTuple):
    """An item of a list."""

    item: str
    score: float


@dataclass(frozen=True)
class TopK:
    """Lists of a batch, in internal ids; a 0 among the items is none.

    Attributes
    ----------
    item, score : torch.Tensor, shape (B, k)
        Best first; equal scores by smaller id.
    user, target : torch.LongTensor, shape (B,), optional
        Of users of the dataset; the target that an evaluation row asks for.
    """

    item: torch.Tensor
    score: torch.Tensor
    user: torch.Tensor | None = None
    target: torch.Tensor | None = None


class Recommender:
    """Recommendations from a run.

    Where the model scores by user and item vectors (:mod:`recbole_llm.recommend.products`), lists come from blocks of
    items with a running top k, and no (users, items) table is ever held. Otherwise batches shrink so that such a
    table stays below ``eval_score_memory_mb``.

    Parameters
    ----------
    run : Run
        From :func:`recbole_llm.quick_start.load_run`.

    Attributes
    ----------
    items : list of str
        Raw ids in the order of :meth:`item_vectors`, padding left out.

    Raises
    ------
    UnsupportedError
        For a run of the top-N task, which ranks among candidates only.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.model, self.config = run, run.model.eval(), run.config
        self.dataset: HistoryDataset = run.train_data.dataset
        if self.config["task"] == "topn":
            raise UnsupportedError(
                f"{self.config['model']} was run with task=topn: it scores the candidates of a row and nothing else. "
                "Recommend from a run with task=sequential."
            )
        self.device = torch.device(self.config["device"])
        self._tokens = np.asarray(self.dataset.field2id_token[self.dataset.iid_field], dtype=object)
        self._ids = dict(self.dataset.field2token_id[self.dataset.iid_field])
        self._known = len(self._tokens)
        memory = int(self.config["eval_score_memory_mb"]) * 2**20 // 4
        self._scores_in_memory = memory
        self._batch = int(self.config["eval_batch_size"])

    @classmethod
    def load(cls, run_dir: str | Path, model: type | None = None, **settings: Any) -> "Recommender":
        """From a run directory.

        Parameters
        ----------
        run_dir : str or pathlib.Path
        model : class, optional
            As :func:`recbole_llm.quick_start.load_run`.
        **settings
            Settings to change, such as ``data_path`` or ``use_gpu=False``.
        """
        return cls(load_run(run_dir, {"show_progress": False, **settings}, model))

    @property
    def items(self) -> list[str]:
        """Raw ids of the catalogue."""
        return self._tokens[1:].tolist()

    # ---- lists

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        mask_history: bool | None = None,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
        unknown: str = "error",
    ) -> list[list[Recommendation]]:
        """The best items after each of some histories, which need not be of any user of the dataset.

        Parameters
        ----------
        histories : sequence of sequences of str
            Raw item ids, oldest first. All of a history is masked; the model reads its newest
            ``MAX_ITEM_LIST_LENGTH`` items.
        k : int
            A list is shorter where fewer items may be recommended.
        mask_history : bool, optional
            Whether items of the history are left out; default: as in the run.
        allow, deny : iterables of str, optional
            Recommend nothing but these; nothing of those. Ids that the run does not know are reported.
        unknown : {"error", "skip"}
            What to do with an item that the run does not know. A history of which nothing is left has an empty list.

        Raises
        ------
        DataError
            For an unknown item or an empty history.
        UnsupportedError
            If the model reads more of a user than the items.
        """
        known = self._internal(histories, unknown)
        allowed, masked = self._allowed(allow, deny), self._masked(mask_history)
        result: list[list[Recommendation]] = [[] for _ in known]
        filled = [number for number, history in enumerate(known) if history]
        for numbers in _chunks(filled, self._batch if self._products else self._rows):
            rows, history = self._rows_of([known[number] for number in numbers])
            lists = self._best(rows, history if masked else None, k, allowed)
            items, scores = self._tokens[lists.item.cpu().numpy()], lists.score.cpu().numpy().astype(float)
            real = (lists.item > 0).sum(1).tolist()
            for number, row, values, count in zip(numbers, items, scores, real, strict=True):
                result[number] = [
                    Recommendation(*pair) for pair in zip(row[:count].tolist(), values[:count].tolist(), strict=True)
                ]
        return result

    def recommend_users(
        self,
        users: Iterable[str] | None = None,
        k: int = 10,
        history: str = "all",
        mask_history: bool | None = None,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
        unknown: str = "error",
    ) -> Iterator[pd.DataFrame]:
        """The best items for users of the dataset, a batch of users at a time.

        Parameters
        ----------
        users : iterable of str, optional
            Raw ids; default: all users.
        k, mask_history, allow, deny
            As :meth:`recommend`.
        history : {"all", "valid", "test"}
            What the model has of a user: every interaction, or what stands before the validation or test target. With
            the last two, scores are those that the evaluator ranked, number by number.
        unknown : {"error", "skip"}
            What to do with a user without such a history.

        Yields
        ------
        pandas.DataFrame
            The user and item fields of the dataset, ``rank`` from 1 on, ``score`` (float32), and for "valid" and
            "test" ``target``, the item that was to be found. One line an item, lists one after the other.

        Raises
        ------
        DataError
            For an unknown user.
        """
        choice({"history": history}, "history", HISTORIES)
        allowed, masked = self._allowed(allow, deny), self._masked(mask_history)
        wanted = self._users(users, history, unknown)
        return (self._frame(lists) for lists in self._lists(wanted, k, history, masked, allowed))

    def count_users(self, users: Iterable[str] | None = None, history: str = "all", unknown: str = "error") -> int:
        """How many lists :meth:`recommend_users` gives."""
        return len(self._users(users, history, unknown))

    def _lists(
        self, wanted: torch.Tensor, k: int, history: str, masked: bool, allowed: torch.Tensor | None
    ) -> Iterator[TopK]:
        if history == "all":
            for part in wanted.split(self._batch if self._products else self._rows):
                rows, pairs = self.dataset_of_everything.after_last(part)
                lists = self._best(self._transformed(rows, pairs), pairs if masked else None, k, allowed)
                yield TopK(lists.item, lists.score, part)
            return
        loader = self._evaluation(history)
        for index in wanted.split(loader.step):
            interaction, pairs, _, target = loader.collate_fn(index)
            scores = self._scores(interaction)
            lists = self._from_scores(scores, pairs if masked else None, k, allowed)
            yield TopK(lists.item, lists.score, interaction[self.dataset.uid_field], target)

    def _frame(self, lists: TopK) -> pd.DataFrame:
        items, scores = lists.item.cpu().numpy(), lists.score.cpu().numpy()
        row, place = np.nonzero(items)
        assert lists.user is not None
        columns = {
            self.dataset.uid_field: self._user_tokens[lists.user.cpu().numpy()][row],
            self.dataset.iid_field: self._tokens[items[row, place]],
            "rank": (place + 1).astype(np.int32),
            "score": scores[row, place].astype(np.float32),
        }
        if lists.target is not None:
            columns["target"] = self._tokens[lists.target.cpu().numpy()][row]
        return pd.DataFrame(columns)

    # ---- items

    def similar_items(
        self, item: str, k: int = 10, allow: Iterable[str] | None = None, deny: Iterable[str] | None = None
    ) -> list[Recommendation]:
        """The items whose vectors have the largest cosine with an item's; the item itself is left out.

        Vectors are those that the model scores by, or else its item embedding.

        Raises
        ------
        DataError
            For an unknown item.
        UnsupportedError
            If the model has no vectors of items.
        """
        (own,) = self._internal([[item]], "error")[0]
        allowed = self._allowed(allow, deny)
        allowed = torch.ones(len(self._tokens), dtype=torch.bool) if allowed is None else allowed
        allowed[own] = False
        allowed[0] = False
        ids = allowed.nonzero()[:, 0].to(self.device)
        if len(ids) == 0:
            return []
        vectors = self._unit_vectors
        scores, places = top_k_of_products(vectors[[own]], vectors[ids], k)
        found = ids[places[0]].cpu().numpy()
        return [Recommendation(*pair) for pair in zip(self._tokens[found].tolist(), scores[0].tolist(), strict=True)]

    def item_vectors(self) -> np.ndarray:
        """Vectors of the catalogue in the order of :attr:`items`, float32, (n, d).

        Their products with :meth:`user_vectors` are the scores; a model with an item bias has it as last column.

        Raises
        ------
        UnsupportedError
            If the model does not score by vectors.
        """
        return self._table[1:].cpu().numpy()

    @property
    def has_item_bias(self) -> bool:
        """Whether the last column of :meth:`item_vectors` is a bias, and that of every user's vector 1."""
        return self._needed_products().has_bias

    def user_vectors(self, histories: Sequence[Sequence[str]]) -> np.ndarray:
        """Vectors of some histories of raw item ids, oldest first; float32, (n, d).

        Raises
        ------
        DataError, UnsupportedError
            As :meth:`recommend` and :meth:`item_vectors`.
        """
        products = self._needed_products()
        parts = []
        for part in _chunks(self._internal(histories, "error"), self._batch):
            parts.append(self._run_model(products.users, self._rows_of(part)[0]).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self._table.shape[1]), dtype=np.float32)

    def vectors_of_users(
        self, users: Iterable[str] | None = None, history: str = "all", unknown: str = "error"
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Raw ids and vectors (B, d) of users of the dataset, a batch at a time; see :meth:`recommend_users`."""
        choice({"history": history}, "history", HISTORIES)
        products = self._needed_products()
        for index in self._users(users, history, unknown).split(self._batch):
            if history == "all":
                rows = self._transformed(*self.dataset_of_everything.after_last(index))
            else:
                rows = self._evaluation(history).collate_fn(index)[0]
            user = rows[self.dataset.uid_field].cpu().numpy()
            yield self._user_tokens[user].tolist(), self._run_model(products.users, rows).cpu().numpy()

    def add_items(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Grow the catalogue by items that the run has never seen, known by their texts alone.

        Their texts go through the run's template, language model and fitted reduction; nothing is trained. From then
        on they can be recommended and stand in histories.

        Parameters
        ----------
        rows : sequence of mappings
            Fields of the ``.item`` file, the item id among them: ``{"item_id": "9001", "title": "Heat"}``.

        Raises
        ------
        DataError
            For a missing or known id, an unknown field, or an item without text; nothing is added then.
        UnsupportedError
            If the model knows items by their ids only.
        """
        if not rows:
            return
        if not self.model.accepts_new_items:
            raise UnsupportedError(
                f"{self.config['model']} learns an item from its interactions; one that has none is nothing to it. "
                "Models that read item texts and score by vectors can take new items: LLMSeqSim, LLM2SASRec, "
                "LLM2BERT4Rec, LLM2GRU4Rec, LiteLLM4Rec with head_init=items."
            )
        field = self.dataset.iid_field
        text = item_text_of(self.dataset, self.config)
        tokens, texts = [], []
        for number, row in enumerate(rows):
            if row.get(field) in (None, ""):
                raise DataError(f"Row {number} of the new items has no {field!r}, the id of the item.")
            token = as_id(row[field], f"{field} of row {number}")
            if token in self._ids or token in tokens:
                raise DataError(f"Item {token!r} is already in the catalogue; new items need new ids.")
            tokens.append(token)
            texts.append(text.of(row, f"New item {token!r}"))
            if not texts[-1]:
                raise DataError(
                    f"New item {token!r} has no text: the template {text.template!r} needs {', '.join(text.fields)}."
                )
        self.model.append_items(texts)
        self._ids.update((token, len(self._tokens) + number) for number, token in enumerate(tokens))
        self._tokens = np.concatenate([self._tokens, np.array(tokens, dtype=object)])
        for name in ("_table", "_unit_vectors"):
            self.__dict__.pop(name, None)

    # ---- ids

    def _internal(self, histories: Sequence[Sequence[str]], unknown: str) -> list[list[int]]:
        """Internal ids; what is unknown is an error or left out."""
        choice({"unknown": unknown}, "unknown", UNKNOWN)
        result: list[list[int]] = []
        skipped: set[str] = set()
        for number, history in enumerate(histories):
            if isinstance(history, (str, bytes)):
                raise DataError(
                    f"histories[{number}] is {history!r}, not a list of item ids. Put one history into a list: "
                    '[["50", "181"]].'
                )
            history = [as_id(item, f"An item of history {number}") for item in history]
            ids = [self._ids.get(item, 0) for item in history]
            if 0 in ids:
                bad = next(item for item, known in zip(history, ids, strict=True) if not known)
                if unknown == "error":
                    raise DataError(
                        f"Item {bad!r} of history {number} is not known to the run. Leave it "
                        "out, let unknown='skip' do so, or bring it in with add_items."
                    )
                skipped.update(item for item, known in zip(history, ids, strict=True) if not known)
                ids = [item for item in ids if item]
            if not ids and unknown == "error":
                raise DataError(f"History {number} is empty: a sequential model needs at least one item.")
            result.append(ids)
        if skipped:
            getLogger().warning(f"{len(skipped)} unknown items left out: {_some(sorted(skipped))}.")
        return result

    def _allowed(self, allow: Iterable[str] | None, deny: Iterable[str] | None) -> torch.Tensor | None:
        """Which internal ids may be recommended, (n_items,) bool; None for all."""
        if allow is None and deny is None:
            return None
        allowed = torch.full((len(self._tokens),), allow is None)
        for name, items, value in (("allow", allow, True), ("deny", deny, False)):
            if items is None:
                continue
            tokens = [as_id(item, name) for item in items]
            ids = [self._ids.get(token, 0) for token in tokens]
            missing = [token for token, known in zip(tokens, ids, strict=True) if not known]
            if missing:
                getLogger().warning(
                    f"{name}: {len(missing)} of {len(tokens)} items are not known to the run: {_some(missing)}."
                )
            allowed[ids] = value
        allowed[0] = False
        if not allowed.any():
            raise DataError("allow and deny leave no item that could be recommended.")
        return allowed

    def _masked(self, mask_history: bool | None) -> bool:
        return bool(self.config["mask_history"] if mask_history is None else mask_history)

    @cached_property
    def _user_tokens(self) -> np.ndarray:
        return np.asarray(self.dataset_of_everything.field2id_token[self.dataset.uid_field], dtype=object)

    @cached_property
    def _reads_users(self) -> bool:
        """Whether the model reads who the user is, and so knows nothing of users whom the run did not have."""
        one = torch.from_numpy(np.flatnonzero(self._has_interactions)[:1])
        rows, pairs = self.dataset_of_everything.after_last(one)
        del rows[self.dataset.uid_field]
        try:
            self._scores(self._transformed(rows, pairs))
        except UnsupportedError:
            return True
        return False

    @cached_property
    def _has_interactions(self) -> np.ndarray:
        """Which users a list can be made for from all their interactions, shape (users,) bool."""
        return np.diff(self.dataset_of_everything.offsets) > 0

    def _users(self, users: Iterable[str] | None, history: str, unknown: str) -> torch.Tensor:
        """Internal ids of users, or row numbers of an evaluation, in the order asked for."""
        choice({"unknown": unknown}, "unknown", UNKNOWN)
        if history == "all":
            has = self._has_interactions
            if len(has) > self.dataset.user_num and self._reads_users:
                has = has & (np.arange(len(has)) < self.dataset.user_num)
            owners = np.arange(len(has))
        else:
            owners = self._evaluation(history).dataset.inter_feat[self.dataset.uid_field].numpy()
            has = np.bincount(owners, minlength=len(self._user_tokens)) > 0
        if users is None:
            missing = int((~has[1:]).sum())
            if missing:
                getLogger().warning(f"{missing} users have no {_NAMES[history]} and are left out.")
            return torch.from_numpy(np.flatnonzero(has) if history == "all" else np.arange(len(owners)))
        known = self.dataset_of_everything.field2token_id[self.dataset.uid_field]
        tokens = list(dict.fromkeys(as_id(user, "A user") for user in users))
        ids = np.array([known.get(token, 0) for token in tokens], dtype=np.int64)
        good = has[ids] & (ids > 0)
        if not good.all():
            strangers = [token for token, number in zip(tokens, ids, strict=True) if number == 0]
            silent = [token for token, number, ok in zip(tokens, ids, good, strict=True) if number and not ok]
            parts = [f"{len(strangers)} of {len(tokens)} users are not known: {_some(strangers)}"] if strangers else []
            parts += [f"{len(silent)} users have no {_NAMES[history]}: {_some(silent)}"] if silent else []
            if unknown == "error":
                raise DataError(
                    f"{'; '.join(parts)}. Leave them out (unknown=skip does); to a new user, recommend from a "
                    "history of items."
                )
            getLogger().warning(f"Left out: {'; '.join(parts)}.")
        ids = ids[good]
        if history == "all":
            return torch.from_numpy(ids)
        # Some splits give a user several rows.
        order = np.argsort(owners, kind="stable")
        first = np.searchsorted(owners[order], ids)
        last = np.searchsorted(owners[order], ids, side="right")
        rows = [order[start:end] for start, end in zip(first, last, strict=True)]
        return torch.from_numpy(np.concatenate(rows) if rows else np.array([], dtype=np.int64))

    # ---- inputs

    @property
    def dataset_of_everything(self) -> HistoryDataset:
        """The dataset with all interactions; a split may have fewer."""
        return self.run.everything

    def _evaluation(self, history: str) -> FullSortLoader:
        """The evaluator's own batches."""
        data = self.run.valid_data if history == "valid" else self.run.test_data
        if data is None:
            raise DataError(
                f"history={history!r}: eval_args.split={self.config['eval_args']['split']!r} has no such part."
            )
        if isinstance(data, FullSortLoader):
            return data
        if history not in self._full_sort:
            getLogger().warning("The run's metrics rank sampled items; these lists rank the whole catalogue.")
            self._full_sort[history] = FullSortLoader(self.config, data.dataset, None)
        return self._full_sort[history]

    @cached_property
    def _full_sort(self) -> dict[str, FullSortLoader]:
        return {}

    @property
    def _rows(self) -> int:
        """Rows whose scores of the whole catalogue may be held at once."""
        return max(1, min(self._batch, self._scores_in_memory // len(self._tokens)))

    def _rows_of(self, histories: Sequence[Sequence[int]]) -> tuple[Interaction, Pairs]:
        dataset = self.dataset
        limit = int(dataset.max_item_list_len)
        newest = [torch.tensor(history[-limit:]) for history in histories]
        padded = nn.functional.pad(pad_sequence(newest, batch_first=True), (0, limit - max(map(len, newest))))
        length = torch.tensor([len(part) for part in newest])
        rows = Interaction({dataset.item_id_list_field: padded, dataset.item_list_length_field: length})
        counts = torch.tensor([len(history) for history in histories])
        row = torch.repeat_interleave(torch.arange(len(histories)), counts)
        item = torch.tensor([item for history in histories for item in history])
        return self._transformed(rows, (row, item)), (row, item)

    def _transformed(self, rows: Interaction, history: Pairs) -> Interaction:
        """Rows as the model reads them, like a batch of the evaluation."""
        try:
            rows = self.run.train_data.transform(self.dataset, rows)
        except KeyError as error:
            raise self._reads_more(error) from error
        if not self.config.model_class.reads_excluded:
            return rows
        # As in the run, whatever the lists leave out in the end: it is part of the model's scores.
        return exclude_from_choice(rows, history, bool(self.config["mask_history"]))

    # ---- scores

    def _run_model(self, function: Callable[[Interaction], torch.Tensor], rows: Interaction) -> torch.Tensor:
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

    def _scores(self, rows: Interaction) -> torch.Tensor:
        return self._run_model(
            lambda batch: self.run.trainer.evaluator.scores(self.model, batch, self.dataset, len(self._tokens)), rows
        )

    @cached_property
    def _products(self) -> Products | None:
        def probe() -> Interaction:
            dataset = self.dataset_of_everything
            users = torch.from_numpy(np.flatnonzero(np.diff(dataset.offsets))[:32])
            return self._transformed(*dataset.after_last(users)).to(self.device)

        return products_of(self.model, probe, self._scores, lambda: self.run.trainer.evaluator.precision(self.model))

    def _needed_products(self) -> Products:
        if self._products is None:
            raise UnsupportedError(
                f"The scores of {self.config['model']}, as it is configured, are not known to be products of user and "
                "item vectors, so there are no vectors to give. Lists can be had all the same (recommend)."
            )
        return self._products

    @cached_property
    def _table(self) -> torch.Tensor:
        table = self._needed_products().items()
        if not torch.isfinite(table).all():
            raise ScoreError(f"The item vectors of {self.config['model']} are not finite: training diverged.")
        return table

    @cached_property
    def _unit_vectors(self) -> torch.Tensor:
        vectors = self.model.catalogue_vectors()
        return nn.functional.normalize(vectors.detach()[: len(self._tokens)].float(), dim=1)

    def _best(self, rows: Interaction, history: Pairs | None, k: int, allowed: torch.Tensor | None) -> TopK:
        if self._products is None:
            return self._from_scores(self._scores(rows), history, k, allowed)
        users = self._run_model(self._products.users, rows)
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
        """Internal ids that may be recommended, their vectors, and the place of every id among them or -1."""
        if allowed is None:
            ids = torch.arange(1, len(self._tokens), device=self.device)
            return ids, self._table[1:], torch.arange(-1, len(ids), device=self.device)
        if self._last_allowed is None or not torch.equal(self._last_allowed[0], allowed):
            ids = allowed.nonzero()[:, 0].to(self.device)
            place = torch.full((len(self._tokens),), -1, device=self.device)
            place[ids] = torch.arange(len(ids), device=self.device)
            self._last_allowed = allowed, (ids, self._table[ids], place)
        return self._last_allowed[1]

    _last_allowed: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None

    def _from_scores(self, scores: torch.Tensor, history: Pairs | None, k: int, allowed: torch.Tensor | None) -> TopK:
        scores = scores.float()
        if torch.isnan(scores[:, 1:]).any():
            raise ScoreError(f"{self.config['model']} gave scores that are NaN: training diverged.")
        if history is not None:
            remove_history(scores, history)
        if allowed is not None:
            scores[:, ~allowed.to(self.device)] = -torch.inf
        values, items = top_k(scores, k)
        return TopK(items.where(values > -torch.inf, 0), values)


_NAMES = {"all": "interactions", "valid": "validation target", "test": "test target"}


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _some(names: Sequence[str], shown: int = 5) -> str:
    return ", ".join(map(repr, names[:shown])) + (", ..." if len(names) > shown else "")
