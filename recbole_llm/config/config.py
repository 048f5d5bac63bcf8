"""Which settings apply, in which order, and what they may be.

``command line > dictionary > user's files > our props > RecBole's defaults``. Values are parsed without ``eval``, an
unknown key is reported with the nearest known one, and ``sys.argv`` is read only by the command line
(:mod:`recbole_llm.cli`), never here: RecBole's own ``Config`` takes the arguments of whatever program runs it.
"""

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.utils import EvaluatorType, InputType, set_color

from recbole_llm import distributed
from recbole_llm.config.registry import (
    RECBOLE_ROOT,
    default_settings,
    get_model,
    own_models,
    property_file,
    props_dir,
    reference_of,
    require_sequential,
    stock_models,
)
from recbole_llm.config.values import (
    SECRETS,
    TEXT_KEYS,
    ParameterLoader,
    choice,
    load_yaml,
    nearest,
    parse_value,
    without_code_keys,
)
from recbole_llm.data.controls import control_of
from recbole_llm.errors import ConfigError
from recbole_llm.layer.item_loss import check_loss_type
from recbole_llm.model.base import AdaptedRecommender, LLMRecommender, adapt

# Read by RecBole's code or ours without standing in any property file; `rec_llm_X` falls back to `llm_X`.
UNLISTED_KEYS = frozenset(
    {"config_files", "dataset", "model", "encoding", "tail_ratio", "llm_attn_implementation", "offset"}
    | {f"rec_llm_{option}" for option in ("revision", "cache_dir", "local_files_only", "token", "dtype")}
    | {f"rec_llm_{option}" for option in ("trust_remote_code", "attn_implementation")}
)
# What RecBole's batch transforms read where `transform` names one.
TRANSFORM_KEYS = frozenset({"mask_ratio", "ft_ratio", "eta", "beta"})
# Keys whose type in the property files is only one of those that RecBole accepts.
FREE_TYPE_KEYS = frozenset(
    {"first_model", "second_model", "unpopular_model", "similar_model"}
    | {"gpu_id", "topk", "metrics", "load_col", "eval_args", "item_attribute", "selected_features", "resume"}
    | {"clip_grad_norm", "train_neg_sample_args", "item_text", "item_title", "config_files"}
)
# Keys without a default whose value is a mapping, as RecBole's property files say in a comment.
MAPPING_KEYS = frozenset({"val_interval", "load_col", "unload_col", "unused_col", "seq_len", "threshold"})
# Smallest allowed number.
AT_LEAST: dict[str, int] = {
    **dict.fromkeys(("train_batch_size", "eval_batch_size", "eval_score_memory_mb", "accumulate_grad_batches"), 1),
    **dict.fromkeys(("MAX_ITEM_LIST_LENGTH", "smoke_users", "smoke_interactions", "num_negatives"), 1),
    **dict.fromkeys(("temporal_session_valid_max", "temporal_session_folds"), 1),
    **dict.fromkeys(
        ("epochs", "pretrain_epochs", "stopping_step", "worker", "seed", "control_seed", "metric_decimal_place"), 0
    ),
    **dict.fromkeys(("cold_items", "cold_items_seed"), 0),
    **dict.fromkeys(("nproc", "distributed_timeout"), 1),
    "group_offset": 0,
    "world_size": -1,
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_ratio"), 0),
}
PROTOCOLS = ("eval_args", "loo", "temporal_session")
LEAVE_ONE_OUT = {"LS": "valid_and_test"}
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


