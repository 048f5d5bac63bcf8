"""Names of RecBole's metrics, and which way they are better."""

from recbole.evaluator.register import metrics_dict, smaller_metrics

_NAMES = {name: metric.__name__ for name, metric in metrics_dict.items()} | {"catalogcoverage": "CatalogCoverage"}


def is_smaller_better(name: str) -> bool:
    """Whether a smaller value of this metric is better."""
    return name in smaller_metrics


def metric_name(metric: str) -> str:
    """``ndcg@10`` -> ``NDCG@10``."""
    name, at, k = metric.partition("@")
    return _NAMES.get(name, name.capitalize()) + at + k
