"""Metrics of a ranking: from the target's rank; over the lists, RecBole's and those of Boz et al. (arXiv 2402.01339).

RecBole computes the same figures from a top-k indicator matrix with code that needs ``numpy.float`` (gone since NumPy
1.24) and rounds them before early stopping compares them. A rank says as much in four bytes, and per-user ranks are
what paired tests and breakdowns need.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metric_information, metrics_dict

from recbole_llm.typing import Settings

RankMetric = Callable[[np.ndarray, int], np.ndarray]


def hit(rank: np.ndarray, k: int) -> np.ndarray:
    """1 where the target is among the first k. Shape (rows,) as all functions here."""
    return (rank <= k).astype(np.float64)


def ndcg(rank: np.ndarray, k: int) -> np.ndarray:
    """1 / log2(rank + 1) within the first k; the ideal DCG of one target is 1."""
    return np.where(rank <= k, 1.0 / np.log2(rank + 1.0), 0.0)


def mrr(rank: np.ndarray, k: int) -> np.ndarray:
    """1 / rank within the first k."""
    return np.where(rank <= k, 1.0 / rank, 0.0)


def precision(rank: np.ndarray, k: int) -> np.ndarray:
    """1 / k where the target is among the first k."""
    return hit(rank, k) / k


# With one target, Recall is Hit and MAP is MRR.
RANK_METRICS: dict[str, RankMetric] = {
    "recall": hit,
    "hit": hit,
    "ndcg": ndcg,
    "mrr": mrr,
    "map": mrr,
    "precision": precision,
}


def of_ranks(config: Settings, rank: np.ndarray) -> dict[str, float]:
    """Means over rows, at least one, of the configured metrics that the target's rank (rows,) says."""
    names = [metric.lower() for metric in config["metrics"] if metric.lower() in RANK_METRICS]
    return {f"{name}@{k}": float(RANK_METRICS[name](rank, k).mean()) for name in names for k in config["topk"]}


# RecBole's metrics over the lists themselves; they need the recommended items, not the targets.
LIST_METRICS = sorted(name for name, needs in metric_information.items() if "rec.items" in needs)


