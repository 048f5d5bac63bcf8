"""``recbole-llm evaluate``: evaluate saved weights of a run without results, or under another protocol."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recbole_llm.config import Config
from recbole_llm.config.arguments import CommandParser
from recbole_llm.config.values import as_list
from recbole_llm.data.controls import OF_TEXT, control_of
from recbole_llm.data.loader import EvaluationLoader
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.evaluator.timing import inference_times
from recbole_llm.own_code import explain_own_code
from recbole_llm.run.folder import DATA_STAMP, RESULTS, advice_when_writing_fails, changed_files, run_lock, settings_of
from recbole_llm.run.identity import SERVING
from recbole_llm.run.load import Run, load_with
from recbole_llm.run.logging import log_to_console, logging_into
from recbole_llm.run.results import (
    read_json,
    read_training_record,
    results_of,
    write_evaluation,
    write_results,
)
from recbole_llm.run.summary import print_summary
from recbole_llm.trainer.trainer import RunTrainer

# Settings that may differ from the run: those of evaluation, not of training.
PROTOCOL = frozenset(
    {"topk", "metrics", "mask_history", "control", "control_seed", "timing_batches", "metric_decimal_place"}
)
SETTINGS = sorted(PROTOCOL | SERVING)

HELP = """\
Evaluate the saved weights of a run whose training has ended.

If the run has no results.json yet, because the disk was full or the process was killed, this writes it. Otherwise,
and under another protocol, results go to RUN_DIR/evaluations/<time>/ (or --out) and the run is not changed.

examples:
  recbole-llm evaluate saved/SASRec-ml-100k-...                                finish it, or compute it again
  recbole-llm evaluate saved/SASRec-ml-100k-... --topk=1,5,50 --metrics=Recall,NDCG
  recbole-llm evaluate saved/SASRec-ml-100k-... --mask_history=False
  recbole-llm evaluate saved/SASRec-ml-100k-... --control=shuffled_history
"""


def evaluate_main(argv: Sequence[str]) -> int:
    """Run ``recbole-llm evaluate`` with the arguments that follow the command; return the exit status."""
    parser = CommandParser("evaluate", HELP, SETTINGS)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="directory of a run whose training has ended")
    parser.add_argument("--out", metavar="DIR", help="folder for results.json and test_ranks.npz")
    remedy = "`recbole-llm evaluate --help` lists what can; train again for another value."
    given, settings = parser.parse_with_settings(argv, "cannot be changed by an evaluation", remedy)
    log_to_console()
    evaluate_run(given.run_dir, settings, out=given.out)
    return 0


def evaluate_run(
    run_dir: str | Path,
    config_dict: Mapping[str, Any] | None = None,
    model: type | None = None,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate the saved weights of a run on its test set.

    Parameters
    ----------
    run_dir : str or pathlib.Path
        Of a run whose training has ended. If it has no results yet and ``config_dict`` leaves the protocol alone,
        this finishes the run.
    config_dict : dict, optional
        Settings to change, such as ``{"topk": [1, 5], "mask_history": False}``.
    model : class, optional
        As :func:`recbole_llm.quick_start.load_run`.
    out : str or pathlib.Path, optional
        Folder for the results of an evaluation that does not finish the run; default
        ``RUN_DIR/evaluations/<time>``.

    Returns
    -------
    dict
        What ``results.json`` holds.

    Raises
    ------
    CheckpointError
        If training has not ended, or the directory does not fit the data.

    Examples
    --------
    >>> evaluate_run("saved/SASRec-ml-100k-2026-01-31_12-00-00", {"topk": [1, 5]})  # doctest: +SKIP
    """
    run_dir, given = Path(run_dir), dict(config_dict or {})
    training, settings = read_training_record(run_dir), settings_of(run_dir)
    if settings.get("final_fit"):
        raise CheckpointError(f"{run_dir} was trained on all interactions: nothing is left to evaluate it on.")
    _check_control(run_dir, settings, given)
    config = _config(run_dir, settings, given, model)
    finished = (run_dir / RESULTS).is_file()
    if not finished and not PROTOCOL & set(given) and out is None:
        with run_lock(run_dir), logging_into(run_dir):
            return _finish(config, run_dir, training)[1]
    files = training["dataset"]["files"] if finished else read_json(run_dir / DATA_STAMP)
    run = load_with(config, run_dir, files)
    if control_of(config) in OF_TEXT and control_of(config) != control_of(settings):
        plain = {key: value for key, value in given.items() if not key.startswith("control")}
        _check_effect(run, load_with(_config(run_dir, settings, plain, model), run_dir, files))
    results = _evaluated(run, training)
    folder = Path(out) if out is not None else run_dir / "evaluations" / time.strftime("%Y-%m-%d_%H-%M-%S")
    write_evaluation(folder, results, run.trainer)
    print_summary(config, results, folder)
    return results


