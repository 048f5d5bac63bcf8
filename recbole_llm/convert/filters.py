"""Filters of the literature on interactions in memory: rating, titles, duplicates, k-core, order."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm.convert.table import IntArray, Interactions
from recbole_llm.errors import ConfigError

_PART = 1 << 20


@dataclass(frozen=True)
class Filters:
    """What is kept, applied in the order of the attributes.

    Attributes
    ----------
    min_rating : float or None
        Drop interactions rated lower; ``None`` keeps all.
    untitled : {'keep', 'drop'}
        What happens to items without a title, and to their interactions.
    dedup : {'none', 'first', 'last'}
        Which of several interactions of one user with one item stays, by (time, input order).
    k_core : int
        Drop users and items with fewer interactions, again and again until none is left; 0 keeps all.
    order : {'time', 'input'}
        Order of the rows: by (time, input order), or as they came.
    """

    min_rating: float | None = None
    untitled: str = "keep"
    dedup: str = "none"
    k_core: int = 0
    order: str = "time"

    def __post_init__(self) -> None:
        allowed = {"untitled": ("keep", "drop"), "dedup": ("none", "first", "last"), "order": ("time", "input")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(map(repr, values))}.")
        if not isinstance(self.k_core, int) or self.k_core < 0:
            raise ConfigError(f"k_core is {self.k_core!r}; it must be a whole number, 0 for none.")

    @property
    def drops(self) -> bool:
        """Whether any interaction can be dropped."""
        return bool(self.min_rating is not None or self.untitled == "drop" or self.dedup != "none" or self.k_core > 1)

    def text(self) -> str:
        """Return the filters as command-line options, for messages."""
        parts = []
        if self.min_rating is not None:
            parts.append(f"--min_rating {self.min_rating:g}")
        if self.untitled == "drop":
            parts.append("--untitled drop")
        if self.dedup != "none":
            parts.append(f"--dedup {self.dedup}")
        if self.k_core > 1:
            parts.append(f"--k_core {self.k_core}")
        return " ".join(parts) or "no filter"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the sidecar."""
        return asdict(self)


@dataclass(frozen=True)
class Counts:
    """Users, items and interactions of a selection."""

    users: int
    items: int
    interactions: int

    @property
    def mean_length(self) -> float:
        """Interactions per user."""
        return self.interactions / self.users if self.users else 0.0


def count(table: Interactions, rows: IntArray) -> Counts:
    """Count the distinct users and items in ``rows``."""
    users = occurrences(table.user, rows, len(table.users))
    items = occurrences(table.item, rows, len(table.items))
    return Counts(int((users > 0).sum()), int((items > 0).sum()), len(rows))


def occurrences(codes: npt.NDArray[np.int32], rows: IntArray, size: int) -> IntArray:
    """Count how often each code ``0 ... size - 1`` occurs in ``codes[rows]``."""
    # In parts: bincount makes 64-bit copies, which for all rows at once would be the peak of the whole conversion.
    total = np.zeros(size, dtype=np.int64)
    for start in range(0, len(rows), _PART):
        total += np.bincount(codes[rows[start : start + _PART]], minlength=size)
    return total


def select(
    table: Interactions, filters: Filters, titled: npt.NDArray[np.bool_] | None = None
) -> tuple[IntArray, list[tuple[str, Counts]]]:
    """Return which rows stay, in output order.

    Parameters
    ----------
    table : Interactions
    filters : Filters
    titled : array of bool, shape (n_items,), optional
        Which item codes have a title; without it the ``untitled`` filter keeps all.

    Returns
    -------
    rows : array of int64
        Row numbers of ``table``. Sorting is stable on the exact integer time, so ties keep the input order.
    steps : list of (str, Counts)
        The counts as read and after each filter that was asked for.

    Raises
    ------
    ConfigError
        ``min_rating`` is given but the source has no rating.
    """
    rows = np.argsort(table.time, kind="stable") if filters.order == "time" else np.arange(len(table), dtype=np.int64)
    steps = [("as read", count(table, rows))]

    def note(name: str) -> None:
        steps.append((name, count(table, rows)))

    if filters.min_rating is not None:
        if "rating" not in table.value_fields:
            raise ConfigError("min_rating is given, but this source has no rating.")
        rows = rows[table.values("rating")[rows] >= filters.min_rating]
        note(f"rating >= {filters.min_rating:g}")
    if filters.untitled == "drop" and titled is not None:
        rows = rows[titled[table.item[rows]]]
        note("titled items")
    if filters.dedup != "none":
        rows = _dedup(table, rows, filters)
        note(f"{filters.dedup} of duplicates")
    if filters.k_core > 1:
        rows = k_core(table, rows, filters.k_core)
        note(f"{filters.k_core}-core")
    return rows, steps


def _dedup(table: Interactions, rows: IntArray, filters: Filters) -> IntArray:
    if not len(rows):
        return rows
    # "first" and "last" are by time also when the rows stay in input order.
    by_time = rows[np.argsort(table.time[rows], kind="stable")] if filters.order == "input" else rows
    if filters.dedup == "last":
        by_time = by_time[::-1]
    pairs = table.user[by_time].astype(np.int64) * len(table.items) + table.item[by_time]
    _, first = np.unique(pairs, return_index=True)
    keep = np.zeros(len(table), dtype=bool)
    keep[by_time[first]] = True
    return rows[keep[rows]]


def k_core(table: Interactions, rows: IntArray, k: int) -> IntArray:
    """Drop users and items with fewer than ``k`` interactions until none is left; the order of ``rows`` stays."""
    while len(rows):
        users = occurrences(table.user, rows, len(table.users)) >= k
        items = occurrences(table.item, rows, len(table.items)) >= k
        keep = users[table.user[rows]] & items[table.item[rows]]
        if keep.all():
            break
        rows = rows[keep]
    return rows
