"""Analysis of a comparison's runs: means and deviations, tests, costs, breakdowns and warnings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.compare.runs import Row
from recbole_llm.compare.statistics import holm, interval, mean_and_deviation, p_value, quantile_bins
from recbole_llm.config.metrics import is_smaller_better
from recbole_llm.evaluator.metrics import RANK_METRICS

MASKED, UNMASKED = "masked", "unmasked"
# The share of the catalogue that counts as head; the rest with training interactions is tail.
HEAD = 0.2
# From this share of tied targets on, tables show it: the order of ties is arbitrary.
TIED = 0.05


@dataclass(frozen=True)
class Cell:
    """A table cell: mean and deviation over seeds, and its rank among the rows (1 = best)."""

    mean: float
    deviation: float | None
    place: int


@dataclass(frozen=True)
class Test:
    """A row against the best baseline on one metric.

    Attributes
    ----------
    difference, low, high : mean over users, and the ends of its 95 % interval.
    p, corrected : right-sided p-value, and after Holm's correction over the rows tested on this metric.
    """

    label: str
    metric: str
    baseline: str
    difference: float
    low: float
    high: float
    p: float
    corrected: float
    significant: bool


@dataclass(frozen=True)
class Group:
    """A group of test rows: its name and a mask of shape (test rows,)."""

    name: str
    mask: np.ndarray


class Comparison:
    """Rows side by side; everything else is computed from their runs.

    Parameters
    ----------
    rows : list of Row
        At least one of them with a finished run; all tested on the same users and targets.
    options : dict
        The keys of ``props/compare.yaml``.
    directory : pathlib.Path
    text_lengths : numpy.ndarray, shape (test rows,), optional
        Words of each target's text.
    warnings : list of str
        What was noticed before the runs.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        options: dict[str, Any],
        directory: Path,
        text_lengths: np.ndarray | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.all_rows = list(rows)
        self.rows = [row for row in rows if row.runs]
        self.options, self.directory, self.text_lengths = options, directory, text_lengths
        self._warnings = list(warnings)
        self.reference = self.rows[0].runs[0]
        self.mask_history = bool(self.reference.results["protocol"]["mask_history"])
        self.dataset = self.reference.results["dataset"]["name"]

    # ---- metrics

    @property
    def versions(self) -> tuple[str, str]:
        """Masked and unmasked history, that of ``mask_history`` first."""
        return (MASKED, UNMASKED) if self.mask_history else (UNMASKED, MASKED)

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics that every row has, such as ``ndcg@10``."""
        results = [run.results["test_masked"] for row in self.rows for run in row.runs]
        return [metric for metric in results[0] if all(metric in other for other in results)]

    @property
    def rank_metrics(self) -> list[str]:
        """Metrics that depend on the target's rank only; the others have no value per user."""
        return [metric for metric in self.metrics if metric.partition("@")[0] in RANK_METRICS]

    @property
    def headline(self) -> str:
        """The metric of the charts: the one that chose the best epoch, else the first rank metric."""
        chosen = str(self.reference.results["protocol"]["valid_metric"]).lower()
        return chosen if chosen in self.rank_metrics else (self.rank_metrics or ["ndcg@10"])[0]

    @cached_property
    def cells(self) -> dict[tuple[str, str, str], Cell]:
        """Table cells by (version, row, metric)."""
        cells = {}
        for version in self.versions:
            for metric in self.metrics:
                values = {
                    row.label: mean_and_deviation([run.results[f"test_{version}"][metric] for run in row.runs])
                    for row in self.rows
                }
                sign = 1 if is_smaller_better(metric.partition("@")[0]) else -1
                for label, (mean, deviation) in values.items():
                    place = 1 + sum(sign * other < sign * mean for other, _ in values.values())
                    cells[version, label, metric] = Cell(mean, deviation, place)
        return cells

    def tied(self, row: Row) -> float:
        """Return the share of targets whose score ties with another item's; the largest over seeds."""
        return max(run.results["tied_targets"] or 0.0 for run in row.runs)

    @property
    def shows_ties(self) -> bool:
        """Whether the tables need a column of tied targets."""
        return any(self.tied(row) > TIED for row in self.rows)

    # ---- users

    @cached_property
    def _users(self) -> tuple[np.ndarray, np.ndarray]:
        """User number of every test row, and test rows of every user."""
        _, number, count = np.unique(self.reference.ranks["user"], return_inverse=True, return_counts=True)
        return number, count

    @property
    def test_rows(self) -> int:
        """Test rows of every run: targets of users."""
        return len(self.reference.ranks["user"])

    @property
    def n_users(self) -> int:
        """Users that were tested."""
        return len(self._users[1])

    def values(self, row: Row, metric: str, version: str) -> np.ndarray:
        """Return a rank metric of every test row, averaged over the seeds; shape (test rows,)."""
        name, _, k = metric.partition("@")
        return np.mean([RANK_METRICS[name](run.ranks[f"rank_{version}"], int(k)) for run in row.runs], axis=0)

    def user_values(self, row: Row, metric: str, version: str) -> np.ndarray:
        """Return :meth:`values` averaged over each user's test rows; shape (users,)."""
        number, count = self._users
        return np.bincount(number, weights=self.values(row, metric, version)) / count

    # ---- tests

    @cached_property
    def tests(self) -> dict[tuple[str, str, str], Test]:
        """Tests of each other row against the best baseline, by (version, row, metric)."""
        tests = {}
        for version in self.versions:
            for metric in self.rank_metrics:
                pairs = [(row, self._opponent(row, metric, version)) for row in self.rows if not row.baseline]
                against = [(row, opponent) for row, opponent in pairs if opponent is not None]
                if not against:
                    continue
                users = {row.label: self.user_values(row, metric, version) for pair in against for row in pair}
                differences = [users[row.label] - users[opponent.label] for row, opponent in against]
                p = [p_value(difference, self.options["significance_test"]) for difference in differences]
                for (row, opponent), difference, raw, corrected in zip(against, differences, p, holm(p), strict=True):
                    mean, half = interval(difference)
                    tests[version, row.label, metric] = Test(
                        *(row.label, metric, opponent.label, mean, mean - half, mean + half, raw, float(corrected)),
                        significant=bool(corrected < self.options["significance_level"]),
                    )
        return tests

    def _opponent(self, row: Row, metric: str, version: str) -> Row | None:
        baselines = any(other.baseline for other in self.all_rows)  # which may have failed
        others = [other for other in self.rows if other.baseline or (not baselines and other is not row)]
        return max(others, key=lambda other: self.cells[version, other.label, metric].mean, default=None)

    def significant(self, version: str, row: Row, metric: str) -> bool:
        """Whether a row is significantly better than the best baseline."""
        test = self.tests.get((version, row.label, metric))
        return test is not None and test.significant

    # ---- breakdowns

    @cached_property
    def breakdowns(self) -> dict[str, list[Group]]:
        """Test rows by history length, popularity of the target, and length of its text where that is known."""
        ranks = self.reference.ranks
        groups = {"History length (items)": [Group(*bin_) for bin_ in quantile_bins(ranks["history_length"])]}
        if "target_popularity_rank" in ranks:
            cold = ranks["target_popularity"] == 0
            head = ~cold & (ranks["target_popularity_rank"] <= HEAD * self.reference.results["dataset"]["items"])
            named = [("head", head), ("tail", ~head & ~cold), ("cold", cold)]
            groups["Popularity of the target"] = [Group(name, mask) for name, mask in named if mask.any()]
        if self.text_lengths is not None:
            groups["Text of the target (words)"] = [Group(*bin_) for bin_ in quantile_bins(self.text_lengths)]
        return groups

    # ---- costs

    def parameters(self, row: Row) -> int:
        """Parameters that are trained."""
        return int(row.runs[0].results["parameters"]["trained"])

    def seconds(self, row: Row) -> dict[str, float]:
        """Seconds per phase, mean over seeds."""
        seconds = [run.results["seconds"] for run in row.runs]
        phases = {phase: None for run in seconds for phase in run}
        return {phase: float(np.mean([run.get(phase, 0.0) for run in seconds])) for phase in phases}

    def memory(self, row: Row) -> dict[str, float]:
        """Peak memory in MB per phase, the highest over seeds; empty for runs that did not measure it."""
        peaks = [run.results.get("phase_peak_memory_mb", {}) for run in row.runs]
        return {phase: max(peak.get(phase, 0) for peak in peaks) for phase in {key: None for p in peaks for key in p}}

    def milliseconds_per_row(self, row: Row) -> float:
        """Time of the test pass per test row: scoring the catalogue and ranking it, both versions."""
        return 1000 * self.seconds(row)["test"] / self.test_rows

    @property
    def timed(self) -> list[Row]:
        """Rows whose runs timed batches of users (``timing_batches``)."""
        return [row for row in self.rows if all(run.results.get("inference") for run in row.runs)]

    def inference(self, row: Row) -> dict[str, float]:
        """Return the result of :func:`recbole_llm.evaluator.timing.inference_times`, averaged over the seeds."""
        times = [run.results["inference"] for run in row.runs]
        return {key: float(np.mean([time[key] for time in times])) for key in times[0]}

    @property
    def ladder_metrics(self) -> list[str]:
        """Recall and NDCG of the longest list; where neither was measured, whatever was."""
        k = max(int(metric.partition("@")[2] or 0) for metric in self.metrics)
        longest = [metric for metric in self.metrics if metric.endswith(f"@{k}")]
        return [metric for metric in longest if metric.partition("@")[0] in ("recall", "ndcg")] or longest

    @cached_property
    def phases(self) -> list[str]:
        """Phases that any row went through, in the order of a run."""
        order = ["data", "model", "pretrain", "train", "valid", "test"]
        found = {phase for row in self.rows for phase in self.seconds(row)}
        return [phase for phase in order if phase in found] + sorted(found - set(order))

    # ---- notes on the numbers

    @cached_property
    def protocol(self) -> str:
        """The protocol in one line, to report with every number."""
        shared = self.reference.results["protocol"]
        seeds = sorted({run.seed for row in self.rows for run in row.runs})
        metrics = {str(row.runs[0].results["protocol"]["valid_metric"]) for row in self.rows}
        best_epoch = f"best epoch by {', '.join(sorted(metrics))}"
        return (
            f"{shared.get('evaluation', shared['text'])}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, "
            f"{best_epoch}"
        )

    @property
    def test_description(self) -> str:
        """Meaning of the significance mark."""
        names = {"t-test": "paired t-test", "permutation": "paired permutation test", "wilcoxon": "Wilcoxon's test"}
        return (
            f"p < {self.options['significance_level']:g}, {names[self.options['significance_test']]} over "
            f"{self.n_users:,} users, right-sided against the best "
            + ("baseline" if any(row.baseline for row in self.all_rows) else "other row")
            + ", Holm-corrected over the rows tested on a metric; seeds are averaged per user first"
        )

    @cached_property
    def warnings(self) -> list[str]:
        """Warnings about the comparison, for the reader of its tables."""
        return [*self._warnings, *_warnings(self)]


