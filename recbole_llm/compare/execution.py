"""Execution of a plan, one process at a time; finished runs are reused."""

import glob
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.utils import set_color

from recbole_llm.compare.plan import Job, Plan
from recbole_llm.errors import ConfigError
from recbole_llm.run.folder import name_prefix, same_data
from recbole_llm.run.identity import changed_language_models, plain, same_experiment


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job: a run directory, or the error."""

    label: str
    seed: int
    run_dir: Path | None
    error: str | None = None
    reused: bool = False


def execute(plan: Plan, after_each: Callable[[list[Outcome]], None] = lambda outcomes: None) -> list[Outcome]:
    """Run every job that is not finished yet, continuing those that were interrupted.

    Parameters
    ----------
    plan : Plan
    after_each : callable
        Called with the outcomes so far after every executed run except the last.

    Returns
    -------
    list of Outcome
        In the order of the plan's jobs. A run that fails is an outcome, not an exception.
    """
    outcomes: list[Outcome] = []
    for number, job in enumerate(plan.jobs, 1):
        title = set_color(f"[{number}/{len(plan.jobs)}] {job.label}, seed {job.seed}", "pink")
        finished = find_finished(job) if plan.options["reuse"] else None
        if finished is not None:
            logging.getLogger().info(f"{title}: finished in {finished}")
            outcomes.append(Outcome(job.label, job.seed, finished, reused=True))
            continue
        logging.getLogger().info(title)
        outcome = _run(job, resume=plan.options["reuse"])
        if outcome.error:
            logging.getLogger().error(f"{title} failed: {outcome.error}")
        outcomes.append(outcome)
        if number < len(plan.jobs):
            after_each(outcomes)
    return outcomes


def find_finished(job: Job) -> Path | None:
    """Return the newest finished run with the same settings, model class and data files, or None.

    A setting that an older version of the code did not have counts as its current default.
    """
    for run_dir, results in _finished_runs(Path(job.config["checkpoint_dir"]), name_prefix(job.config)):
        if is_same_run(job, results) and (run_dir / "test_ranks.npz").is_file():
            return run_dir
    return None


def is_same_run(job: Job, results: Mapping[str, Any]) -> bool:
    """Whether a run with this ``results.json`` matches a job."""
    config = job.config
    known = {key: value for key, value in config.internal_config_dict.items() if key in config.merged}
    return (
        results["model_class"] == f"{config.model_class.__module__}.{config.model_class.__qualname__}"
        and same_experiment({**known, **results["settings"]}, config.merged)
        and same_data(results["dataset"]["files"], config)
        and not changed_language_models(results.get("auto") or (), config)
    )


def _finished_runs(parent: Path, prefix: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    files = parent.glob(f"{glob.escape(prefix)}*/results.json")
    for file in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            yield file.parent, json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            logging.getLogger().warning(f"{file} is damaged and is not used.")


def _run(job: Job, resume: bool) -> Outcome:
    answer = in_own_process(
        {
            "model": _importable(job.model),
            "dataset": job.config["dataset"],
            "file_settings": plain(job.file_settings),
            "given": plain(job.given),
            "arguments": {**plain(job.arguments), "resume": resume or None},
            "argv": sys.argv,
        }
    )
    run_dir = Path(answer["run_dir"]) if "run_dir" in answer else None
    return Outcome(job.label, job.seed, run_dir, error=answer.get("error"))


def in_own_process(task: dict[str, Any]) -> dict[str, str]:
    """Return a worker's answer to a task: ``{"run_dir": ...}`` or ``{"error": ...}``."""
    paths = [path or str(Path.cwd()) for path in sys.path]  # the same packages, installed or not
    process = subprocess.Popen(
        [sys.executable, "-m", "recbole_llm.compare.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # it ended before it had read the task: see below
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()  # and it stays open: its end is the sign that this process is gone
        answer = process.stdout.read()
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)  # the terminal told the run as well, which now says how it is continued
        raise
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
        process.stdout.close()
    if process.returncode == 130:
        raise KeyboardInterrupt
    return json.loads(answer) if answer else {"error": _how_it_ended(process.returncode)}


def _importable(model: str | type) -> str:
    if isinstance(model, str):
        return model
    if model.__module__ == "__main__" or "<locals>" in model.__qualname__:
        raise ConfigError(
            f"The class {model.__qualname__} cannot be imported by the process that runs it: define it at the top "
            "level of a module."
        )
    return f"{model.__module__}:{model.__qualname__}"


def _how_it_ended(status: int) -> str:
    if status == -9:
        return "The process was killed (signal 9), probably because the machine had no memory left."
    return f"The process ended {f'by signal {-status}' if status < 0 else f'with status {status}'} without an answer."
