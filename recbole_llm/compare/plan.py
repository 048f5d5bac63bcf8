"""Plans of comparisons: rows times seeds, each with its settings, under one protocol."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_llm.config import Config
from recbole_llm.config.given import check_value
from recbole_llm.config.registry import listed_files, property_file, props_dir
from recbole_llm.config.schema import Comparison as ComparisonSettings
from recbole_llm.config.values import as_list, load_yaml, nearest
from recbole_llm.data.controls import control_of
from recbole_llm.errors import ConfigError
from recbole_llm.run.identity import comparable_settings, plain
from recbole_llm.run.logging import only_errors
from recbole_llm.run.protocol import FILTERS

# Rows that differ in one of these are not evaluated alike.
PROTOCOL = (
    *("protocol", "temporal_session_test_ratio", "temporal_session_fold", "temporal_session_folds"),
    *("temporal_session_valid_ratio", "temporal_session_valid_max", "temporal_session_seed"),
    *("eval_args", "mask_history", "time_order", "metrics", "topk", "popularity_counts", "task", "topn_negatives"),
    *("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "data_path", "smoke", "smoke_users", "smoke_interactions"),
    *FILTERS,
)


@dataclass(frozen=True)
class Job:
    """One run: a row of the comparison with one seed.

    Attributes
    ----------
    model : name, or a class of the user's own.
    config : the settings it will have.
    file_settings, given, arguments : what :class:`Config` makes them from, as files, dictionary and command line.
    """

    label: str
    seed: int
    model: str | type
    config: Config
    file_settings: dict[str, Any]
    given: dict[str, Any]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The plan of a comparison.

    Attributes
    ----------
    dataset : name.
    labels : rows, in order.
    jobs : all runs; every row's first seed comes before any row's second.
    options : the keys of ``props/compare.yaml``.
    directory : where tables and report go.
    warnings : what was odd about the settings.
    searches : by label, the space of a row that is tuned before it is run.
    """

    dataset: str
    labels: list[str]
    jobs: list[Job]
    options: dict[str, Any]
    directory: Path
    warnings: list[str]
    searches: dict[str, dict[str, Any]]


@dataclass
class _Entry:
    """A row as requested; ``given`` has its settings if it came from Python, else ``file_settings``."""

    label: str
    model: str | type
    file_settings: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of ``props/compare.yaml``: as given, else their defaults.

    Raises
    ------
    ConfigError
        For a value that is not allowed.
    """
    defaults = property_file(props_dir() / "compare.yaml")
    options = {key: given.get(key, default) for key, default in defaults.items()}
    for key in ("seeds", "baselines"):
        if options[key] is not None:
            options[key] = as_list(options[key])
    for key, value in options.items():
        check_value(key, value, ComparisonSettings.types())
    seeds = options["seeds"]
    if seeds is not None and (not seeds or len(set(seeds)) < len(seeds)):
        raise ConfigError(f"seeds={given['seeds']!r} must be different whole numbers from 0, such as --seeds=1,2,3.")
    return options


def make_plan(
    models: Sequence[Any] | str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    found: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Resolve everything before anything runs. Parameters are those of :func:`recbole_llm.compare.compare`.

    ``found`` has, by label, the settings that the search of a row has ended with.

    Raises
    ------
    ConfigError
        For unknown models or values, labels that are not unique, and rows that would not be evaluated alike.
    """
    given, arguments = dict(config_dict or {}), dict(arguments or {})
    dotted = {key: arguments.pop(key) for key in list(arguments) if "." in key}
    files: dict[str, Any] = {}
    for file in [*(config_file_list or []), *listed_files({**given, **arguments}.get("config_files"))]:
        files.update(load_yaml(Path(file)))
    everything = {**files, **given, **arguments}
    options = options_of(everything)
    entries = _entries(models, files, given, arguments)
    for entry in entries:
        entry.file_settings |= (found or {}).get(entry.label, {})
    dataset = dataset or everything.get("dataset") or _dataset_of(entries)
    if dataset is None:
        raise ConfigError("No dataset is given: add --dataset=NAME (ml-100k comes with RecBole).")
    _share_out(dotted, entries)

    own = {*options, "model", "dataset", "config_files", "seed"}
    seeds = options["seeds"] or [everything.get("seed")]
    for settings in (files, given, arguments):
        for key in own & set(settings):
            del settings[key]
    # The best epoch is chosen by one metric for all; LRURec's property file, for one, would take another.
    files.setdefault("valid_metric", property_file(props_dir() / "overall.yaml")["valid_metric"])
    configs = [_config(entry, dataset, files, given, arguments, seeds[0]) for entry in entries]
    for entry, config in zip(entries, configs, strict=True):
        control = f"[{control_of(config)}]"
        if control_of(config) != "none" and control not in entry.label:
            entry.label += f" {control}"
    warnings = _drop_what_has_no_effect(configs, [files, given, arguments])

    jobs: list[Job] = []
    for seed in seeds:
        for entry, first in zip(entries, configs, strict=True):
            unused = {key for level in (files, given, arguments) for key in level if first.no_effect(key)}
            levels = [{k: v for k, v in level.items() if k not in unused} for level in (files, given, arguments)]
            config = _config(entry, dataset, levels[0], levels[1], levels[2], seed)
            jobs.append(
                Job(
                    entry.label,
                    config["seed"],
                    entry.model,
                    config,
                    {**levels[0], **entry.file_settings},
                    {**levels[1], **entry.given},
                    {**levels[2], **entry.arguments, "seed": config["seed"]},
                )
            )
    labels = [entry.label for entry in entries]
    _check_protocol(jobs)
    check_baselines(options["baselines"], labels)
    searches = {entry.label: entry.search for entry in entries if entry.search}
    return Plan(dataset, labels, jobs, options, _directory(options, dataset, jobs), warnings, searches)


