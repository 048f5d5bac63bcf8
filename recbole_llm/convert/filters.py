"""Filters of the literature: rating, titles, duplicates, k-core, order; in memory or, as passes, on disk."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm.convert.spill import RecordFile, Records, sorted_blocks, value_name
from recbole_llm.convert.table import IntArray, Interactions
from recbole_llm.errors import ConfigError

_PART = 1 << 20
_WRITE = 1 << 16


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


@dataclass(frozen=True)
class Selection:
    """What the filters leave.

    Attributes
    ----------
    steps : list of (str, Counts)
        The counts as read and after each filter that was asked for.
    users, items : array of bool
        Which codes occur.
    blocks : callable
        Yields the records that stay, in output order.
    """

    steps: list[tuple[str, Counts]]
    users: npt.NDArray[np.bool_]
    items: npt.NDArray[np.bool_]
    blocks: Callable[[], Iterator[Records]]

    @property
    def counts(self) -> Counts:
        """Counts after the last filter."""
        return self.steps[-1][1]


def choose(table: Interactions, filters: Filters, titled: npt.NDArray[np.bool_] | None = None) -> Selection:
    """Apply filters; arguments and errors as for :func:`select`, but the table may be on disk."""
    file = table.on_disk()
    if file is not None:
        return _choose_on_disk(table, file, filters, titled)
    rows, steps = select(table, filters, titled)

    def blocks() -> Iterator[Records]:
        for start in range(0, len(rows), _WRITE):
            yield table.records(rows[start : start + _WRITE])

    users = occurrences(table.user, rows, len(table.users)) > 0
    items = occurrences(table.item, rows, len(table.items)) > 0
    return Selection(steps, users, items, blocks)


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
        _need_rating(table)
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


def _need_rating(table: Interactions) -> None:
    if "rating" not in table.value_fields:
        raise ConfigError("min_rating is given, but this source has no rating.")


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


def _choose_on_disk(
    table: Interactions, file: RecordFile, filters: Filters, titled: npt.NDArray[np.bool_] | None
) -> Selection:
    """The same by passes over a file, with arrays as long as the catalogue; only what needs an order is sorted."""
    rating = None
    users, items = np.ones(len(table.users), dtype=bool), np.ones(len(table.items), dtype=bool)
    numbers_ascend = True

    def kept() -> Iterator[Records]:
        for block in file.blocks():
            keep = users[block["user"]] & items[block["item"]]
            if rating is not None:
                keep &= block[rating] >= filters.min_rating
            yield block if keep.all() else block[keep]

    def tally() -> tuple[IntArray, IntArray]:
        by_user, by_item = np.zeros(len(users), dtype=np.int64), np.zeros(len(items), dtype=np.int64)
        for block in kept():
            by_user += np.bincount(block["user"], minlength=len(users))
            by_item += np.bincount(block["item"], minlength=len(items))
        return by_user, by_item

    def note(name: str) -> tuple[IntArray, IntArray]:
        by_user, by_item = tally()
        steps.append((name, Counts(int((by_user > 0).sum()), int((by_item > 0).sum()), int(by_user.sum()))))
        return by_user, by_item

    steps: list[tuple[str, Counts]] = []
    by_user, by_item = note("as read")
    if filters.min_rating is not None:
        _need_rating(table)
        rating = value_name(table.value_fields.index("rating"))
        by_user, by_item = note(f"rating >= {filters.min_rating:g}")
    if filters.untitled == "drop" and titled is not None:
        items = titled
        by_user, by_item = note("titled items")
    if filters.dedup != "none":
        unique = table.new_file()
        for block in _one_per_pair(sorted_blocks(kept(), ("user", "item", "time", "number"), table.new_file), filters):
            unique.append(block)
        file, numbers_ascend = unique, False
        by_user, by_item = note(f"{filters.dedup} of duplicates")
    if filters.k_core > 1:
        while ((by_user > 0) & (by_user < filters.k_core)).any() or ((by_item > 0) & (by_item < filters.k_core)).any():
            users, items = by_user >= filters.k_core, by_item >= filters.k_core
            by_user, by_item = tally()
        by_user, by_item = note(f"{filters.k_core}-core")

    def blocks() -> Iterator[Records]:
        if filters.order == "time":
            return sorted_blocks(kept(), ("time", "number"), table.new_file)
        return kept() if numbers_ascend else sorted_blocks(kept(), ("number",), table.new_file)

    return Selection(steps, by_user > 0, by_item > 0, blocks)


def _one_per_pair(blocks: Iterable[Records], filters: Filters) -> Iterator[Records]:
    """Yield the first or the last record of each user and item; ``blocks`` are in that order."""
    last: Records | None = None
    for block in blocks:
        if last is not None:
            block = np.concatenate((last, block))
        elif filters.dedup == "first":
            yield block[:1]
        changes = (block["user"][1:] != block["user"][:-1]) | (block["item"][1:] != block["item"][:-1])
        yield block[1:][changes] if filters.dedup == "first" else block[:-1][changes]
        last = block[-1:].copy()
    if last is not None and filters.dedup == "last":
        yield last