def finish(config: Config, run_dir: Path) -> dict[str, Any]:
    """Compute and write the results of a run whose training has ended; returns what ``run`` does."""
    run, results = _finish(config, run_dir, read_training_record(run_dir))
    keys = ("best_valid_score", "best_valid_result", "test_result", "stages", "members")
    return {
        **{key: results[key] for key in keys},
        "valid_score_bigger": config["valid_metric_bigger"],
        "test_result_unmasked": results["test_unmasked"],
        "run_dir": str(run_dir),
    }


def _finish(config: Config, run_dir: Path, training: Mapping[str, Any]) -> tuple[Run, dict[str, Any]]:
    files = read_json(run_dir / DATA_STAMP)
    changed = changed_files(files, config)
    if changed:
        raise CheckpointError(f"{run_dir} was started on other data: {', '.join(changed)} changed.")
    run = load_with(config, run_dir, files)
    results = _evaluated(run, training)
    with advice_when_writing_fails(run_dir):
        write_results(run_dir, results, run.trainer)
    print_summary(config, results, run_dir)
    return run, results


@explain_own_code()
def _evaluated(run: Run, training: Mapping[str, Any]) -> dict[str, Any]:
    test_result, members = evaluate_on_test(run.trainer, run.test_data, run.config["show_progress"])
    times = time_inference(run.config, run.trainer, run.test_data)
    return results_of(run.config, run.dataset, run.trainer, training, test_result, members, times)


def _config(run_dir: Path, settings: Mapping[str, Any], given: dict[str, Any], model: type | None) -> Config:
    """Merge given settings into the run's; the metric that chose its epoch stays, even if not computed."""
    for key in ("topk", "metrics"):
        if key in given:
            given[key] = as_list(given[key])
    chosen_by = settings["valid_metric"]
    if {"topk", "metrics"} & set(given):
        metrics, topk = given.get("metrics", settings["metrics"]), given.get("topk", settings["topk"])
        first = [value if isinstance(value, (str, int)) else next(iter(value), "") for value in (metrics, topk)]
        given["valid_metric"] = f"{first[0]}@{first[1]}"
    config = Config(model, None, [run_dir / "config.yaml"], given)
    config["valid_metric"] = config.merged["valid_metric"] = chosen_by
    return config


def _check_control(run_dir: Path, settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if "control" not in given:
        return
    asked, trained = control_of({"control": given["control"]}), control_of(settings)
    if asked != trained and (trained != "none" or asked == "shuffled_history_train"):
        why = f"the run was trained under control={trained!r}" if trained != "none" else "it is a control of training"
        raise ConfigError(f"control={asked!r} cannot be applied to {run_dir}: {why}. Train with it instead.")


def _check_effect(run: Run, without: Run) -> None:
    """Raise ConfigError if a control of the texts cannot affect the scores, which depend on weights only."""
    control, rows = control_of(run.config), next(iter(run.test_data))[0]
    if torch.equal(*(each.trainer.evaluator.scores(each.model, rows, each.dataset) for each in (run, without))):
        raise ConfigError(
            f"control={control!r} has no effect: {run.config['model']} has stored the texts in its weights. "
            "Train with the control instead."
        )
    run.config.notices.append(f"control={control} was applied at evaluation: the model was trained without it.")


def evaluate_on_test(
    trainer: RunTrainer, test_data: EvaluationLoader, show_progress: bool = False
) -> tuple[dict[str, float] | None, list[dict[str, Any]] | None]:
    """Evaluate the best weights and a hybrid's members on test; None if there is no test data."""
    with trainer.meter.phase("test"):
        result = trainer.evaluate(test_data, show_progress=show_progress)
    members = None
    if test_data is not None and trainer.model.members:
        with trainer.meter.phase("test_members"):
            members = trainer.evaluator.evaluate_members(trainer.model.members, test_data, show_progress)
    return result, members


def time_inference(config: Config, trainer: RunTrainer, test_data: EvaluationLoader) -> dict[str, float] | None:
    """Measure inference times, if ``timing_batches`` is set."""
    if not config["timing_batches"] or test_data is None:
        return None
    with trainer.evaluator.precision(trainer.model):
        return inference_times(
            trainer.model,
            test_data,
            trainer.device,
            max(config["topk"]),
            int(config["timing_batches"]),
            show_progress=config["show_progress"],
        )
