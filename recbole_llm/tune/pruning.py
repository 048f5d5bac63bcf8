"""When a trial is given up: by its validation curve against those of the other trials at the same epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_llm.tune.journal import Trial

PRUNERS = ("none", "median", "percentile", "halving")


@dataclass(frozen=True)
class Pruner:
    """Stopping rules on the best validation score so far.

    ``percentile`` gives a trial up that is not among the best ``keep`` of the others at its epoch (``median``: half);
    ``halving`` is asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning",
    MLSys 2020): after ``after``, ``after * factor``, ``after * factor**2``, ... epochs only the best 1 / ``factor`` of
    those that came so far go on.

    Parameters
    ----------
    rule : str
        One of :data:`PRUNERS`.
    bigger : bool
        Whether a bigger score is better.
    after : int
        Epochs of the first stage that every trial gets.
    trials : int
        Other trials that median and percentile need at that epoch.
    keep, factor : float
    """

    rule: str
    bigger: bool
    after: int
    trials: int
    keep: float
    factor: float

    def reason(self, curve: Sequence[Sequence[Any]], others: Sequence[Trial]) -> str | None:
        """Why a trial should stop after the last point of its curve, or None.

        Parameters
        ----------
        curve : sequence of (stage, epoch, score)
        others : sequence of Trial
            Those that ended or run beside it; failed ones are left out.
        """
        if self.rule == "none" or not curve:
            return None
        stage, epoch, _ = curve[-1]
        here = (stage, epoch)
        if stage == 0 and epoch + 1 < self.after:
            return None
        own = self._best(curve, here)
        found = [self._best(trial.curve, here) for trial in others if self._counts(trial, here)]
        values = np.array([value for value in found if value is not None])
        if self.rule == "halving":
            return self._halving(curve, own, values)
        keep = 0.5 if self.rule == "median" else self.keep
        if len(values) < max(1, self.trials):
            return None
        limit = float(np.quantile(values, 1 - keep if self.bigger else keep))
        if own is None or (own >= limit if self.bigger else own <= limit):
            return None
        return f"{own:.6g} by epoch {epoch}, {self.rule} of {len(values)} trials {limit:.6g}"

    def _best(self, curve: Sequence[Sequence[Any]], until: tuple[int, int]) -> float | None:
        scores = [score for stage, epoch, score in curve if (stage, epoch) <= until]
        return (max(scores) if self.bigger else min(scores)) if scores else None

    @staticmethod
    def _counts(trial: Trial, here: tuple[int, int]) -> bool:
        """A trial that stopped by itself counts with its best from then on; others where they have been."""
        if trial.state == "failed" or not trial.curve:
            return False
        stage, epoch, _ = trial.curve[-1]
        return trial.state == "finished" or (stage, epoch) >= here

    def _halving(self, curve: Sequence[Sequence[Any]], own: float | None, values: np.ndarray) -> str | None:
        stage, epoch, _ = curve[-1]
        before = curve[-2][1] if len(curve) > 1 and curve[-2][0] == stage else -1
        rung = max(1.0, self.after)
        while rung <= before + 1:
            rung *= self.factor
        if own is None or rung > epoch + 1:
            return None
        better = int(np.sum(values > own if self.bigger else values < own))
        places = max(1, int((len(values) + 1) / self.factor))
        if better < places:
            return None
        return f"{own:.6g} by epoch {epoch} is place {better + 1} of {len(values) + 1}; {places} go on"
