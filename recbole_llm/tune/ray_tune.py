"""Trials of a study under Ray Tune: several at once, on one machine or a cluster.

Ray Tune starts the trials and watches over resources. What to try, when to stop, and what is written down stay with
the study, so that a study may change tools, and a killed one continues from its own notes.
"""

import inspect
import json
import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_llm.config import Config
from recbole_llm.errors import ConfigError, MissingExtraError
from recbole_llm.run.identity import plain
from recbole_llm.tune import report
from recbole_llm.tune.journal import Trial
from recbole_llm.tune.study import Study
from recbole_llm.tune.trial import SharedData, pruned, run_trial

# Of the worker process: trials that it runs one after the other share the prepared data.
_DATA = SharedData()


def run_with_ray(study: Study, model: str | type, base: Config, settings: Mapping[str, Any]) -> None:
    """Carry out every trial of a study under Ray Tune.

    Raises
    ------
    MissingExtraError
        If Ray Tune cannot be imported.
    ConfigError
        If the cluster cannot be reached, or a machine does not see the study's folder.
    """
    ray, tune = _import_ray()
    own = not ray.is_initialized()
    _connect(ray, study.options.ray_address)
    try:
        _run(ray, tune, study, model, base, settings)
    finally:
        if own:
            ray.shutdown()


def _import_ray() -> tuple[Any, Any]:
    # Ray Tune's own curves and tables repeat what every trial's directory and the study hold.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    try:
        import ray
        from ray import tune
    except Exception as error:  # ray 2.6.3, which RecBole pins, fails in its own way on numpy 2 and setuptools 80
        raise MissingExtraError(
            f"--tool=Ray needs Ray Tune, which cannot be imported ({type(error).__name__}: {error}). "
            "pip install -U 'ray[tune]' brings one that works with today's numpy; the one that RecBole pins (2.6.3) "
            "needs numpy<2 and setuptools<80. Without Ray: --tool=Hyperopt."
        ) from error
    # Of old versions, about tables that are not asked for.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    return ray, tune


def _connect(ray: Any, address: str | None) -> None:
    if ray.is_initialized():
        return
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        # Nothing about a run leaves the machine unless somebody asks for it.
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


def _resources(ray: Any, study: Study, base: Config) -> dict[str, float]:
    options, there = study.options, ray.cluster_resources()
    gpus = options.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if base["use_gpu"] and there.get("GPU") else 0.0
    wanted = {"cpu": 1.0 if options.cpus_per_trial is None else float(options.cpus_per_trial), "gpu": float(gpus)}
    for kind, number in wanted.items():
        if number > there.get(kind.upper(), 0.0):
            raise ConfigError(
                f"{kind}s_per_trial={number:g}, but the cluster has {there.get(kind.upper(), 0.0):g} {kind.upper()}s: "
                "no trial could start."
            )
    return wanted


def _run(ray: Any, tune: Any, study: Study, model: str | type, base: Config, settings: Mapping[str, Any]) -> None:
    from ray.tune.logger import JsonLoggerCallback

    resources = _resources(ray, study, base)
    folder = study.folder.resolve()
    # A GPU of Ray's worker is its first, whatever its number is on the machine.
    settings = {**settings, "show_progress": False, "use_gpu": resources["gpu"] > 0}
    if resources["gpu"] > 0:
        settings["gpu_id"] = "0"
    common = {"model": model, "dataset": base.dataset, "settings": settings, "folder": str(folder), "cwd": os.getcwd()}
    proposals = _searcher_class()(study)
    run_config = tune.RunConfig if hasattr(tune, "RunConfig") else _old_run_config()
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trainable, common=common), resources),
        tune_config=tune.TuneConfig(
            search_alg=proposals, num_samples=-1, max_concurrent_trials=study.options.parallel or 0, reuse_actors=True
        ),
        run_config=run_config(
            name="ray",
            storage_path=str(folder),
            stop=_stopper_class()(study, proposals),
            callbacks=[JsonLoggerCallback()],  # Ray Tune wants one of its own files
            verbose=0,
        ),
    )
    tuner.fit()
    if proposals.error is not None:
        raise proposals.error


