"""The report: one HTML file that needs no other file and no network."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm import pages
from recbole_llm.compare import figures
from recbole_llm.compare.analysis import HEAD, Comparison
from recbole_llm.compare.tables import (
    PLACES,
    caption,
    cost_table,
    history,
    ladder_caption,
    ladder_table,
)
from recbole_llm.config.metrics import metric_name
from recbole_llm.run.identity import CIRCUMSTANCES, comparable_settings


def render(comparison: Comparison, command: str, created: str | None = None) -> str:
    """Render the report as HTML.

    Parameters
    ----------
    comparison : Comparison
    command : str
        The command line that made it.
    created : str, optional
        Date and time that the page shows.
    """
    return pages.render(
        Path(__file__).with_name("report.html"),
        title=f"Comparison on {comparison.dataset}",
        subtitle=", ".join(row.label for row in comparison.rows),
        created=created,
        facts=facts_of(comparison, command),
        warnings=comparison.warnings,
        comparison=comparison,
        tables=[_table(comparison, version) for version in comparison.versions],
        heads=[metric_name(metric) for metric in comparison.metrics],
        tests=_tests(comparison),
        charts=_charts(comparison),
        phases=comparison.phases,
        costs=list(zip(comparison.rows, cost_table(comparison).grid, strict=True)),
        ladder=_ladder(comparison) if comparison.timed else None,
        colour=lambda row: figures.colour_of(comparison, row),
        runs=_runs(comparison),
        settings=_settings(comparison),
    )


def facts_of(comparison: Comparison, command: str) -> list[tuple[str, str]]:
    """Protocol and provenance, as name and text."""
    origin = dict(pages.provenance(comparison.reference.results))
    return [
        ("Protocol", comparison.protocol),
        ("History", f"{history(comparison.versions[0])} (steers early stopping); both versions are below"),
        *((name, origin[name]) for name in ("Dataset", "Filters", "Files")),
        ("Language models", _language_models(comparison) or "none"),
        *((name, origin[name]) for name in ("Code", "Hardware")),
        ("Command", command),
    ]


def _language_models(comparison: Comparison) -> str:
    named = []
    for row in comparison.rows:
        models = row.runs[0].results["language_models"]
        if models:
            parts = [str(models[key]) for key in ("llm", "rec_llm") if models.get(key)]
            revision = str(models.get("llm_revision") or "")[:19]
            named.append(f"{row.label}: {', '.join(dict.fromkeys(parts))}{f' ({revision})' if revision else ''}")
    return "; ".join(named)


def _table(comparison: Comparison, version: str) -> dict[str, Any]:
    rows = []
    for row in comparison.all_rows:
        cells = [
            {
                "cell": comparison.cells.get((version, row.label, metric)),
                "significant": comparison.significant(version, row, metric),
            }
            for metric in comparison.metrics
        ]
        rows.append((row, cells))
    return {"caption": caption(comparison, version), "history": history(version), "rows": rows, "places": PLACES}


def _ladder(comparison: Comparison) -> dict[str, Any]:
    heads, grid = ladder_table(comparison)
    rows = list(zip(comparison.timed, grid, strict=True))
    return {"caption": ladder_caption(comparison), "heads": heads[1:], "rows": rows}


def _tests(comparison: Comparison) -> list[Any]:
    version = comparison.versions[0]
    tests = [
        (row, comparison.tests.get((version, row.label, metric)))
        for row in comparison.rows
        for metric in comparison.rank_metrics
    ]
    means = {(label, metric): cell.mean for (v, label, metric), cell in comparison.cells.items() if v == version}
    return [
        {
            "row": row,
            "test": test,
            "metric": metric_name(test.metric),
            "relative": test.difference / (means[test.baseline, test.metric] or np.nan),
            "of_headline": test.metric == comparison.headline,
        }
        for row, test in tests
        if test is not None
    ]


def _charts(comparison: Comparison) -> list[pages.Chart]:
    if not comparison.reference.ranks:
        return []  # made from records, which have no values per user
    metric, version = metric_name(comparison.headline), history(comparison.versions[0])
    intervals = f"95 % intervals over users; test, {version}"
    explained = {
        "History length (items)": "Groups of about equal size.",
        "Popularity of the target": (
            f"Head: the {HEAD:.0%} of the items with the most training interactions; tail: the others; cold: no "
            "training interaction."
        ),
        "Text of the target (words)": "Groups of about equal size.",
    }
    charts = [
        (
            "Learning curves",
            figures.learning_curves(comparison),
            f"{metric} on the validation set, {version}; a large mark is the best epoch, a dashed line a model "
            "without training.",
        ),
        ("Metric at each k", figures.metric_at_k(comparison), f"Bands: {intervals}."),
        *(
            (f"{metric} by {title.lower()}", figures.breakdown(comparison, title), f"{explained[title]} {intervals}.")
            for title in comparison.breakdowns
            if comparison.rank_metrics
        ),
        (
            "Accuracy against inference time",
            figures.accuracy_against_time(comparison) if comparison.rank_metrics else None,
            "Scoring the whole catalogue for a user and ranking it, on the hardware named above.",
        ),
    ]
    return [pages.chart(title, figure, note) for title, figure, note in charts if figure is not None]


def _runs(comparison: Comparison) -> list[dict[str, Any]]:
    runs = []
    for row in comparison.rows:
        for run in row.runs:
            stages = run.results["stages"]
            runs.append(
                {
                    "row": row,
                    "seed": run.seed,
                    "epochs": run.results["epochs"],
                    "best_epoch": stages[-1]["best_epoch"] if stages else None,
                    "updates": run.results["updates"],
                    "valid": run.results["best_valid_score"],
                    "name": str(run.run_dir) if run.file != run.run_dir else run.run_dir.name,
                    "link": _relative(run.file, comparison.directory),
                }
            )
    return runs


def _relative(path: Path, folder: Path) -> str | None:
    """Return a relative link, which survives moving both; None across Windows drives."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return None


def _settings(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return the settings that more than one row has and whose values differ."""
    ignored = CIRCUMSTANCES | {"model", "seed", "load_col"}
    all_settings = [comparable_settings(row.runs[0].results["settings"]) for row in comparison.rows]
    keys = sorted({key for settings in all_settings for key in settings} - ignored)
    table = []
    for key in keys:
        values = [_value(settings, key) for settings in all_settings]
        present = [value for value in values if value != "–"]
        if len(present) > 1 and len(set(present)) > 1:
            table.append((key, values))
    return table


def _value(settings: dict[str, Any], key: str) -> str:
    return "–" if settings.get(key) is None else str(settings[key])
