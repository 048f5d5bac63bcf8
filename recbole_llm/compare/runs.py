"""Finished runs as a comparison reads them, and the rows that they make."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.config.registry import stock_models
from recbole_llm.errors import CheckpointError
from recbole_llm.files import DAMAGED_ARCHIVE
from recbole_llm.run.identity import CIRCUMSTANCES, comparable_settings
from recbole_llm.run.results import read_results

# Ignored when labelling two runs of the same model by their settings.
_NOT_TELLING = CIRCUMSTANCES | {"seed", "load_col"}


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes
    ----------
    run_dir : directory of the run, or the file of its record.
    results : ``results.json``.
    curve : lines of ``history.csv``; empty where nothing was trained.
    ranks : arrays of ``test_ranks.npz``, shape (test rows,), ordered by user and target.
    """

    run_dir: Path
    results: dict[str, Any]
    curve: list[dict[str, Any]]
    ranks: dict[str, np.ndarray]

    @property
    def file(self) -> Path:
        """Path of ``results.json``, or of the record that replaces it."""
        return self.run_dir if self.run_dir.suffix == ".json" else self.run_dir / "results.json"

    @property
    def seed(self) -> int:
        """The seed of this run."""
        return int(self.results["protocol"]["seed"])


@dataclass
class Row:
    """One line of the tables: a model under one setting, with one run per seed.

    Attributes
    ----------
    label, model : names; the label is unique.
    runs : finished runs.
    failures : seed and reason of those that did not finish.
    baseline : whether it is one of those to be beaten.
    """

    label: str
    model: str
    runs: list[FinishedRun] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    baseline: bool = False


def language_models_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Names and revisions of the language models that a run used, those of a hybrid's members included.

    ``llm: auto`` may mean another model elsewhere, or later.
    """
    models = results.get("language_models") or {}
    used = {key: models[key] for key in ("llm", "llm_revision", "rec_llm", "rec_llm_revision") if models.get(key)}
    members = [language_models_of(member) for member in models.get("members") or []]
    return {**used, "members": members} if any(members) else used


def split_by_language_models(row: Row) -> list[Row]:
    """Split a row by the language models of its runs; usually returns the row itself."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in row.runs:
        groups.setdefault(json.dumps(language_models_of(run.results)), []).append(run)
    if len(groups) < 2:
        return [row]
    used = [language_models_of(runs[0].results) for runs in groups.values()]
    keys = [key for key in used[0] if any(models.get(key) != used[0][key] for models in used)]
    rows = []
    for models, runs in zip(used, groups.values(), strict=True):
        name = ", ".join(f"{key}={models.get(key)}" for key in (keys or ["llm"])[:2])
        rows.append(Row(f"{row.label} ({name})", row.model, runs, baseline=row.baseline))
    rows[0].failures = row.failures
    return rows


def load_finished(run_dir: str | Path) -> FinishedRun:
    """Read a run directory.

    Raises
    ------
    CheckpointError
        If it is none, is unfinished or damaged, or was not tested.
    """
    run_dir = Path(run_dir)
    results = read_results(run_dir)
    file = run_dir / "test_ranks.npz"
    if results.get("final_fit"):
        raise CheckpointError(f"{run_dir} was trained on all interactions and has no test figures to compare.")
    if not file.is_file():
        raise CheckpointError(f"{run_dir} has no test_ranks.npz: the run was not evaluated on a test set.")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            ranks = {name: arrays[name] for name in arrays.files}
        order = np.lexsort((ranks["target"], ranks["user"]))
    except DAMAGED_ARCHIVE as error:
        raise CheckpointError(f"{file} is damaged ({error}).") from error
    return FinishedRun(run_dir, results, _curve(run_dir / "history.csv"), {k: v[order] for k, v in ranks.items()})


def _curve(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        return [
            {key: value if key == "stage" else float(value) if value else None for key, value in row.items()}
            for row in rows
        ]
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{file} is damaged ({error}).") from error


def check_same_test(runs: Sequence[FinishedRun]) -> None:
    """Raise CheckpointError unless all runs were tested on the same targets of the same users."""
    first = runs[0]
    for run in runs[1:]:
        if first.results["dataset"]["name"] != run.results["dataset"]["name"]:
            what = f"datasets {first.results['dataset']['name']!r} and {run.results['dataset']['name']!r}"
        elif any(not np.array_equal(first.ranks[key], run.ranks[key]) for key in ("user", "target")):
            what = "other users or targets"
        else:
            continue
        raise CheckpointError(
            f"{first.run_dir} and {run.run_dir} cannot be compared: they were tested on {what}. Their data and "
            "split settings must be the same: filters, eval_args, time_order, smoke."
        )


def rows_from(runs: Sequence[FinishedRun]) -> list[Row]:
    """Group runs that differ in the seed alone; rows of one model are labelled by settings and language models."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        settings = comparable_settings({**run.results["settings"], "seed": None})
        same = [run.results["model_class"], settings, language_models_of(run.results)]
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    rows: list[Row] = []
    for group in groups.values():
        unique = {run.seed: run for run in group}  # of two runs with one seed the later one
        name = group[0].results.get("label", group[0].results["model"])
        rows.append(Row(name, group[0].results["model"], [unique[seed] for seed in sorted(unique)]))
    names = [row.label for row in rows]
    for row, name in zip(rows, names, strict=True):
        row.label += _difference(row, [other for other, its in zip(rows, names, strict=True) if its == name])
    labels = [row.label for row in rows]
    for row in rows:
        if labels.count(row.label) > 1:
            row.label += f" [{row.runs[0].run_dir.name}]"
    return rows


def _difference(row: Row, same: Sequence[Row]) -> str:
    """`` (key=value, ...)`` for the settings in which rows of one model differ."""
    if len(same) < 2:
        return ""

    def telling_of(each: Row) -> dict[str, Any]:
        results = each.runs[0].results
        return {**results["settings"], **language_models_of(results)}

    settings, own = [telling_of(other) for other in same], telling_of(row)
    keys = sorted({key for each in settings for key in each} - _NOT_TELLING)
    telling = [key for key in keys if any(each.get(key) != own.get(key) for each in settings)]
    return f" ({', '.join(f'{key}={own.get(key)}' for key in telling[:3])})" if telling else ""


def mark_baselines(rows: Sequence[Row], wanted: Sequence[str] | None) -> None:
    """Set ``baseline`` of the rows that others are to beat: those named, else RecBole's own models.

    If that is all rows or none, none is marked: each is then compared with the best of the others.
    """
    stock = stock_models()
    for row in rows:
        own_class = any(not run.results["model_class"].startswith("recbole.") for run in row.runs)
        control = any(run.results["protocol"].get("control", "none") != "none" for run in row.runs)
        row.baseline = row.label in wanted if wanted is not None else row.model in stock and not (own_class or control)
    if all(row.baseline for row in rows):
        for row in rows:
            row.baseline = False