class Config(RecBoleConfig):
    """RecBole's ``Config`` with our property files, without ``eval``, without ``sys.argv`` and without side effects.

    Parameters
    ----------
    model : str or class
        Name of one of our models or of a RecBole sequential model, or a class of the user's own.
    dataset : str
        Name of the dataset: ``data_path/<dataset>/<dataset>.inter``.
    config_file_list : list of str or dict
        The user's YAML files, or what such a file holds; later ones win.
    config_dict : dict
        The user's dictionary; wins over files.
    arguments : dict
        Parsed command line (:func:`parse_arguments`); wins over everything.

    Attributes
    ----------
    merged : dict
        Every setting before RecBole derives others from it: what ``config.yaml`` of a run directory holds.
    model_keys : set of str
        What the property files of the model have.
    notices : list of str
        Warnings about the settings; also written into ``results.json``.
    """

    parameters: dict[str, list[str]]
    model_class: type[LLMRecommender]

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path | Mapping[str, Any]] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._arguments, self._dictionary = dict(arguments or {}), dict(config_dict or {})
        self.notices: list[str] = []
        given = {**dict(config_dict or {}), **self._arguments}
        files = [*(config_file_list or []), *listed_files(given.get("config_files"))]
        super().__init__(model, dataset, files, dict(config_dict) if config_dict else None)

    # What RecBole's constructor calls, in its order.

    def compatibility_settings(self) -> None:
        """RecBole puts aliases into the numpy module here; what needed them is overridden instead."""

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole extends these module-level lists in place at every construction.
        self.parameters = {name: list(keys) for name, keys in self.parameters.items()}

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return ParameterLoader

    def _load_config_files(self, file_list: Sequence[str | Path | Mapping[str, Any]] | None) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        dropped: list[str] = []
        for file in file_list or []:
            content = file if isinstance(file, Mapping) else load_yaml(Path(file))
            settings.update(without_code_keys(content, dropped))
        given = {**self._dictionary, **self._arguments}
        for key in dict.fromkeys(key for key in dropped if key not in given):
            self._notice(
                f"{key} lets a model repository run code and does not count from a settings file: give --{key}=True "
                "on the command line, or in a dictionary, if you trust the repository."
            )
        return settings

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return {
            key: parse_value(value) if isinstance(value, str) and key not in TEXT_KEYS else value
            for key, value in config_dict.items()
        }

    def _load_cmd_line(self) -> dict[str, Any]:
        return self._arguments

    def _get_model_and_dataset(
        self, model: str | type | None, dataset: str | None
    ) -> tuple[str, type[LLMRecommender], str]:
        model = model if model is not None else self.external_config_dict.get("model")
        dataset = dataset if dataset is not None else self.external_config_dict.get("dataset")
        if model is None:
            raise ConfigError(
                f"No model is given: add --model=NAME, one of {', '.join(own_models() + stock_models())}."
            )
        if dataset is None:
            raise ConfigError("No dataset is given: add --dataset=NAME (ml-100k comes with RecBole).")
        model_class = get_model(model) if isinstance(model, str) else adapt(require_sequential(model, model))
        return model_class.__name__, model_class, str(dataset)

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        recbole_props = RECBOLE_ROOT / "properties"
        own_props = props_dir()
        self.internal_config_dict = {"MODEL_TYPE": model_class.type}  # type: ignore[attr-defined]
        self._default_types: dict[str, Any] = {}
        of_model = default_settings(model_class)
        self.model_keys = set(of_model)
        sources: tuple[Path | dict[str, Any], ...] = (
            recbole_props / "overall.yaml",
            recbole_props / "dataset" / "sample.yaml",
            recbole_props / "dataset" / f"{dataset}.yaml",
            recbole_props / "quick_start_config" / "sequential.yaml",
            own_props / "overall.yaml",
            of_model,
            own_props / "dataset" / f"{dataset}.yaml",
        )
        for source in sources:
            if isinstance(source, Path):
                source = property_file(source) if source.is_file() else {}
            self.internal_config_dict.update(source)
            self._default_types.update({key: value for key, value in source.items() if value is not None})
        # RecBole's `load_col` names two ids and no time: a default that suits no sequential model, so not a choice.
        own_dataset = own_props / "dataset" / f"{dataset}.yaml"
        if not own_dataset.is_file() or "load_col" not in property_file(own_dataset):
            self.internal_config_dict["load_col"] = None
        self._report_unknown_keys()
        self._check_types()

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = {**self.internal_config_dict, **self.external_config_dict}
        final.pop("config_files", None)
        final["model"], final["dataset"] = self.model, self.dataset
        if not self._samples_negatives(final) and "train_neg_sample_args" not in self.external_config_dict:
            final["train_neg_sample_args"] = None  # RecBole's default is to sample them and then to refuse
        if final.get("load_col") is None:
            final["load_col"] = _default_columns(final, self.model_keys)
        if final.get("smoke"):
            trains = final["epochs"] != 0  # LLMSeqSim does not, not even in a smoke run
            settings = {key: value for key, value in final["smoke_settings"].items() if self._may_replace(key)}
            final.update({key: value for key, value in settings.items() if trains or key != "epochs"})
            final["smoke_settings"] = {}  # applied: the merged settings, read from a file, must not apply them again
        self.merged = copy.deepcopy({key: value for key, value in final.items() if key != "MODEL_TYPE"})
        self.merged["model"] = reference_of(self.model_class)  # what another process finds the class by
        return final

    def _samples_negatives(self, final: Mapping[str, Any]) -> bool:
        """Whether training rows come with sampled negatives where the user says nothing about them."""
        kind = self.model_class.input_type
        if final.get("loss_type") == "CE":
            return False
        if kind is None:
            return final.get("loss_type") is not None
        # RecBole's pointwise models label targets and negatives.
        return kind is InputType.PAIRWISE or issubclass(self.model_class, AdaptedRecommender)

    def _may_replace(self, key: str) -> bool:
        """``smoke`` shrinks a run; what the user typed on the command line or in a dictionary still wins."""
        given = key in self.variable_config_dict or key in self.cmd_config_dict
        return key in self.internal_config_dict and not given

    def _set_default_parameters(self) -> None:
        final = self.final_config_dict
        final["dataset"], final["model"] = self.dataset, self.model
        folder = dataset_folder(str(final["data_path"]), self.dataset)
        default_path = self.internal_config_dict["data_path"]
        if final["data_path"] != default_path and folder.parent != Path(str(final["data_path"])).expanduser():
            self._notice(f"There is no {self.dataset} in data_path={final['data_path']!r}; RecBole's copy is used.")
        final["data_path"] = str(folder)
        if "loss" in self.model_keys:
            check_loss_type(final.get("loss_type"), self.model)
        kind = self.model_class.input_type
        if kind is None and final.get("loss_type") is not None:
            kind = {"CE": InputType.POINTWISE, "BPR": InputType.PAIRWISE}[choice(final, "loss_type", ["CE", "BPR"])]
        final["MODEL_INPUT_TYPE"] = kind or InputType.POINTWISE
        if final.get("loss_type") == "CE" and final.get("train_neg_sample_args") is not None:
            raise ConfigError(
                f"train_neg_sample_args={final['train_neg_sample_args']!r} contradicts loss_type='CE', which uses "
                "every item: drop it, or set loss_type=BPR where the model has it."
            )
        self._check_evaluation()
        negatives = final.get("train_neg_sample_args")
        if negatives is not None:
            defaults = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
            if not isinstance(negatives, dict):
                raise ConfigError(f"train_neg_sample_args={negatives!r} must be a mapping such as {defaults!r}.")
            final["train_neg_sample_args"] = {**defaults, **negatives}

    def _check_evaluation(self) -> None:
        from recbole_llm.evaluator.metrics import available_metrics, is_smaller_better

        final = self.final_config_dict
        metrics = [final["metrics"]] if isinstance(final["metrics"], str) else final["metrics"]
        known = available_metrics()
        if not isinstance(metrics, (list, tuple)) or not metrics:
            raise ConfigError(f"metrics={metrics!r} must be a name or a list of names. Known: {', '.join(known)}.")
        for metric in metrics:
            if str(metric).lower() not in known:
                raise ConfigError(
                    f"metrics={metric!r} is not known.{nearest(str(metric).lower(), known)} Known: {', '.join(known)}."
                )
        final["metrics"] = list(metrics)
        topk = [final["topk"]] if isinstance(final["topk"], int) else final["topk"]
        if not isinstance(topk, (list, tuple)) or not all(type(k) is int and k > 0 for k in topk) or not topk:
            raise ConfigError(f"topk={final['topk']!r} must be a positive whole number or a list of them.")
        final["topk"] = list(topk)
        final["eval_type"] = EvaluatorType.RANKING

        computed = [f"{metric}@{k}" for metric in metrics for k in topk]
        if str(final["valid_metric"]).lower() not in [name.lower() for name in computed]:
            raise ConfigError(
                f"valid_metric={final['valid_metric']!r} is not among what metrics and topk ask for: "
                f"{', '.join(computed)}. Choose one of these, or add to metrics or topk."
            )
        final["valid_metric_bigger"] = not is_smaller_better(final["valid_metric"].partition("@")[0].lower())
        final["eval_args"] = _evaluation_arguments(final["eval_args"])
        self._check_protocol()

    def _check_protocol(self) -> None:
        final = self.final_config_dict
        protocol = choice(final, "protocol", PROTOCOLS)
        split = final["eval_args"]["split"]
        if protocol == "loo" and split != LEAVE_ONE_OUT:
            raise ConfigError(
                f"protocol=loo contradicts eval_args.split={split!r}: drop one of them (protocol=eval_args takes the "
                "split of eval_args)."
            )
        if protocol != "temporal_session":
            for key, value in self.external_config_dict.items():
                if key.startswith("temporal_session_") and value != self.internal_config_dict.get(key):
                    self._notice(f"{key} has no effect without protocol=temporal_session.")
            return
        if split != LEAVE_ONE_OUT:
            raise ConfigError(
                f"protocol=temporal_session makes a split of its own, and eval_args.split={split!r} asks for another: "
                "leave split out of eval_args, or set protocol=eval_args."
            )
        if not 0 < final["temporal_session_test_ratio"] < 1:
            raise ConfigError(
                f"temporal_session_test_ratio={final['temporal_session_test_ratio']!r} must lie between 0 and 1."
            )
        if not 0 <= final["temporal_session_valid_ratio"] < 1:
            raise ConfigError(
                f"temporal_session_valid_ratio={final['temporal_session_valid_ratio']!r} must be at least 0 and below "
                "1."
            )
        fold, folds = final["temporal_session_fold"], final["temporal_session_folds"]
        if fold is not None and (type(fold) is not int or not 1 <= fold <= folds):
            raise ConfigError(
                f"temporal_session_fold={fold!r} is not a choice. Allowed: ~ (the test sessions) and 1 to {folds} "
                "(temporal_session_folds)."
            )
        final["eval_args"]["split"] = {"temporal_session": final["temporal_session_test_ratio"]}

    def _init_device(self) -> None:
        """Choose the device of this process without touching ``CUDA_VISIBLE_DEVICES``."""
        final = self.final_config_dict
        here = self._processes()
        gpu_id = final["gpu_id"]
        gpus = [
            str(part).strip() for part in (gpu_id if isinstance(gpu_id, (tuple, list)) else str(gpu_id).split(","))
        ]
        gpus = [gpu for gpu in gpus if gpu]
        # Ours, not RecBole's, distributes data and gradients: RecBole's switch for that stays off.
        final["single_spec"], final["local_rank"] = True, here.local_rank
        final["gpu_id"] = ",".join(gpus)
        if not here.is_main:
            final["show_progress"] = False
        if not final["use_gpu"] or not gpus or not torch.cuda.is_available():
            final["device"] = torch.device("cpu")
            return
        wanted = max(here.local_size, final["nproc"])
        if gpus == ["0"]:
            gpus = [str(number) for number in range(wanted)]  # RecBole's default names the first only
        elif len(gpus) != wanted:
            self._notice(
                f"gpu_id={gpu_id!r} names {len(gpus)} device(s) for {wanted} process(es), each of which takes one: "
                "--nproc says how many."
            )
        gpu = gpus[here.local_rank] if here.local_rank < len(gpus) else "none"
        if not gpu.isdigit() or int(gpu) >= torch.cuda.device_count():
            raise ConfigError(
                f"gpu_id={gpu_id!r} has no device for process {here.local_rank} of {here.local_size} on this machine. "
                f"It has {torch.cuda.device_count()} CUDA device(s), numbered from 0: choose among them, start fewer "
                "processes, or --use_gpu=False."
            )
        final["device"] = torch.device("cuda", int(gpu))
        if here.size > 1:
            torch.cuda.set_device(final["device"])

    def _processes(self) -> distributed.World:
        """Which process of how many this is; RecBole's keys are checked, :func:`quick_start.run` acts on them."""
        final = self.final_config_dict
        if final.get("local_rank") is not None:
            raise ConfigError("local_rank cannot be set: give nproc, or start the processes with torchrun.")
        count, offset = final["nproc"], final.get("offset") or final["group_offset"]
        final["group_offset"] = offset
        size = count if final["world_size"] == -1 else final["world_size"]
        if size < offset + count:
            raise ConfigError(
                f"world_size={size} is too small for nproc={count} processes from group_offset={offset} on: it counts "
                "the processes of all machines, and group_offset those of the machines before this one."
            )
        final["world_size"] = size
        here = distributed.launched()
        if here is None:
            return distributed.World()
        if size > 1 and (size, count) != (here.size, here.local_size):
            self._notice(
                f"nproc={count} and world_size={size} have no effect: {here.size} processes have been started already."
            )
        return here

    # Checks of what the user gave.

    def _report_unknown_keys(self) -> None:
        for key in self.external_config_dict:
            text = self.no_effect(key)
            if text:
                self._notice(text)

    def no_effect(self, key: str) -> str | None:
        """Why setting a parameter would change nothing, with the nearest name; None for one that is read."""
        known = set(self.internal_config_dict) | UNLISTED_KEYS
        known.update(key for keys in self.parameters.values() for key in keys)
        known.update(self.model_class.config_keys)
        if self.external_config_dict.get("transform"):
            known.update(TRANSFORM_KEYS)
        if key in known:
            return None
        elsewhere = _keys_of_other_models()
        if key in elsewhere:
            if not self.model_keys:
                return None  # a class of the user's own, which may well read it
            others = sorted(set(elsewhere[key]))
            text = f"The parameter {key!r} has no effect on {self.model}; it belongs to {', '.join(others[:4])}"
            return text + (" and others." if len(others) > 4 else ".")
        # A key that this model reads is the better guess.
        hint = nearest(key, known) or nearest(key, elsewhere)
        if not self.model_keys:
            return (
                f"The parameter {key!r} stands in no property file.{hint} If {self.model} reads it, list it with its "
                "default in the class attribute `defaults`."
            )
        return f"The parameter {key!r} is not known and has no effect.{hint}"

    def _notice(self, text: str) -> None:
        self.notices.append(text)
        logging.getLogger().warning(text)

    def _check_types(self) -> None:
        for key, value in self.external_config_dict.items():
            self.check_value(key, value)
        control_of(self.external_config_dict)
        choice({"state": str(self.external_config_dict.get("state", "info")).lower()}, "state", LOG_LEVELS)

    def check_value(self, key: str, value: Any) -> None:
        """ConfigError where a value has not the type of the default, or is below what is allowed."""
        if key in MAPPING_KEYS and not isinstance(value, (dict, type(None))):
            raise ConfigError(f"{key}={value!r} is of type {type(value).__name__}; a mapping is needed.")
        is_text = key in TEXT_KEYS - FREE_TYPE_KEYS - SECRETS - {"model"}
        if is_text and not isinstance(value, (str, Path, type(None))):
            raise ConfigError(f"{key}={value!r} is of type {type(value).__name__}; text is needed: quote it.")
        if key == "clip_grad_norm" and (
            isinstance(value, bool) or not isinstance(value, (dict, float, int, type(None)))
        ):
            raise ConfigError(f"clip_grad_norm={value!r} must be a number or a mapping such as {{max_norm: 1.0}}.")
        default = self._default_types.get(key)
        if default is None or value is None or key in FREE_TYPE_KEYS | TEXT_KEYS:
            return
        allowed: tuple[type, ...] = (type(default),)
        if isinstance(default, float):
            allowed = (float, int)
        elif isinstance(default, (list, tuple)):
            allowed = (list, tuple)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise ConfigError(
                f"{key}={value!r} is of type {type(value).__name__}; {allowed[0].__name__} is needed, "
                f"such as the default {default!r}."
            )
        if isinstance(value, (int, float)) and value < AT_LEAST.get(key, value):
            raise ConfigError(f"{key}={value!r} is too small: at least {AT_LEAST[key]} is needed.")

    # What is shown.

    def __str__(self) -> str:
        """RecBole's long listing, without secrets."""
        text = super().__str__()
        for key in SECRETS:
            if isinstance(self[key], str) and self[key]:
                text = text.replace(self[key], "(hidden)")
        return text

    def summary(self) -> str:
        """What this run departs from the defaults in, and the parameters of its model and training, in a few lines."""
        hidden = SECRETS | {"model", "dataset", "smoke_settings"}
        defaults = self.internal_config_dict
        sources = {**self.external_config_dict, **(defaults["smoke_settings"] if self.merged["smoke"] else {})}
        given = [key for key, value in self.merged.items() if key in sources and value != defaults.get(key)]
        model = [key for key in self.merged if key in self.model_keys and key not in given]
        training = [key for key in self.parameters["Training"] if key not in given and key not in model]
        lines = []
        for title, keys in (("Changed", given), ("Model", model), ("Training", training)):
            values = [
                f"{set_color(key, 'cyan')} = {set_color(str(self.merged[key]), 'yellow')}"
                for key in keys
                if key not in hidden and self.merged.get(key) is not None
            ]
            if values:
                lines.append(set_color(title, "pink") + ": " + ", ".join(values))
        return "\n".join(lines)


