"""Declarations of all settings: type, range, choices.

What is checked, the help and the reference page come from these declarations. Defaults and comments stand in the
property files under ``props/``, which the tests compare with the declarations.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, get_origin

from recbole_llm.config.registry import known_models, model_file, property_file, stock_models
from recbole_llm.config.schema.general import GENERAL, Comparison, StudyOptions
from recbole_llm.config.schema.models import MODELS
from recbole_llm.config.schema.recbole import RECBOLE, STOCK_MODELS, derived_types
from recbole_llm.config.schema.section import InnerSettings, Section
from recbole_llm.config.types import is_verbatim, members, problem, unwrap
from recbole_llm.config.values import nearest

__all__ = [
    "Comparison",
    "InnerSettings",
    "Section",
    "StudyOptions",
    "general_sections",
    "is_text",
    "sections_of",
    "types_by_key",
    "types_of",
    "value_problem",
]


def general_sections() -> tuple[type[Section], ...]:
    """Return the sections that every run has, RecBole's first."""
    return (*RECBOLE, *GENERAL)


def sections_of(model: str | None) -> tuple[type[Section], ...]:
    """Return the sections of a run of one of our models (or of any other: the general ones)."""
    own = MODELS.get(model or "")
    return (*general_sections(), *([own] if own else []))


def types_of(model: str | None, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the type of every setting of a run.

    Parameters
    ----------
    model : str or None
        Name of the model; for None the general settings alone.
    defaults : dict, optional
        Settings of the model with their defaults. From these follow the types of those that no section declares, of
        RecBole's models and of users' own.
    """
    return {**derived_types(defaults or {}, model if model in stock_models() else None), **_declared(model)}


@cache
def _declared(model: str | None) -> dict[str, Any]:
    return {key: kind for section in sections_of(model) for key, kind in section.types().items()}


@cache
def types_by_key() -> dict[str, list[Any]]:
    """Return the types of every setting, including all models' settings: they may differ between models."""
    types: dict[str, list[Any]] = {}
    sections: list[type[Section]] = [*general_sections(), Comparison, StudyOptions, *MODELS.values()]
    for each in (*(section.types() for section in sections), STOCK_MODELS):
        for key, kind in each.items():
            if kind not in types.setdefault(key, []):
                types[key].append(kind)
    return types


def is_text(key: str) -> bool:
    """Return whether a setting is literal text, even if it looks like a number or a mapping."""
    return any(is_verbatim(kind) for kind in types_by_key().get(key, ()))


def value_problem(
    key: str, value: Any, types: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> str | None:
    """Return one line about what is wrong with a value, also in an inner model's settings; None if nothing is.

    Parameters
    ----------
    key : str
    value : object
    types : dict
        Of :func:`types_of`. A key that is not among them may have any value.
    settings : dict, optional
        The other settings: one of them may name the inner model whose settings ``value`` holds.
    """
    if key not in types:
        return None
    text = problem(value, types[key], key)
    if text is not None:
        return text
    for each, inner in _inner_settings(value, types[key]):
        named = each.get("model", inner.model) if inner.named_by is None else (settings or {}).get(inner.named_by)
        if named in known_models():  # not a run directory; a name of nothing is an error of its own
            text = _problem_of_inner({name: entry for name, entry in each.items() if name != "model"}, str(named))
            if text is not None:
                return f"{key}: {text}"
    return None


def _problem_of_inner(settings: Mapping[str, Any], model: str) -> str | None:
    types = types_of(model, property_file(model_file(model)))
    for name, value in settings.items():
        if name not in types:
            return f"{model} has no parameter {name!r}.{nearest(str(name), types)}"
        text = value_problem(name, value, types, settings)
        if text is not None:
            return text
    return None


def _inner_settings(value: Any, kind: Any) -> list[tuple[Mapping[str, Any], InnerSettings]]:
    if get_origin(kind) is list and isinstance(value, (list, tuple)):
        (entry,) = kind.__args__
        return [found for each in value for found in _inner_settings(each, entry)]
    bare, extras = unwrap(kind)
    if len(members(bare)) > 1:
        return [found for member in members(bare) for found in _inner_settings(value, member)]
    if not isinstance(value, Mapping):
        return []
    return [(value, extra) for extra in extras if isinstance(extra, InnerSettings)]
