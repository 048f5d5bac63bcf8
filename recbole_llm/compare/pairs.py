"""Two rows against each other: a text row and its twin, or the rows that a claim names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_llm.compare.analysis import Comparison
from recbole_llm.compare.runs import Row
from recbole_llm.compare.statistics import interval, p_value


@dataclass(frozen=True)
class Pair:
    """The difference between two rows on one metric, tested once: no correction for several tests.

    Attributes
    ----------
    label, against : names of the rows.
    version : ``masked`` or ``unmasked`` history.
    mean, other : their means over users and seeds.
    difference, low, high : ``mean - other`` over units, and the ends of its 95 % interval; None for a single seed.
    p : right-sided p-value.
    unit : what the interval is over: ``users``, or ``seeds`` for metrics of whole lists.
    """

    label: str
    against: str
    version: str
    metric: str
    mean: float
    other: float
    difference: float
    low: float | None
    high: float | None
    p: float
    unit: str

    def relative(self, value: float) -> float:
        """Return a difference as a share of the other row's mean; NaN if that is zero."""
        return value / self.other if self.other else float("nan")


def is_twin(row: Row) -> bool:
    """Whether a row is the network of a text model without its text (``llm_init: False``)."""
    return row.runs[0].results["settings"].get("llm_init") is False if row.runs else False


def control_of(row: Row) -> str:
    """Return the control of a row's runs, such as ``shuffled_text``, or ``none``."""
    return str(row.runs[0].results["protocol"].get("control") or "none") if row.runs else "none"


def families(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """Return the twins among the rows, each with the rows of the same model: text first, then controls."""
    found = []
    for twin in (row for row in rows if is_twin(row)):
        others = [row for row in rows if row.model == twin.model and row.runs and not is_twin(row)]
        if others:
            found.append((twin, sorted(others, key=lambda row: control_of(row) != "none")))
    return found


def pairs_of(comparison: Comparison, wanted: Iterable[tuple[str, str]], metrics: Sequence[str]) -> list[Pair]:
    """Compute pairs for both histories from the ranks of the runs.

    Parameters
    ----------
    comparison : Comparison
        Of runs, not of records: intervals over users need the ranks.
    wanted : pairs of labels
        Pairs with a row that has no run are left out.
    metrics : list of str
        Those that the rows lack are left out.
    """
    rows = {row.label: row for row in comparison.rows}
    return [
        _pair(comparison, rows[label], rows[against], version, metric)
        for label, against in dict.fromkeys(wanted)
        if label in rows and against in rows
        for version in comparison.versions
        for metric in metrics
        if metric in comparison.metrics
    ]


def _pair(comparison: Comparison, row: Row, against: Row, version: str, metric: str) -> Pair:
    if metric in comparison.rank_metrics:
        values = [comparison.user_values(each, metric, version) for each in (row, against)]
        unit = "users"
    else:
        by_seed = [{run.seed: run.results[f"test_{version}"][metric] for run in each.runs} for each in (row, against)]
        seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
        values = [np.array([each[seed] for seed in seeds], dtype=float) for each in by_seed]
        unit = "seeds"
    difference, half = interval(values[0] - values[1])
    return Pair(
        *(row.label, against.label, version, metric),
        mean=comparison.cells[version, row.label, metric].mean,
        other=comparison.cells[version, against.label, metric].mean,
        difference=difference,
        low=None if np.isnan(half) else difference - half,
        high=None if np.isnan(half) else difference + half,
        p=p_value(values[0] - values[1]),
        unit=unit,
    )
