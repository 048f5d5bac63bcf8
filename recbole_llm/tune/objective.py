"""For scripts that call RecBole's ``HyperTuning`` themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.config import Config
from recbole_llm.run import experiment
from recbole_llm.run.folder import create_run_dir
from recbole_llm.run.logging import log_to_console, logging_into


def objective_function(
    config_dict: Mapping[str, Any] | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    saved: bool = False,
) -> dict[str, Any]:
    """One run for RecBole's ``HyperTuning(objective_function, ...)``; model and dataset stand in the settings.

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
