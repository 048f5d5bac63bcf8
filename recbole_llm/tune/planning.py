"""Studies before they run: settings, space and budget are checked, and equal studies get the same folder."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recbole_llm.config import Config
from recbole_llm.config.schema import StudyOptions
from recbole_llm.config.values import SECRETS
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.files import write_json
from recbole_llm.run.identity import changed_settings, comparable_settings, plain
from recbole_llm.run.results import read_json
from recbole_llm.tune.options import options_of
from recbole_llm.tune.space import Parameter, check_countable, check_space, size_of

FORMAT = 4


@dataclass(frozen=True)
class PlannedStudy:
    """A study before it runs: everything is checked, nothing written.

    Attributes
    ----------
    model, base : the model and the settings that trials start from.
    space, options : what is searched and how; ``algo``, ``max_evals`` and ``early_stop`` are decided.
    settings : what all trials share.
    notes : content of ``study.json``.
    folder : where it runs; equal studies have equal folders.
    """

    model: str | type
    base: Config
    space: list[Parameter]
    options: StudyOptions
    settings: dict[str, Any]
    notes: dict[str, Any]
    folder: Path


def plan_study(
    space: Callable[[Config], list[Parameter]],
    model: str | type | None,
    dataset: str | None,
    config_file_list: Sequence[str | Path | Mapping[str, Any]] | None,
    config_dict: Mapping[str, Any] | None,
    arguments: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> PlannedStudy:
    """Check everything about a study without running it.

    Parameters
    ----------
    space : callable
        Returns what is searched, given the settings that trials start from.
    model, dataset, config_file_list, config_dict, arguments, options
        As :func:`recbole_llm.tune.search.tune`, whose errors it has.
    """
    chosen = options_of(options)
    base = Config(model, dataset, config_file_list, config_dict, arguments)
    named: str | type = model if isinstance(model, type) else base.merged["model"]
    searched = space(base)
    check_space(searched, base, {**dict(config_dict or {}), **dict(arguments or {})})
    return complete(named, base, searched, chosen)


def complete(model: str | type, base: Config, space: list[Parameter], options: StudyOptions) -> PlannedStudy:
    """Decide what the options leave open, and where the study runs."""
    settings, options = fixed_settings(base, space), decided(options, space)
    notes = _notes(base, settings, space, options)
    return PlannedStudy(model, base, space, options, settings, notes, _folder(base, options, notes["identity"]))


def decided(options: StudyOptions, space: Sequence[Parameter]) -> StudyOptions:
    """Complete the options with the algorithm and the limits that the size of the space suggests.

    Raises
    ------
    ConfigError
        For an algorithm that does not suit the space.
    """
    size = size_of(space)
    algo = options.algo or ("exhaustive" if size <= (options.max_evals or 100) else "bayes")
    exhaustive = algo == "exhaustive"
    if exhaustive:
        check_countable(space)
        if options.max_evals is not None and options.max_evals < size:
            raise ConfigError(
                f"algo=exhaustive tries all {size:,} combinations, but max_evals={options.max_evals}. Use "
                f"--algo=random or --algo=bayes for a part of them, or --max_evals={size}."
            )
    if options.algo is None:
        logging.getLogger().info(f"algo={algo}: the space has {number_of(size)} settings.")
    return replace(
        options,
        algo=algo,
        max_evals=options.max_evals if exhaustive or options.max_evals else 100,
        early_stop=(0 if exhaustive else 20) if options.early_stop is None else options.early_stop,
    )


def number_of(size: float) -> str:
    """Return the number of settings in a space in words."""
    return "infinitely many" if size == float("inf") else f"{size:,}"


def fixed_settings(base: Config, space: Sequence[Parameter]) -> dict[str, Any]:
    """Collect the settings shared by all trials, once, so that editing a file changes no later trial."""
    searched = {parameter.name for parameter in space}
    given = set(base.external_config_dict)
    if base.merged.get("smoke"):
        given |= {*base.internal_config_dict["smoke_settings"], "smoke_settings"}
    given -= searched | {"model", "dataset", "resume", "config_files"}
    return {key: base.merged[key] for key in sorted(given) if key in base.merged}


# ---- study.json


def _notes(
    base: Config, settings: Mapping[str, Any], space: Sequence[Parameter], options: StudyOptions
) -> dict[str, Any]:
    """Return the content of ``study.json``; studies with the same ``identity`` are the same."""
    searched = {parameter.name for parameter in space}
    lines = [str(parameter) for parameter in space]
    identity = {key: value for key, value in base.merged.items() if key not in searched}
    identity |= {"the search space": lines, "algo": options.algo}
    if options.algo == "bayes":
        identity["random_trials"] = options.random_trials
    if options.pruner != "none":
        identity |= {key: value for key, value in vars(options).items() if key.startswith("prune")}
    return {
        "format": FORMAT,
        "model": base.merged["model"],
        "dataset": base.dataset,
        "settings": plain({key: value for key, value in settings.items() if key not in SECRETS}),
        "space": lines,
        "options": {key: value for key, value in vars(options).items() if key not in ("study", "retry_failed")},
        "identity": comparable_settings(identity),
    }


def _folder(base: Config, options: StudyOptions, identity: Mapping[str, Any]) -> Path:
    parent = Path(base["checkpoint_dir"])
    if options.study is not None:
        given = Path(str(options.study))
        return given if len(given.parts) > 1 or given.is_absolute() else parent / given
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    smoke = "-smoke" if base["smoke"] else ""
    return parent / f"study-{base.model}-{base.dataset}{smoke}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def write_notes(folder: Path, notes: dict[str, Any]) -> None:
    """Write ``study.json``, once it is certain that the folder contains no other study."""
    file = folder / "study.json"
    if file.is_file() and (changed := changed_settings(read_notes(folder)["identity"], notes["identity"])):
        raise CheckpointError(
            f"{folder} holds a study with other settings ({', '.join(changed[:5])}). Continue it with "
            f"`recbole-llm tune --resume={folder}`, or choose another --study=FOLDER."
        )
    write_json(file, notes)


def read_notes(folder: Path) -> dict[str, Any]:
    """Read ``study.json``.

    Raises
    ------
    CheckpointError
        If the folder holds no study, or one of another version.
    """
    file = folder / "study.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} is not a study: it has no study.json in it.")
    notes = read_json(file)
    if notes["format"] != FORMAT:
        raise CheckpointError(
            f"{file} was written by another version (format {notes['format']}, not {FORMAT}). Begin another study "
            "with --study=FOLDER."
        )
    return notes
