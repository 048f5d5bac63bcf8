"""Every setting, declared once: its type, its range, its choices.

What is checked, the help and the reference page come from these declarations. Defaults and comments stand in the
property files under ``props/``, which the tests compare with the declarations.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, get_origin

from recbole_llm.config.schema.general import GENERAL, Comparison
from recbole_llm.config.schema.models import MODELS
from recbole_llm.config.schema.recbole import RECBOLE, STOCK_MODELS, derived_types
from recbole_llm.config.schema.section import InnerSettings, Section
from recbole_llm.config.types import is_verbatim, members, problem, unwrap

__all__ = [
    "Comparison",
    "InnerSettings",
    "Section",
    "general_sections",
    "is_text",
    "sections_of",
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
        Property file of a model that has no section, RecBole's or a user's own: types follow from the defaults.
    """
    declared = _declared(model)
    if model in MODELS or not defaults:
        return dict(declared)
    return {**derived_types(defaults), **declared}


@cache
def _declared(model: str | None) -> dict[str, Any]:
    return {key: kind for section in sections_of(model) for key, kind in section.types().items()}


@cache
def _text_keys() -> frozenset[str]:
    types = [section.types() for section in (*general_sections(), Comparison, *MODELS.values())]
    types.append(STOCK_MODELS)
    return frozenset(key for each in types for key, kind in each.items() if is_verbatim(kind))


def is_text(key: str) -> bool:
    """Return whether a setting's value is text as it stands, also where it looks like a number or a mapping."""
    return key in _text_keys()


def value_problem(
    key: str, value: Any, types: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> str | None:
    """Say in one line what is wrong with a value, also inside the settings of an inner model; None if nothing is.

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
        named = each.get("model") if inner.named_by is None else (settings or {}).get(inner.named_by)
        inner_types = types_of(named if isinstance(named, str) else inner.model)
        for name, entry in each.items():
            text = value_problem(name, entry, inner_types)
            if text is not None:
                return f"{key}: {text}"
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
