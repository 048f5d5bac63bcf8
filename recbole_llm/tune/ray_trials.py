"""Trials of a study as tasks of Ray: several at once, on one machine or a cluster.

Ray places the trials and watches over resources. What to try, when to stop, and what is written down stay with the
study and its journal, so that a study may change tools, and a killed one continues.
"""

import logging
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from recbole_llm.config import Config
from recbole_llm.config.schema import StudyOptions
from recbole_llm.errors import ConfigError, MissingExtraError
from recbole_llm.tune import report
from recbole_llm.tune.study import Study, Trial, open_journal, prune_rule
from recbole_llm.tune.trial import Outcome, SharedData, run_trial

# Of the worker process: trials that it runs one after the other share the prepared data.
_DATA = SharedData()
_NO_OUTCOME = "The worker process of the trial ended without a word ({}): most likely its machine had no memory left."
_NOT_SHARED = (
    "{} is not seen from {}: give a folder that all machines of the cluster share, with --study=FOLDER or "
    "--checkpoint_dir=FOLDER."
)


def run_with_ray(study: Study, model: str | type, base: Config, settings: Mapping[str, Any]) -> None:
    """Run the trials of a study under Ray.

    Raises
    ------
    MissingExtraError
        If Ray cannot be imported.
    ConfigError
        If the cluster cannot be reached, or is too small for a trial.
    """
    try:
        import ray
    except Exception as error:  # old versions fail in ways of their own on today's packages
        raise MissingExtraError(
            f"--tool=Ray needs Ray, which cannot be imported ({type(error).__name__}: {error}): pip install -U ray. "
            "Without Ray, leave --tool out."
        ) from error
    own = not ray.is_initialized()
    _connect(ray, study.options.ray_address)
    try:
        _run(ray, study, model, base, settings)
    finally:
        if own:
            ray.shutdown()


def _connect(ray: ModuleType, address: str | None) -> None:
    if ray.is_initialized():
        return
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        # No usage data leaves the machine unless the user asks for it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"ray_address={address!r} cannot be reached: {error} Start a cluster with `ray start --head`, or leave "
            "ray_address out to use this machine alone."
        ) from error


def _resources(available: Mapping[str, float], options: StudyOptions, base: Config) -> dict[str, float]:
    """CPUs and GPUs of a trial."""
    gpus = options.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if base["use_gpu"] and available.get("GPU") else 0.0
    wanted = {"cpu": 1.0 if options.cpus_per_trial is None else float(options.cpus_per_trial), "gpu": float(gpus)}
    for kind, number in wanted.items():
        if number > available.get(kind.upper(), 0.0):
            raise ConfigError(
                f"{kind}s_per_trial={number:g}, but the cluster has {available.get(kind.upper(), 0.0):g} "
                f"{kind.upper()}s: no trial could start."
            )
    return wanted


def _run(ray: ModuleType, study: Study, model: str | type, base: Config, settings: Mapping[str, Any]) -> None:
    available = ray.cluster_resources()
    wanted = _resources(available, study.options, base)
    fitting = [int(available[kind.upper()] / number) for kind, number in wanted.items() if number]
    at_once = study.options.parallel or max(1, min(fitting, default=1))
    # A GPU of Ray's worker is its first, whatever its number is on the machine.
    settings = {**settings, "show_progress": False, "use_gpu": wanted["gpu"] > 0}
    if wanted["gpu"] > 0:
        settings["gpu_id"] = "0"
    task = ray.remote(num_cpus=wanted["cpu"], num_gpus=wanted["gpu"], max_retries=0)(_run_in_worker)
    pending: dict[Any, Trial] = {}
    try:
        while True:
            while len(pending) < at_once and (trial := study.ask()) is not None:
                folder = study.folder.resolve()
                arguments = (model, base.dataset, {**settings, **trial.params}, folder, study.run_dir(trial).name)
                pending[task.remote(*arguments, study.options, study.bigger, trial.number, os.getcwd())] = trial
            if not pending:
                return
            (done,), _ = ray.wait(list(pending), num_returns=1)
            trial = pending.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                outcome = Outcome("failed", details={"error": _NO_OUTCOME.format(type(error).__name__)})
            report.log_end(study, study.tell(trial, outcome))
    finally:
        for task in pending:
            with suppress(Exception):
                ray.cancel(task, force=True)


def _run_in_worker(
    model: str | type,
    dataset: str,
    settings: Mapping[str, Any],
    folder: Path,
    name: str,
    options: StudyOptions,
    bigger: bool,
    number: int,
    working_directory: str,
) -> Outcome:
    """One trial, in a worker process of Ray."""
    if Path(working_directory).is_dir():
        os.chdir(working_directory)  # Ray works in a folder of its own, where relative paths lead nowhere
    if not (folder / "study.json").is_file():
        return Outcome("failed", details={"error": _NOT_SHARED.format(folder, platform.node())})
    logging.getLogger().setLevel(logging.INFO)  # what run.log is to hold
    rule = prune_rule(open_journal(folder, options, bigger), number, options.pruner)
    return run_trial(model, dataset, settings, folder / "trials" / name, rule, _DATA)
