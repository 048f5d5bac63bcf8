"""Early stopping and the best of what was validated."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Keeps the first of the best validation scores and counts those since that were no better.

    An equal score is no progress: the earlier weights stay the best, and patience runs on.

    Parameters
    ----------
    patience : int
        Number of validations without progress, in a row, that end training; 0 stops like 1, at the first.
    bigger : bool
        Whether a bigger score is better.

    Attributes
    ----------
    score, result, epoch : float, dict, int
        Of the best validation; None before the first.
    misses : int
        Validations since the best one.

    Examples
    --------
    >>> early = EarlyStopping(patience=2, bigger=True)
    >>> [early.update(score, {}, epoch) for epoch, score in enumerate([0.1, 0.2, 0.2, 0.1])]
    [True, True, False, False]
    >>> early.epoch, early.stopped
    (1, True)
    """

    patience: int
    bigger: bool
    score: float | None = None
    result: OrderedDict[str, float] | None = None
    epoch: int | None = None
    misses: int = 0

    def update(self, score: float, result: OrderedDict[str, float], epoch: int) -> bool:
        """Take in a validation; returns whether it is the best so far."""
        best = self.score
        better = best is None or (score > best if self.bigger else score < best)
        if better:
            self.score, self.result, self.epoch, self.misses = score, result, epoch, 0
        else:
            self.misses += 1
        return better

    @property
    def stopped(self) -> bool:
        """Whether training has come to its end."""
        return self.misses >= max(1, self.patience)
