"""The user's settings: from files, a dictionary and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_llm.config.registry import listed_files
from recbole_llm.config.schema import is_text, value_problem
from recbole_llm.config.schema.general import Files
from recbole_llm.config.values import load_yaml, parse_value, plain, without_code_keys
from recbole_llm.errors import ConfigError


@dataclass
class Given:
    """The user's settings by source; later sources win.

    Attributes
    ----------
    files, dictionary, arguments : dict
        From settings files, from a dictionary of the caller, from the command line.
    notices : list of str
        Warnings about them.
    """

    files: dict[str, Any]
    dictionary: dict[str, Any]
    arguments: dict[str, Any]
    notices: list[str] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        files: Sequence[str | Path | Mapping[str, Any]] | None,
        dictionary: Mapping[str, Any] | None,
        arguments: Mapping[str, Any] | None,
    ) -> "Given":
        """Read the files, and parse the strings of the dictionary; those of the command line are parsed already.

        Raises
        ------
        ConfigError
            For a file that cannot be read, a key that is not a string, or a value that is nested too deeply.
        """
        parsed = {
            key: parse_value(value) if isinstance(value, str) and not is_text(str(key)) else value
            for key, value in dict(dictionary or {}).items()
        }
        given = cls({}, _plain(parsed), _plain(dict(arguments or {})))
        named = {**given.dictionary, **given.arguments}.get("config_files")
        check_value("config_files", named, Files.types())
        dropped: list[str] = []
        for file in [*(files or []), *listed_files(named)]:
            content = _plain(file) if isinstance(file, Mapping) else load_yaml(Path(file))
            given.files.update(without_code_keys(content, dropped))
        for key in dict.fromkeys(key for key in dropped if key not in {**given.dictionary, **given.arguments}):
            given.notices.append(
                f"{key} lets a model repository run code and is ignored in settings files: if you trust the "
                f"repository, pass --{key}=True on the command line or set it in a dictionary."
            )
        return given

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, merged by precedence."""
        return {**self.files, **self.dictionary, **self.arguments}

    def strength(self, key: str) -> int:
        """Return 0 for a key that is not set, 1 for one in a file, 2 in a dictionary, 3 on the command line."""
        return max(
            (i for i, each in enumerate((self.files, self.dictionary, self.arguments), 1) if key in each), default=0
        )


def _plain(settings: Mapping[Any, Any]) -> dict[str, Any]:
    for key in settings:
        if not isinstance(key, str):
            raise ConfigError(f"The key {key!r} of a dictionary of settings is not a string.")
    return {key: plain(value, key) for key, value in settings.items()}


def check_value(key: str, value: Any, types: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
    """Raise ConfigError for a value that the type of its key does not allow."""
    text = value_problem(key, value, types, settings)
    if text is not None:
        raise ConfigError(f"{text}.".replace("..", ".").replace("?.", "?"))
