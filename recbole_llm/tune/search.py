"""The search itself: trials one after the other or under Ray, continued after a crash, the winner tested once."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.utils import set_color

from recbole_llm.config import Config
from recbole_llm.config.schema import StudyOptions
from recbole_llm.config.values import without_code_keys
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.files import whole
from recbole_llm.run.evaluate import evaluate_run
from recbole_llm.run.folder import other_language_models, run_lock, stamp_data, stamp_fits, write_settings
from recbole_llm.run.logging import log_to_console, logging_into
from recbole_llm.run.protocol import protocol_text
from recbole_llm.run.results import read_results
from recbole_llm.tune import page, report
from recbole_llm.tune.options import REPLACED, options_of, optuna
from recbole_llm.tune.planning import PlannedStudy, complete, number_of, plan_study, read_notes, write_notes
from recbole_llm.tune.ray_trials import run_with_ray
from recbole_llm.tune.space import Parameter, check_space, find_space, read_lines, read_space, size_of, space_from_dict
from recbole_llm.tune.study import Study, StudyError, Trial, prune_rule
from recbole_llm.tune.trial import SharedData, quiet_console, run_trial

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
        As ``recbole-llm tune --help`` lists them.

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

    Examples
    --------
    >>> space = {"choice": {"learning_rate": [0.01, 0.001]}}
    >>> result = tune("SASRec", "ml-100k", params_dict=space, config_dict={"smoke": True, "show_progress": False})
    >>> sorted(result["best_params"]), len(resume_study(result["study_dir"])["trials"])
    (['learning_rate'], 2)
    """
    log_to_console()

    def space(base: Config) -> list[Parameter]:
        return space_from_dict(params_dict) if params_dict else read_space(find_space(base.model, params_file))

    study = plan_study(space, model, dataset, config_file_list, config_dict, arguments, options)
    log_to_console(study.base["state"])
    return run_study(study)


def resume_study(folder: str | Path, **options: Any) -> dict[str, Any]:
    """Continue a study from its folder alone; options such as ``max_evals`` may be raised.

    :func:`tune` has an example.

    Raises
    ------
    CheckpointError
        If the folder contains no study.
    """
    log_to_console()
    folder = Path(folder)
    notes = read_notes(folder)
    dropped: list[str] = []
    settings = without_code_keys(notes["settings"], dropped)
    for key in dict.fromkeys(dropped):
        logging.getLogger().warning(
            f"{key} in {folder / 'study.json'} lets a model repository run code and is ignored: if you trust the "
            "repository, continue with the command that began the study."
        )
    chosen = options_of({**notes["options"], **options, "study": str(folder)})
    base = Config(notes["model"], notes["dataset"], None, None, settings)
    space = read_lines(notes["space"], str(folder / "study.json"))
    check_space(space, base, {})
    return run_study(complete(notes["model"], base, space, chosen))


def run_study(planned: PlannedStudy) -> dict[str, Any]:
    """Run a study, or what is left of it; return what :func:`tune` does."""
    optuna()  # fail before creating anything if it is missing
    model, base, settings, folder = planned.model, planned.base, planned.settings, planned.folder
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        write_notes(folder, planned.notes)
        with logging_into(folder, "study.log"):
            measure = base["valid_metric"], base["valid_metric_bigger"]
            study = Study(folder, planned.space, planned.options, *measure, base["seed"])
            try:
                _announce(study, base)
                _search(study, model, base, settings)
                return _finish(study, model, base, settings)
            except KeyboardInterrupt:
                logging.getLogger().warning(
                    f"Interrupted. The same command, or `recbole-llm tune --resume={folder}`, continues."
                )
                raise


def _announce(study: Study, base: Config) -> None:
    states = [trial.state for trial in study.trials]
    ended = [f"{states.count(state)} {state}" for state in ("finished", "pruned", "failed") if state in states]
    ended += [f"{states.count('started')} interrupted"] * ("started" in states)
    continued = f", continued ({', '.join(ended)})" if ended else ""
    options = study.options
    lines = [
        f"{set_color('Study', 'pink')}: {study.folder}{continued}; "
        f"algo={options.algo}, at most {options.max_evals or number_of(size_of(study.space))} trials, "
        f"pruner={options.pruner}",
        *(f"  {parameter}" for parameter in study.space),
    ]
    logging.getLogger().info("\n".join(lines))
    logging.getLogger().info(f"{set_color('Protocol', 'pink')}: {protocol_text(base)}; trials see no test data")


