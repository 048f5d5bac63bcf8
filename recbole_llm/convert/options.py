"""Options of individual sources: what values they take and what they mean."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.errors import ConfigError

#: Kind (a key of ``_KINDS``, or the choices) and help of each option.
OPTIONS: dict[str, tuple[str | tuple[str, ...], str]] = {
    "no_metadata": ("flag", "Amazon, Steam: convert without item text"),
    "columns": ("names", "columns of a file without header; Amazon: the order of user, item, rating, time"),
    "user_key": (
        ("username", "user_id"),
        "Steam: what identifies a user (default: username; some lines lack user_id)",
    ),
    "complete_games": ("flag", "Steam: treat games without genres or tags as untitled"),
    "movie_tags": ("count", "MovieLens: add the N most frequent user tags (which include future information)"),
    "workers": ("count", "processes for parsing Python literals (default: idle cores, up to 4)"),
    "user_col": ("text", "user or session"),
    "item_col": ("text", "item"),
    "time_col": ("text", "time; without it, the order of the rows is used"),
    "rating_col": ("text", "rating"),
    "inter_fields": ("names", "additional numeric columns to keep, comma-separated"),
    "time_format": ("text", "strptime pattern of the time (default: numbers and ISO dates)"),
    "delimiter": ("text", "separator of a text table"),
    "item_id_col": ("text", "id column of --metadata (default: same as --item_col)"),
    "item_fields": ("names", "columns of --metadata to keep: name:type or column=name:type, comma-separated"),
    "title_col": ("text", "which of the item fields is the title"),
    "users": ("path", "file that describes the users"),
    "user_id_col": ("text", "its id column (default: same as --user_col)"),
    "user_fields": ("names", "its columns to keep, same format as --item_fields"),
}
#: Options of ``sessions`` and ``generic``.
OWN_FILES = frozenset(["columns", *list(OPTIONS)[list(OPTIONS).index("user_col") :]])


def is_path(value: object) -> bool:
    """Whether a value can be a path."""
    return isinstance(value, str | Path) and bool(str(value)) and "\0" not in str(value)


def names(value: str | Sequence[str] | None) -> list[str] | None:
    """Return names that are given comma-separated or in a list."""
    if value is None:
        return None
    return [part.strip() for part in (value.split(",") if isinstance(value, str) else value) if part.strip()]


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Raise :class:`~recbole_llm.errors.ConfigError` unless a value is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"invalid value for {key}: {value!r} (choose from {', '.join(map(repr, choices))}).")


def check_option(key: str, value: object) -> None:
    """Raise :class:`~recbole_llm.errors.ConfigError` if an option of an individual source cannot have this value."""
    kind = OPTIONS[key][0]
    if isinstance(kind, tuple):
        check_choice(key, value, kind)
        return
    check_kind(key, value, kind)


def check_kind(key: str, value: object, kind: str) -> None:
    """Raise :class:`~recbole_llm.errors.ConfigError` unless a value is of a kind."""
    wanted, is_right = _KINDS[kind]
    if not is_right(value):
        raise ConfigError(f"{key} is {value!r}; it must be {wanted}.")


def _are_names(value: Any) -> bool:
    is_listed = isinstance(value, list | tuple) and all(isinstance(part, str) and part for part in value)
    return (is_listed or isinstance(value, str)) and bool(names(value))


_KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "count": ("a positive integer", lambda value: type(value) is int and value > 0),
    "flag": ("True or False", lambda value: isinstance(value, bool)),
    "names": ("names, comma-separated or in a list", _are_names),
    "path": ("a path", is_path),
    "text": ("a string", lambda value: isinstance(value, str)),
}
