"""RecBole's ``Config`` with our precedence of settings and strict checks.

``command line > dictionary > user's files > our props > RecBole's defaults``. Values are parsed without ``eval``, an
unknown key is reported with the nearest known one, and ``sys.argv`` is read only by the command line
(:mod:`recbole_llm.cli`), never here: RecBole's own ``Config`` parses the arguments of any program that uses it.
"""

import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.utils import EvaluatorType, InputType

from recbole_llm import distributed
from recbole_llm.config import layers
from recbole_llm.config.adapter import AdaptedRecommender, adapt
from recbole_llm.config.given import Given, check_value
from recbole_llm.config.layers import Defaults
from recbole_llm.config.metrics import is_smaller_better
from recbole_llm.config.registry import (
    dataset_folder,
    default_settings,
    get_model,
    is_users,
    known_models,
    reference_of,
    require_sequential,
)
from recbole_llm.config.schema.models import MODELS
from recbole_llm.config.summary import summary
from recbole_llm.config.values import SECRETS, ParameterLoader, nearest
from recbole_llm.contract import LLMRecommender
from recbole_llm.errors import ConfigError


class Config(RecBoleConfig):  # type: ignore[misc]
    """RecBole's ``Config`` with our property files, without ``eval``, without ``sys.argv`` and without side effects.

    Parameters
    ----------
    model : str or class
        Name of one of our models or of a RecBole sequential model, or a user-defined class.
    dataset : str
        Name of the dataset: ``data_path/<dataset>/<dataset>.inter``.
    config_file_list : list of str or dict
        YAML files, or mappings with their content; later ones win.
    config_dict : dict
        Dictionary of settings; wins over files.
    arguments : dict
        Parsed command line (:func:`parse_arguments`); wins over everything.

    Attributes
    ----------
    merged : dict
        All settings before RecBole derives others from them, as in ``config.yaml`` of a run directory.
    model_keys : set of str
        Keys in the property files of the model.
    notices : list of str
        Warnings about the settings; also written into ``results.json``.

    Examples
    --------
    >>> config = Config("SASRec", "ml-100k", config_dict={"epochs": 3})
    >>> config["epochs"], config["mask_history"]
    (3, True)
    """

    parameters: dict[str, list[str]]
    auto_models: Sequence[dict[str, Any]] = ()
    model_class: type[LLMRecommender]

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path | Mapping[str, Any]] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.given = Given.read(config_file_list, config_dict, arguments)
        self.notices = self.given.notices
        super().__init__(model, dataset)
        for notice in self.notices:
            logging.getLogger().warning(notice)

    def __getitem__(self, key: str) -> Any:
        """Return a setting; None for one that does not exist.

        Raises
        ------
        ConfigError
            If the module of a user's own class reads a key that has no default: with None it would fail later,
            somewhere in torch.
        """
        if key not in self.final_config_dict and is_users(self.model_class):
            self._refuse_undeclared(key, str(sys._getframe(1).f_globals.get("__name__")))
        return super().__getitem__(key)

    def _refuse_undeclared(self, key: str, module: str) -> None:
        readers = {part.__module__ for part in self.model_class.__mro__ if is_users(part)}
        if module not in readers or key in self.model_class.config_keys:
            return
        hint = nearest(key, self.model_keys) or nearest(key, self.internal_config_dict)
        raise ConfigError(
            f"{self.model} reads config[{key!r}], which has no default.{hint} List it with its default in the class "
            "attribute `defaults`, or in `config_keys` if it is to be None unless it is set."
        )

    # Methods that RecBole's constructor calls, in its order.

    def compatibility_settings(self) -> None:
        """Do nothing: RecBole adds aliases to numpy here, whose users are overridden instead."""

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole extends these module-level lists in place at every construction.
        self.parameters = {name: list(keys) for name, keys in self.parameters.items()}

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return ParameterLoader

    def _load_config_files(self, file_list: Any) -> dict[str, Any]:
        return dict(self.given.files)

    def _load_variable_config_dict(self, config_dict: Any) -> dict[str, Any]:
        return dict(self.given.dictionary)

    def _load_cmd_line(self) -> dict[str, Any]:
        return dict(self.given.arguments)

    def _get_model_and_dataset(
        self, model: str | type | None, dataset: str | None
    ) -> tuple[str, type[LLMRecommender], str]:
        model = model if model is not None else self.external_config_dict.get("model")
        dataset = dataset if dataset is not None else self.external_config_dict.get("dataset")
        if model is None:
            raise ConfigError(f"No model is given: pass --model=NAME, one of {', '.join(known_models())}.")
        if dataset is None:
            resume = self.external_config_dict.get("resume")
            hint = f" To resume, leave --model out: recbole-llm --resume={resume}." * isinstance(resume, str)
            raise ConfigError(f"No dataset is given: pass --dataset=NAME (ml-100k comes with RecBole).{hint}")
        model_class = get_model(model) if isinstance(model, str) else adapt(require_sequential(model, model))
        return model_class.__name__, model_class, str(dataset)

    def _load_internal_config_dict(self, model: str, model_class: type[LLMRecommender], dataset: str) -> None:
        self.defaults = Defaults.of(model, dataset, default_settings(model_class), declares=_declares(model_class))
        self.internal_config_dict = {"MODEL_TYPE": model_class.type, **self.defaults.values}
        self.model_keys = self.defaults.model_keys
        layers.check(model, self.defaults, self.given, model_class.config_keys)

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = layers.merge(self.model, self.dataset, self.defaults, self.given)
        if not self._samples_negatives(final) and "train_neg_sample_args" not in self.external_config_dict:
            final["train_neg_sample_args"] = None  # RecBole samples them by default and then raises an error
        self.merged = {**copy.deepcopy(final), "model": reference_of(self.model_class)}  # for other processes
        return {**final, "MODEL_TYPE": self.internal_config_dict["MODEL_TYPE"]}

    def _samples_negatives(self, final: Mapping[str, Any]) -> bool:
        """Whether training rows have sampled negatives by default."""
        kind = self.model_class.input_type
        if final.get("loss_type") == "CE":
            return False
        if kind is None:
            return final.get("loss_type") is not None
        # RecBole's pointwise models label targets and negatives.
        return kind is InputType.PAIRWISE or issubclass(self.model_class, AdaptedRecommender)

    def _set_default_parameters(self) -> None:
        final = self.final_config_dict
        folder = dataset_folder(str(final["data_path"]), self.dataset)
        default_path = self.internal_config_dict["data_path"]
        if final["data_path"] != default_path and folder.parent != Path(str(final["data_path"])).expanduser():
            self._notice(f"There is no {self.dataset} in data_path={final['data_path']!r}; using RecBole's copy.")
        final["data_path"] = str(folder)
        kind = self.model_class.input_type
        if kind is None and final.get("loss_type") is not None:
            kind = {"CE": InputType.POINTWISE, "BPR": InputType.PAIRWISE}.get(final["loss_type"])
        final["MODEL_INPUT_TYPE"] = kind or InputType.POINTWISE
        figures = self.model_class.valid_figures
        layers.complete(final, self.defaults, self.given, figures)
        final["eval_type"] = EvaluatorType.RANKING
        metric = final["valid_metric"].partition("@")[0].lower()
        final["valid_metric_bigger"] = metric not in figures and not is_smaller_better(metric)

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
                f"gpu_id={gpu_id!r} names {len(gpus)} device(s) for {wanted} process(es), which use one device "
                "each: set the number with --nproc."
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
        """Return this process's place; check RecBole's keys, which :func:`quick_start.run` acts on."""
        final = self.final_config_dict
        if final.get("local_rank") is not None:
            raise ConfigError("local_rank cannot be set: give nproc, or start the processes with torchrun.")
        count, offset = final["nproc"], final.get("offset") or final["group_offset"]
        final["group_offset"] = offset
        size = count if final["world_size"] == -1 else final["world_size"]
        if size < offset + count:
            raise ConfigError(
                f"world_size={size} is too small for nproc={count} processes from group_offset={offset} on: it is the "
                "number of processes of all machines, and group_offset that of the machines before this one."
            )
        final["world_size"] = size
        here = distributed.launched()
        if here is None:
            return distributed.World()
        if size > 1 and (size, count) != (here.size, here.local_size):
            self._notice(
                f"nproc={count} and world_size={size} have no effect: {here.size} processes are already running."
            )
        return here

    def no_effect(self, key: str) -> str | None:
        """Say why a parameter would have no effect, with the nearest name; None for one that is used."""
        if key in self.model_class.config_keys:
            return None
        return layers.no_effect(key, self.model, self.defaults, self.external_config_dict)

    def check_value(self, key: str, value: Any) -> None:
        """Raise ConfigError for a value that the type of its key does not allow."""
        check_value(key, value, self.defaults.types, self.final_config_dict)

    def _notice(self, text: str) -> None:
        self.notices.append(text)

    # Display.

    def __str__(self) -> str:
        """RecBole's long listing, without secrets."""
        text = super().__str__()
        for key in SECRETS:
            if isinstance(self[key], str) and self[key]:
                text = text.replace(self[key], "(hidden)")
        return text

    def summary(self) -> str:
        """Return the settings in a few lines; see :func:`recbole_llm.config.summary.summary`."""
        return summary(self.merged, self.internal_config_dict, self.external_config_dict, self.model_keys)


def _declares(model_class: type) -> str:
    """Return the name of the class whose schema section applies: the class itself or its nearest base."""
    names = [part.__name__ for part in model_class.__mro__]
    return next((name for name in names if name in MODELS), model_class.__name__)
