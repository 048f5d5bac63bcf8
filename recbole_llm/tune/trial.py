"""One trial: an experiment that sees the training and the validation data only."""

import csv
import gc
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import RecBoleLLMError
from recbole_llm.run import experiment
from recbole_llm.run.folder import create_run_dir, store_settings
from recbole_llm.run.logging import Console, LogFile, log_to_console, logging_into
from recbole_llm.run.results import read_results
from recbole_llm.trainer import checkpoint
from recbole_llm.trainer.trainer import RunTrainer

# Curve so far -> why the trial should stop, or None.
PruneRule = Callable[[Sequence[Sequence[Any]]], str | None]


class Pruned(Exception):
    """Ends a trial early; carries the reason."""


class _Recorder:
    """A configuration that records which keys are read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.read: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        self.read[key] = value = self.config[key]
        return value

    def __contains__(self, key: str) -> bool:
        self[key]
        return key in self.config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


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
            recorder = _Recorder(config)
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
) -> dict[str, Any]:
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
    dict
        ``state`` (finished, pruned, failed), ``score``, ``result`` and ``details`` as in
        :class:`recbole_llm.tune.study.Trial`. Errors become ``state: failed``, except an interruption.
    """
    try:
        outcome = _run_trial(model, dataset, settings, run_dir, prune, data)
    except Exception as error:
        with logging_into(run_dir if run_dir.is_dir() else None):
            logging.getLogger().error(f"The trial failed: {error}", exc_info=not isinstance(error, RecBoleLLMError))
        outcome = failed(f"{type(error).__name__}: {error}")
    _free_memory()
    return outcome


def _free_memory() -> None:
    """Free a trial's memory before the next one begins; trainers and models refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def failed(error: str) -> dict[str, Any]:
    """Return the outcome of a trial that has no score."""
    return {"state": "failed", "score": None, "result": {}, "details": {"error": error}}


def _run_trial(
    model: str | type, dataset: str, settings: Mapping[str, Any], run_dir: Path, prune: PruneRule, data: SharedData
) -> dict[str, Any]:
    config = Config(model, dataset, None, None, settings)
    state = checkpoint.state_folder(run_dir)
    if (run_dir / "results.json").is_file():
        # Stopped between its end and the study's note of it.
        rows = _history(run_dir)
        prune(_curve(rows, list(dict.fromkeys(row["stage"] for row in rows))))
        return _finished(run_dir)
    if state is None:
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True)
        store_settings(run_dir, config)
    curve: list[list[Any]] = []

    def check(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> None:
        """Continue or end the trial after the validation in the last row."""
        curve[:] = _curve(rows, stages)
        if curve and not np.isfinite(curve[-1][-1]):
            raise FloatingPointError(f"The validation score of epoch {curve[-1][1]} is {curve[-1][-1]}.")
        reason = prune(curve)
        if reason:
            raise Pruned(reason)

    def on_validation(trainer: RunTrainer) -> None:
        check(trainer.curve, trainer.stages)

    with logging_into(run_dir):
        try:
            if state is not None:
                # The process may have died between this validation and the decision based on it.
                rows = checkpoint.read_state(state)["curve"]
                if rows and "valid_score" in rows[-1]:
                    check(rows, list(dict.fromkeys(row["stage"] for row in rows)))
            experiment.experiment(config, run_dir, state is not None, data, on_validation, evaluate_test=False)
        except Pruned as reason:
            logging.getLogger().info(f"Pruned: {reason}")
            scores = [score for _, _, score in curve]
            best = int(np.argmax(scores) if config["valid_metric_bigger"] else np.argmin(scores))
            details = {"reason": str(reason), "best_epoch": curve[best][1], **_costs(run_dir)}
            return {"state": "pruned", "score": scores[best], "result": {}, "details": details}
    return _finished(run_dir)


def _finished(run_dir: Path) -> dict[str, Any]:
    report = read_results(run_dir)
    score = report["best_valid_score"]
    if score is None or not np.isfinite(score):
        return failed(f"The validation score is {score}; is there validation data?")
    details = {
        "best_epoch": report["stages"][-1]["best_epoch"],
        "updates": report["updates"],
        "parameters": report["parameters"]["trained"],
        "peak_memory_mb": report["peak_memory_mb"],
        **_costs(run_dir, report["seconds"]),
    }
    return {"state": "finished", "score": score, "result": report["best_valid_result"], "details": details}


def _curve(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> list[list[Any]]:
    """``[stage, epoch, score]`` of every validation."""
    return [
        [stages.index(row["stage"]), int(row["epoch"]), float(row["valid_score"])]
        for row in rows
        if row.get("valid_score") not in (None, "")
    ]


def _history(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "history.csv"
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []


def _costs(run_dir: Path, seconds: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return epochs and seconds; for an aborted trial, those of its completed epochs."""
    rows = _history(run_dir)
    spent = sum(float(row[key] or 0) for row in rows for key in ("train_seconds", "valid_seconds") if key in row)
    return {"epochs": len(rows), "seconds": round(sum(seconds.values()) if seconds else spent, 3)}


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

    Returns
    -------
    dict
        RecBole's keys. ``test_result`` is empty: the test set is for the winner, with
        ``run(config_file_list=..., config_dict=tuner.best_params)``.
    """
    log_to_console()
    config = Config(None, None, config_file_list, config_dict)
    run_dir = create_run_dir(config) if saved else None
    with logging_into(run_dir):
        result = experiment.experiment(config, run_dir, evaluate_test=False)
    return {"model": config.model, **result, "test_result": {}}
