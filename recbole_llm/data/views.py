"""Training views: a row per prefix, per random segment, or per whole sequence.

A view turns a training split into pairs (position of the target, length of the history before it). All draws of an
epoch are made at once, in the main process, from the seed and the epoch number alone: the same whatever the number of
workers, and the same after a resume.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch

from recbole_llm.config import Config
from recbole_llm.config.schema.general import View
from recbole_llm.config.values import choice
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.rows import POSITION
from recbole_llm.errors import DataError


def view_of(config: Config, model_class: Any) -> str:
    """Return the training view: ``train_view`` of the configuration, else what the model declares, else ``prefix``."""
    return config["train_view"] or choice({"train_view": model_class.view_for(config)}, "train_view", get_args(View))


class TrainRows:
    """Rows of a training split under a view.

    Parameters
    ----------
    dataset : HistoryDataset
        A training split.
    view : {'prefix', 'segment', 'p5', 'sequence'}
        ``prefix``: every training interaction that has one before it (RecBole's augmentation).
        ``segment``: one random segment per user and epoch, as POD samples (its ``utils.py``): over the user's m
        training items, start ~ U{0..m-2}, end ~ U{start+1..m-1}; the last item is the target.
        ``p5``: one row per user and epoch as P5 samples: the target is one of the last four training items, the
        history starts at one of the first three.
        ``sequence``: each user's training items in consecutive windows, anchored at the newest item, with a target at
        every position; every training interaction that has one before it is a target once.
    seed : int
    per_user : int, optional
        ``prefix`` only: number of newest rows to keep per user.
    windows : {'all', 'original', 'newest'}
        ``sequence`` only; L is the longest history. ``newest``: one row per user, whose targets are the newest L
        training items, as the code of arXiv 2402.01339 trains. ``original``: the windows of LRURec's code. Of fewer
        than 2L training items the newest L are the targets of one row; otherwise the newest whole L-tuples of items
        are a row each, whose first item is no target.

    Raises
    ------
    DataError
        If no user has two training items.
    """

    def __init__(
        self, dataset: HistoryDataset, view: str, seed: int, per_user: int | None = None, windows: str = "all"
    ) -> None:
        self.view, self.seed = view, seed
        self.max_length = int(dataset.max_item_list_len)
        position = dataset.inter_feat[POSITION]
        if len(position) == 0:
            raise DataError(
                f"No user of {dataset.dataset_name!r} has two training items: there is nothing to train on. Use more "
                f"data, or another split than eval_args.split={dataset.config['eval_args']['split']!r}."
            )
        if view == "prefix":
            self._position = position
            self._length = dataset.inter_feat[dataset.item_list_length_field]
            if per_user is not None:
                user = dataset.inter_feat[dataset.uid_field]
                newest = torch.zeros(dataset.user_num, dtype=torch.long).scatter_reduce(0, user, position, "amax")
                kept = newest[user] - position < per_user
                self._position, self._length = position[kept], self._length[kept]
            return
        if dataset.histories.starts is not None:
            raise DataError(
                f"train_view={view!r} needs one sequence a user, but users of {dataset.dataset_name!r} have lists "
                "that do not continue one another. Use train_view=prefix, or a model that has it."
            )
        user = dataset.inter_feat[dataset.uid_field]
        last = torch.full((dataset.user_num,), -1).scatter_reduce(0, user, position, "amax")
        users = (last >= 0).nonzero()[:, 0]
        self._first, self._last = torch.from_numpy(dataset.offsets)[users], last[users]
        if view == "sequence":
            limit, targets = self.max_length, self._last - self._first
            cut = targets + 1 >= 2 * limit  # original: whole windows only
            original = torch.where(cut, (targets + 1) // limit, 1)
            every = (targets + limit - 1) // limit
            rows = {"all": every, "original": original, "newest": torch.ones_like(targets)}[windows]
            user = torch.repeat_interleave(torch.arange(len(users)), rows)
            number = torch.arange(len(user)) - (torch.cumsum(rows, 0) - rows)[user]
            self._position = self._last[user] - number * limit
            most = limit - (cut[user].long() if windows == "original" else 0)
            self._length = torch.minimum(self._position - self._first[user], torch.as_tensor(most))
            if windows == "original":  # a window of one item has no target
                self._position, self._length = self._position[self._length > 0], self._length[self._length > 0]

    def __len__(self) -> int:
        """Rows per epoch."""
        return len(self._first) if self.view in ("segment", "p5") else len(self._position)

    def positions(self) -> torch.Tensor:
        """Return where the targets of the rows of ``prefix`` stand in the flat array."""
        return self._position

    def keep(self, wanted: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Leave out rows of ``prefix``: ``wanted`` says of positions of targets, (rows,), which of them stay."""
        kept = wanted(self._position)
        self._position, self._length = self._position[kept], self._length[kept]

    def generator(self, epoch: int, purpose: Literal["rows", "ties"] = "rows") -> torch.Generator:
        """Random numbers of one epoch for a purpose: a function of the seed and the epoch only."""
        entropy = [self.seed % 2**32, epoch] + ([1] if purpose == "ties" else [])
        state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) >> 1)

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """``(position, length)`` of this epoch's rows, each a LongTensor of shape (rows,), not shuffled."""
        if self.view not in ("segment", "p5"):
            return self._position, self._length
        items = self._last - self._first + 1
        if self.view == "p5":
            # Counted from 0: the last input item is at most the one before the last, and not the first if that is
            # possible; the first input item comes before the last one.
            earliest = torch.minimum(torch.maximum(items - 4, torch.tensor(1)), items - 2).clamp(min=0)
            target = earliest + 1 + _uniform(items - 1 - earliest, generator)
            start = _uniform((target - 1).clamp(1, 3), generator)
            return self._first + target, torch.minimum(target - start, torch.tensor(self.max_length))
        start = _uniform(items - 1, generator)
        end = start + 1 + _uniform(items - 1 - start, generator)
        return self._first + end, torch.minimum(end - start, torch.tensor(self.max_length))


def _uniform(count: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One draw from {0 .. count - 1} for every entry; exact for any count below 2**53."""
    draws = torch.rand(len(count), dtype=torch.float64, generator=generator)
    return torch.minimum((draws * count).long(), count - 1)
