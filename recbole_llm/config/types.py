"""Types of settings, written as annotations, and the check of a value against its type.

A type is an ordinary annotation: ``int``, ``float``, ``bool``, ``str``, ``Literal[...]``, ``X | None``, ``list[X]``,
``dict[str, X]``, a ``TypedDict``; ``Annotated`` adds :class:`Bounds`, a :class:`Rule` or a :class:`Note`.

>>> problem(0, Positive, "epochs")
'invalid value for epochs: 0 (give a whole number of at least 1)'
>>> problem("gcd", Literal["sgd", "adam"], "learner")
"invalid value for learner: 'gcd' (choose from 'sgd', 'adam'). Did you mean 'sgd'?"
"""

import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from recbole_llm.config.values import nearest

# Integers from here on do not fit into 64 bits, as numpy, torch and files need.
LARGEST = 2**63
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


@dataclass(frozen=True)
class Bounds:
    """Limits of a number. NaN is never allowed, infinity only with ``infinite``."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    infinite: bool = False

    def hold(self, value: float) -> bool:
        """Return whether a number lies within the limits."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        if self.ge is not None and self.le is not None:
            return f"from {self.ge} to {self.le}"
        signs = (("ge", "of at least"), ("gt", "above"), ("le", "of at most"), ("lt", "below"))
        parts = [f"{words} {getattr(self, name)}" for name, words in signs if getattr(self, name) is not None]
        return " and ".join(parts)


@dataclass(frozen=True)
class Rule:
    """A further condition on a value, and what to give instead if it is not met."""

    holds: Callable[[Any], bool]
    give: str
    options: tuple[str, ...] = ()


def one_of(options: tuple[str, ...]) -> Rule:
    """Return the rule that text is one of these options, ignoring case."""
    return Rule(lambda value: str(value).lower() in options, f"one of {', '.join(options)}", options)


@dataclass(frozen=True)
class Note:
    """Extra text for the message about an invalid value."""

    text: str


@dataclass(frozen=True)
class Verbatim:
    """Mark text that is never parsed, even if it looks like a number or a mapping."""


def _is_interval(value: str) -> bool:
    number = r"\s*[-+]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*"
    return all(re.fullmatch(rf"\s*[\[(]{number},{number}[\])]\s*", part, re.I) for part in value.split(";"))


Count = Annotated[int, Bounds(ge=0)]
Positive = Annotated[int, Bounds(ge=1)]
Seed = Annotated[int, Bounds(ge=0, lt=2**32)]
NonNegative = Annotated[float, Bounds(ge=0)]
AboveZero = Annotated[float, Bounds(gt=0)]
Share = Annotated[float, Bounds(ge=0, le=1)]
Dropout = Annotated[float, Bounds(ge=0, lt=1)]
Name = Annotated[str, Rule(lambda value: bool(str(value).strip()), "non-empty text")]
Text = Annotated[str, Verbatim()]
TextName = Annotated[Name, Verbatim()]
Interval = Annotated[Text, Rule(_is_interval, 'an interval such as "[5,inf)", or several: "[0,1];[3,4)"')]


def shown(value: Any) -> str:
    """Return a short ``repr`` of a value, however long or deeply nested."""
    try:
        text = _SHORT.repr(value)
        return text if len(text) <= 200 else f"{text[:197]}..."
    except (RecursionError, ValueError):  # an integer of more digits than Python prints
        return f"a {type(value).__name__} that is too large to show"