def _search(study: Study, model: str | type, base: Config, settings: Mapping[str, Any]) -> None:
    """Run trials until the study ends."""
    data = SharedData()
    _check_data(study, data, base)
    if study.options.tool == "Ray":
        run_with_ray(study, model, base, settings)
    else:
        while (trial := study.ask()) is not None:
            with quiet_console():
                rule = prune_rule(study.optuna, trial.number, study.options.pruner)
                values = {**settings, **trial.params}
                outcome = run_trial(model, base.dataset, values, study.run_dir(trial), rule, data)
            report.log_end(study, study.tell(trial, outcome))
    logging.getLogger().info(f"The search ended: {study.ended}.")


def _finish(study: Study, model: str | type, base: Config, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate the best trial on test, once, and write ``best.yaml``, ``study.csv`` and ``study.html``."""
    best = study.best
    if best is None:
        errors = [str(trial.details.get("error", "")) for trial in study.trials]
        raise StudyError(f"No trial of {study.folder} finished. The first error: {errors[0] if errors else 'none'}")
    study.tidy(study.trials)  # a crash may have come between a note and this
    if not study.is_tested(best):
        with quiet_console():
            evaluate_run(study.run_dir(best), model=model if isinstance(model, type) else None)
    results = read_results(study.run_dir(best))
    config_file = _write_winner(study, best, base, settings)
    study.write_table()
    page.write_page(study, best, base, results, config_file)
    logging.getLogger().info(report.summary(study, best, base, results, config_file))
    other = "unmasked" if base["mask_history"] else "masked"
    return {
        "best_params": best.params,
        "best_valid_score": best.score,
        "valid_score_bigger": study.bigger,
        "best_valid_result": best.result,
        "test_result": results["test_result"],
        f"test_result_{other}": results[f"test_{other}"],
        "trials": study.trials,
        "study_dir": str(study.folder),
        "run_dir": str(study.run_dir(best)),
        "config_file": str(config_file),
    }


def _write_winner(study: Study, best: Trial, base: Config, settings: Mapping[str, Any]) -> Path:
    """Write the winner's settings, for ``--config_files``."""
    file = study.folder / "best.yaml"
    comment = (
        f"# Trial {best.number} of {study.folder.name} ({len(study.trials)} trials): {study.metric} {best.score!r} on "
        f"validation.\n# {report.command_of(file)}\n"
    )
    winner = {key: value for key, value in settings.items() if key not in LEFT_OUT} | best.params
    with whole(file) as partial:
        write_settings(partial, {"model": base.merged["model"], "dataset": base.dataset, **winner}, comment)
    return file


def _check_data(study: Study, data: SharedData, base: Config) -> None:
    """Raise an error if a study has no validation data, or its data or language model changed since it began."""
    with quiet_console():
        dataset, splits = data(base)
    if len(splits[1]) == 0:
        raise ConfigError(
            f"eval_args.split={base['eval_args']['split']!r} leaves no validation data to compare trials on. Use "
            "{LS: valid_and_test}, or shares such as {RS: [0.8, 0.1, 0.1]}."
        )
    if not stamp_fits(study.folder, base):
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


# ---- the command line


def tune_main(given: Mapping[str, Any]) -> int:
    """Run ``recbole-llm tune``; ``given`` are its parsed arguments."""
    for key in REPLACED.keys() & given.keys():
        raise ConfigError(f"{key}={given[key]!r}: {REPLACED[key]}.")
    names = StudyOptions.types()
    options = {key: value for key, value in given.items() if key in names}
    settings = {key: value for key, value in given.items() if key not in names}
    folder = settings.pop("resume", None)
    params_file = settings.pop("params_file", None)
    if folder is not None:
        if not isinstance(folder, str):
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
