"""Where models and their default settings are found: ours, RecBole's, and classes of the user's own."""

import copy
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recbole_llm.config.values import load_yaml, nearest
from recbole_llm.errors import ConfigError

if TYPE_CHECKING:
    from recbole_llm.contract import LLMRecommender


@functools.cache
def recbole_root() -> Path:
    """Return the folder of RecBole without importing it."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("recbole is not installed: pip install --no-deps recbole==1.2.1", name="recbole")
    return Path(spec.submodule_search_locations[0])


# Packages whose classes are not the user's own.
FOREIGN = frozenset({"builtins", "torch", "recbole", "recbole_llm"})


def is_users_module(name: str) -> bool:
    """Whether a module is the user's, not one of this package, RecBole or torch."""
    return name.partition(".")[0] not in FOREIGN


def is_users(cls: type) -> bool:
    """Whether a model class is the user's own."""
    return is_users_module(cls.__module__)


def props_dir() -> Path:
    """Return the folder of the property files: inside the installed package, or the checkout's ``props/``."""
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
    """Read a property file of RecBole or of this package; each is parsed once per process.

    ``include: [item_loss]`` in one of ours adds ``props/common/item_loss.yaml``; the file itself takes precedence.
    """
    return copy.deepcopy(_parsed_property_file(path))


@functools.cache
def _parsed_property_file(path: Path) -> dict[str, Any]:
    content = load_yaml(path)
    content.pop("include", None)
    included: dict[str, Any] = {}
    for other in included_files(path):
        included.update(_parsed_property_file(other))
    return {**included, **content}


@functools.cache
def included_files(path: Path) -> tuple[Path, ...]:
    """Return the files that a property file includes, weakest first."""
    return tuple(props_dir() / "common" / f"{name}.yaml" for name in load_yaml(path).get("include", ()))


def own_models() -> list[str]:
    """Return the names of our models: those with a property file and a module of the lower-case name."""
    package = Path(__file__).parents[1] / "model"
    return sorted(
        path.stem for path in (props_dir() / "model").glob("*.yaml") if (package / f"{path.stem.lower()}.py").is_file()
    )


def stock_models() -> list[str]:
    """Return the names of RecBole's sequential models."""
    folder = recbole_root() / "model" / "sequential_recommender"
    modules = {path.stem for path in folder.glob("*.py")}
    return sorted(
        path.stem for path in (recbole_root() / "properties" / "model").glob("*.yaml") if path.stem.lower() in modules
    )


def known_models() -> list[str]:
    """Return the names that ``--model`` accepts, ours first."""
    return own_models() + stock_models()


def model_file(name: str) -> Path:
    """Return the property file of a model by name: ours, or RecBole's.

    Raises
    ------
    ConfigError
        For an unknown name (with the nearest one) or a RecBole model that is not sequential.
    """
    theirs = recbole_root() / "properties" / "model" / f"{name}.yaml"
    if name in own_models():
        return props_dir() / "model" / f"{name}.yaml"
    if name in stock_models():
        return theirs
    if theirs.is_file():
        raise ConfigError(f"model={name!r} is not a sequential recommender; recbole-llm runs sequential models only.")
    module, dot, part = name.rpartition(".")
    hint = f" Did you mean '{module}:{part}'?" if dot else nearest(name, known_models())
    raise ConfigError(
        f"model={name!r} is not known.{hint} A class of your own is package.module:Class, such as my_model:MyModel "
        "for my_model.py; `recbole-llm models` lists the names."
    )


def get_model(name: str) -> "type[LLMRecommender]":
    """Return the class of a model by name, as one that meets the contract of :mod:`recbole_llm.contract`.

    Parameters
    ----------
    name : str
        One of :func:`own_models` or :func:`stock_models`, or ``package.module:Class``; modules are looked for on
        Python's path and then in the current folder.

    Raises
    ------
    ConfigError
        For an unknown name (with the nearest one), a RecBole model that is not sequential, or a class that cannot be
        imported or is not a sequential recommender.
    """
    from recbole_llm.config.adapter import adapt

    if ":" in name:
        return adapt(_import_class(name))
    model_file(name)
    if name in own_models():
        return getattr(importlib.import_module(f"recbole_llm.model.{name.lower()}"), name)
    return adapt(getattr(_import_quietly(f"recbole.model.sequential_recommender.{name.lower()}"), name))


def _import_quietly(module: str) -> ModuleType:
    """Import a module and undo what RecBole's ``sine.py`` does meanwhile, which every stock model imports.

    It turns autograd's anomaly detection on for the whole process: training then takes twice the time.
    """
    import torch

    anomaly = torch.is_anomaly_enabled()
    try:
        return importlib.import_module(module)
    finally:
        torch.autograd.set_detect_anomaly(anomaly)


