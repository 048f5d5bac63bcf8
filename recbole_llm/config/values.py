"""Parsing of values from command line and files: no ``eval``, and messages that name the remedy."""

import ast
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from recbole_llm.errors import ConfigError
from recbole_llm.typing import Settings

# Never printed or written.
SECRETS = frozenset({"llm_token", "rec_llm_token"})
# They let a model repository run code: accepted on the command line or in a dictionary, never from a file.
CODE_KEYS = frozenset({"llm_trust_remote_code", "rec_llm_trust_remote_code"})
# Limits of a list or mapping: far above any real use, far below the limits of Python's stack and of memory.
DEEPEST, MOST_VALUES = 30, 100_000
# What PyYAML raises, besides its own errors, for invalid tagged values such as `!!bool maybe` or `!!timestamp x`.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


def without_code_keys(value: Any, dropped: list[str]) -> Any:
    """Remove :data:`CODE_KEYS` that are switched on, at any depth; add their names to ``dropped``."""
    if isinstance(value, Mapping):
        dropped += [key for key, entry in value.items() if key in CODE_KEYS and entry]
        return {
            key: without_code_keys(entry, dropped) for key, entry in value.items() if not (key in CODE_KEYS and entry)
        }
    return [without_code_keys(entry, dropped) for entry in value] if isinstance(value, list) else value


class ParameterLoader(yaml.SafeLoader):
    """YAML's core types only: no dates, no sexagesimal or octal numbers, no ``yes``/``no``; ``1e-3`` is a number.

    A key that is given twice is an error, and so is a list or mapping that contains itself.
    """

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return self.construct_mapping(node, deep=True)

    def _sequence(self, node: yaml.SequenceNode) -> list[Any]:
        return self.construct_sequence(node, deep=True)


# Not generators, unlike SafeLoader's, so that a node that contains itself is detected.
ParameterLoader.add_constructor("tag:yaml.org,2002:map", ParameterLoader._mapping)
ParameterLoader.add_constructor("tag:yaml.org,2002:seq", ParameterLoader._sequence)
ParameterLoader.yaml_implicit_resolvers = {}


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        "-+0123456789.",
    ),
    ("null", r"^(?:~|null|Null|NULL|None|)$", "~nN\0"),
    ("merge", r"^(?:<<)$", "<"),
):
    for _char in _first:
        ParameterLoader.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), [_char if _char != "\0" else ""]
        )


class ParameterDumper(yaml.SafeDumper):
    """Dumper whose output :class:`ParameterLoader` reads back: it quotes text such as ``None`` and ``1e-3``."""

    yaml_implicit_resolvers = {
        char: ParameterLoader.yaml_implicit_resolvers.get(char, [])
        + yaml.SafeDumper.yaml_implicit_resolvers.get(char, [])
        for char in {*ParameterLoader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
    }


def parse_value(text: str) -> Any:
    """Parse what a user typed into a value, without evaluating code.

    Python literals first (``None``, ``(0,1)``, ``['a']``), then YAML's numbers, truth values, lists and mappings
    (``true``, ``1e-3``, ``{LS: valid_and_test}``), else the text itself: ``[0,inf)``, ``{movie_title}``, ``a: b # c``.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    else:
        if value is None or isinstance(value, (str, int, float, list, tuple, dict, bool)):
            return value
    try:
        value = yaml.load(text, Loader=ParameterLoader)  # noqa: S506 - ParameterLoader is a SafeLoader
    except (yaml.YAMLError, RecursionError, *_MALFORMED):
        return text
    if isinstance(value, (list, dict)):
        # Not YAML's block style (`- a`, `a: b`), and not `{a}`, which is a template and a mapping to nothing in YAML.
        is_flow = text.lstrip()[:1] in ("[", "{")
        only_keys = isinstance(value, dict) and bool(value) and all(entry is None for entry in value.values())
        return value if is_flow and not only_keys else text
    if isinstance(value, str) or (value is None and text.strip().lower() not in ("", "~", "null", "none")):
        return text  # a string as it stands: YAML would drop comments and quotes
    return value


def load_yaml(path: Path) -> dict[str, Any]:
    """Read one settings file; ConfigError names the file and, for invalid YAML, the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no settings file {str(path)!r}. Relative paths start at {Path.cwd()}.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"The settings file {str(path)!r} cannot be read: {error}") from error
    try:
        content = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"The settings file {str(path)!r} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    except (RecursionError, *_MALFORMED) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else f"has an invalid value: {error}"
        raise ConfigError(f"The settings file {str(path)!r} {what}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"The settings file {str(path)!r} must hold `key: value` lines, not a {type(content).__name__}."
        )
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(f"The settings file {str(path)!r} has the key {key!r}, which is not a string; quote it.")
    return {key: plain(value, f"{key} in {str(path)!r}") for key, value in content.items()}


@lru_cache(maxsize=32)
def _parsed(text: str) -> Any:
    """Parse YAML once per text: a run's settings are asked for at several places. The result must not be changed."""
    return yaml.load(text, Loader=ParameterLoader)  # noqa: S506 - ParameterLoader is a SafeLoader


def plain(value: Any, name: str) -> Any:
    """Copy a user's value, converting numpy scalars to Python's.

    Raises
    ------
    ConfigError
        For a list or mapping that contains itself, is nested deeply, or holds far too many values (a few lines of
        YAML aliases can expand to billions).
    """
    return _plain(value, name, DEEPEST, [MOST_VALUES])


def _plain(value: Any, name: str, levels: int, left: list[int]) -> Any:
    left[0] -= 1
    if levels < 0 or left[0] < 0:
        what = (
            f"is nested more than {DEEPEST} levels deep, or contains itself" if levels < 0 else "holds too many values"
        )
        raise ConfigError(f"The value of {name} {what}.")
    if isinstance(value, Mapping):
        return {key: _plain(entry, name, levels - 1, left) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [_plain(entry, name, levels - 1, left) for entry in value]
        return tuple(entries) if isinstance(value, tuple) else entries
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 else value


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"``, or "" if no known name is close; names that differ in case come first."""
    known = list(known)
    same = [other for other in known if other.lower() == name.lower()]
    close = same or difflib.get_close_matches(name, known, n=1, cutoff=0.65)
    return f" Did you mean {close[0]!r}?" if close else ""


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, text cut at its commas, nothing for None, and anything else as the only entry."""
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def refuse_others(given: Iterable[str], allowed: Iterable[str], what: str, remedy: str) -> None:
    """Raise ConfigError for the first given key that is not allowed: "--KEY what." with the nearest one."""
    allowed = sorted(allowed)
    for key in given:
        if key not in allowed:
            raise ConfigError(f"--{key} {what}.{nearest(key, allowed)} {remedy}")


def choice(config: Settings, key: str, allowed: Sequence[Any]) -> Any:
    """Return ``config[key]``; raise ConfigError with the allowed values for any other."""
    value = config[key]
    if value not in allowed:
        hint = nearest(str(value), [str(option) for option in allowed])
        options = ", ".join(repr(option) for option in allowed)
        raise ConfigError(f"invalid value for {key}: {value!r} (choose from {options}).{hint}")
    return value