def _evaluation_arguments(arguments: Any) -> dict[str, Any]:
    """``eval_args`` with what is left out filled in; ConfigError for what a sequential model cannot be tested by."""
    defaults = {"split": dict(LEAVE_ONE_OUT), "order": "TO", "group_by": "user", "mode": "full"}
    if not isinstance(arguments, dict):
        raise ConfigError(f"eval_args={arguments!r} must be a mapping such as {defaults!r}.")
    for key in arguments:
        if key not in defaults:
            raise ConfigError(f"eval_args: {key!r} is not known.{nearest(str(key), defaults)} Known: {[*defaults]}.")
    arguments = {**defaults, **arguments}
    if arguments["order"] != "TO":
        raise ConfigError(f"eval_args.order={arguments['order']!r}: sequences are ordered in time, use 'TO'.")
    choice({"eval_args.group_by": arguments["group_by"]}, "eval_args.group_by", ["user", "none", None])
    split = arguments["split"]
    kind: Any
    how: Any
    kind, how = next(iter(split.items())) if isinstance(split, dict) and len(split) == 1 else (None, None)
    is_left_out = kind == "LS" and how in ("valid_and_test", "valid_only", "test_only")
    is_shares = kind == "RS" and isinstance(how, (list, tuple)) and len(how) == 3
    if not (is_left_out or (is_shares and all(isinstance(share, (int, float)) and share >= 0 for share in how))):
        raise ConfigError(
            f"eval_args.split={split!r} is not a choice. Allowed: {{LS: valid_and_test}}, {{LS: valid_only}}, "
            "{LS: test_only}, or three shares such as {RS: [0.8, 0.1, 0.1]}."
        )
    mode = arguments["mode"]
    if not isinstance(mode, dict):
        mode = {"valid": mode, "test": mode}
    default = mode.get("valid", mode.get("test", "full"))
    arguments["mode"] = {"valid": mode.get("valid", default), "test": mode.get("test", default)}
    for value in arguments["mode"].values():
        if not re.fullmatch(r"full|(?:uni|pop)[1-9]\d*", str(value)):
            raise ConfigError(f"eval_args.mode={value!r} is not a choice. Allowed: full, uniN, popN (uni100).")
    return arguments


