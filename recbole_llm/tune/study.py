"""A study: trials on the validation score, kept on disk, continued after a crash, the winner tested once."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.utils import set_color

from recbole_llm import quick_start, rundir
from recbole_llm.config import Config
from recbole_llm.errors import CheckpointError, ConfigError, RecBoleLLMError
from recbole_llm.parameters import SECRETS, nearest
from recbole_llm.trainer import checkpoint
from recbole_llm.tune import report
from recbole_llm.tune.journal import Journal, Trial
from recbole_llm.tune.options import StudyOptions
from recbole_llm.tune.proposals import Proposals, choose
from recbole_llm.tune.space import Parameter, check_space, find_space, read_lines, read_space, space_from_dict
from recbole_llm.tune.trial import PruneRule, SharedData, quiet_console, run_trial, tidy

FORMAT = 1
# What the winner's settings leave to whoever runs them.
LEFT_OUT = frozenset({"checkpoint_dir", "show_progress", "state", "save_state", "resume"})
# A study whose first trials all fail is set up wrongly.
FAILURES = 5
# A trial in which the process died so often, in the same epoch, would end it again.
STARTS = 5


class StudyError(RecBoleLLMError, RuntimeError):
    """A study has no trial that it could choose."""


class Study:
    """The trials of one search, with ``trials.jsonl`` as their memory.

    Parameters
    ----------
    folder : pathlib.Path
    space : list of Parameter
    proposals : Proposals
    options : StudyOptions
        With ``max_evals`` and ``early_stop`` decided.
    metric : str
        What the score is called.
    bigger : bool
        Whether a bigger score is better.

    Attributes
    ----------
    trials : list of Trial
        In order of their numbers.
    """

    def __init__(
        self,
        folder: Path,
        space: Sequence[Parameter],
        proposals: Proposals,
        options: StudyOptions,
        metric: str,
        bigger: bool,
    ) -> None:
        self.folder, self.space, self.proposals, self.options = folder, list(space), proposals, options
        self.metric, self.bigger = metric, bigger
        self.pruner = options.pruning(bigger)
        self.journal = Journal(folder / "trials.jsonl")
        self.trials = self.journal.read()
        if [trial.number for trial in self.trials] != list(range(len(self.trials))):
            raise CheckpointError(f"{self.journal.file} lacks trials; restore it from a copy or begin another study.")
        self.running: set[int] = set()
        self.exhausted = False
        self._why_ended = ""
        if options.retry_failed:
            for trial in self.trials:
                if trial.state == "failed":
                    trial.state, trial.progress = "started", None

    def run_dir(self, trial: Trial) -> Path:
        """Where a trial runs."""
        return self.folder / "trials" / f"{trial.number:04d}"

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best validation score; of equal ones the first."""
        finished = [trial for trial in self.trials if trial.state == "finished"]
        sign = 1 if self.bigger else -1
        return max(finished, key=lambda trial: sign * (trial.score or 0.0), default=None)

    def ask(self) -> Trial | None:
        """The next trial to run, one that a crash left first; None where none is to be started now.

        Raises
        ------
        StudyError
            Where the first trials all failed.
        """
        for trial in self.trials:
            if not trial.ended and trial.number not in self.running:
                if trial.starts < STARTS or trial.progress is None:
                    return self._start(trial)
                self.tell(trial, {"state": "failed", "details": {"error": _LOST}})
        if self._is_over():
            return None
        number = len(self.trials)
        point = self.proposals.propose(number, self.trials)
        if point is None:
            self.exhausted = True
            return None
        params = {parameter.name: parameter.value(point[parameter.name]) for parameter in self.space}
        self.trials.append(Trial(number, params, point))
        return self._start(self.trials[-1])

    def _start(self, trial: Trial) -> Trial:
        state = checkpoint.state_folder(self.run_dir(trial))
        values = checkpoint.read_state(state) if state else {}
        progress = [values.get("stage", 0), values.get("next_epoch", 0)]
        trial.starts = trial.starts + 1 if progress == trial.progress else 1
        trial.curve = []
        trial.progress = progress
        self.running.add(trial.number)
        self.journal.append(trial, "started")
        return trial

    def _is_over(self) -> bool:
        ended = [trial for trial in self.trials if trial.ended]
        failed = [trial for trial in ended if trial.state == "failed"]
        if len(failed) >= FAILURES and len(failed) == len(ended):
            raise StudyError(
                f"The first {len(failed)} trials failed, the last with: {failed[-1].details['error']} See "
                f"{self.run_dir(failed[-1]) / 'run.log'}. Once that is put right, add --retry_failed."
            )
        best = self.best
        since = sum(trial.number > best.number for trial in ended) if best else 0
        hours = sum(trial.details.get("seconds", 0.0) for trial in ended) / 3600
        if self.options.max_evals is not None and len(self.trials) >= self.options.max_evals:
            self._why_ended = f"max_evals={self.options.max_evals}"
        elif self.options.early_stop and since >= self.options.early_stop:
            self._why_ended = f"{since} trials without improvement (early_stop={self.options.early_stop})"
        elif self.options.max_hours is not None and hours >= self.options.max_hours:
            self._why_ended = f"{hours:.1f} hours in trials (max_hours={self.options.max_hours})"
        else:
            return False
        return True

    def why_ended(self) -> str:
        """What ended the search, for people."""
        return "every setting has been tried" if self.exhausted else self._why_ended

    def prune_rule(self, trial: Trial) -> PruneRule:
        """The stopping rule as the trial sees it."""
        others = [other for other in self.trials if other.number != trial.number]
        return lambda curve: self.pruner.reason(curve, others)

    def tell(self, trial: Trial, outcome: Mapping[str, Any]) -> None:
        """Note how a trial ended; tables and directories follow."""
        previous = self.best
        trial.state, trial.score = outcome["state"], outcome.get("score")
        trial.curve, trial.result = outcome.get("curve", []), outcome.get("result", {})
        trial.details = dict(outcome.get("details", {}))
        self.journal.append(trial, trial.state)
        self.running.discard(trial.number)
        best = self.best
        # A trial that was tested keeps its weights: its test figures must stay checkable.
        for other in {id(other): other for other in (trial, previous) if other is not None}.values():
            tidy(self.run_dir(other), self.options.keep_trials, other is best or other.test is not None)
        report.write_table(self.folder / "study.csv", self.trials, self.space, self.metric)

    def tested(self, trial: Trial, test: Mapping[str, Any]) -> None:
        """Note the winner's test metrics."""
        trial.test = dict(test)
        self.journal.append(trial, "tested")


