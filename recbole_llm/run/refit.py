"""``recbole-llm refit``: train on all interactions, for production, for as long as validation chose."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.config import Config
from recbole_llm.config.arguments import CommandParser, parse_arguments
from recbole_llm.config.values import refuse_others
from recbole_llm.errors import CheckpointError, UnsupportedError
from recbole_llm.run.experiment import run
from recbole_llm.run.identity import SERVING, changed_language_models
from recbole_llm.run.logging import log_to_console
from recbole_llm.run.results import read_results

# Where and how the new run is executed, and the runs that it builds on.
SETTINGS = sorted(SERVING | {"checkpoint_dir", "log_wandb", "wandb_project", "save_state", "retriever", "init_from"})

HELP = """\
Train a model for production: on all interactions, those of validation and test included.

Validation has chosen how many optimizer steps are best. The new run takes as many from a fresh start, with the
settings and the learning rates of the given run, and no figures can tell how good it is: report those of the given
run, and serve this one.

examples:
  recbole-llm refit saved/LRURec-ml-100k-...
  recbole-llm refit saved/LlamaRec-ml-100k-... --retriever=saved/LRURec-ml-100k-refit-...
"""


def refit_main(argv: Sequence[str]) -> int:
    """Run ``recbole-llm refit`` with the arguments that follow the command; return the exit status."""
    parser = CommandParser("refit", HELP, SETTINGS)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="directory of a finished run")
    given, rest = parser.parse_known_args(list(argv))
    log_to_console()
    refit(given.run_dir, parse_arguments(rest))
    return 0


def refit(
    run_dir: str | Path, config_dict: Mapping[str, Any] | None = None, model: type | None = None
) -> dict[str, Any]:
    """Train the model of a finished run on all interactions, for the number of updates that validation chose.

    Parameters
    ----------
    run_dir : str or pathlib.Path
        Of a finished run.
    config_dict : dict, optional
        Where and how the new run is executed, such as ``{"checkpoint_dir": "models"}``; ``retriever`` and
        ``init_from`` name refitted runs that it builds on.
    model : class, optional
        As :func:`recbole_llm.quick_start.load_run`.

    Returns
    -------
    dict
        As :func:`recbole_llm.quick_start.run`; without results of validation and test.

    Raises
    ------
    CheckpointError
        If the directory is no finished run, or ``llm: auto`` means another model now.
    ConfigError
        For a setting that a refit cannot change.
    UnsupportedError
        For a model that combines finished runs or chooses among settings by validation, and for runs that are a
        control or a refit themselves.

    Examples
    --------
    >>> from recbole_llm import run
    >>> run_dir = run("SASRec", "ml-100k", config_dict={"smoke": True, "show_progress": False})["run_dir"]
    >>> refit(run_dir)["run_dir"]
    'saved/SASRec-ml-100k-smoke-refit-...'
    """
    run_dir, given = Path(run_dir), dict(config_dict or {})
    remedy = "It trains with the settings of its run, whose number of updates would not fit others."
    refuse_others(given, SETTINGS, "cannot be changed by a refit", remedy)
    results = read_results(run_dir)
    _check(results, run_dir)
    stored = [run_dir / "config.yaml"]
    changed = changed_language_models(results["auto"], Config(model, None, stored, given))
    if changed:
        raise CheckpointError(f"{run_dir} used another language model: {', '.join(changed)}. Make that one available.")
    settings = {**given, "final_fit": plan_of(results, run_dir.name), "cold_items": 0.0}
    return run(model, None, stored, settings)


def plan_of(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the setting ``final_fit`` that follows from the results of a run.

    >>> stage = {"stage": "train", "best_updates": 20, "planned_updates": 100}
    >>> plan_of({"stages": [stage]}, "LRURec-ml-100k-...")["stages"]
    {'train': {'updates': 20, 'planned_updates': 100}}
    """
    stages = {
        stage["stage"]: {"updates": stage["best_updates"], "planned_updates": stage["planned_updates"]}
        for stage in results["stages"]
    }
    return {"run": name, "stages": stages}


def _check(results: Mapping[str, Any], run_dir: Path) -> None:
    """Raise UnsupportedError for runs from which no final fit follows."""
    control = results["protocol"]["control"]
    if results.get("final_fit"):
        raise UnsupportedError(f"{run_dir} has been trained on all interactions: there is nothing to refit.")
    if control != "none":
        raise UnsupportedError(f"{run_dir} is a control ({control}): refit the run without it.")
    if results["members"] or results["chosen_from"]:
        raise UnsupportedError(
            f"{results['model']} has no weights of its own: it combines models by a setting that validation chose. "
            "Refit its members and serve those."
        )