def _old_run_config() -> Any:
    from ray import air

    return air.RunConfig


def _report(metrics: Mapping[str, Any]) -> None:
    """One result to Ray Tune, whose name for that has changed."""
    from ray import tune

    if "metrics" in inspect.signature(tune.report).parameters:
        tune.report(dict(metrics))
    else:
        from ray.air import session

        session.report(dict(metrics))


def _trainable(proposal: Mapping[str, Any], common: Mapping[str, Any]) -> None:
    """One trial, in a worker process of Ray."""
    if Path(common["cwd"]).is_dir():
        os.chdir(common["cwd"])  # Ray works in a folder of its own, where relative paths lead nowhere
    folder = Path(common["folder"])
    if not (folder / "study.json").is_file():
        error = _NOT_SHARED.format(folder, platform.node())
        _report({"outcome": json.dumps({"state": "failed", "details": {"error": error}})})
        return

    logging.getLogger().setLevel(logging.INFO)  # what run.log is to hold
    sent = 0

    def on_validation(curve: Any) -> None:
        nonlocal sent
        # As text, since Ray Tune takes lists and mappings apart.
        _report({"valid_score": curve[-1][-1], "points": json.dumps(curve[sent:])})
        sent = len(curve)

    outcome = run_trial(
        common["model"],
        common["dataset"],
        {**common["settings"], **proposal["params"]},
        folder / "trials" / f"{proposal['number']:04d}",
        on_validation,
        _DATA,
    )
    _report({"outcome": json.dumps(plain(outcome)), "valid_score": outcome["score"]})


_NO_OUTCOME = "The worker process of the trial ended without a word: most likely its machine had no memory left."
_NOT_SHARED = (
    "{} is not seen from {}: give a folder that all machines of the cluster share, with --study=FOLDER or "
    "--checkpoint_dir=FOLDER."
)


def _searcher_class() -> Any:
    from ray.tune.search import Searcher

    class StudySearcher(Searcher):
        """The study as Ray Tune asks it."""

        def __init__(self, study: Study) -> None:
            super().__init__(metric="valid_score", mode="max" if study.bigger else "min")
            self.study = study
            self.trials: dict[str, Trial] = {}
            self.error: Exception | None = None

        def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
            return True

        def suggest(self, trial_id: str) -> Any:
            if self.error is None:
                try:
                    trial = self.study.ask()
                except Exception as error:  # Ray would log it and go on
                    self.error, trial = error, None
                if trial is not None:
                    self.trials[trial_id] = trial
                    return {"number": trial.number, "params": trial.params}
            return Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            trial = self.trials.pop(trial_id, None)
            if trial is None:
                return
            text = (result or {}).get("outcome")
            self.study.tell(trial, json.loads(text) if text else self._without_outcome(trial))
            line = report.trial_line(trial, self.study.best, self.study.options.max_evals, self.study.metric)
            logging.getLogger().info(line)

        def _without_outcome(self, trial: Trial) -> dict[str, Any]:
            reason = trial.details.get("reason")
            if reason is None:
                return {"state": "failed", "details": {"error": _NO_OUTCOME}}
            return pruned(self.study.run_dir(trial), trial.curve, reason, self.study.bigger)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study is on disk."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the study is on disk."""

    return StudySearcher


def _stopper_class() -> Any:
    from ray.tune.stopper import Stopper

    class StudyStopper(Stopper):
        """The study's stopping rule on what running trials report."""

        def __init__(self, study: Study, searcher: Any) -> None:
            self.study, self.searcher = study, searcher

        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            trial = self.searcher.trials.get(trial_id)
            if trial is None or not result.get("points"):
                return False
            trial.curve += json.loads(result["points"])
            reason = self.study.prune_rule(trial)(trial.curve)
            if reason:
                trial.details = {"reason": reason}
            return reason is not None

        def stop_all(self) -> bool:
            return False

    return StudyStopper