def _warnings(comparison: Comparison) -> list[str]:
    rows = comparison.rows
    runs = [(row, run) for row in rows for run in row.runs]
    found = [
        f"{row.label}, seed {seed} is missing: {reason.splitlines()[0]}"
        for row in comparison.all_rows
        for seed, reason in row.failures
    ]
    if any(run.results["smoke"] for _, run in runs):
        found.append("SMOKE RUN: a handful of users and tiny models; the numbers mean nothing.")
    found += _undertrained(rows) + _differences(rows)
    if len({tuple(run.seed for run in row.runs) for row in rows}) > 1:
        found.append("The rows have different seeds: " + _listing(rows, lambda row: [run.seed for run in row.runs]))
    for row in rows:
        tied = comparison.tied(row)
        if tied > 0.01:
            found.append(f"{row.label}: {tied:.1%} of the targets share their score with another item.")
    repeated = max(run.results["targets_in_history"] or 0 for _, run in runs)
    if repeated:
        found.append(f"{repeated} targets were in their user's history; where it is masked they count as misses.")
    notices: dict[str, list[str]] = {}
    for row in rows:
        for notice in {text: None for run in row.runs for text in run.results["notices"]}:
            notices.setdefault(notice, []).append(row.label)
    return found + [
        notice if len(labels) == len(rows) else f"{', '.join(labels)}: {notice}" for notice, labels in notices.items()
    ]


