"""Values that a user typed or wrote: parsed without ``eval``, checked with a message that names the remedy."""

import ast
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recbole_llm.errors import ConfigError

# Never parsed: their values are text even when they look like a number or a mapping ("{movie_title}", "2020").
TEXT_KEYS = frozenset(
    {
        "model",
        "dataset",
        "data_path",
        "checkpoint_dir",
        "item_text",
        "item_vectors",
        "item_title",
        "prompt",
        "llm",
        "rec_llm",
        "llm_revision",
        "rec_llm_revision",
        "llm_token",
        "llm_cache_dir",
        "embedding_cache_dir",
        "field_separator",
        "seq_separator",
        "user_inter_num_interval",
        "item_inter_num_interval",
        "config_files",
        "pre_model_path",
        "init_from",
        "rec_llm_token",
        "rec_llm_cache_dir",
    }
)


# Never printed or written.
SECRETS = frozenset({"llm_token", "rec_llm_token"})
# They let a model repository run code: they count from the command line or a dictionary, never from a file.
CODE_KEYS = frozenset({"llm_trust_remote_code", "rec_llm_trust_remote_code"})


def without_code_keys(value: Any, dropped: list[str]) -> Any:
    """Settings without :data:`CODE_KEYS` that are switched on, at any depth; their names go to ``dropped``."""
    if isinstance(value, Mapping):
        dropped += [key for key, entry in value.items() if key in CODE_KEYS and entry]
        return {
            key: without_code_keys(entry, dropped) for key, entry in value.items() if not (key in CODE_KEYS and entry)
        }
    return [without_code_keys(entry, dropped) for entry in value] if isinstance(value, list) else value


class ParameterLoader(yaml.SafeLoader):
    """YAML's core types only: no dates, no sexagesimal or octal numbers, no ``yes``/``no``; ``1e-3`` is a number."""


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
    """Writes what :class:`ParameterLoader` reads back: it quotes ``None`` and ``1e-3`` where they are text."""

    yaml_implicit_resolvers = {
        char: ParameterLoader.yaml_implicit_resolvers.get(char, [])
        + yaml.SafeDumper.yaml_implicit_resolvers.get(char, [])
        for char in {*ParameterLoader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
    }


def parse_value(text: str) -> Any:
    """Turn what a user typed into a value, without evaluating code.

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
    except (yaml.YAMLError, ValueError, RecursionError):
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
    """Read one settings file; ConfigError names the file, and the line where YAML gives one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no settings file {str(path)!r} (looked from {Path.cwd()}).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The settings file {str(path)!r} cannot be read: {error}.") from error
    try:
        content = yaml.load(text, Loader=ParameterLoader)  # noqa: S506 - ParameterLoader is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"The settings file {str(path)!r} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"The settings file {str(path)!r} must hold `key: value` lines, not a {type(content).__name__}."
        )
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(f"The settings file {str(path)!r} has the key {key!r}, which is no name; quote it.")
    return content


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """``["--epochs=3", "--smoke"]`` -> ``{"epochs": 3, "smoke": True}``.

    Unlike RecBole, a value may contain ``=``, and ``--key value`` with a blank is an error, not silence.
    """
    parsed: dict[str, Any] = {}
    bare = ""
    for argument in arguments:
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key:
            wanted = f"{bare}={argument.lstrip('=')}" if bare and argument != "=" else "--key=value"
            raise ConfigError(
                f"The argument {argument!r}{f' after {bare!r}' if bare else ''} is not understood: write {wanted}, "
                'without blanks around "=" (quote values that contain blanks).'
            )
        bare = "" if equals else argument
        is_text = key.rpartition(".")[2] in TEXT_KEYS  # --SASRec.data_path=...: for one row of a comparison
        if is_text and not equals:
            raise ConfigError(f'--{key} needs a value: write --{key}=VALUE, without blanks around "=".')
        value = (text if is_text else parse_value(text)) if equals else True
        if is_text and value in ("None", "~", "null"):
            value = None
        if key in parsed and parsed[key] != value:
            raise ConfigError(f"The parameter --{key} is given twice: {parsed[key]!r} and {value!r}.")
        parsed[key] = value
    return parsed


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"``, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def choice(config: Any, key: str, allowed: Sequence[Any]) -> Any:
    """``config[key]``, or ConfigError with the allowed values."""
    value = config[key]
    if value not in allowed:
        hint = nearest(str(value), [str(option) for option in allowed])
        options = ", ".join(repr(option) for option in allowed)
        raise ConfigError(f"{key}={value!r} is not a choice.{hint} Allowed: {options}.")
    return value


def at_least(config: Any, key: str, least: int) -> int:
    """``config[key]`` as a whole number, or ConfigError where it is below ``least``."""
    if int(config[key]) < least:
        raise ConfigError(f"{key}={config[key]!r} must be at least {least}.")
    return int(config[key])
