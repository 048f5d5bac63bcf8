"""Precedence and checks of settings: ``command line > dictionary > user's files > our props > RecBole's``.

Nothing here needs torch or RecBole's code, so that mistakes are reported within a fraction of a second.
:class:`recbole_llm.config.Config` passes the result to RecBole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm.config.given import Given, check_value
from recbole_llm.config.registry import (
    dataset_folder,
    known_models,
    listed_files,
    model_file,
    property_file,
    props_dir,
    recbole_root,
)
from recbole_llm.config.schema import Section, types_of
from recbole_llm.config.schema.general import Files
from recbole_llm.config.schema.models import MODELS
from recbole_llm.config.types import Share
from recbole_llm.config.values import load_yaml, nearest
from recbole_llm.errors import ConfigError

# Keys that RecBole's batch transforms read, and the one that each requires.
TRANSFORM_TYPES: dict[str, Any] = dict.fromkeys(("mask_ratio", "ft_ratio", "eta", "beta"), Share)
TRANSFORM_NEEDS = {"mask_itemseq": "mask_ratio", "crop_itemseq": "eta", "reorder_itemseq": "beta"}
LEAVE_ONE_OUT = {"LS": "valid_and_test"}
NEGATIVES = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}


@dataclass
class Defaults:
    """Default settings of a run.

    Attributes
    ----------
    values : dict
        Every setting of the run.
    model_keys : set of str
        Keys in the property files of the model.
    types : dict
        Types of all settings.
    section : type, optional
        Section of the schema for the model.
    """

    values: dict[str, Any]
    model_keys: set[str]
    types: dict[str, Any]
    section: type[Section] | None

    @classmethod
    def of(cls, model: str, dataset: str, of_model: Mapping[str, Any], declares: str | None = None) -> "Defaults":
        """Read the property files of RecBole and of this package, ours last.

        Parameters
        ----------
        model, dataset : str
        of_model : dict
            Settings of the model with their defaults.
        declares : str, optional
            Model whose schema section applies, for a user-defined class that derives from it.
        """
        theirs, ours = recbole_root() / "properties", props_dir()
        files = (
            theirs / "overall.yaml",
            theirs / "dataset" / "sample.yaml",
            theirs / "dataset" / f"{dataset}.yaml",
            theirs / "quick_start_config" / "sequential.yaml",
            ours / "overall.yaml",
            None,
            ours / "dataset" / f"{dataset}.yaml",
        )
        values: dict[str, Any] = {}
        for path in files:
            if path is None:
                values.update(of_model)
            elif path.is_file():
                values.update(property_file(path))
        # RecBole's `load_col` names two ids and no time, which suits no sequential model: not a user's choice.
        own_dataset = ours / "dataset" / f"{dataset}.yaml"
        if not own_dataset.is_file() or "load_col" not in property_file(own_dataset):
            values["load_col"] = None
        return cls(values, set(of_model), types_of(declares or model, of_model), MODELS.get(declares or model))


def no_effect(key: str, model: str, defaults: Defaults, given: Mapping[str, Any]) -> str | None:
    """Say why a parameter would have no effect, with the nearest name; None for one that is used."""
    known = {*defaults.values, *defaults.types, *(TRANSFORM_TYPES if given.get("transform") else ())}
    if key in known:
        return None
    elsewhere = keys_of_models()
    if key in elsewhere:
        if not defaults.model_keys:
            return None  # a user-defined class, which may read it
        others = sorted(elsewhere[key])
        text = f"The parameter {key!r} has no effect on {model}; it belongs to {', '.join(others[:4])}"
        return text + (" and others." if len(others) > 4 else ".")
    label, _, rest = key.partition(".")
    if label == model and rest:
        return f"The parameter {key!r} is not known: {label}.KEY is for comparisons; in a single run, set {rest!r}."
    # Prefer a key that this model uses.
    hint = nearest(key, known) or nearest(key, elsewhere)
    if not defaults.model_keys:
        return (
            f"The parameter {key!r} is not known.{hint} If {model} reads it, list it with its default in the class "
            "attribute `defaults`."
        )
    return f"The parameter {key!r} is not known.{hint}"


def keys_of_models() -> dict[str, list[str]]:
    """Return the parameters of all models' property files, with the models that have them."""
    keys: dict[str, list[str]] = {}
    for name in known_models():
        for key in property_file(model_file(name)):
            keys.setdefault(key, []).append(name)
    return keys