def most_popular(counts: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k items with the largest counts, equal ones by smaller id, which appeared first; shape (k,).

    Parameters
    ----------
    counts : numpy.ndarray, shape (item_num,)
        Interactions of each item; padding, item 0, and items without any are never popular.
    """
    order = np.argsort(-counts[1:], kind="stable")[:k] + 1
    return order[counts[order] > 0]


def serendipity(lists: np.ndarray, targets: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """Share of the targets outside the k most popular items that were recommended.

    |L ∩ (T minus Pop_k)| / min(|T minus Pop_k|, |L|), and 0 where that is 0 / 0: with one target, a hit that the
    popularity baseline does not have.

    Parameters
    ----------
    lists : numpy.ndarray, shape (rows, at most k)
        Recommended items; 0 is no item, and of equal items in a row one counts.
    targets : numpy.ndarray, shape (rows,) or (rows, n)
        0 is no item.
    counts : numpy.ndarray, shape (item_num,)
        Interactions of each item.

    Returns
    -------
    numpy.ndarray, shape (rows,)
    """
    recommended = _distinct(lists)
    targets = _distinct(targets.reshape(len(targets), -1))
    targets = np.where(np.isin(targets, most_popular(counts, k)), 0, targets)
    found = np.zeros(len(lists))
    for column in targets.T:
        found += ((recommended == column[:, None]) & (column[:, None] > 0)).any(axis=1)
    possible = np.minimum((targets > 0).sum(axis=1), (recommended > 0).sum(axis=1))
    return found / np.maximum(possible, 1)


def novelty(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of -log2(share of all interactions) over each list; items without interactions add 0, an empty list is 0.

    Parameters and result as for :func:`serendipity`.
    """
    surprise = -np.log2(counts / counts.sum(), out=np.zeros(len(counts)), where=counts > 0)
    recommended = _distinct(lists)
    present = recommended > 0
    return (surprise[recommended] * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1)


def catalog_coverage(lists: np.ndarray, n_items: int) -> float:
    """Distinct recommended items per item of the catalogue (RecBole's ItemCoverage counts padding as an item)."""
    return int((np.unique(lists) > 0).sum()) / n_items


def _distinct(items: np.ndarray) -> np.ndarray:
    """Rows with every repetition of an item replaced by 0; shape (rows, k)."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
    result = np.empty_like(items)
    np.put_along_axis(result, order, ordered, axis=1)
    return result


# Of RecBole's, those of all lists together.
OF_ALL_LISTS = ("itemcoverage", "shannonentropy", "giniindex")
BEYOND_ACCURACY = ("serendipity", "novelty", "catalogcoverage")


def needs_lists(metrics: list[str]) -> bool:
    """Whether any of the metrics reads the recommended lists."""
    return any(metric.lower() not in RANK_METRICS for metric in metrics)


def compute(
    config: Settings,
    rank: np.ndarray,
    lists: np.ndarray | None,
    train_counts: np.ndarray | None,
    target: np.ndarray | None = None,
    all_counts: np.ndarray | None = None,
    catalogue_size: int | None = None,
) -> dict[str, float]:
    """Means over rows of every metric of the configuration, unrounded.

    Parameters
    ----------
    config : Config
        ``metrics`` and ``topk``.
    rank : numpy.ndarray, shape (rows,)
        Rank of the target, 1 = first.
    lists : numpy.ndarray, shape (rows, at most max(topk)), optional
        Recommended items, 0 for none; needed for the list metrics only. As for the metrics of ranks, places that no
        item takes, with k above the catalogue for instance, count as places without a hit.
    train_counts : numpy.ndarray, shape (item_num,), optional
        Training interactions per item; needed for the list metrics only.
    target : numpy.ndarray, shape (rows,), optional
        The item that was to be found; needed for Serendipity.
    all_counts : numpy.ndarray, shape (item_num,), optional
        Interactions per item in training, validation and test: the popularity of Serendipity and Novelty under
        ``popularity_counts: all``.
    catalogue_size : int, optional
        Items of CatalogCoverage's denominator; by default those with a count in ``all_counts``.
    """
    result: dict[str, float] = {}
    for metric in config["metrics"]:
        name = metric.lower()
        if name in RANK_METRICS:
            for k in config["topk"]:
                result[f"{name}@{k}"] = float(RANK_METRICS[name](rank, k).mean())
        else:
            assert lists is not None and train_counts is not None, f"{name} needs the recommended lists"
            if name in LIST_METRICS:
                result.update(_recbole_list_metric(name, config, lists, train_counts))
            else:
                assert target is not None and all_counts is not None, f"{name} needs targets and counts of all items"
                counts = all_counts if config["popularity_counts"] == "all" else train_counts
                for k in config["topk"]:
                    n_items = catalogue_size or int((all_counts > 0).sum())
                    result[f"{name}@{k}"] = _beyond_accuracy(name, k, lists[:, :k], target, counts, n_items)
    return result


def _beyond_accuracy(
    name: str, k: int, lists: np.ndarray, target: np.ndarray, counts: np.ndarray, n_items: int
) -> float:
    if name == "catalogcoverage":
        return catalog_coverage(lists, n_items)
    values = serendipity(lists, target, counts, k) if name == "serendipity" else novelty(lists, counts)
    return float(values.mean())


def _recbole_list_metric(
    name: str, config: Settings, lists: np.ndarray, train_counts: np.ndarray
) -> Mapping[str, float]:
    data = DataStruct()
    data.set("data.num_items", len(train_counts))
    data.set("data.count_items", {item: int(count) for item, count in enumerate(train_counts) if count})
    result = {}
    for k in config["topk"]:
        items, places = lists[:, :k], k
        if name in OF_ALL_LISTS:
            # All that was recommended, in one row: RecBole would count 0 as an item.
            items = items[items > 0][None]
            places = items.shape[1]
        else:
            items = np.pad(items, ((0, 0), (0, k - items.shape[1])))
        data.set("rec.items", torch.from_numpy(items))
        settings = {"metric_decimal_place": 12, "topk": [places], "tail_ratio": config["tail_ratio"]}
        values = metrics_dict[name](settings).calculate_metric(data) if places else {}
        result[f"{name}@{k}"] = float(values.get(f"{name}@{places}", 0.0))
    return result