def _keys_of_other_models() -> dict[str, list[str]]:
    """Every parameter of every model's property file -> the models that have it."""
    keys: dict[str, list[str]] = {}
    for folder in (props_dir() / "model", RECBOLE_ROOT / "properties" / "model"):
        for path in folder.glob("*.yaml"):
            for key in property_file(path):
                keys.setdefault(key, []).append(path.stem)
    return keys


def listed_files(value: Any) -> list[Path]:
    """``--config_files="a.yaml b.yaml"`` as RecBole's scripts take it.

    A bare name that is no file here is looked up in ``props/preset`` and ``props/paper``.
    """
    names = value.split() if isinstance(value, str) else list(value or [])
    files = []
    for name in names:
        path = Path(name)
        if not path.exists() and path.name == str(name):
            ours = [props_dir() / folder / f"{path.name.removesuffix('.yaml')}.yaml" for folder in ("preset", "paper")]
            path = next((file for file in ours if file.is_file()), path)
        files.append(path)
    return files


def _default_columns(final: Mapping[str, Any], model_keys: set[str]) -> dict[str, list[str]]:
    """Load what is read and nothing else: ids, time, and the item fields that a feature model names."""
    item, user = final["ITEM_ID_FIELD"], final["USER_ID_FIELD"]
    columns = {"inter": [user, item, final["TIME_FIELD"]]}
    features: list[str] = []
    for key in ("selected_features", "item_attribute"):
        value = final.get(key) if key in model_keys else None
        features += [value] if isinstance(value, str) else list(value or [])
    filtered = list(final.get("val_interval") or {}) + list(final.get("threshold") or {})
    columns["inter"] += [field for field in filtered if field not in columns["inter"]]
    if features:
        columns["item"] = [item, *dict.fromkeys(features)]
    return columns


def dataset_folder(data_path: str, dataset: str) -> Path:
    """``data_path/<dataset>``; for ml-100k the copy inside RecBole where that folder does not exist."""
    folder = Path(data_path).expanduser() / dataset
    bundled = RECBOLE_ROOT / "dataset_example" / dataset
    if not folder.exists() and bundled.is_dir():
        return bundled
    return folder
