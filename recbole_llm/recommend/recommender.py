"""Lists, similar items and vectors from a finished run, with raw ids."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from recbole_llm.config.registry import is_users
from recbole_llm.config.values import choice
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import UnsupportedError
from recbole_llm.evaluator.topk import top_k_of_products
from recbole_llm.own_code import explain_own_code
from recbole_llm.recommend.catalogue import Catalogue
from recbole_llm.recommend.products import Products
from recbole_llm.recommend.scoring import Scorer, TopK
from recbole_llm.recommend.users import Users
from recbole_llm.run.folder import DATA, run_folder
from recbole_llm.run.load import Run, load_run
from recbole_llm.text.item_text import item_text_of

HISTORIES = ("all", "valid", "test")


class Recommendation(NamedTuple):
    """An item of a list."""

    item: str
    score: float


class Recommender:
    """Recommendations from a run.

    Where the model scores by user and item vectors (:mod:`recbole_llm.recommend.products`), lists come from blocks of
    items with a running top k, and no (users, items) table is ever in memory. Otherwise batches shrink so that such a
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

    Examples
    --------
    >>> from recbole_llm import run
    >>> run_dir = run("SASRec", "ml-100k", config_dict={"smoke": True, "show_progress": False})["run_dir"]
    >>> recommender = Recommender.load(run_dir)
    >>> history = recommender.history(recommender.users[0])
    >>> (found,) = recommender.recommend([history], k=3)  # of anybody, also of users that training has not seen
    >>> len(found), found[0].item in history
    (3, False)
    >>> for frame in recommender.recommend_users(k=10):  # all users, a batch at a time
    ...     assert list(frame.columns) == ["user_id", "item_id", "rank", "score"]
    """

    def __init__(self, run: Run) -> None:
        self.run, self.model, self.config = run, run.model.eval(), run.config
        self.dataset: HistoryDataset = run.training
        if self.config["task"] == "topn":
            raise UnsupportedError(
                f"{self.config['model']} was run with task=topn: it scores the candidates of a row and nothing else. "
                "Recommend from a run with task=sequential."
            )
        self.device = torch.device(self.config["device"])
        self._catalogue = Catalogue(self.dataset)
        self._scorer = Scorer(run, self._catalogue)
        self._users = Users(run, self._scorer)
        self._batch = int(self.config["eval_batch_size"])

    @classmethod
    def load(cls, run_dir: str | Path, model: type | None = None, **settings: Any) -> "Recommender":
        """Load a recommender from a run directory, or from the Hugging Face hub.

        Parameters
        ----------
        run_dir : str or pathlib.Path
            A folder; or ``org/name`` or ``org/name@revision`` of a repository that ``recbole-llm card`` wrote.
        model : class, optional
            As :func:`recbole_llm.quick_start.load_run`.
        **settings
            Settings to change, such as ``data_path`` or ``use_gpu=False``.
        """
        folder = run_folder(run_dir)
        if (folder / DATA).is_dir():
            settings.setdefault("data_path", str(folder / DATA))
        return cls(load_run(folder, {"show_progress": False, **settings}, model))

    @property
    def items(self) -> list[str]:
        """Raw ids of the catalogue."""
        return self._catalogue.tokens[1:].tolist()

    @property
    def users(self) -> list[str]:
        """Raw ids of the users with a history."""
        return self._users.tokens[self._users.has_interactions].tolist()

    def history(self, user: str, history: str = "all") -> list[str]:
        """Return the raw item ids that a user's list is made from, oldest first.

        ``history`` is that of :meth:`recommend_users`; where an evaluation has several rows of the user, the first.

        Raises
        ------
        DataError
            For an unknown user, or one without such a history.
        """
        choice({"history": history}, "history", HISTORIES)
        return self._catalogue.tokens[self._users.history(user, history).numpy()].tolist()

    @property
    def dataset_of_everything(self) -> HistoryDataset:
        """The dataset with all interactions; a split may have fewer."""
        return self.run.everything

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
        """Recommend items after each of some histories, which need not belong to users of the dataset.

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
            What to do with items unknown to the run. A history with no items left gets an empty list.

        Raises
        ------
        DataError
            For an unknown item or an empty history.
        UnsupportedError
            If the model reads more of a user than the items.
        """
        known = self._catalogue.internal(histories, unknown)
        allowed, masked = self._catalogue.allowed(allow, deny), self._masked(mask_history)
        result: list[list[Recommendation]] = [[] for _ in known]
        filled = [number for number, history in enumerate(known) if history]
        for numbers in _chunks(filled, self._scorer.batch):
            rows, history = self._scorer.rows_of([known[number] for number in numbers])
            lists = self._scorer.best(rows, history if masked else None, k, allowed)
            items, scores = self._catalogue.tokens[lists.item.cpu().numpy()], lists.score.cpu().numpy().astype(float)
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
        """Recommend items for users of the dataset, one batch of users at a time.

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
            "test" ``target``, the item that was to be found. One row per item, lists one after the other.

        Raises
        ------
        DataError
            For an unknown user.
        """
        choice({"history": history}, "history", HISTORIES)
        allowed, masked = self._catalogue.allowed(allow, deny), self._masked(mask_history)
        wanted = self._users.select(users, history, unknown)
        return (self._frame(lists) for lists in self._lists(wanted, k, history, masked, allowed))

    def count_users(self, users: Iterable[str] | None = None, history: str = "all", unknown: str = "error") -> int:
        """Return the number of lists that :meth:`recommend_users` gives."""
        return len(self._users.select(users, history, unknown))

    def _lists(
        self, wanted: torch.Tensor, k: int, history: str, masked: bool, allowed: torch.Tensor | None
    ) -> Iterator[TopK]:
        if history == "all":
            for part in wanted.split(self._scorer.batch):
                rows, pairs = self.dataset_of_everything.after_last(part)
                lists = self._scorer.best(self._scorer.transformed(rows, pairs), pairs if masked else None, k, allowed)
                yield TopK(lists.item, lists.score, part)
            return
        loader = self._users.evaluation(history)
        for index in wanted.split(loader.step):
            batch = loader.collate_fn(index)
            _, pairs, _, target = batch
            interaction = self.run.trainer.evaluator.with_candidates(self.model, batch, history)
            scores = self._scorer.scores(interaction)
            lists = self._scorer.from_scores(scores, pairs if masked else None, k, allowed)
            yield TopK(lists.item, lists.score, interaction[self.dataset.uid_field], target)

    def _frame(self, lists: TopK) -> pd.DataFrame:
        items, scores = lists.item.cpu().numpy(), lists.score.cpu().numpy()
        row, place = np.nonzero(items)
        assert lists.user is not None
        columns = {
            self.dataset.uid_field: self._users.tokens[lists.user.cpu().numpy()][row],
            self.dataset.iid_field: self._catalogue.tokens[items[row, place]],
            "rank": (place + 1).astype(np.int32),
            "score": scores[row, place].astype(np.float32),
        }
        if lists.target is not None:
            columns["target"] = self._catalogue.tokens[lists.target.cpu().numpy()][row]
        return pd.DataFrame(columns)

    # ---- items

    def similar_items(
        self, item: str, k: int = 10, allow: Iterable[str] | None = None, deny: Iterable[str] | None = None
    ) -> list[Recommendation]:
        """Return the items most similar to an item by cosine similarity of their vectors, without the item itself.

        Vectors are those that the model scores by, or else its item embedding.

        Raises
        ------
        DataError
            For an unknown item.
        UnsupportedError
            If the model has no vectors of items.
        """
        (own,) = self._catalogue.internal([[item]], "error")[0]
        allowed = self._catalogue.allowed(allow, deny)
        allowed = torch.ones(len(self._catalogue.tokens), dtype=torch.bool) if allowed is None else allowed
        allowed[own] = False
        allowed[0] = False
        ids = allowed.nonzero()[:, 0].to(self.device)
        if len(ids) == 0:
            return []
        vectors = self._scorer.unit_vectors
        scores, places = top_k_of_products(vectors[[own]], vectors[ids], k)
        found = ids[places[0]].cpu().numpy()
        return [
            Recommendation(*pair)
            for pair in zip(self._catalogue.tokens[found].tolist(), scores[0].tolist(), strict=True)
        ]

    def item_vectors(self) -> np.ndarray:
        """Vectors of the catalogue in the order of :attr:`items`, float32, (n, d).

        Their products with :meth:`user_vectors` are the scores; a model with an item bias has it as last column.

        Raises
        ------
        UnsupportedError
            If the model does not score by vectors.
        """
        return self._scorer.item_vectors[1:].cpu().numpy()

    @property
    def products(self) -> Products:
        """How the model scores by vectors; UnsupportedError if it does not."""
        return self._scorer.needed_products()

    @property
    def has_item_bias(self) -> bool:
        """Whether the last column of :meth:`item_vectors` is a bias, and that of every user's vector 1."""
        return self._scorer.needed_products().has_bias

    def user_vectors(self, histories: Sequence[Sequence[str]]) -> np.ndarray:
        """Vectors of some histories of raw item ids, oldest first; float32, (n, d).

        Raises
        ------
        DataError, UnsupportedError
            As :meth:`recommend` and :meth:`item_vectors`.
        """
        products = self._scorer.needed_products()
        parts = []
        for part in _chunks(self._catalogue.internal(histories, "error"), self._batch):
            parts.append(self._scorer.run_model(products.users, self._scorer.rows_of(part)[0]).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self._scorer.item_vectors.shape[1]), dtype=np.float32)

    def vectors_of_users(
        self, users: Iterable[str] | None = None, history: str = "all", unknown: str = "error"
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Raw ids and vectors (B, d) of users of the dataset, a batch at a time; see :meth:`recommend_users`."""
        choice({"history": history}, "history", HISTORIES)
        products = self._scorer.needed_products()
        for index in self._users.select(users, history, unknown).split(self._batch):
            if history == "all":
                rows = self._scorer.transformed(*self.dataset_of_everything.after_last(index))
            else:
                rows = self._users.evaluation(history).collate_fn(index)[0]
            user = rows[self.dataset.uid_field].cpu().numpy()
            yield self._users.tokens[user].tolist(), self._scorer.run_model(products.users, rows).cpu().numpy()

    def add_items(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add items to the catalogue that the run has never seen, by their texts alone.

        Their texts go through the run's template, language model and fitted reduction; nothing is trained. From then
        on they can be recommended and appear in histories.

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
                f"{self.config['model']} learns items from interactions only and cannot score items without any. "
                f"{_how_to_accept(type(self.model))}"
            )
        field = self.dataset.iid_field
        text = item_text_of(self.dataset, self.config)
        tokens, texts = self._catalogue.read(rows, field, text)
        with explain_own_code():
            self.model.append_items(texts)
        self._catalogue.append(tokens)
        self._scorer.forget_items()

    def _masked(self, mask_history: bool | None) -> bool:
        return bool(self.config["mask_history"] if mask_history is None else mask_history)


def _how_to_accept(model: type) -> str:
    if is_users(model):
        return f"If {model.__name__} can score an item by its text, set accepts_new_items and define append_items."
    return (
        "Models that read item texts and score by vectors accept new items: LLMSeqSim, LLM2SASRec, LLM2BERT4Rec, "
        "LLM2GRU4Rec, LiteLLM4Rec with head_init=items."
    )


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
