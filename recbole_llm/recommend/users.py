"""Users by raw and by internal id, and their histories."""

from collections.abc import Iterable
from functools import cached_property
from logging import getLogger

import numpy as np
import torch

from recbole_llm.config.values import choice
from recbole_llm.data.loader import FullSortLoader
from recbole_llm.data.rows import POSITION
from recbole_llm.errors import DataError, UnsupportedError
from recbole_llm.recommend.catalogue import UNKNOWN, some
from recbole_llm.recommend.reading import as_id
from recbole_llm.recommend.scoring import Scorer
from recbole_llm.run.load import Run

_NAMES = {"all": "interactions", "valid": "validation target", "test": "test target"}


class Users:
    """The users of a run, and those who are new in its files."""

    def __init__(self, run: Run, scorer: Scorer) -> None:
        self.run, self.config, self.scorer = run, run.config, scorer
        self.dataset = run.training

    @cached_property
    def tokens(self) -> np.ndarray:
        """Raw ids by internal id; the first is padding."""
        return np.asarray(self.run.everything.field2id_token[self.dataset.uid_field], dtype=object)

    @cached_property
    def _reads_users(self) -> bool:
        """Whether the model reads user ids, and so cannot handle users who are new since the run."""
        one = torch.from_numpy(np.flatnonzero(self.has_interactions)[:1])
        rows, pairs = self.run.everything.after_last(one)
        del rows[self.dataset.uid_field]
        try:
            self.scorer.scores(self.scorer.transformed(rows, pairs))
        except UnsupportedError:
            return True
        return False

    @cached_property
    def has_interactions(self) -> np.ndarray:
        """Which users a list can be made for from all their interactions, shape (users,) bool."""
        return np.diff(self.run.everything.offsets) > 0

    def select(self, users: Iterable[str] | None, history: str, unknown: str) -> torch.Tensor:
        """Return internal user ids, or row numbers of an evaluation, in the requested order."""
        choice({"unknown": unknown}, "unknown", UNKNOWN)
        if history == "all":
            has = self.has_interactions
            if len(has) > self.dataset.user_num and self._reads_users:
                has = has & (np.arange(len(has)) < self.dataset.user_num)
            owners = np.arange(len(has))
        else:
            owners = self.evaluation(history).dataset.inter_feat[self.dataset.uid_field].numpy()
            has = np.bincount(owners, minlength=len(self.tokens)) > 0
        if users is None:
            missing = int((~has[1:]).sum())
            if missing:
                getLogger().warning(f"{missing} users have no {_NAMES[history]} and are left out.")
            return torch.from_numpy(np.flatnonzero(has) if history == "all" else np.arange(len(owners)))
        known = self.run.everything.field2token_id[self.dataset.uid_field]
        tokens = list(dict.fromkeys(as_id(user, "A user") for user in users))
        ids = np.array([known.get(token, 0) for token in tokens], dtype=np.int64)
        good = has[ids] & (ids > 0)
        if not good.all():
            strangers = [token for token, number in zip(tokens, ids, strict=True) if number == 0]
            silent = [token for token, number, ok in zip(tokens, ids, good, strict=True) if number and not ok]
            parts = [f"{len(strangers)} of {len(tokens)} users are not known: {some(strangers)}"] if strangers else []
            parts += [f"{len(silent)} users have no {_NAMES[history]}: {some(silent)}"] if silent else []
            if unknown == "error":
                raise DataError(
                    f"{'; '.join(parts)}. Leave them out (unknown=skip does so); for new users, recommend from a "
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

    def history(self, user: str, history: str) -> torch.Tensor:
        """Return internal items of a user's history, oldest first; of the first where there are several rows."""
        number = int(self.select([user], history, "error")[0])
        if history == "all":
            return self.run.everything.histories.sequence(number)
        data = self.evaluation(history).dataset
        row = {field: int(data.inter_feat[field][number]) for field in (self.dataset.uid_field, POSITION)}
        return data.histories.sequence(row[self.dataset.uid_field], row[POSITION])

    def evaluation(self, history: str) -> FullSortLoader:
        """Yield the evaluator's own batches."""
        data = self.run.valid_data if history == "valid" else self.run.test_data
        if data is None and self.config["final_fit"]:
            raise DataError(f"history={history!r}: the run was trained on all interactions and has no such part.")
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
