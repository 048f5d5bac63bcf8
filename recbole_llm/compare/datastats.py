"""Statistics of a leaderboard's data: what its figures depend on besides the models."""

from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.run.logging import SILENT
from recbole_llm.text.item_text import item_text_of


class _TimedDataset(HistoryDataset):
    """Notes which adjacent interactions have equal times, which only the sorting sees."""

    tied: np.ndarray

    def _settled(self, times: np.ndarray) -> np.ndarray:
        self.tied = np.r_[False, times[1:] == times[:-1]]
        return times


def statistics_of(config: Config) -> dict[str, object]:
    """Read the data set of a run, after its filters, and return its statistics.

    Returns
    -------
    dict
        ``users``, ``items``, ``interactions`` : counts.
        ``mean_history``, ``median_history``, ``longest_history`` : interactions of a user.
        ``repeats`` : share of the interactions whose user had the item before.
        ``targets_in_history`` : share of the users whose test item is in their history.
        ``tied_times`` : share of a user's adjacent interactions that have equal times.
        ``tied_targets`` : share of the users whose last two interactions have equal times: which one is the test item
        is decided by the order of the file.
        ``with_text`` : share of the items that have text; None without an ``.item`` file, as are the next three.
        ``distinct_text`` : distinct texts as a share of the items.
        ``mean_words`` : words of a text.
        ``template`` : what the texts are made of.
    """
    dataset = _TimedDataset(config)
    dataset.build()
    user, item = (dataset.flat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    ends = np.r_[starts[1:], len(user)] - 1
    lengths = ends - starts + 1
    follows = np.ones(len(user), dtype=bool)
    follows[starts] = False
    repeated = _seen_before(user, item)
    several = ends[lengths > 1]
    return {
        "users": len(starts),
        "items": dataset.item_num - 1,
        "interactions": len(user),
        "mean_history": float(lengths.mean()),
        "median_history": float(np.median(lengths)),
        "longest_history": int(lengths.max()),
        "repeats": float(repeated.mean()),
        "targets_in_history": float(repeated[several].mean()),
        "tied_times": float(dataset.tied[follows].mean()),
        "tied_targets": float(dataset.tied[several].mean()),
        **_of_texts(config, dataset),
    }


def _seen_before(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Whether each interaction, in the order of time, repeats an earlier one of its user; shape (interactions,)."""
    _, first = np.unique(np.stack([user, item]), axis=1, return_index=True)
    seen = np.ones(len(user), dtype=bool)
    seen[first] = False
    return seen


def _of_texts(config: Config, dataset: HistoryDataset) -> dict[str, Any]:
    if not (Path(config["data_path"]) / f"{config['dataset']}.item").is_file():
        return dict.fromkeys(("with_text", "distinct_text", "mean_words", "template"))
    read = item_text_of(dataset, config, logger=SILENT)  # what it would warn of is what the statistics say
    texts = [text for text in read.texts[1:] if text]
    items = len(read.texts) - 1
    return {
        "with_text": len(texts) / items,
        "distinct_text": len(set(texts)) / items,
        "mean_words": float(np.mean([len(text.split()) for text in texts])) if texts else 0.0,
        "template": read.template,
    }