def check(model: str, defaults: Defaults, given: Given, declared: Iterable[str] = ()) -> None:
    """Check the name and the value of everything the user set.

    Parameters
    ----------
    model : str
    defaults : Defaults
    given : Given
        Notices about keys of other models are added to it.
    declared : iterable of str
        Keys that a user-defined class reads.

    Raises
    ------
    ConfigError
        For a key that is not known (unless ``allow_unknown_keys`` is set) or a value that is not allowed.
    """
    settings = given.settings
    for key in settings:
        text = no_effect(key, model, defaults, settings) if key not in declared else None
        if text is None:
            continue
        if "is not known" in text and settings.get("allow_unknown_keys") is not True:
            raise ConfigError(
                f"{text} (`recbole-llm help` lists the parameters; --allow_unknown_keys=True makes this a warning.)"
            )
        given.notices.append(text)
    types = {**TRANSFORM_TYPES, **defaults.types}
    for key, value in settings.items():
        check_value(key, value, types, {**defaults.values, **settings})


def merge(model: str, dataset: str, defaults: Defaults, given: Given) -> dict[str, Any]:
    """Return all settings of the run, before RecBole derives others from them."""
    settings = given.settings
    final = {**defaults.values, **settings}
    final.pop("config_files", None)
    final["model"], final["dataset"] = model, dataset
    if given.strength("warmup_ratio") > given.strength("warmup_updates"):
        final["warmup_updates"] = None  # it may have a default, and would win
    if "epochs" in defaults.model_keys and defaults.values["epochs"] == 0 != final["epochs"]:
        given.notices.append(f"{model} has nothing to train: epochs={final['epochs']} has no effect.")
        final["epochs"] = 0
    if isinstance(suffix := final.get("additional_feat_suffix"), str):
        final["additional_feat_suffix"] = [suffix]
    if final.get("load_col") is None:
        final["load_col"] = _default_columns(final, defaults.model_keys)
    if final.get("smoke"):
        trains = final["epochs"] != 0  # LLMSeqSim does not, not even in a smoke run
        # What the user typed on the command line or in a dictionary still wins.
        for key, value in final["smoke_settings"].items():
            if key not in defaults.values:
                continue
            check_value(f"smoke_settings.{key}", value, {f"smoke_settings.{key}": defaults.types.get(key, Any)})
            if given.strength(key) < 2 and (trains or key != "epochs"):
                final[key] = value
        final["smoke_settings"] = {}  # applied: the merged settings, read from a file, must not apply them again
    return final


def _default_columns(final: Mapping[str, Any], model_keys: set[str]) -> dict[str, Any]:
    """Return the columns to load: ids, time, and the item fields that a feature model names.

    All columns are loaded of files in ``unload_col`` or ``additional_feat_suffix``, and of interactions that are
    already split, which may have no time.
    """
    item, user = final["ITEM_ID_FIELD"], final["USER_ID_FIELD"]
    columns: dict[str, Any] = {"inter": [user, item, final["TIME_FIELD"]]}
    features: list[str] = []
    for key in ("selected_features", "item_attribute"):
        value = final.get(key) if key in model_keys else None
        features += [value] if isinstance(value, str) else list(value or [])
    filtered = list(final.get("val_interval") or {}) + list(final.get("threshold") or {})
    columns["inter"] += [field for field in filtered if field not in columns["inter"]]
    if features:
        columns["item"] = [item, *dict.fromkeys(features)]
    whole = [*(final.get("unload_col") or ()), *(final.get("additional_feat_suffix") or ())]
    return columns | dict.fromkeys(whole + ["inter"] * bool(final.get("benchmark_filename")), "*")


def complete(final: dict[str, Any], defaults: Defaults, given: Given, figures: Sequence[str] = ()) -> None:
    """Complete mappings and lists in place, and check settings against one another.

    ``valid_metric`` may also be one of the model's ``figures``.

    Raises
    ------
    ConfigError
        For settings that contradict one another.
    """
    metrics, topk = final["metrics"], final["topk"]
    final["metrics"] = [metrics] if isinstance(metrics, str) else list(metrics)
    final["topk"] = [topk] if isinstance(topk, int) else list(topk)
    computed = [f"{metric}@{k}" for metric in final["metrics"] for k in final["topk"]]
    if str(final["valid_metric"]).lower() not in [name.lower() for name in [*computed, *figures]]:
        raise ConfigError(
            f"valid_metric={final['valid_metric']!r} is not among the metrics that metrics and topk define: "
            f"{', '.join(computed)}. Choose one of these, or extend metrics or topk."
        )
    final["eval_args"] = _evaluation_arguments(final["eval_args"], given)
    negatives = final.get("train_neg_sample_args")
    if negatives is not None:
        if final.get("loss_type") == "CE" and "train_neg_sample_args" in given.settings:
            raise ConfigError(
                f"train_neg_sample_args={negatives!r} contradicts loss_type='CE', which uses every item: drop it, or "
                "set loss_type=BPR if the model supports it."
            )
        final["train_neg_sample_args"] = {**NEGATIVES, **negatives}
    _check_protocol(final, defaults, given)
    needed = TRANSFORM_NEEDS.get(final["transform"])
    if needed is not None and final.get(needed) is None:
        raise ConfigError(
            f"transform={final['transform']!r} needs {needed}, a share from 0 to 1: pass --{needed}=0.2, for example."
        )
    text = defaults.section.contradiction(final) if defaults.section else None
    if text is not None:
        raise ConfigError(f"{text}.")
    same = given.strength("warmup_ratio") == given.strength("warmup_updates") > 0
    if same and final["warmup_updates"] and final["warmup_ratio"]:
        raise ConfigError(
            f"warmup_ratio={final['warmup_ratio']!r} and warmup_updates={final['warmup_updates']!r} both set the "
            "length of the warm-up: drop one of them."
        )