_LOST = f"The process died {STARTS} times in the same epoch of this trial: most likely the system had no memory left."


def tune(
    model: str | type | None = None,
    dataset: str | None = None,
    params_file: str | Path | None = None,
    params_dict: Mapping[str, Mapping[str, Any]] | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Search for the settings with the best validation score, and evaluate those on test.

    The same call after a crash continues the study: trials that ended are not run again, one that was interrupted
    continues from its last epoch.

    Parameters
    ----------
    model, dataset, config_file_list, config_dict, arguments
        As :func:`recbole_llm.quick_start.run`.
    params_file : str or pathlib.Path, optional
        Search space in RecBole's format, see :mod:`recbole_llm.tune.space`; None: ours for the model.
    params_dict : dict, optional
        The space as RecBole's ``params_dict`` instead.
    options
        See :class:`recbole_llm.tune.options.StudyOptions`.

    Returns
    -------
    dict
        ``best_params``, ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result``,
        ``test_result_unmasked``, ``trials`` (list of Trial), ``study_dir``, ``run_dir`` (the winner's) and
        ``config_file`` (its settings, for ``config_file_list``).

    Raises
    ------
    ConfigError
        For options, spaces and settings that are not understood.
    StudyError
        Where no trial finished.
    """
    _check_names(options)
    rundir.log_to_console()
    base = Config(model, dataset, config_file_list, config_dict, arguments)
    rundir.log_to_console(base["state"])
    chosen: str | type = base.model_class if isinstance(model, type) else base.model
    space = space_from_dict(params_dict) if params_dict else read_space(find_space(base.model, params_file))
    check_space(space, base, {**dict(config_dict or {}), **dict(arguments or {})})
    return _study(chosen, base, space, StudyOptions(**options))


def resume_study(folder: str | Path, **options: Any) -> dict[str, Any]:
    """Continue a study from its folder alone; options such as ``max_evals`` may be raised.

    Raises
    ------
    CheckpointError
        If the folder holds no study.
    """
    _check_names(options)
    rundir.log_to_console()
    folder = Path(folder)
    notes = _read_notes(folder)
    base = Config(notes["model"], notes["dataset"], None, None, notes["settings"])
    space = read_lines(notes["space"], str(folder / "study.json"))
    check_space(space, base, {})
    return _study(notes["model"], base, space, StudyOptions(**{**notes["options"], **options, "study": str(folder)}))


def _check_names(options: Mapping[str, Any]) -> None:
    for key in options:
        if key not in StudyOptions.names():
            raise ConfigError(f"{key!r} is no option of a study.{nearest(key, StudyOptions.names())}")


def _study(model: str | type, base: Config, space: list[Parameter], options: StudyOptions) -> dict[str, Any]:
    logger = logging.getLogger()
    settings = fixed_settings(base, space)
    seed, bigger = base["seed"], base["valid_metric_bigger"]
    algo, proposals = choose(options.algo, space, options.max_evals, seed, bigger, options.random_trials)
    if options.algo is None:
        logger.info(f"algo={algo}: the space has {_size(proposals.size)} settings.")
    grid = algo == "exhaustive"
    decided = {
        "algo": algo,
        "max_evals": options.max_evals if grid or options.max_evals else 100,
        "early_stop": (0 if grid else 20) if options.early_stop is None else options.early_stop,
    }
    options = StudyOptions(**{**vars(options), **decided})
    notes = _notes(base, settings, space, options)
    folder = _folder(base, options, notes["identity"])
    folder.mkdir(parents=True, exist_ok=True)
    with rundir.held(folder):
        _open(folder, notes)
        with rundir.logging_into(folder, "study.log"):
            study = Study(folder, space, proposals, options, base["valid_metric"], bigger)
            try:
                return _carry_out(study, model, base, settings)
            except KeyboardInterrupt:
                logger.warning(f"Interrupted. The same command, or `recbole-llm tune --resume={folder}`, continues.")
                raise


def _carry_out(study: Study, model: str | type, base: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    logger = logging.getLogger()
    _announce(study, base)
    data = SharedData()
    _same_data(study, data, base)
    if study.options.tool == "Ray":
        from recbole_llm.tune.ray_tune import run_with_ray

        run_with_ray(study, model, base, settings)
    else:
        while (trial := study.ask()) is not None:
            with quiet_console():
                outcome = run_trial(
                    model,
                    base.dataset,
                    {**settings, **trial.params},
                    study.run_dir(trial),
                    study.prune_rule(trial),
                    data,
                )
            study.tell(trial, outcome)
            logger.info(report.trial_line(trial, study.best, study.options.max_evals, study.metric))
    best = study.best
    if best is None:
        errors = [trial.details.get("error", "") for trial in study.trials]
        raise StudyError(f"No trial of {study.folder} finished. The first error: {errors[0] if errors else 'none'}")
    logger.info(f"The search ended: {study.why_ended()}.")
    for trial in study.trials:  # a crash may have come between a note and this
        tidy(study.run_dir(trial), study.options.keep_trials, trial is best or trial.test is not None)
    _test(study, best, model)
    config_file = study.folder / "best.yaml"
    comment = (
        f"# Trial {best.number} of {study.folder.name} ({len(study.trials)} trials): {study.metric} {best.score!r} on "
        f"validation.\n# python run_recbole_llm.py --config_files={config_file}\n"
    )
    winner = {key: value for key, value in settings.items() if key not in LEFT_OUT} | best.params
    rundir.write_settings(config_file, {"model": base.model, "dataset": base.dataset, **winner}, comment)
    report.write_table(study.folder / "study.csv", study.trials, study.space, study.metric)
    report.write_page(study.folder / "study.html", study, rundir.protocol(base))
    logger.info(report.summary(study, base, config_file))
    assert best.test is not None
    masked = "masked" if base["mask_history"] else "unmasked"
    other = "unmasked" if base["mask_history"] else "masked"
    return {
        "best_params": best.params,
        "best_valid_score": best.score,
        "valid_score_bigger": study.bigger,
        "best_valid_result": best.result,
        "test_result": best.test[masked],
        f"test_result_{other}": best.test[other],
        "trials": study.trials,
        "study_dir": str(study.folder),
        "run_dir": str(study.run_dir(best)),
        "config_file": str(config_file),
    }


def fixed_settings(base: Config, space: Sequence[Parameter]) -> dict[str, Any]:
    """What every trial is given besides its own values, taken once, so that editing a file changes no later trial."""
    searched = {parameter.name for parameter in space}
    given = set(base.external_config_dict)
    if base.merged.get("smoke"):
        given |= {*base.internal_config_dict["smoke_settings"], "smoke_settings"}
    given -= searched | {"model", "dataset", "resume", "config_files"}
    return {key: base.merged[key] for key in sorted(given) if key in base.merged}


def _notes(
    base: Config, settings: Mapping[str, Any], space: Sequence[Parameter], options: StudyOptions
) -> dict[str, Any]:
    """What ``study.json`` holds; ``identity`` is what makes two studies the same."""
    searched = {parameter.name for parameter in space}
    merged = {
        key: value
        for key, value in base.merged.items()
        if key not in rundir.CIRCUMSTANCES | searched and value is not None
    }
    search = {"algo": options.algo}
    if options.algo == "bayes":
        search["random_trials"] = str(options.random_trials)
    if options.pruner != "none":
        search |= {key: str(getattr(options, key)) for key in StudyOptions.names() if key.startswith("prune")}
    lines = [str(parameter) for parameter in space]
    identity = rundir.plain({"settings": merged, "space": lines, "search": search})
    return {
        "format": FORMAT,
        "model": base.model,
        "dataset": base.dataset,
        "settings": rundir.plain({key: value for key, value in settings.items() if key not in SECRETS}),
        "space": lines,
        "options": {key: value for key, value in vars(options).items() if key not in ("study", "retry_failed")},
        "identity": identity,
    }


def _folder(base: Config, options: StudyOptions, identity: Mapping[str, Any]) -> Path:
    parent = Path(base["checkpoint_dir"])
    if options.study is not None:
        given = Path(str(options.study))
        return given if len(given.parts) > 1 or given.is_absolute() else parent / given
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    smoke = "-smoke" if base["smoke"] else ""
    return parent / f"study-{base.model}-{base.dataset}{smoke}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _open(folder: Path, notes: dict[str, Any]) -> None:
    """Write ``study.json``, or check that the folder's study is the one that was asked for."""
    file = folder / "study.json"
    if file.is_file():
        old = _read_notes(folder)
        if old["identity"] != notes["identity"]:
            changed = [
                key
                for part in ("settings", "search")
                for key in sorted({*old["identity"][part], *notes["identity"][part]})
                if old["identity"][part].get(key) != notes["identity"][part].get(key)
            ]
            changed += ["the search space"] if old["identity"]["space"] != notes["identity"]["space"] else []
            raise CheckpointError(
                f"{folder} holds a study with other settings ({', '.join(changed[:5])}). Continue it with "
                f"`recbole-llm tune --resume={folder}`, or choose another --study=FOLDER."
            )
    temporary = folder / "study.json.tmp"
    temporary.write_text(json.dumps(notes, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, file)


def _read_notes(folder: Path) -> dict[str, Any]:
    file = folder / "study.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} is no study: there is no study.json in it.")
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error}); restore it or begin another study.") from error
    if notes.get("format") != FORMAT:
        raise CheckpointError(f"{file} was written by another version (format {notes.get('format')}, not {FORMAT}).")
    return notes


