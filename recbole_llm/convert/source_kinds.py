"""What the reader of one kind of download gives back, and what it may be told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recbole_llm.convert.catalogue import Catalogue
from recbole_llm.convert.lines import Skips
from recbole_llm.convert.sources import Bundle, Source
from recbole_llm.convert.spill import Spill
from recbole_llm.convert.table import Interactions


@dataclass(frozen=True)
class Request:
    """What a reader works on.

    Attributes
    ----------
    name : str
        Name of the source, for instance ``amazon-beauty-2014``.
    bundle : Bundle
        The input.
    metadata : Bundle or None
        Where the item text is, if it is not part of the input.
    skips : Skips
    progress : bool
    all_items : bool
        Whether items without any interaction are read as well.
    options : dict
        Options of this kind of source only (``user_key``, ``columns`` ...).
    spill : Spill
        Where interactions go that are too many for the memory.
    """

    name: str
    bundle: Bundle
    metadata: Bundle | None
    skips: Skips
    progress: bool
    all_items: bool
    options: dict[str, Any]
    spill: Spill


@dataclass
class Reading:
    """What was read.

    Attributes
    ----------
    interactions : Interactions
    items, users : Catalogue or None
    sources : list of Source
        Every file that was used, for the sidecar.
    notes : list of str
        What the user should know.
    """

    interactions: Interactions
    items: Catalogue | None = None
    users: Catalogue | None = None
    sources: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def path_text(levels: Sequence[object]) -> str:
    """Join category levels as the shipped Amazon files do: ``Toys & Games > Games``."""
    return " > ".join(str(level).strip() for level in levels if str(level).strip())


def words_text(values: Sequence[object]) -> str:
    """Join names whose blanks are part of them, one token each: ``Board_Games Toys_&_Games``."""
    return " ".join("_".join(str(value).split()) for value in values if str(value).strip())


def plain_text(value: object) -> str:
    """Return text or a number as text, and nothing for anything else (missing, ``nan``, a list)."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    return ""
