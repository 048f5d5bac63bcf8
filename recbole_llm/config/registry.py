"""Where models and property files are found by name: ours first, then RecBole's."""

import copy
import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recbole
import torch

from recbole_llm.config.values import load_yaml, nearest
from recbole_llm.errors import ConfigError

if TYPE_CHECKING:
    from recbole_llm.model.base import LLMRecommender

RECBOLE_ROOT = Path(recbole.__file__).parent


def props_dir() -> Path:
    """Folder of the property files: inside the installed package, or the checkout's ``props/``."""
    package = Path(__file__).parents[1]
    # An editable install does not see the package_dir mapping of setup.cfg, so it falls back to the checkout.
    for folder in (package / "props", package.parent / "props"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise ConfigError(
        f"The property files of recbole-llm are neither in {package / 'props'} nor in {package.parent / 'props'}. "
        "The installation is damaged: run `pip install --force-reinstall --no-deps recbole-llm`."
    )


def property_file(path: Path) -> dict[str, Any]:
    """One of the property files that ship with RecBole or with us; each is parsed once per process."""
    return copy.deepcopy(_parsed_property_file(path))


@functools.cache
def _parsed_property_file(path: Path) -> dict[str, Any]:
    return load_yaml(path)


def own_models() -> list[str]:
    """Names of the models of this package: those with a property file and a module of the lower-case name."""
    package = Path(__file__).parents[1] / "model"
    return sorted(
        path.stem for path in (props_dir() / "model").glob("*.yaml") if (package / f"{path.stem.lower()}.py").is_file()
    )


def stock_models() -> list[str]:
    """Names of RecBole's sequential models."""
    folder = RECBOLE_ROOT / "model" / "sequential_recommender"
    modules = {path.stem for path in folder.glob("*.py")}
    return sorted(
        path.stem for path in (RECBOLE_ROOT / "properties" / "model").glob("*.yaml") if path.stem.lower() in modules
    )


def get_model(name: str) -> "type[LLMRecommender]":
    """Return the class of a model by name, ours first, then RecBole's sequential ones, as one that meets the contract.

    Raises
    ------
    ConfigError
        For an unknown name (with the nearest one) or a RecBole model that is not sequential.
    """
    from recbole_llm.model.base import adapt

    if name in own_models():
        return getattr(importlib.import_module(f"recbole_llm.model.{name.lower()}"), name)
    if name in stock_models():
        # RecBole's sine.py turns autograd's anomaly detection on for the whole process as it is imported, and every
        # sequential model imports it: training then takes twice the time.
        anomaly = torch.is_anomaly_enabled()
        module = importlib.import_module(f"recbole.model.sequential_recommender.{name.lower()}")
        torch.autograd.set_detect_anomaly(anomaly)
        return adapt(getattr(module, name))
    if (RECBOLE_ROOT / "properties" / "model" / f"{name}.yaml").is_file():
        raise ConfigError(f"model={name!r} is not a sequential recommender; recbole-llm runs sequential models only.")
    known = own_models() + stock_models()
    hint = nearest(name, known)
    same = [model for model in known if model.lower() == name.lower()]
    if same:
        hint = f" Did you mean {same[0]!r}?"
    raise ConfigError(
        f"model={name!r} is not known.{hint} Ours: {', '.join(own_models())}. RecBole's: {', '.join(stock_models())}."
    )