def _import_class(reference: str) -> type:
    """Return the class behind ``package.module:Class``."""
    module_name, _, path = reference.partition(":")
    file = Path(module_name)
    if file.suffix == ".py" or len(file.parts) > 1:
        raise ConfigError(
            f"model={reference!r} names a file. Name the module, {file.stem}:{path}, in the folder of the file or "
            "with that folder on PYTHONPATH."
        )
    if not all(part.isidentifier() for part in f"{module_name}.{path}".split(".")):
        raise ConfigError(f"model={reference!r} must have the form package.module:Class.")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # behind everything that is installed
    _refuse_code_of_a_run(reference, module_name.partition(".")[0])
    try:
        found: Any = _import_quietly(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"model={reference!r}: importing {module_name} fails ({error}).") from error
        raise ConfigError(
            f"model={reference!r}: there is no module {error.name!r} on Python's path or in {Path.cwd()}. Start in "
            "the folder that contains it, or add that folder to PYTHONPATH."
        ) from error
    except Exception as error:
        raise ConfigError(
            f"model={reference!r}: importing {module_name} fails ({type(error).__name__}: {error})."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"model={reference!r}: there is no {part!r} in {module_name}.{nearest(part, dir(found))}"
            )
        found = getattr(found, part)
    return require_sequential(found, reference)


def _refuse_code_of_a_run(reference: str, package: str) -> None:
    """Refuse a module that lies in a run directory: a run from someone else must not execute code."""
    spec = importlib.util.find_spec(package) if package not in sys.modules else None
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    for place in places:
        for folder in Path(place or "").resolve().parents:
            if (folder / "config.yaml").is_file() and (folder / "model.safetensors").is_file():
                raise ConfigError(
                    f"model={reference!r}: {package!r} lies in the run directory {folder}, and code in run "
                    "directories is never executed. If you trust it, copy it to another folder."
                )


def require_sequential(found: Any, name: Any) -> type:
    """Return ``found`` if it is a class that this package can run; ConfigError otherwise."""
    from recbole.utils import ModelType

    if not isinstance(found, type) or getattr(found, "type", None) != ModelType.SEQUENTIAL:
        raise ConfigError(
            f"model={name!r} is neither a model name nor a subclass of recbole_llm's LLMRecommender or RecBole's "
            "SequentialRecommender."
        )
    return found


def reference_of(cls: type) -> str:
    """Return how stored settings name a class: its bare name for ours and RecBole's, else ``package.module:Class``.

    A class that no other process could import, such as one defined in a script or in a function, has its bare name.
    """
    importable = cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__
    return f"{cls.__module__}:{cls.__qualname__}" if importable and _property_name(cls) is None else cls.__name__


def default_settings(cls: type) -> dict[str, Any]:
    """Return the settings of a model class with their defaults.

    Ours and RecBole's have a property file. A user-defined class has the settings of its base classes, updated by
    ``<module>.yaml`` or ``<Class>.yaml`` beside its module, and by its class attribute ``defaults``.
    """
    if _property_name(cls) is not None:
        return _property_settings(cls)
    settings: dict[str, Any] = {}
    for part in reversed(cls.__mro__):
        if _property_name(part) is not None:
            settings.update(_property_settings(part))
        elif is_users(part) and "adapts" not in vars(part):
            settings.update(_own_settings(part))
    return settings


def _property_settings(cls: type) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for folder in (recbole_root() / "properties", props_dir()):
        path = folder / "model" / f"{cls.__name__}.yaml"
        settings.update(property_file(path) if path.is_file() else {})
    return settings


def _property_name(cls: type) -> str | None:
    """Return the name of the property file of a class of ours or RecBole's; None for others."""
    package, _, module = cls.__module__.rpartition(".")
    packages = ("recbole_llm.model", "recbole.model.sequential_recommender")
    return cls.__name__ if package in packages and module == cls.__name__.lower() else None


def own_files(cls: type) -> list[Path]:
    """Return the YAML files with defaults beside the module of a user's own class; the last one wins."""
    source = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if source is None:
        return []
    paths = Path(source).with_suffix(".yaml"), Path(source).with_name(f"{cls.__name__}.yaml")
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def _own_settings(cls: type) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for path in own_files(cls):
        settings.update(property_file(path))
    return settings | copy.deepcopy(dict(vars(cls).get("defaults", {})))


def listed_files(value: Any) -> list[Path]:
    """Split ``--config_files="a.yaml b.yaml"`` as RecBole's scripts do.

    A bare name without such a file in the current folder is looked up in ``props/preset`` and ``props/paper``.
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


def dataset_folder(data_path: str, dataset: str) -> Path:
    """Return ``data_path/<dataset>``; RecBole's bundled copy if that folder does not exist."""
    folder = Path(data_path).expanduser() / dataset
    bundled = recbole_root() / "dataset_example" / dataset
    if not folder.exists() and bundled.is_dir():
        return bundled
    return folder