def _undertrained(rows: Sequence[Row]) -> list[str]:
    """Return warnings about rows whose best epoch was their last."""
    found = []
    for row in rows:
        for run in row.runs:
            best = run.results["stages"][-1]["best_epoch"] if run.results["stages"] else None
            validated = [line["epoch"] for line in run.curve if line.get("valid_score") is not None]
            if validated and best == validated[-1]:
                found.append(f"{row.label} was still improving in its last epoch ({best:g}): it may need more.")
                break
    return found


def _differences(rows: Sequence[Row]) -> list[str]:
    """Return warnings about differences between the runs that should not exist."""
    found = []
    git = [run.results["environment"]["git"] or {} for run in _runs(rows)]
    commits = {state.get("commit") for state in git}
    if len(commits) > 1:
        found.append(
            "The runs were made by different versions of the code: " + ", ".join(sorted(str(c)[:9] for c in commits))
        )
    if any(state.get("dirty") for state in git):
        found.append("Some runs were made by code with uncommitted changes.")
    for package in rows[0].runs[0].results["environment"]["packages"]:
        versions = {str(run.results["environment"]["packages"].get(package)) for run in _runs(rows)}
        if len(versions) > 1:
            found.append(f"The runs used different versions of {package}: {', '.join(sorted(versions))}.")
    machines = {
        str([run.results["environment"].get(key) for key in ("gpu", "processor", "threads")]) for run in _runs(rows)
    }
    if len(machines) > 1:
        found.append("The runs were made on different hardware or thread counts: their seconds cannot be compared.")
    for key in ("mask_history", "valid_metric", "eval_args", "time_order"):
        values = {str(run.results["protocol"].get(key)).lower() for run in _runs(rows)}
        if len(values) > 1:
            listing = _listing(rows, lambda row, key=key: row.runs[0].results["protocol"].get(key))
            found.append(f"The rows have different {key}: {listing}")
    return found


def _runs(rows: Sequence[Row]) -> list[Any]:
    return [run for row in rows for run in row.runs]


def _listing(rows: Sequence[Row], value: Any) -> str:
    return ", ".join(f"{row.label} {value(row)}" for row in rows) + "."