def _evaluation_arguments(arguments: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """Return ``eval_args`` with defaults for missing entries; a phase without a mode has that of the other."""
    full: dict[str, Any] = {
        "split": dict(LEAVE_ONE_OUT),
        "order": "TO",
        "group_by": "user",
        "mode": "full",
        **arguments,
    }
    mode = full["mode"] if isinstance(full["mode"], Mapping) else {"valid": full["mode"], "test": full["mode"]}
    default = mode.get("valid", mode.get("test", "full"))
    for phase, other in (("valid", "test"), ("test", "valid")):
        if phase not in mode and default != "full":
            given.notices.append(
                f"eval_args.mode gives {default} for {other} and nothing for {phase}, which takes the same, as in "
                f"RecBole. Set mode={{valid: ..., test: ...}} to change it."
            )
    full["mode"] = {"valid": mode.get("valid", default), "test": mode.get("test", default)}
    return full


def _check_protocol(final: dict[str, Any], defaults: Defaults, given: Given) -> None:
    protocol, split = final["protocol"], final["eval_args"]["split"]
    if protocol == "loo" and split != LEAVE_ONE_OUT:
        raise ConfigError(
            f"protocol=loo contradicts eval_args.split={split!r}: drop one of them (protocol=eval_args uses the "
            "split of eval_args)."
        )
    if protocol != "temporal_session":
        for key, value in given.settings.items():
            if key.startswith("temporal_session_") and value != defaults.values.get(key):
                given.notices.append(f"{key} has no effect without protocol=temporal_session.")
        return
    if split != LEAVE_ONE_OUT:
        raise ConfigError(
            f"protocol=temporal_session defines the split itself, and eval_args.split={split!r} contradicts it: "
            "leave split out of eval_args, or set protocol=eval_args."
        )
    fold, folds = final["temporal_session_fold"], final["temporal_session_folds"]
    if fold is not None and fold > folds:
        raise ConfigError(
            f"invalid value for temporal_session_fold: {fold!r} (choose ~, the test sessions, or 1 to {folds}, the "
            "value of temporal_session_folds)."
        )
    final["eval_args"]["split"] = {"temporal_session": final["temporal_session_test_ratio"]}


def is_comparison(arguments: Mapping[str, Any]) -> bool:
    """Whether a command line requests several runs: models, seeds, or a file with a list of either."""
    if "," in str(arguments.get("model") or "") or {"models", "seeds"} & set(arguments):
        return True
    check_value("config_files", arguments.get("config_files"), Files.types())
    files = [file for file in listed_files(arguments.get("config_files")) if file.is_file()]
    return any({"models", "seeds"} & set(load_yaml(file)) for file in files)


def precheck(
    files: Sequence[str | Path | Mapping[str, Any]] | None,
    dictionary: Mapping[str, Any] | None,
    arguments: Mapping[str, Any] | None,
) -> None:
    """Check the settings of a run without importing torch; checks that need the class are left to :class:`Config`.

    Raises
    ------
    ConfigError
        As :class:`Config`.
    """
    given = Given.read(files, dictionary, arguments)
    model, dataset = given.settings.get("model"), given.settings.get("dataset")
    if not isinstance(model, str) or dataset is None or ":" in model:
        return
    defaults = Defaults.of(model, str(dataset), property_file(model_file(model)))
    check(model, defaults, given)
    final = merge(model, str(dataset), defaults, given)
    complete(final, defaults, given, MODELS[model].valid_figures if model in MODELS else ())
    _check_dataset(final)


def _check_dataset(final: Mapping[str, Any]) -> None:
    """Raise ConfigError for a dataset without a folder, suggesting the nearest existing name."""
    name, data_path = str(final["dataset"]), str(final["data_path"])
    folder = dataset_folder(data_path, name)
    if folder.is_dir():
        return
    places = (Path(data_path).expanduser(), recbole_root() / "dataset_example")
    known = sorted({entry.name for place in places if place.is_dir() for entry in place.iterdir() if entry.is_dir()})
    raise ConfigError(
        f"There is no dataset {name!r}: no folder {str(folder)!r}.{nearest(name, known)} Set data_path to the folder "
        "that contains it, or create it with `recbole-llm convert`; ml-100k comes with RecBole."
    )
