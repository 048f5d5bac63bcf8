"""Metrics of a ranking with one target a row, from the target's rank; RecBole's list metrics beside them.

RecBole computes the same figures from a top-k indicator matrix with code that needs ``numpy.float`` (gone since NumPy
1.24) and rounds them before early stopping compares them. A rank says as much in four bytes, and per-user ranks are
what paired tests and breakdowns need.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metric_information, metrics_dict, smaller_metrics

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
# RecBole's metrics over the lists themselves; they need the recommended items, not the targets.
LIST_METRICS = sorted(name for name, needs in metric_information.items() if "rec.items" in needs)


def available_metrics() -> list[str]:
    """Names that ``metrics`` may hold, in lower case."""
    return [*RANK_METRICS, *LIST_METRICS]


def is_smaller_better(name: str) -> bool:
    """Whether a smaller value of this metric is better."""
    return name in smaller_metrics


def needs_lists(metrics: list[str]) -> bool:
    """Whether any of the metrics reads the recommended lists."""
    return any(metric.lower() in LIST_METRICS for metric in metrics)


def compute(
    config: Any, rank: np.ndarray, lists: np.ndarray | None, train_counts: np.ndarray | None
) -> dict[str, float]:
    """Means over rows of every metric of the configuration, unrounded.

    Parameters
    ----------
    config : Config
        ``metrics`` and ``topk``.
    rank : numpy.ndarray, shape (rows,)
        Rank of the target, 1 = first.
    lists : numpy.ndarray, shape (rows, max(topk)), optional
        Recommended items; needed for the list metrics only.
    train_counts : numpy.ndarray, shape (item_num,), optional
        Training interactions per item; needed for the list metrics only.
    """
    result: dict[str, float] = {}
    for metric in config["metrics"]:
        name = metric.lower()
        if name in RANK_METRICS:
            for k in config["topk"]:
                result[f"{name}@{k}"] = float(RANK_METRICS[name](rank, k).mean())
        else:
            assert lists is not None and train_counts is not None, f"{name} needs the recommended lists"
            result.update(_recbole_list_metric(name, config, lists, train_counts))
    return result


def _recbole_list_metric(name: str, config: Any, lists: np.ndarray, train_counts: np.ndarray) -> Mapping[str, float]:
    settings = {"metric_decimal_place": 12, "topk": config["topk"], "tail_ratio": config["tail_ratio"]}
    data = DataStruct()
    data.set("rec.items", torch.from_numpy(lists))
    data.set("data.num_items", len(train_counts))
    data.set("data.count_items", {item: int(count) for item, count in enumerate(train_counts) if count})
    values = metrics_dict[name](settings).calculate_metric(data)
    return {key: float(value) for key, value in values.items()}
