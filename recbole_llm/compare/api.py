"""Compare models: run them under one protocol, test for significance, write tables and a report.

    compare(["LLMSeqSim", "SASRec"], "ml-100k", config_dict={"seeds": [1, 2, 3]})

does what ``python run_recbole_llm.py --model=LLMSeqSim,SASRec --dataset=ml-100k --seeds=1,2,3`` does.
"""

import os
import sys
import time
import webbrowser
from collections.abc import Mapping, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.compare import plan as planning
from recbole_llm.compare import report, tables
from recbole_llm.compare.analysis import Comparison
from recbole_llm.compare.execution import Outcome, execute
from recbole_llm.compare.runs import (
    FinishedRun,
    Row,
    check_same_test,
    load_finished,
    mark_baselines,
    rows_from,
    split_by_language_models,
)
from recbole_llm.compare.searches import with_settings_found
from recbole_llm.config.registry import dataset_folder, property_file, props_dir
from recbole_llm.config.values import refuse_others
from recbole_llm.errors import ConfigError, DataError, RecBoleLLMError
from recbole_llm.files import write_text
from recbole_llm.run.folder import run_lock
from recbole_llm.run.logging import log_to_console
from recbole_llm.run.provenance import command_line, git_state, package_version
from recbole_llm.text.item_text import format_of, load_item_text


class NothingToCompareError(RecBoleLLMError, RuntimeError):
    """No run of a comparison finished."""


def compare(
    models: Sequence[str | type | Mapping[str, Any]] | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Comparison:
    """Run every model with every seed, each in its own process, and write the comparison.

    Finished runs are reused, interrupted ones continued, and failed ones listed with their errors.

    Parameters
    ----------
    models : list of str, class or dict, optional
        As the key ``models`` of ``props/compare.yaml``; that key is used where this is not given. A class must be one
        that another process can import.
    dataset, config_file_list, config_dict, arguments
        As :func:`recbole_llm.quick_start.run`; they may hold the keys of ``props/compare.yaml`` besides.

    Returns
    -------
    Comparison
        Its ``directory`` holds ``report.html``, ``table.txt``, ``.md``, ``.tex`` and ``.csv``, and ``runs.csv``.

    Raises
    ------
    ConfigError
        Before anything runs: for unknown models or values, and rows that would not be evaluated alike.
    NothingToCompareError
        If no run finished.

    Examples
    --------
    >>> comparison = compare(["MostPopular"], "ml-100k", config_dict={"smoke": True, "show_progress": False})
    >>> (comparison.directory / "report.html").is_file()
    True
    """
    log_to_console()
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            "Start a comparison once, without torchrun: it runs one model after the other, and --nproc=N "
            "trains each with N processes."
        )
    make = partial(planning.make_plan, models, dataset, config_file_list, config_dict, arguments)
    plan, _ = with_settings_found(make(), make)
    _make(plan.directory)
    with run_lock(plan.directory):
        comparison, text_lengths = None, None

        def write(outcomes: list[Outcome]) -> None:
            nonlocal comparison, text_lengths
            comparison = _comparison_of(plan, outcomes)
            if comparison is not None:
                if text_lengths is None:
                    text_lengths = _text_lengths([run for row in comparison.rows for run in row.runs])
                comparison.text_lengths = text_lengths
                _write(comparison)

        outcomes = execute(plan, write)
        write(outcomes)
        if comparison is None:
            reasons = "; ".join(f"{outcome.label}: {outcome.error}" for outcome in outcomes)
            raise NothingToCompareError(f"No run finished. {reasons}")
        _show(comparison)
        return comparison


def compare_runs(run_dirs: Sequence[str | Path], options: Mapping[str, Any] | None = None) -> Comparison:
    """Compare finished runs.

    Parameters
    ----------
    run_dirs : list of str or pathlib.Path
        Runs that differ in nothing but the seed become one row.
    options : dict, optional
        Keys of ``props/compare.yaml``, and ``data_path`` where the data have moved.

    Raises
    ------
    CheckpointError
        If a directory is no finished run, or was tested on other users or targets than the first.

    Examples
    --------
    >>> from recbole_llm import run
    >>> settings = {"smoke": True, "show_progress": False}
    >>> runs = [run(name, "ml-100k", config_dict=settings)["run_dir"] for name in ("MostPopular", "VSKNN")]
    >>> [row.label for row in compare_runs(runs).rows]
    ['MostPopular', 'VSKNN']
    """
    log_to_console()
    given = dict(options or {})
    known = {*property_file(props_dir() / "compare.yaml"), "data_path"} - {"models", "seeds", "reuse"}
    refuse_others(given, known, "has no effect on finished runs", f"Allowed: {', '.join(sorted(known))}.")
    settings = planning.options_of(given)
    runs = [load_finished(folder) for folder in dict.fromkeys(Path(run_dir) for run_dir in run_dirs)]
    check_same_test(runs)
    rows = rows_from(runs)
    planning.check_baselines(settings["baselines"], [row.label for row in rows])
    mark_baselines(rows, settings["baselines"])
    directory = (
        Path(str(settings["comparison_dir"])).expanduser()
        if settings["comparison_dir"]
        else planning.comparison_folder(
            runs[0].run_dir.parent, runs[0].results["dataset"]["name"], sorted(run.run_dir.name for run in runs)
        )
    )
    _make(directory)
    comparison = Comparison(rows, settings, directory, _text_lengths(runs, given.get("data_path")))
    _write(comparison)
    _show(comparison)
    return comparison


