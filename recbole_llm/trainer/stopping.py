"""Early stopping and the best validation."""

import math
from collections import OrderedDict
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Early stopping: keeps the first best validation score and counts the validations since.

    An equal score is not an improvement: the earlier weights stay the best. NaN is worse than any number.

    Parameters
    ----------
    patience : int
        Number of consecutive validations without improvement that end training; 0 acts like 1.
    bigger : bool
        Whether a bigger score is better.

    Attributes
    ----------
    score, result, epoch : float, dict, int
        Of the best validation, the epoch counted from 1; None before the first.
    misses : int
        Validations since the best one.

    Examples
    --------
    >>> early = EarlyStopping(patience=2, bigger=True)
    >>> [early.update(score, {}, epoch) for epoch, score in enumerate([0.1, 0.2, 0.2, 0.1], 1)]
    [True, True, False, False]
    >>> early.epoch, early.stopped
    (2, True)
    """

    patience: int
    bigger: bool
    score: float | None = None
    result: OrderedDict[str, float] | None = None
    epoch: int | None = None
    misses: int = 0

    def update(self, score: float, result: OrderedDict[str, float], epoch: int) -> bool:
        """Add a validation; return whether it is the best so far."""
        best = self.score
        if best is None or math.isnan(best):
            better = best is None or not math.isnan(score)
        else:
            better = score > best if self.bigger else score < best
        if better:
            self.score, self.result, self.epoch, self.misses = score, result, epoch, 0
        else:
            self.misses += 1
        return better

    @property
    def stopped(self) -> bool:
        """Whether training should stop."""
        return self.misses >= max(1, self.patience)