def unwrap(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split ``Annotated[X, a, b]`` into ``X`` and ``(a, b)``."""
    return (get_args(kind)[0], kind.__metadata__) if get_origin(kind) is Annotated else (kind, ())


def members(kind: Any) -> tuple[Any, ...]:
    """Return the alternatives of a type: two for ``X | None``, only ``X`` for ``X``."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def is_verbatim(kind: Any) -> bool:
    """Return whether text on the command line is taken literally."""
    return any(isinstance(extra, Verbatim) for member in members(kind) for extra in unwrap(member)[1])


def problem(value: Any, kind: Any, path: str) -> str | None:
    """Return one line about what is wrong with a value; None for a value of this type.

    Parameters
    ----------
    value : object
    kind : type
        An annotation; see the module's docstring.
    path : str
        Name of the value: ``epochs``, ``eval_args.mode``.
    """
    bare, extras = unwrap(kind)
    if bare is Any:
        return None
    if len(members(bare)) > 1:
        return _problem_of_union(value, bare, extras, path)
    inside = _problem_inside(value, bare, path)
    if inside is not None:
        return inside
    if not _is_instance(value, bare) or not _within(value, extras):
        return _invalid(value, kind, path)
    return None


def _problem_of_union(value: Any, kind: Any, extras: tuple[Any, ...], path: str) -> str | None:
    problems = [problem(value, member, path) for member in members(kind)]
    if None in problems:
        return None if _within(value, extras) else _invalid(value, Annotated[(kind, *extras)], path)
    # The complaint about what a list or mapping holds says more than that the value is none of the alternatives.
    for member, text in zip(members(kind), problems, strict=True):
        if isinstance(value, (list, tuple, Mapping)) and _is_instance(value, unwrap(member)[0]):
            return text
    return _invalid(value, kind, path)


def _problem_inside(value: Any, kind: Any, path: str) -> str | None:
    origin = get_origin(kind)
    if not _is_instance(value, kind):
        return None
    if origin is list:
        (entry,) = get_args(kind)
        return _first(problem(each, entry, f"{path}[{number}]") for number, each in enumerate(value))
    if origin is dict:
        (_, entry) = get_args(kind)
        for key in value:
            if not isinstance(key, str):
                return f"invalid key in {path}: {shown(key)} (give a name)"
        return _first(problem(each, entry, f"{path}.{key}") for key, each in value.items())
    if is_typeddict(kind):
        types = get_type_hints(kind, include_extras=True)
        for key in value:
            if key not in types:
                hint = nearest(str(key), types)
                return f"unknown key in {path}: {shown(key)} (choose from {', '.join(types)}).{hint}"
        for key in kind.__required_keys__ - set(value):
            return f"{path}={shown(value)} lacks {key}"
        return _first(problem(each, types[key], f"{path}.{key}") for key, each in value.items())
    return None


def _first(problems: Iterable[str | None]) -> str | None:
    return next((text for text in problems if text is not None), None)


def _is_instance(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if len(members(kind)) > 1:
        return any(_is_instance(value, unwrap(member)[0]) for member in members(kind))
    if kind in (None, NoneType):
        return value is None
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(kind))
    if origin is list:
        return isinstance(value, (list, tuple))
    if origin is dict or is_typeddict(kind):
        return isinstance(value, Mapping)
    if kind is str:
        return isinstance(value, (str, os.PathLike))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _within(value: Any, extras: tuple[Any, ...]) -> bool:
    if isinstance(value, float):
        infinite = any(isinstance(extra, Bounds) and extra.infinite for extra in extras)
        if math.isnan(value) or (math.isinf(value) and not infinite):
            return False
    if isinstance(value, int) and abs(value) >= LARGEST:
        return False
    for extra in extras:
        if isinstance(extra, Bounds) and not extra.hold(value):
            return False
        if isinstance(extra, Rule) and not extra.holds(value):
            return False
    return True


def _invalid(value: Any, kind: Any, path: str) -> str:
    text = f"invalid value for {path}: {'null' if value is None else shown(value)} ({instruction(kind)})"
    alternatives = [kind, *members(unwrap(kind)[0])]
    options = [str(option) for member in alternatives for option in _options(member)]
    notes = "".join(f"; {extra.text}" for extra in unwrap(kind)[1] if isinstance(extra, Note))
    if isinstance(value, (int, float)) and any(unwrap(member)[0] is str for member in alternatives):
        notes += "; quote what looks like a number"
    hint = nearest(str(value), options) if isinstance(value, str) else ""
    return f"{text}{notes}{'.' + hint if hint else ''}"


def _options(kind: Any) -> tuple[Any, ...]:
    bare, extras = unwrap(kind)
    ruled = tuple(option for extra in extras if isinstance(extra, Rule) for option in extra.options)
    return get_args(bare) if get_origin(bare) is Literal else ruled


def instruction(kind: Any) -> str:
    """Return what to give instead: ``choose from 'a', 'b'``, ``give a number above 0``."""
    words = describe(kind)
    return words if words.startswith("choose from") else f"give {words}"


def describe(kind: Any) -> str:
    """Describe a type for messages and for the reference."""
    bare, extras = unwrap(kind)
    if len(members(bare)) > 1:
        parts = [describe(member) for member in members(bare) if member is not NoneType]
        parts += ["~ (null)"] if NoneType in members(bare) else []
        return f"{', '.join(parts[:-1])} or {parts[-1]}" if len(parts) > 1 else parts[0]
    rules = [extra.give for extra in extras if isinstance(extra, Rule)]
    if rules:
        return rules[-1]
    if get_origin(bare) is Literal:
        return f"choose from {', '.join(repr(option) for option in _options(bare))}"
    bounds = " and ".join(str(extra) for extra in extras if isinstance(extra, Bounds))
    return f"{_noun(bare)} {bounds}".rstrip()


def _noun(kind: Any) -> str:
    origin = get_origin(kind)
    if kind is Any:
        return "any value"
    if is_typeddict(kind):
        return f"a mapping with keys from {', '.join(get_type_hints(kind))}"
    if origin is list:
        entry = get_args(kind)[0]
        return "a list" if entry is Any else f"a list, each entry {describe(entry)}"
    if origin is dict:
        entry = get_args(kind)[1]
        return "a mapping" if entry is Any else f"a mapping of names to {describe(entry)}"
    nouns = {bool: "True or False", int: "a whole number", float: "a number", str: "text", NoneType: "~ (null)"}
    return nouns.get(kind, str(kind))