# ---- from runs to a comparison


def _comparison_of(plan: planning.Plan, outcomes: Sequence[Outcome]) -> Comparison | None:
    """Return the comparison of the runs finished so far; None if there are none."""
    models = {job.label: job.config["model"] for job in plan.jobs}
    rows = [Row(label, models[label]) for label in plan.labels]
    by_label = {row.label: row for row in rows}
    runs: list[FinishedRun] = []
    reused: list[FinishedRun] = []
    for outcome in outcomes:
        row = by_label[outcome.label]
        if outcome.run_dir is None:
            row.failures.append((outcome.seed, outcome.error or "unknown"))
        else:
            row.runs.append(load_finished(outcome.run_dir))
            runs.append(row.runs[-1])
            reused += runs[-1:] if outcome.reused else []
    if not runs:
        return None
    check_same_test(runs)
    mark_baselines(rows, plan.options["baselines"])
    rows = [part for row in rows for part in split_by_language_models(row)]
    return Comparison(rows, plan.options, plan.directory, warnings=[*plan.warnings, *_made_by_other_code(reused)])


def _made_by_other_code(reused: Sequence[FinishedRun]) -> list[str]:
    """Return warnings about reused runs that another version of the code made."""
    git, version = git_state(), package_version("recbole-llm")
    environments = [(run, run.results["environment"]) for run in reused]
    other = [run for run, made in environments if (made["git"], made["packages"]["recbole-llm"]) != (git, version)]
    if not other:
        return []
    names = ", ".join(run.run_dir.name for run in other[:3]) + ", ..." * (len(other) > 3)
    return [
        f"{len(other)} finished run{'s' * (len(other) > 1)} made by another version of the code ({names}) "
        f"{'were' if len(other) > 1 else 'was'} reused; --reuse=False runs everything again."
    ]


def _text_lengths(runs: Sequence[FinishedRun], data_path: str | None = None) -> np.ndarray | None:
    """Words of each test row's target as the runs read it, or None where the dataset has no texts; (test rows,)."""
    reading = [run for run in runs if (run.results["language_models"] or {}).get("item_text")]
    run = (reading or runs)[0]
    settings, name = run.results["settings"], run.results["dataset"]["name"]
    file = dataset_folder(str(data_path or settings["data_path"]), name) / f"{name}.item"
    if not file.is_file():
        return None
    tokens, number = np.unique(run.ranks["target"], return_inverse=True)
    template = run.results["language_models"]["item_text"] if reading else settings.get("item_text")
    try:
        texts = load_item_text(
            file, ["[PAD]", *tokens], template=template, **format_of({"encoding": None, **settings})
        ).texts[1:]
    except (ConfigError, DataError) as error:
        getLogger().warning(f"No breakdown by text length: {error}")
        return None
    return np.array([len(text.split()) for text in texts])[number]


# ---- output


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder of the comparison, {directory}, cannot be created: {error}.") from error


def _write(comparison: Comparison) -> None:
    """Write all files, each atomically."""
    contents = {
        "table.txt": tables.as_text(comparison),
        "table.md": tables.as_markdown(comparison),
        "table.tex": tables.as_latex(comparison),
        "table.csv": tables.as_csv(comparison),
        "runs.csv": tables.runs_as_csv(comparison),
        "report.html": report.render(comparison, command_line(sys.argv), time.strftime("%Y-%m-%d %H:%M")),
    }
    for name, content in contents.items():
        write_text(comparison.directory / name, content)


def _show(comparison: Comparison) -> None:
    file = (comparison.directory / "report.html").resolve()
    getLogger().info("\n" + tables.as_text(comparison) + f"\nreport: {file}")
    if comparison.options["open"] and _has_screen():
        webbrowser.open(file.as_uri())


def _has_screen() -> bool:
    """Whether a graphical browser is available; a text browser would block the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
