"""RecBole's own entry points on today's Python stack, with the models of this package in them.

RecBole 1.2.1 imports ray, uses names that numpy 2 has dropped, and loads checkpoints with a default that torch 2.6 has
changed. :func:`compat` mends that for the running process. It is the one place where something of another package is
replaced, nothing on disk changes, and nothing here calls it: ``recbole_llm.run`` does not need it.
"""

import functools
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

import numpy as np
import torch

from recbole_llm.errors import MissingExtraError

# Names that RecBole and ray use and numpy has removed, with their meanings.
NUMPY_ALIASES: dict[str, Any] = {
    **{"bool8": np.bool_, "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_},
    **{"float": float, "int": int, "complex": complex, "object": object, "str": str},
}
# Packages that RecBole imports although a run of a sequential model uses none of them.
UNUSED_IMPORTS = ("ray", "lightgbm", "xgboost")
STOCK_MODELS = "recbole.model.sequential_recommender"


def compat() -> None:
    """Make RecBole's own API run on today's stack and know the models of this package.

    After it, in the same process: ``recbole.quick_start.run_recbole`` and ``load_data_and_model``,
    ``recbole.config.Config(model="LLM2SASRec", ...)``, ``recbole.utils.get_model("LLM2SASRec")`` and
    ``recbole.trainer.HyperTuning``. Results are RecBole's: its split, order of time, evaluator and rounding, and no
    history mask. Calling it again changes nothing.

    RecBole's checkpoints are pickles, which can run code: after this call RecBole reads them as it always did, so load
    only those that you have made. What other packages load is not affected.

    Examples
    --------
    >>> import recbole_llm
    >>> recbole_llm.compat()
    >>> from recbole.utils import get_model
    >>> get_model("LLM2SASRec").__name__
    'LLM2SASRec'
    """
    for name, meaning in NUMPY_ALIASES.items():
        if name not in np.__dict__:
            setattr(np, name, meaning)
    for package in UNUSED_IMPORTS:
        _stand_in_unless_importable(package)
    if not any(isinstance(finder, _OwnModels) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OwnModels())
    _own_defaults_in_config()
    _generators_in_hyper_tuning()
    _checkpoints_of_recbole()


class _StandIn(ModuleType):
    """Placeholder for a package that is imported but not used: any use raises MissingExtraError."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MissingExtraError(f"RecBole needs {self.__name__}.{name}: run `pip install -U {self.__name__}`.")


def _stand_in_unless_importable(package: str) -> None:
    if package in sys.modules:
        return
    try:
        importlib.import_module(package)
    except Exception:  # ray 2.6 fails in several ways on new versions of numpy and setuptools
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules[package] = module = _StandIn(package)
        if package == "ray":
            # `from ray import tune` at the top of RecBole's quick_start.
            tune = _StandIn("ray.tune")
            sys.modules["ray.tune"] = module.__dict__["tune"] = tune
            tune.__dict__["report"] = lambda **metrics: None  # called after every trial, also outside of Ray


class _OwnModels(MetaPathFinder, Loader):
    """``recbole.model.sequential_recommender.<name>`` for every model of this package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != STOCK_MODELS or name not in dict(_own_modules()):
            return None
        return spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with the model of that name."""
        from recbole_llm.config.registry import get_model

        model = dict(_own_modules())[module.__name__.rpartition(".")[2]]
        setattr(module, model, get_model(model))


def _own_modules() -> Iterator[tuple[str, str]]:
    from recbole_llm.config.registry import own_models

    return ((model.lower(), model) for model in own_models())


def _own_defaults_in_config() -> None:
    """Defaults of our models, and the keys that they read beside their own, in RecBole's ``Config``."""
    from recbole.config import Config

    from recbole_llm.config import Config as OwnConfig
    from recbole_llm.config.registry import own_models, property_file, recbole_root

    original = Config._load_internal_config_dict
    if hasattr(original, "with_own_defaults"):
        return

    @functools.wraps(original)
    def load(self: Any, model: str, model_class: type, dataset: str) -> None:
        original(self, model, model_class, dataset)
        # A subclass of this package reads its own files.
        if model not in own_models() or isinstance(self, OwnConfig):
            return
        own = OwnConfig(model, dataset, arguments={})
        stock = {*property_file(recbole_root() / "properties" / "overall.yaml"), *sum(self.parameters.values(), [])}
        # The protocol stays RecBole's: of what both know, only the model's own settings count.
        for key in own.internal_config_dict:
            if key not in stock or key in own.model_keys:
                self.internal_config_dict.setdefault(key, own[key])
                if key in own.model_keys:
                    self.internal_config_dict[key] = own[key]
        self.internal_config_dict["train_neg_sample_args"] = own["train_neg_sample_args"]

    load.__dict__["with_own_defaults"] = True
    Config._load_internal_config_dict = load


def _generators_in_hyper_tuning() -> None:
    """Adapt RecBole's search, which uses a ``RandomState``; hyperopt expects a ``Generator`` since 0.2.7."""
    from recbole.trainer import hyper_tuning

    own_numpy, own_random = ModuleType("numpy"), ModuleType("numpy.random")
    own_numpy.__dict__.update(np.__dict__)
    own_random.__dict__.update(np.random.__dict__, RandomState=np.random.default_rng)
    own_numpy.__dict__["random"] = own_random
    hyper_tuning.np = own_numpy


def _checkpoints_of_recbole() -> None:
    """RecBole's checkpoints hold its configuration as pickled objects, which torch no longer reads by default."""
    original = torch.load
    if hasattr(original, "reads_for_recbole"):
        return

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] == "recbole":
            kwargs.setdefault("weights_only", False)
        return original(*args, **kwargs)

    load.__dict__["reads_for_recbole"] = True
    torch.load = load