def _same_data(study: Study, data: SharedData, base: Config) -> None:
    """The data must not change between the trials of a study; reading it first also shows what is wrong with it."""
    with quiet_console():
        dataset, splits = data(base)
    if len(splits[1]) == 0:
        raise ConfigError(
            f"eval_args.split={base['eval_args']['split']!r} leaves no validation data, which trials are compared on. "
            "Use {LS: valid_and_test}, or shares such as {RS: [0.8, 0.1, 0.1]}."
        )
    stamp = study.folder / rundir.DATA_STAMP
    if stamp.is_file() and not rundir.same_data(json.loads(stamp.read_text(encoding="utf-8")), base):
        raise CheckpointError(
            f"The files in {base['data_path']} changed since {study.folder} began, so its trials could not be "
            "compared. Restore them, or begin another study with --study=FOLDER."
        )
    rundir.stamp_data(study.folder, base, dataset)


def _announce(study: Study, base: Config) -> None:
    logger = logging.getLogger()
    states = [trial.state for trial in study.trials]
    ended = [f"{states.count(state)} {state}" for state in ("finished", "pruned", "failed") if state in states]
    if "started" in states:
        ended.append(f"{states.count('started')} interrupted")
    logger.info(
        set_color("Study", "pink")
        + f": {study.folder}"
        + (f", continued ({', '.join(ended)})" if ended else "")
        + f"; algo={study.options.algo}, at most {study.options.max_evals or _size(study.proposals.size)} trials, "
        + f"pruner={study.options.pruner}\n"
        + "\n".join(f"  {parameter}" for parameter in study.space)
    )
    logger.info(set_color("Protocol", "pink") + f": {rundir.protocol(base)}; trials see no test data")


def _size(size: float) -> str:
    return "infinitely many" if size == float("inf") else f"{size:,.0f}"


def _test(study: Study, best: Trial, model: str | type) -> None:
    """Evaluate the winner on test, once; figures go into its ``results.json`` and the study's notes."""
    if best.test is not None:
        return
    run_dir = study.run_dir(best)
    with quiet_console():
        run = quick_start.load_run(run_dir, model=model if isinstance(model, type) else None)
        result, members = quick_start.evaluate_on_test(run.trainer, run.test_data)
    results = rundir.read_results(run_dir)
    results |= rundir.figures_on_test(run.trainer, result, members)
    results["seconds"] |= {phase: round(seconds, 3) for phase, seconds in run.trainer.meter.seconds.items()}
    rundir.write_results(run_dir, rundir.plain(results), run.trainer)
    study.tested(best, {"masked": results["test_masked"], "unmasked": results["test_unmasked"]})
