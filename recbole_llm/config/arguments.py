"""Settings on a command line: ``--key=value``, ``--key value``, ``--switch``, ``-m SASRec -d ml-100k``."""

import argparse
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NoReturn

from recbole_llm.config.schema import is_text, types_by_key
from recbole_llm.config.types import members, unwrap
from recbole_llm.config.values import parse_value, refuse_others
from recbole_llm.errors import ConfigError

SHORT = {"m": "model", "d": "dataset"}
_BLANK = ("None", "~", "null")
_TRUTH = ("true", "false", "True", "False", "TRUE", "FALSE")


class CommandParser(argparse.ArgumentParser):
    """Options of a command; a wrong one is a :class:`~recbole_llm.errors.ConfigError`, one line like any other.

    Parameters
    ----------
    command : str
        Name after ``recbole-llm``.
    text : str
        What ``--help`` says first.
    changeable : iterable of str
        Keys of a run's settings that the command takes as ``--key=value`` besides its own options, for ``--help``.
    """

    def __init__(self, command: str, text: str, changeable: Iterable[str] = ()) -> None:
        self.changeable = tuple(changeable)
        keys = ", ".join(self.changeable)
        super().__init__(
            prog=f"recbole-llm {command}",
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"Settings of the run that may be changed, as --key=value: {keys}." if keys else None,
            allow_abbrev=False,
        )

    def parse_with_settings(
        self, argv: Sequence[str], refusal: str, remedy: str
    ) -> tuple[argparse.Namespace, dict[str, Any]]:
        """Parse options and the settings that may be changed; for any other key, an error as :func:`refuse_others`."""
        given, rest = self.parse_known_args(list(argv))
        settings = parse_arguments(rest)
        options = [name.removeprefix("--") for action in self._actions for name in action.option_strings]
        refuse_others(settings, [*self.changeable, *options], refusal, remedy)
        return given, settings

    def error(self, message: str) -> NoReturn:
        """Raise instead of writing the usage and leaving the process."""
        raise ConfigError(f"{message}. `{self.prog} --help` lists what can be given.")


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the settings of a command line; anything else on it is an error.

    >>> parse_arguments(["-m", "SASRec", "--epochs=3", "--topk", "[5,10]", "--smoke"])
    {'model': 'SASRec', 'epochs': 3, 'topk': [5, 10], 'smoke': True}

    Raises
    ------
    ConfigError
        For an argument that is not a setting, a setting without its value, or a key with two different values.
    """
    settings, rest = split_arguments(arguments)
    if rest:
        raise ConfigError(
            f"The argument {rest[0]!r} is not understood: write --key=value or --key value, without spaces around "
            '"=" (quote values that contain spaces).'
        )
    return settings


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split a command line into settings and the rest, such as run directories.

    Unlike in RecBole, a value may contain ``=``, and nothing is silently ignored.
    """
    settings: dict[str, Any] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        key, equals, text = _name(argument)
        if not key:
            rest.append(argument)
            continue
        value: str | bool = text
        if not equals:
            value = left.pop(0) if left and _is_value_of(key, left[0]) else True
        _add(settings, key, value)
    return settings, rest


def _name(argument: str) -> tuple[str, str, str]:
    """Split ``--key=value`` into key, "=" and value; the key is empty if it is not an option."""
    if argument.startswith("--"):
        return argument[2:].partition("=")
    key, equals, text = argument[1:].partition("=")
    return (SHORT[key], equals, text) if argument.startswith("-") and key in SHORT else ("", "", "")


def _is_value_of(key: str, text: str) -> bool:
    """Whether the next argument is the value of ``--key``: not an option, and True or False for a switch."""
    if text.startswith("=") or (text.startswith("-") and not isinstance(parse_value(text), (int, float))):
        return False
    return text in _TRUTH if _kinds(key) >= {bool} and str not in _kinds(key) else True


@cache
def _kinds(key: str) -> frozenset[Any]:
    """Return the types of a setting's values; none for a key that no section declares."""
    key = key.rpartition(".")[2]  # --SASRec.data_path=...: for one row of a comparison
    return frozenset(unwrap(member)[0] for kind in types_by_key().get(key, ()) for member in members(kind))


def _add(settings: dict[str, Any], key: str, given: str | bool) -> None:
    if given is True and _kinds(key) and bool not in _kinds(key):
        raise ConfigError(f'--{key} needs a value: write --{key}=VALUE, without spaces around "=".')
    value: Any = given
    if isinstance(given, str):
        verbatim = is_text(key.rpartition(".")[2])
        value = (None if given in _BLANK else given) if verbatim else parse_value(given)
    if key in settings and settings[key] != value:
        raise ConfigError(f"The parameter --{key} is given twice: {settings[key]!r} and {value!r}.")
    settings[key] = value
