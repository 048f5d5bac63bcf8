"""Rows that are tuned before they are run: a study for each, on validation data, with the same budget."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from recbole_llm.compare.plan import Plan
from recbole_llm.run.identity import plain
from recbole_llm.tune.planning import PlannedStudy, plan_study
from recbole_llm.tune.search import run_study
from recbole_llm.tune.space import space_from_dict

Studies = dict[str, dict[str, Any]]


def with_settings_found(
    plan: Plan,
    make: Callable[[Mapping[str, Mapping[str, Any]]], Plan],
    known: Mapping[str, Mapping[str, Any]] | None = None,
    labels: Collection[str] | None = None,
) -> tuple[Plan, Studies]:
    """Run the studies of the rows that have a search, and return the plan with the settings found.

    Parameters
    ----------
    plan : Plan
        Without settings of searches.
    make : callable
        Makes the plan again, given settings by label.
    known : dict, optional
        Summaries of studies of earlier calls; one of the same study is used instead of running it.
    labels : list of str, optional
        Run studies of these rows only.

    Returns
    -------
    plan : Plan
    studies : dict
        By label ``study`` (name), ``space``, ``options``, ``seed``, ``metric``, ``best_params``, ``best_valid_score``,
        ``trials`` and ``seconds`` (in trials). Rows whose study was neither known nor run have none.

    Raises
    ------
    ConfigError
        For a space that cannot be searched.
    StudyError
        If no trial of a study finished.
    """
    studies: Studies = {}
    for label, planned in {label: _planned(plan, label) for label in plan.searches}.items():
        before = (known or {}).get(label)
        if before is not None and (before["study"], before["options"]) == (planned.folder.name, _budget(planned)):
            studies[label] = dict(before)
        elif labels is None or label in labels:
            logging.getLogger().info(f"{label} is tuned in {planned.folder}.")
            studies[label] = _summary(planned, run_study(planned))
    found = {label: study["best_params"] for label, study in studies.items()}
    return (make(found) if found else plan), studies


def _planned(plan: Plan, label: str) -> PlannedStudy:
    """Plan the study of a row; its trials have the settings of the row's runs, but the usual seed."""
    job = next(job for job in plan.jobs if job.label == label)
    kinds: dict[str, dict[str, Any]] = {}
    for key, values in plan.searches[label].items():
        kind, _, numbers = values.partition(" ") if isinstance(values, str) else ("choice", "", "")
        kinds.setdefault(kind, {})[key] = numbers if isinstance(values, str) else values
    space = space_from_dict(kinds, f"{label}, search")
    arguments = {key: value for key, value in job.arguments.items() if key != "seed"}
    options = plan.options["tune"] or {}
    return plan_study(lambda _: space, job.model, plan.dataset, [job.file_settings], job.given, arguments, options)


def _budget(planned: PlannedStudy) -> dict[str, Any]:
    options = planned.options
    return plain({key: getattr(options, key) for key in ("algo", "max_evals", "early_stop", "max_hours", "pruner")})


def _summary(planned: PlannedStudy, result: Mapping[str, Any]) -> dict[str, Any]:
    trials = result["trials"]
    return {
        "study": planned.folder.name,
        "space": [str(parameter) for parameter in planned.space],
        "options": _budget(planned),
        "seed": planned.base["seed"],
        "metric": planned.base["valid_metric"],
        "best_params": plain(result["best_params"]),
        "best_valid_score": float(result["best_valid_score"]),
        "trials": len(trials),
        "seconds": sum(float(trial.details.get("seconds") or 0.0) for trial in trials),
    }
