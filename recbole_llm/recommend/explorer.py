"""What a page that shows recommendations needs: items by name, histories, lists and similar items as rows of text."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from recbole_llm.errors import ConfigError, DataError, UnsupportedError
from recbole_llm.recommend.recommender import Recommendation, Recommender
from recbole_llm.run.protocol import protocol_text
from recbole_llm.text.item_text import format_of, load_item_text

BY_VECTORS = "cosine of the model's item vectors"
BY_USERS = "cosine of the users that two items share, since the model has no item vectors"


class Shown(NamedTuple):
    """An item as a person reads it; ``score`` is None in a history."""

    item: str
    title: str
    score: float | None = None


class UserList(NamedTuple):
    """A user's list, the history that it was made from, and the held-out target if there is one."""

    history: list[Shown]
    items: list[Shown]
    target: Shown | None

    @property
    def target_rank(self) -> int | None:
        """Rank of the target in the list, from 1; None where it is not in it."""
        ranks = [rank for rank, row in enumerate(self.items, 1) if self.target and row.item == self.target.item]
        return ranks[0] if ranks else None


class Explorer:
    """A recommender for people: titles beside ids, and search in both.

    Its methods may be called from several threads.

    Parameters
    ----------
    recommender : Recommender

    Attributes
    ----------
    why_no_titles : str
        Why items have no titles and go by their ids; empty where they have.

    Examples
    --------
    >>> from recbole_llm import run
    >>> run_dir = run("SASRec", "ml-100k", config_dict={"smoke": True, "show_progress": False})["run_dir"]
    >>> explorer = Explorer.load(run_dir)
    >>> explorer.find_items("KOLYA")
    ['242']
    >>> explorer.title("242")
    'Kolya (1996)'
    >>> [len(row) for row in explorer.recommend(["242"], k=2)]  # id, title, score
    [3, 3]
    """

    def __init__(self, recommender: Recommender) -> None:
        self.recommender, self._lock = recommender, RLock()
        self.items, self.users = recommender.items, recommender.users
        self._titles, self.why_no_titles = _titles(recommender)
        self._folded = {item: f"{item} {self.title(item)}".casefold() for item in self.items}

    @classmethod
    def load(cls, run_dir: str | Path, **settings: Any) -> "Explorer":
        """Load a finished run; parameters as :meth:`~recbole_llm.recommend.Recommender.load`."""
        return cls(Recommender.load(run_dir, **settings))

    def describe(self) -> tuple[str, str]:
        """Return model and dataset, and what else to know of the run: sizes and protocol."""
        config = self.recommender.config
        size = f"{len(self.users):,} users, {len(self.items):,} items"
        return f"{config['model']} on {config['dataset']}", f"{size}; {protocol_text(config)}"

    # ---- names

    def title(self, item: str) -> str:
        """Return the title of an item, or its id where it has none."""
        return self._titles.get(item) or item

    def label(self, item: str) -> str:
        """Return title and id on one line."""
        title = self.title(item)
        return item if title == item else f"{title} [{item}]"

    def find_items(self, text: str, limit: int = 50) -> list[str]:
        """Return the items whose id or title has every word of a text; an id that is the text comes first.

        Parameters
        ----------
        text : str
            Case does not matter; a word may be part of a longer one. Nothing finds everything.
        limit : int
            Items at most, in the order of the catalogue.
        """
        words = text.casefold().split()
        found = [text.strip()] if text.strip() in self._folded else []
        for item, folded in self._folded.items():
            if len(found) >= limit:
                break
            if item not in found[:1] and all(word in folded for word in words):
                found.append(item)
        return found[:limit]

    def find_users(self, text: str, limit: int = 50) -> list[str]:
        """Return the users whose id has a text in it; the one whose id it is comes first."""
        part = text.strip()
        found = [user for user in self.users if part in user]
        return sorted(found, key=lambda user: user != part)[:limit]

    # ---- lists

    def recommend(self, history: Sequence[str], k: int = 10, mask_history: bool | None = None) -> list[Shown]:
        """Recommend items after a history of item ids, oldest first; errors as :meth:`Recommender.recommend`."""
        with self._lock:
            (found,) = self.recommender.recommend([history], k, mask_history)
        return self._shown(found)

    def recommend_user(
        self, user: str, k: int = 10, history: str = "all", mask_history: bool | None = None
    ) -> UserList:
        """Recommend items to a user of the dataset; errors as :meth:`Recommender.recommend_users`.

        Parameters
        ----------
        user : str
        k : int
        history : {"all", "valid", "test"}
            Everything, or what stands before the validation or test target, which is then named. Where a split gives
            a user several targets, it is the first.
        mask_history : bool, optional
        """
        with self._lock:
            items = self.recommender.history(user, history)
            frame = next(self.recommender.recommend_users([user], k, history, mask_history))
        frame = frame[(frame["rank"] == 1).cumsum() == 1]
        names = frame[self.recommender.dataset.iid_field].astype(str)
        found = [Recommendation(str(item), float(score)) for item, score in zip(names, frame["score"], strict=True)]
        targets = frame["target"].tolist()[:1] if "target" in frame else []
        shown = [Shown(item, self.title(item)) for item in (*items, *targets)]
        return UserList(shown[: len(items)], self._shown(found), shown[-1] if targets else None)

    def similar(self, item: str, k: int = 10) -> tuple[list[Shown], str]:
        """Return the items most similar to an item, and what by: :data:`BY_VECTORS` or :data:`BY_USERS`.

        Raises
        ------
        DataError
            For an unknown item.
        """
        with self._lock:
            try:
                return self._shown(self.recommender.similar_items(item, k)), BY_VECTORS
            except UnsupportedError:
                return self._shown(self._by_users(item, k)), BY_USERS

    def _by_users(self, item: str, k: int) -> list[Recommendation]:
        table = self._unit_columns
        own = self.items.index(item) + 1
        cosine = (table.T @ table[:, [own]]).toarray()[:, 0]
        cosine[[0, own]] = 0
        best = np.argsort(-cosine, kind="stable")[:k]
        return [Recommendation(self.items[place - 1], float(cosine[place])) for place in best if cosine[place] > 0]

    @cached_property
    def _unit_columns(self) -> scipy.sparse.csc_matrix:
        """Users x items, 1 for an interaction, with columns of length 1."""
        histories = self.recommender.dataset_of_everything.histories
        pairs = np.unique(np.stack([histories.users.numpy(), histories.items.numpy()]), axis=1)
        weight = 1 / np.sqrt(np.bincount(pairs[1], minlength=len(self.items) + 1)[pairs[1]])
        return scipy.sparse.csc_matrix((weight, (pairs[0], pairs[1])), shape=(histories.n_users, len(self.items) + 1))

    def _shown(self, found: Sequence[Recommendation]) -> list[Shown]:
        return [Shown(item, self.title(item), score) for item, score in found]


def _titles(recommender: Recommender) -> tuple[dict[str, str], str]:
    """Titles by raw id, from the dataset's ``.item`` file, and why there are none."""
    dataset, config = recommender.dataset, recommender.config
    file = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    tokens = ["", *recommender.items]
    if not file.is_file():
        return {}, f"{file} does not exist"
    try:
        text = load_item_text(file, tokens, **format_of(config), title_only=True)
    except (ConfigError, DataError) as error:
        return {}, str(error)
    return dict(zip(tokens, text.texts, strict=True)), ""
