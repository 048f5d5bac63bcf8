"""What settings need to know of RecBole's metrics."""

from recbole.evaluator.register import smaller_metrics


def is_smaller_better(name: str) -> bool:
    """Whether a smaller value of this metric is better."""
    return name in smaller_metrics
