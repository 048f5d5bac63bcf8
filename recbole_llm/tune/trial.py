"""One trial: an experiment that sees the training and the validation data only."""

import csv
import gc
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.stored import RecordedConfig
from recbole_llm.errors import RecBoleLLMError
from recbole_llm.run import experiment
from recbole_llm.run.folder import RESULTS, TRAINED, create_run_dir, store_settings
from recbole_llm.run.logging import Console, LogFile, log_to_console, logging_into
from recbole_llm.run.results import read_training_record
from recbole_llm.trainer import checkpoint

# (stage, epoch, score) of every validation: index of the stage, epoch within it (from 1), validation score.
Curve = list[tuple[int, int, float]]
# Curve so far -> why the trial should stop, or None.
PruneRule = Callable[[Curve], str | None]
Details = dict[str, int | float | str | None]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: finished, pruned or failed; ``result`` and ``details`` as in a study's ``Trial``."""

    state: str
    score: float | None = None
    result: dict[str, float] = field(default_factory=dict)
    details: Details = field(default_factory=dict)


class Pruned(Exception):
    """Ends a trial early; carries the reason."""


class SharedData:
    """Dataset and splits of the last trial, for the next one where it reads the same settings.

    Which settings those are is recorded while a dataset is made, not listed, so that none can be forgotten.
    """

    def __init__(self) -> None:
        self._read: dict[str, Any] = {}
        self._made: tuple[HistoryDataset, list[HistoryDataset]] | None = None

    def __call__(self, config: Config) -> tuple[HistoryDataset, list[HistoryDataset]]:
        """Dataset and splits for a configuration."""
        if self._made is None or any(config[key] != value for key, value in self._read.items()):
            self._made = None  # the old one makes room first
            recorder = RecordedConfig(config)
            dataset = HistoryDataset(cast(Config, recorder))
            self._made, self._read = (dataset, dataset.build()), recorder.read
        dataset, splits = self._made
        for part in (dataset, *splits):
            part.config = config
        return dataset, splits


def run_trial(
    model: str | type,
    dataset: str,
    settings: Mapping[str, Any],
    run_dir: Path,
    prune: PruneRule,
    data: SharedData,
) -> Outcome:
    """Train with these settings and validate; an interrupted trial continues from its run directory.

    Parameters
    ----------
    model : str or class
    dataset : str
    settings : dict
        All settings, the searched ones included.
    run_dir : pathlib.Path
    prune : callable
        Called after every validation.
    data : SharedData

    Returns
    -------
    Outcome
        Errors become ``state: failed``, except an interruption.
    """
    try:
        outcome = _run_trial(model, dataset, settings, run_dir, prune, data)
    except Exception as error:
        with logging_into(run_dir if run_dir.is_dir() else None):
            logging.getLogger().error(f"The trial failed: {error}", exc_info=not isinstance(error, RecBoleLLMError))
        outcome = Outcome("failed", details={"error": f"{type(error).__name__}: {error}"})
    _free_memory()
    return outcome