def check_baselines(baselines: Sequence[str] | None, labels: Sequence[str]) -> None:
    """Raise ConfigError for a baseline that is not a row."""
    for name in baselines or []:
        if name not in labels:
            raise ConfigError(
                f"baselines: {name!r} is not a row.{nearest(str(name), labels)} Rows: {', '.join(labels)}."
            )


# ---- rows


def _entries(models: Any, files: dict[str, Any], given: dict[str, Any], arguments: dict[str, Any]) -> list[_Entry]:
    """Rows from Python, the command line, or the list ``models`` of a file; in this order of precedence."""
    listed = [_entry(item, from_file=True) for item in as_list(files.get("models"))]
    by_label = {entry.label: entry for entry in listed}
    if models is None:
        models = given.get("models")
    if models is not None:
        entries = [_entry(item, from_file=False) for item in as_list(models)]
    else:
        typed = as_list(arguments.get("models", arguments.get("model", given.get("model"))))
        names = typed or ([] if listed else as_list(files.get("model")))
        entries = [by_label.get(name) or _entry(name, from_file=True) for name in names] or listed
    if not entries:
        raise ConfigError("No models are given: add --model=NAME,NAME or a list `models` in a file of --config_files.")
    labels = [entry.label for entry in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"models: {twice[0]!r} names two rows; give them different names with `label`.")
    return entries


def _short(model: str | type) -> str:
    """Return a model's name for tables: the class of ``package.module:Class``."""
    return model.rpartition(":")[2] if isinstance(model, str) else model.__name__


def _entry(item: Any, from_file: bool) -> _Entry:
    if isinstance(item, (str, type)):
        return _Entry(_short(item), item)
    if not isinstance(item, Mapping):
        raise ConfigError(f"models: {item!r} must be a name or a mapping with `model` and settings.")
    settings = dict(item)
    label, model = settings.pop("label", None), settings.pop("model", None)
    presets: dict[str, Any] = {}
    for file in listed_files(settings.pop("config_files", None)):
        presets.update(load_yaml(file))
    model = model if model is not None else presets.get("model")
    if not isinstance(model, (str, type)):
        raise ConfigError(f"models: {dict(item)!r} names no model.")
    presets.pop("model", None)
    name = str(label) if label is not None else _short(model)
    if label is None and settings.get("control") not in (None, "none"):
        name += f" [{settings['control']}]"
    search = _search_of(name, settings)
    if from_file:
        return _Entry(name, model, file_settings={**presets, **settings}, search=search)
    return _Entry(name, model, file_settings=presets, given=settings, search=search)


