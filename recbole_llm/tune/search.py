"""The search itself: trials one after the other or under Ray, continued after a crash, the winner tested once."""

import hashlib
import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole.utils import set_color

from recbole_llm.config import Config
from recbole_llm.config.values import SECRETS, nearest, without_code_keys
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.run.evaluate import evaluate_on_test
from recbole_llm.run.folder import DATA_STAMP, other_language_models, run_lock, same_data, stamp_data, write_settings
from recbole_llm.run.identity import CIRCUMSTANCES, plain
from recbole_llm.run.load import load_run
from recbole_llm.run.logging import log_to_console, logging_into
from recbole_llm.run.protocol import protocol_text
from recbole_llm.run.results import read_results, test_figures, write_results
from recbole_llm.tune import report
from recbole_llm.tune.options import StudyOptions, optuna, split_options
from recbole_llm.tune.ray_trials import run_with_ray
from recbole_llm.tune.space import (
    Parameter,
    check_space,
    find_space,
    grid,
    read_lines,
    read_space,
    size_of,
    space_from_dict,
)
from recbole_llm.tune.study import Study, StudyError, Trial, prune_rule
from recbole_llm.tune.trial import SharedData, quiet_console, run_trial

FORMAT = 2
# Settings that best.yaml leaves to the user.
LEFT_OUT = frozenset({"checkpoint_dir", "show_progress", "state", "save_state", "resume"})


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
        For invalid options, spaces or settings.
    StudyError
        If no trial finished.
    """
    _check_names(options)
    log_to_console()
    base = Config(model, dataset, config_file_list, config_dict, arguments)
    log_to_console(base["state"])
    chosen: str | type = model if isinstance(model, type) else base.merged["model"]
    space = space_from_dict(params_dict) if params_dict else read_space(find_space(base.model, params_file))
    check_space(space, base, {**dict(config_dict or {}), **dict(arguments or {})})
    return _study(chosen, base, space, StudyOptions(**options))


def resume_study(folder: str | Path, **options: Any) -> dict[str, Any]:
    """Continue a study from its folder alone; options such as ``max_evals`` may be raised.

    Raises
    ------
    CheckpointError
        If the folder contains no study.
    """
    _check_names(options)
    log_to_console()
    folder = Path(folder)
    notes = _read_notes(folder)
    dropped: list[str] = []
    settings = without_code_keys(notes["settings"], dropped)
    for key in dict.fromkeys(dropped):
        logging.getLogger().warning(
            f"{key} in {folder / 'study.json'} lets a model repository run code and is ignored: if you trust the "
            "repository, continue with the command that began the study."
        )
    base = Config(notes["model"], notes["dataset"], None, None, settings)
    space = read_lines(notes["space"], str(folder / "study.json"))
    check_space(space, base, {})
    return _study(notes["model"], base, space, StudyOptions(**{**notes["options"], **options, "study": str(folder)}))


def _check_names(options: Mapping[str, Any]) -> None:
    for key in options:
        if key not in StudyOptions.names():
            raise ConfigError(f"{key!r} is not an option of a study.{nearest(key, StudyOptions.names())}")


def _study(model: str | type, base: Config, space: list[Parameter], options: StudyOptions) -> dict[str, Any]:
    logger = logging.getLogger()
    optuna()  # fail before creating anything if it is missing
    settings = fixed_settings(base, space)
    options = _decided(options, space)
    notes = _notes(base, settings, space, options)
    folder = _folder(base, options, notes["identity"])
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        _open(folder, notes)
        with logging_into(folder, "study.log"):
            study = Study(folder, space, options, base["valid_metric"], base["valid_metric_bigger"], base["seed"])
            try:
                return _carry_out(study, model, base, settings)
            except KeyboardInterrupt:
                logger.warning(f"Interrupted. The same command, or `recbole-llm tune --resume={folder}`, continues.")
                raise


def _decided(options: StudyOptions, space: Sequence[Parameter]) -> StudyOptions:
    """Complete the options with the algorithm and the number of trials.

    Raises
    ------
    ConfigError
        For an algorithm that does not suit the space.
    """
    size = size_of(space)
    algo = options.algo or ("exhaustive" if size <= (options.max_evals or 100) else "bayes")
    exhaustive = algo == "exhaustive"
    if exhaustive:
        grid(space)  # no ranges
        if options.max_evals is not None and options.max_evals < size:
            raise ConfigError(
                f"algo=exhaustive tries all {size:,.0f} combinations, but max_evals={options.max_evals}. Use "
                f"--algo=random or --algo=bayes for a part of them, or --max_evals={size:.0f}."
            )
    if options.algo is None:
        logging.getLogger().info(f"algo={algo}: the space has {_size(size)} settings.")
    return replace(
        options,
        algo=algo,
        max_evals=options.max_evals if exhaustive or options.max_evals else 100,
        early_stop=(0 if exhaustive else 20) if options.early_stop is None else options.early_stop,
    )


def _carry_out(study: Study, model: str | type, base: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    logger = logging.getLogger()
    _announce(study, base)
    data = SharedData()
    _same_data(study, data, base)
    if study.options.tool == "Ray":
        run_with_ray(study, model, base, settings)
    else:
        while (trial := study.ask()) is not None:
            with quiet_console():
                outcome = run_trial(
                    model,
                    base.dataset,
                    {**settings, **trial.params},
                    study.run_dir(trial),
                    prune_rule(study.optuna, trial.number),
                    data,
                )
            trial = study.tell(trial, outcome)
            logger.info(report.trial_line(trial, study.best, study.options.max_evals, study.metric))
    best = study.best
    if best is None:
        errors = [trial.details.get("error", "") for trial in study.trials]
        raise StudyError(f"No trial of {study.folder} finished. The first error: {errors[0] if errors else 'none'}")
    logger.info(f"The search ended: {study.why_ended()}.")
    for trial in study.trials:  # a crash may have come between a note and this
        study.tidy(trial, best)
    _test(study, best, model)
    best = study.trials[best.number]
    config_file = study.folder / "best.yaml"
    command = f"recbole-llm --config_files={shlex.quote(str(config_file))}"
    comment = (
        f"# Trial {best.number} of {study.folder.name} ({len(study.trials)} trials): {study.metric} {best.score!r} on "
        f"validation.\n# {command}\n"
    )
    winner = {key: value for key, value in settings.items() if key not in LEFT_OUT} | best.params
    write_settings(config_file, {"model": base.merged["model"], "dataset": base.dataset, **winner}, comment)
    study.write_table()
    report.write_page(study, base, read_results(study.run_dir(best)), command)
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
    """Collect the settings shared by all trials, once, so that editing a file changes no later trial."""
    searched = {parameter.name for parameter in space}
    given = set(base.external_config_dict)
    if base.merged.get("smoke"):
        given |= {*base.internal_config_dict["smoke_settings"], "smoke_settings"}
    given -= searched | {"model", "dataset", "resume", "config_files"}
    return {key: base.merged[key] for key in sorted(given) if key in base.merged}


def _notes(
    base: Config, settings: Mapping[str, Any], space: Sequence[Parameter], options: StudyOptions
) -> dict[str, Any]:
    """Return the content of ``study.json``; studies with the same ``identity`` are the same."""
    searched = {parameter.name for parameter in space}
    merged = {
        key: value for key, value in base.merged.items() if key not in CIRCUMSTANCES | searched and value is not None
    }
    search = {"algo": options.algo}
    if options.algo == "bayes":
        search["random_trials"] = str(options.random_trials)
    if options.pruner != "none":
        search |= {key: str(getattr(options, key)) for key in StudyOptions.names() if key.startswith("prune")}
    lines = [str(parameter) for parameter in space]
    identity = plain({"settings": merged, "space": lines, "search": search})
    return {
        "format": FORMAT,
        "model": base.merged["model"],
        "dataset": base.dataset,
        "settings": plain({key: value for key, value in settings.items() if key not in SECRETS}),
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
    """Write ``study.json``, or check that the folder contains the same study."""
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
        raise CheckpointError(f"{folder} is not a study: it has no study.json in it.")
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error}); restore it or begin another study.") from error
    if notes.get("format") != FORMAT:
        raise CheckpointError(f"{file} was written by another version (format {notes.get('format')}, not {FORMAT}).")
    return notes


def _same_data(study: Study, data: SharedData, base: Config) -> None:
    """Hash the data, which must not change between trials; reading it first also shows its errors early."""
    with quiet_console():
        dataset, splits = data(base)
    if len(splits[1]) == 0:
        raise ConfigError(
            f"eval_args.split={base['eval_args']['split']!r} leaves no validation data, which trials are compared on. "
            "Use {LS: valid_and_test}, or shares such as {RS: [0.8, 0.1, 0.1]}."
        )
    stamp = study.folder / DATA_STAMP
    if stamp.is_file() and not same_data(json.loads(stamp.read_text(encoding="utf-8")), base):
        raise CheckpointError(
            f"The files in {base['data_path']} changed since {study.folder} began, so its trials could not be "
            "compared. Restore them, or begin another study with --study=FOLDER."
        )
    for run_dir in sorted((study.folder / "trials").glob("*")):
        if changed := other_language_models(run_dir, base):
            raise CheckpointError(
                f"{study.folder} began with another language model: llm={changed[0]}. Name the model with "
                "--llm=NAME, or begin another study with --study=FOLDER."
            )
    stamp_data(study.folder, base, dataset)


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
        + f"; algo={study.options.algo}, at most {study.options.max_evals or _size(study.size)} trials, "
        + f"pruner={study.options.pruner}\n"
        + "\n".join(f"  {parameter}" for parameter in study.space)
    )
    logger.info(set_color("Protocol", "pink") + f": {protocol_text(base)}; trials see no test data")


def _size(size: float) -> str:
    return "infinitely many" if size == float("inf") else f"{size:,.0f}"


def _test(study: Study, best: Trial, model: str | type) -> None:
    """Evaluate the best trial on test, once; store metrics in its ``results.json`` and the study's notes."""
    if best.test is not None:
        return
    run_dir = study.run_dir(best)
    with quiet_console():
        run = load_run(run_dir, model=model if isinstance(model, type) else None)
        result, members = evaluate_on_test(run.trainer, run.test_data)
    results = read_results(run_dir)
    results |= test_figures(run.trainer, result, members)
    for key, measured in (("seconds", run.trainer.meter.seconds), ("cpu_seconds", run.trainer.meter.cpu_seconds)):
        results[key] = {**results.get(key, {}), **{phase: round(value, 3) for phase, value in measured.items()}}
    write_results(run_dir, plain(results), run.trainer)
    study.tested(best, {"masked": results["test_masked"], "unmasked": results["test_unmasked"]})


def tune_main(given: Mapping[str, Any]) -> int:
    """Run ``recbole-llm tune``; ``given`` are its parsed arguments."""
    options, settings = split_options(given)
    folder = settings.pop("resume", None)
    params_file = settings.pop("params_file", None)
    if folder is not None:
        if folder is True or not isinstance(folder, str):
            raise ConfigError("--resume needs the folder of a study here: --resume=saved/study-...")
        others = sorted({*settings, *(["params_file"] if params_file else [])} - {"show_progress"})
        if others:
            raise ConfigError(
                f"A study continues with its own settings: --resume={folder} takes options such as --max_evals=N, but "
                f"not {', '.join(others)}."
            )
        resume_study(folder, **options)
        return 0
    if "," in str(settings.get("model", "")):
        raise ConfigError(
            f"--model={settings['model']}: a study searches the settings of one model; start one for each."
        )
    if params_file is True:
        raise ConfigError("--params_file needs a file: --params_file=FILE.")
    tune(params_file=params_file, arguments=settings, **options)
    return 0