def _free_memory() -> None:
    """Free a trial's memory before the next one begins; trainers and models refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _run_trial(
    model: str | type, dataset: str, settings: Mapping[str, Any], run_dir: Path, prune: PruneRule, data: SharedData
) -> Outcome:
    config = Config(model, dataset, None, None, settings)
    state = checkpoint.state_folder(run_dir)
    if (run_dir / TRAINED).is_file() or (run_dir / RESULTS).is_file():
        # Stopped between the end of training and the study's note of it.
        prune(_curve(_history(run_dir)))
        return _finished(run_dir)
    if state is None:
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True)
        store_settings(run_dir, config)
    rows: list[Mapping[str, Any]] = []

    def check(now: Sequence[Mapping[str, Any]]) -> None:
        """Continue or end the trial after the validation in the last row."""
        rows[:] = now
        curve = _curve(rows)
        if curve and not np.isfinite(curve[-1][-1]):
            raise FloatingPointError(f"The validation score of epoch {curve[-1][1]} is {curve[-1][-1]}.")
        if reason := prune(curve):
            raise Pruned(reason)

    with logging_into(run_dir):
        try:
            if state is not None:
                # The process may have died between this validation and the decision based on it.
                before = checkpoint.read_state(state)["curve"]
                if before and "valid_score" in before[-1]:
                    check(before)
            resume = state is not None
            experiment.experiment(config, run_dir, resume, data, lambda trainer: check(trainer.curve), False)
        except Pruned as reason:
            logging.getLogger().info(f"Pruned: {reason}")
            best = (max if config["valid_metric_bigger"] else min)(_curve(rows), key=lambda point: point[-1])
            details: Details = {
                "reason": str(reason),
                "best_epoch": best[1],
                "epochs": len(rows),
                "seconds": _spent(rows),
            }
            return Outcome("pruned", best[-1], details=details)
    return _finished(run_dir)


def _finished(run_dir: Path) -> Outcome:
    record = read_training_record(run_dir)
    score = record["best_valid_score"]
    if score is None or not np.isfinite(score):
        return Outcome("failed", details={"error": f"The validation score is {score}; is there validation data?"})
    details: Details = {
        "best_epoch": record["stages"][-1]["best_epoch"],
        "epochs": record["epochs"],
        "updates": record["updates"],
        "parameters": record["parameters"]["trained"],
        "seconds": round(sum(record["seconds"].values()), 3),
        "peak_memory_mb": round(max(record["phase_peak_memory_mb"].values())),
    }
    return Outcome("finished", score, record["best_valid_result"], details)


def _curve(rows: Sequence[Mapping[str, Any]]) -> Curve:
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    return [
        (stages.index(row["stage"]), int(row["epoch"]), float(row["valid_score"]))
        for row in rows
        if row.get("valid_score") not in (None, "")
    ]


def _history(run_dir: Path) -> list[dict[str, str]]:
    file = run_dir / "history.csv"
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []


def _spent(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of the epochs that ended."""
    return round(sum(float(row.get(key) or 0) for row in rows for key in ("train_seconds", "valid_seconds")), 3)


def tidy(run_dir: Path, keep: str, is_best: bool) -> None:
    """Delete what ``keep_trials`` does not keep of a finished trial's directory.

    ``all`` leaves the weights; ``light`` the settings, the log, the curve and the results; ``best`` nothing. The best
    trial keeps its weights in any case.
    """
    shutil.rmtree(run_dir / checkpoint.STATE, ignore_errors=True)
    if keep == "all" or is_best or not run_dir.is_dir():
        return
    if keep == "best":
        shutil.rmtree(run_dir, ignore_errors=True)
        return
    for path in run_dir.iterdir():
        if path.suffix not in (".json", ".csv", ".yaml", ".log"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def quiet_console() -> Iterator[None]:
    """Lines of a trial go into its own ``run.log``; the terminal and ``study.log`` belong to the study."""
    ours = (Console, LogFile)
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, ours)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def objective_function(
    config_dict: Mapping[str, Any] | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    saved: bool = False,
) -> dict[str, Any]:
    """One run for RecBole's ``HyperTuning(objective_function, ...)``; model and dataset are among the settings.

    Parameters
    ----------
    config_dict, config_file_list
        As :func:`recbole_llm.quick_start.run`.
    saved : bool
        Write a run directory, which ``recbole-llm evaluate`` tests.

    Returns
    -------
    dict
        RecBole's keys. ``test_result`` is empty: the test set is for the winner, with
        ``run(config_file_list=..., config_dict=tuner.best_params)``.

    Examples
    --------
    >>> settings = {"model": "MostPopular", "dataset": "ml-100k", "smoke": True, "show_progress": False}
    >>> objective_function(settings)["valid_score_bigger"]
    True
    """
    log_to_console()
    config = Config(None, None, config_file_list, config_dict)
    run_dir = create_run_dir(config) if saved else None
    with logging_into(run_dir):
        result = experiment.experiment(config, run_dir, evaluate_test=False)
    return {"model": config.model, **result, "test_result": {}}