def _search_of(label: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Take the search space out of a row's settings."""
    search = settings.pop("search", None) or {}
    if not isinstance(search, Mapping) or not all(isinstance(values, (list, str)) for values in search.values()):
        raise ConfigError(
            f"{label}: search={search!r} must map settings to lists of options, or to ranges such as "
            "'loguniform -9.2,-4.6'."
        )
    for key in search:
        if key in settings:
            raise ConfigError(f"{label}: {key} is searched, but {key}={settings[key]!r} is given as well; drop one.")
    return dict(search)


def _dataset_of(entries: Sequence[_Entry]) -> str | None:
    """Return the dataset that the rows' own files agree on."""
    named = {entry.file_settings.get("dataset") for entry in entries} - {None}
    if len(named) > 1:
        raise ConfigError(f"The rows name different datasets ({', '.join(sorted(map(str, named)))}): give --dataset.")
    return named.pop() if named else None


def _share_out(dotted: Mapping[str, Any], entries: Sequence[_Entry]) -> None:
    """``LABEL.key`` to the row of that label, ``Model.key`` to every row of that model."""
    for name, value in dotted.items():
        owner, _, key = name.rpartition(".")
        rows = [entry for entry in entries if entry.label == owner] or [
            e for e in entries if owner in (e.model, _short(e.model))
        ]
        if not rows:
            labels = [entry.label for entry in entries]
            raise ConfigError(f"--{name}: {owner!r} is not a row.{nearest(owner, labels)} Rows: {', '.join(labels)}.")
        for entry in rows:
            entry.arguments[key] = value


# ---- settings


def _config(
    entry: _Entry,
    dataset: str,
    files: dict[str, Any],
    given: dict[str, Any],
    arguments: dict[str, Any],
    seed: int | None,
) -> Config:
    typed = {**arguments, **entry.arguments, **({} if seed is None else {"seed": seed})}
    levels = [{**files, **entry.file_settings}], {**given, **entry.given}, typed
    with only_errors():  # the run itself will log its notices
        try:
            return Config(entry.model, dataset, *levels)
        except ConfigError as error:
            raise ConfigError(f"{entry.label}: {error}") from error


def _drop_what_has_no_effect(configs: Sequence[Config], levels: Sequence[dict[str, Any]]) -> list[str]:
    """Remove common keys that no row reads; return notices about them."""
    warnings = {}
    for level in levels:
        for key in list(level):
            reasons = [config.no_effect(key) for config in configs]
            if all(reasons):
                del level[key]
                warnings[key] = str(reasons[0])
    return list(warnings.values())


def _check_protocol(jobs: Sequence[Job]) -> None:
    first = jobs[0]
    for job in jobs[1:]:
        for key in PROTOCOL:
            values = [plain(each.config[key]) for each in (first, job)]
            if values[0] != values[1] and not (key in ("task", "topn_negatives") and _is_sequential(first, job)):
                raise ConfigError(
                    f"{first.label} and {job.label} would not be evaluated in the same way: {key}={values[0]!r} and "
                    f"{values[1]!r}. Give one value for all rows, e.g. --{key}=..."
                )


def _is_sequential(*jobs: Job) -> bool:
    """Whether all jobs rank the whole catalogue; only some models have the key ``task``."""
    return all(job.config["task"] in (None, "sequential") for job in jobs)


def _directory(options: Mapping[str, Any], dataset: str, jobs: Sequence[Job]) -> Path:
    if options["comparison_dir"]:
        return Path(str(options["comparison_dir"])).expanduser()
    asked = [[job.label, job.seed, comparable_settings(job.config.merged)] for job in jobs]
    return comparison_folder(Path(jobs[0].config["checkpoint_dir"]), dataset, asked)


def comparison_folder(parent: Path, dataset: str, asked: Any) -> Path:
    """Return ``parent/compare-<dataset>-<hash>``; equal plans share a folder."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    return parent / f"compare-{dataset}-{digest[:8]}"
