"""Options of individual sources: what values they take and what they mean."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from recbole_llm.config.types import Name, Positive, Rule
from recbole_llm.config.values import as_list


def names(value: str | Sequence[str] | None) -> list[str] | None:
    """Return names that are given comma-separated or in a list."""
    return None if value is None else [part for part in map(str.strip, as_list(value)) if part]


FilePath = Annotated[str, Rule(lambda path: bool(str(path)) and "\0" not in str(path), "a path")]
Names = Annotated[str | list[Name], Rule(lambda value: bool(names(value)), "names, comma-separated or in a list")]

#: Type and help of each option.
OPTIONS: dict[str, tuple[Any, str]] = {
    "no_metadata": (bool, "Amazon, Steam: convert without item text"),
    "columns": (Names, "columns of a file without header; Amazon: the order of user, item, rating, time"),
    "user_key": (
        Literal["username", "user_id"],
        "Steam: what identifies a user (default: username; some lines lack user_id)",
    ),
    "complete_games": (bool, "Steam: treat games without genres or tags as untitled"),
    "movie_tags": (Positive, "MovieLens: add the N most frequent user tags (which include future information)"),
    "workers": (Positive, "processes for parsing Python literals (default: idle cores, up to 4)"),
    "user_col": (str, "user or session"),
    "item_col": (str, "item"),
    "time_col": (str, "time; without it, the order of the rows is used"),
    "rating_col": (str, "rating"),
    "inter_fields": (Names, "additional numeric columns to keep, comma-separated"),
    "time_format": (str, "strptime pattern of the time (default: numbers and ISO dates)"),
    "delimiter": (str, "separator of a text table"),
    "item_id_col": (str, "id column of --metadata (default: same as --item_col)"),
    "item_fields": (Names, "columns of --metadata to keep: name:type or column=name:type, comma-separated"),
    "title_col": (str, "which of the item fields is the title"),
    "users": (FilePath, "file that describes the users"),
    "user_id_col": (str, "its id column (default: same as --user_col)"),
    "user_fields": (Names, "its columns to keep, same format as --item_fields"),
}
#: Options of ``sessions`` and ``generic``.
OWN_FILES = frozenset(["columns", *list(OPTIONS)[list(OPTIONS).index("user_col") :]])
