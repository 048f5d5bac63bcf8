"""Interactions in DuckDB, and the filters of the literature on them: rating, titles, duplicates, k-core, order.

DuckDB sorts, groups and joins within a fixed amount of memory and puts the rest into temporary files, so the number of
interactions is bounded by the disk alone (docs/data-engine.md has the measurements). Ids are kept once, in Python.
"""

import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from recbole_llm.data.times import DATES_FROM, UNIT_GAP, TimeReport
from recbole_llm.errors import ConfigError, DataError

#: Memory limit of DuckDB before it spills to disk; an interaction takes about 30 bytes.
MEMORY = "256MB"
#: Maximum number of threads; each needs its own memory.
THREADS = 4
#: Rows inserted or fetched at a time.
ROWS = 1 << 16

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Filters:
    """Filters, applied in the order of the attributes.

    Attributes
    ----------
    min_rating : float or None
        Drop interactions with a lower rating.
    untitled : {'keep', 'drop'}
        What to do with items without a title and their interactions.
    dedup : {'none', 'first', 'last'}
        Which of several interactions of a user with the same item to keep, by (time, input order).
    k_core : int
        Repeatedly drop users and items with fewer interactions until all have enough; 0 keeps all.
    order : {'time', 'input'}
        Sort by (time, input order), or keep the input order.
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
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(map(repr, values))}.")
        if type(self.k_core) is not int or self.k_core < 0:
            raise ConfigError(f"k_core is {self.k_core!r}; it must be a non-negative integer (0: no k-core filter).")
        rating = self.min_rating
        if rating is not None and (type(rating) not in (int, float) or not np.isfinite(rating)):
            raise ConfigError(f"min_rating is {rating!r}; it must be a finite number.")

    @property
    def drops(self) -> bool:
        """Whether any interaction can be dropped."""
        return self.text() != "no filter"

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
    """Interactions left after filtering; valid until the next selection.

    ``steps`` has the counts as read and after each filter, ``users`` and ``items`` mark the codes that occur, and
    ``blocks`` yields the interactions in output order as columns ``user``, ``item``, ``time``, ``micro`` and one for
    each value field.
    """

    steps: list[tuple[str, Counts]]
    users: npt.NDArray[np.bool_]
    items: npt.NDArray[np.bool_]
    blocks: Callable[[], Iterator[Columns]]

    @property
    def counts(self) -> Counts:
        """Counts after the last filter."""
        return self.steps[-1][1]


def interner() -> defaultdict[str, int]:
    """Return a dictionary that numbers its keys 0, 1, 2 ... as they are first looked up."""
    codes: defaultdict[str, int] = defaultdict()
    codes.default_factory = codes.__len__
    return codes


class Interactions:
    """The interactions of a conversion, in input order; a context manager.

    ``users`` and ``items`` map raw ids to codes, in order of first appearance. ``value_fields`` are the names of float
    columns beside the time, for instance ``('rating',)``; temporary files are made in ``folder``.
    """

    def __init__(self, value_fields: Sequence[str], folder: Path) -> None:
        self.users, self.items = interner(), interner()
        self.value_fields = tuple(value_fields)
        # The names of a user's own columns could be any word of SQL, so the values go by their place.
        self._values = [f"value{place}" for place in range(len(self.value_fields))]
        self._length, self._tables, self._views = 0, 0, 0
        self._engine = connect(temp_directory=str(folder / "spilled"))
        types = {"number": "BIGINT", "user": "INTEGER", "item": "INTEGER", "time": "BIGINT", "micro": "INTEGER"}
        types.update(dict.fromkeys(self._values, "DOUBLE"))
        self._run("CREATE TABLE read (" + ", ".join(f'"{name}" {kind}' for name, kind in types.items()) + ")")
        self._clear()

    def _clear(self) -> None:
        self._buffer: dict[str, array[Any]] = {
            "user": array("i"),
            "item": array("i"),
            "time": array("q"),
            "micro": array("i"),
        }
        self._buffer.update({name: array("d") for name in self._values})

    def __enter__(self) -> "Interactions":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def __len__(self) -> int:
        return self._length

    def _run(self, query: str) -> list[Any]:
        with engine_errors():
            return self._engine.execute(query).fetchall()

    def _columns(self, query: str) -> Columns:
        with engine_errors():
            return self._engine.execute(query).fetchnumpy()

    def extend(
        self,
        users: Sequence[str],
        items: Sequence[str],
        times: Sequence[int],
        values: Sequence[Sequence[float]] = (),
        micros: Sequence[int] | None = None,
    ) -> None:
        """Append a batch whose columns are checked already.

        Parameters
        ----------
        users, items : sequence of str
            Raw ids.
        times : sequence of int
            Whole times in the unit of the source, 64 bits.
        values : sequence of sequences of float
            One for each of ``value_fields``.
        micros : sequence of int, optional
            Millionths above each whole time, 0 to 999,999.
        """
        columns = [*values, users, items, micros if micros is not None else times]
        if any(len(column) != len(times) for column in columns) or len(values) != len(self._values):
            raise ValueError("the columns of a batch differ in length or number")
        buffer = self._buffer
        # An array made of a list is filled in one go; extending one by an iterator is not.
        buffer["time"].extend(array("q", times))
        buffer["micro"].extend(array("i", bytes(4 * len(times)) if micros is None else micros))
        buffer["user"].extend(array("i", list(map(self.users.__getitem__, users))))
        buffer["item"].extend(array("i", list(map(self.items.__getitem__, items))))
        for name, column in zip(self._values, values, strict=True):
            buffer[name].extend(array("d", column))
        self._length += len(times)
        if len(buffer["time"]) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        rows = len(self._buffer["time"])
        if rows:
            batch: Columns = {"number": np.arange(self._length - rows, self._length)}
            batch.update({name: np.frombuffer(column, column.typecode) for name, column in self._buffer.items()})
            with engine_errors():
                self._engine.register("batch", batch)
                self._run("INSERT INTO read SELECT * FROM batch")
                self._engine.unregister("batch")
            self._clear()

    def choose(self, filters: Filters, titled: npt.NDArray[np.bool_] | None = None) -> Selection:
        """Apply filters.

        Parameters
        ----------
        filters : Filters
        titled : array of bool, shape (n_items,), optional
            Which item codes have a title; without it the ``untitled`` filter keeps all.

        Returns
        -------
        Selection
            Ties in time keep the order of the input. It is valid until the next call.

        Raises
        ------
        ConfigError
            ``min_rating`` is given but the source has no rating.
        DataError
            The disk is full.
        """
        self._flush()
        for number in range(self._tables):
            self._run(f"DROP TABLE IF EXISTS kept{number}")
        self._tables = 0
        kept = "read"
        steps = [("as read", self._count(kept))]
        if filters.min_rating is not None:
            if "rating" not in self.value_fields:
                raise ConfigError("min_rating is set, but this source has no ratings.")
            value = self._values[self.value_fields.index("rating")]
            kept = self._keep(f"FROM {kept} WHERE {value} >= {float(filters.min_rating)!r}")
            steps.append((f"rating >= {filters.min_rating:g}", self._count(kept)))
        if filters.untitled == "drop" and titled is not None:
            self._engine.register("titled", {"item": np.flatnonzero(titled).astype(np.int32)})
            kept = self._keep(f"FROM {kept} SEMI JOIN titled USING (item)")
            self._engine.unregister("titled")
            steps.append(("titled items", self._count(kept)))
        if filters.dedup != "none":
            way = {"first": "ASC", "last": "DESC"}[filters.dedup]
            rank = f'PARTITION BY "user", item ORDER BY time {way}, micro {way}, number {way}'
            kept = self._keep(f"FROM {kept} QUALIFY row_number() OVER ({rank}) = 1")
            steps.append((f"{filters.dedup} of duplicates", self._count(kept)))
        if filters.k_core > 1:
            rare = self._rare(kept, filters.k_core)
            while any(self._run(f"{query} LIMIT 1") for query in rare):
                kept = self._keep(
                    f'FROM {kept} ANTI JOIN ({rare[0]}) USING ("user") ANTI JOIN ({rare[1]}) USING (item)'
                )
                rare = self._rare(kept, filters.k_core)
            steps.append((f"{filters.k_core}-core", self._count(kept)))
        order = "time, micro, number" if filters.order == "time" else "number"
        users, items = self._occur(kept, "user", len(self.users)), self._occur(kept, "item", len(self.items))
        return Selection(steps, users, items, lambda: self._blocks(kept, order))

    def time_notes(self) -> list[str]:
        """Return warnings about the times of the last selection, by the same rules as a run."""
        kept = f"kept{self._tables - 1}" if self._tables else "read"
        # What a run reads from the file.
        times = f'SELECT "user", CAST(time AS DOUBLE) + micro / 1e6 AS time FROM {kept}'
        last = f'SELECT "user", max(time) AS time, count(*) AS often FROM ({times}) GROUP BY "user"'
        rows, low, high = self._row(f"SELECT count(*), min(time), max(time) FROM ({times})")
        (users,) = self._row(f"SELECT count(*) FROM ({last}) WHERE often > 1")
        ends = f'SELECT "user" FROM ({times}) JOIN ({last}) USING ("user", time) GROUP BY "user" HAVING count(*) > 1'
        (tied,) = self._row(f"SELECT count(*) FROM ({ends})")
        # Sizes within a power of two are no gap, so the least and the greatest of each are enough to find one.
        power = "CASE WHEN time = 0 THEN -2000 ELSE floor(log2(abs(time))) END"
        sizes = self._run(
            f"SELECT max(abs(time)), min(abs(time)), count(*) FROM ({times}) GROUP BY {power} ORDER BY 1"
        )
        gap: tuple[Any, ...] = ()
        below = 0
        for (lower, *_, count), (_, upper, _) in pairwise(sizes):
            below += count
            if not gap and upper >= max(DATES_FROM, UNIT_GAP * lower):
                gap = (below, lower, upper)
        return TimeReport(rows, users, low, high, tied, *gap).notices("timestamp")

    def _row(self, query: str) -> tuple[Any, ...]:
        return self._run(query)[0]

    @staticmethod
    def _rare(table: str, k: int) -> list[str]:
        """Return queries for the users, and the items, with fewer than ``k`` interactions."""
        return [f'SELECT "{column}" FROM {table} GROUP BY ALL HAVING count(*) < {k}' for column in ("user", "item")]

    def _keep(self, query: str) -> str:
        name = f"kept{self._tables}"
        self._tables += 1
        self._run(f"CREATE TABLE {name} AS SELECT * {query}")
        return name

    def _count(self, table: str) -> Counts:
        # Several times faster than count(DISTINCT ...).
        distinct = (f'(SELECT count(*) FROM (SELECT DISTINCT "{column}" FROM {table}))' for column in ("user", "item"))
        return Counts(*self._row(f"SELECT {', '.join(distinct)}, (SELECT count(*) FROM {table})"))

    def _occur(self, table: str, column: str, size: int) -> npt.NDArray[np.bool_]:
        occur = np.zeros(size, dtype=bool)
        occur[self._columns(f'SELECT DISTINCT "{column}" FROM {table}')[column]] = True
        return occur

    def _blocks(self, table: str, order: str) -> Iterator[Columns]:
        name = self._keep(f"FROM {table} ORDER BY {order}")
        (rows,) = self._row(f"SELECT count(*) FROM {name}")
        for start in range(0, rows, ROWS):
            yield self._columns(
                f"SELECT * EXCLUDE (number) FROM {name} WHERE rowid >= {start} AND rowid < {start + ROWS}"
            )


def connect(**config: Any) -> duckdb.DuckDBPyConnection:
    """Return a database in memory, without its own progress bars and network access."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings: dict[str, Any] = {
        "memory_limit": MEMORY,
        "threads": min(THREADS, cores),
        "autoinstall_known_extensions": False,
    }
    engine = duckdb.connect(config={**settings, **config})
    engine.execute("SET enable_progress_bar = false")
    return engine


@contextmanager
def engine_errors(name: str = "the data engine") -> Iterator[None]:
    """Raise DuckDB's errors (a full disk, a damaged file) as :class:`DataError`."""
    try:
        yield
    except duckdb.Error as error:
        raise DataError(f"{name}: {str(error).strip().splitlines()[0]}.") from error
