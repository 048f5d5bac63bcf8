"""Interactions in DuckDB, and the filters of the literature on them: rating, titles, duplicates, k-core, order.

DuckDB works within a fixed amount of memory and puts the rest into temporary files (docs/data-engine.md). Ids are kept
once, in Python; the engine sees their codes.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, get_type_hints

import duckdb
import numpy as np
import numpy.typing as npt

from recbole_llm.config.given import check_value
from recbole_llm.config.types import Count
from recbole_llm.convert.values import check_ids
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
    untitled: Literal["keep", "drop"] = "keep"
    dedup: Literal["none", "first", "last"] = "none"
    k_core: Count = 0
    order: Literal["time", "input"] = "time"

    def __post_init__(self) -> None:
        types = get_type_hints(type(self), include_extras=True)
        for key, value in vars(self).items():
            check_value(key, value, types)

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

    ``steps`` are the counts as read and after each filter; ``users`` and ``items`` mark the codes that occur;
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

    ``users`` and ``items`` map raw ids to codes, in order of first appearance. ``value_fields`` are the names of the
    float columns besides the time, for instance ``('rating',)``; temporary files go to ``folder``.
    """

    def __init__(self, value_fields: Sequence[str], folder: Path) -> None:
        self.users, self.items = interner(), interner()
        self.value_fields = tuple(value_fields)
        # A user's own column may have the name of any word of SQL, so the values have numbers.
        self._values = [f"value{place}" for place in range(len(self.value_fields))]
        self._length, self._tables = 0, 0
        self._engine = connect(temp_directory=str(folder / "spilled"))
        self._types = {"user": "int32", "item": "int32", "time": "int64", "micro": "int32"}
        self._types.update(dict.fromkeys(self._values, "float64"))
        self._buffer: list[list[Any]] = [[] for _ in self._types]
        self._insert("CREATE TABLE read AS FROM batch")

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
        """Append a batch.

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

        Raises
        ------
        LineError
            An id is empty or not text; nothing is appended then.
        """
        check_ids(users, items)
        codes = map(self.users.__getitem__, users), map(self.items.__getitem__, items)
        columns = *codes, times, micros or [0] * len(times), *values
        for column, new in zip(self._buffer, columns, strict=True):
            column.extend(new)
        self._length += len(times)
        if len(self._buffer[0]) >= ROWS:
            self._insert()

    def _insert(self, query: str = "INSERT INTO read FROM batch") -> None:
        """Move the buffer into the engine."""
        rows = len(self._buffer[0])
        batch: Columns = {"number": np.arange(self._length - rows, self._length)}
        for (name, kind), column in zip(self._types.items(), self._buffer, strict=True):
            batch[name] = np.fromiter(column, dtype=kind, count=len(column))
            column.clear()
        with engine_errors():
            self._engine.register("batch", batch)
            self._run(query)
            self._engine.unregister("batch")

    def choose(self, filters: Filters, titled: npt.NDArray[np.bool_] | None = None) -> Selection:
        """Apply filters.

        Parameters
        ----------
        filters : Filters
        titled : array of bool, shape (n_items,), optional
            Which item codes have a title; without it, the ``untitled`` filter keeps all.

        Raises
        ------
        ConfigError
            ``min_rating`` is given but the source has no rating.
        DataError
            The disk is full.
        """
        self._insert()
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
            kept = self._k_core(kept, filters.k_core)
            steps.append((f"{filters.k_core}-core", self._count(kept)))
        order = "time, micro, number" if filters.order == "time" else "number"
        users, items = self._occur(kept, "user", len(self.users)), self._occur(kept, "item", len(self.items))
        return Selection(steps, users, items, lambda: self._blocks(kept, order))

    def time_notes(self) -> list[str]:
        """Return warnings about the times of the last selection, by the same rules as a run."""
        kept = f"kept{self._tables - 1}" if self._tables else "read"
        times = f'SELECT "user", CAST(time AS DOUBLE) + micro / 1e6 AS time FROM {kept}'  # as a run reads them
        last = f'SELECT "user", min(time) AS low, max(time) AS time, count(*) AS often FROM ({times}) GROUP BY "user"'
        whole = "CAST(sum(often) AS BIGINT), min(low), max(time), count_if(often > 1)"
        rows, low, high, users = self._row(f"SELECT {whole} FROM ({last})")
        ends = f'SELECT "user" FROM ({times}) JOIN ({last}) USING ("user", time) GROUP BY "user" HAVING count(*) > 1'
        (tied,) = self._row(f"SELECT count(*) FROM ({ends})")
        # Times within a power of two have no gap, so the smallest and the largest of each are enough to find one.
        power = "CASE WHEN time = 0 THEN -2000 ELSE floor(log2(abs(time))) END"
        sizes = self._run(
            f"SELECT min(abs(time)), max(abs(time)), count(*) FROM ({times}) GROUP BY {power} ORDER BY 1"
        )
        below = accumulate(count for _, _, count in sizes)
        gaps = [
            (count, lower, upper)
            for count, ((_, lower, _), (upper, _, _)) in zip(below, pairwise(sizes), strict=False)
            if upper >= max(DATES_FROM, UNIT_GAP * lower)
        ]
        return TimeReport(rows, users, low, high, tied, *(gaps[0] if gaps else ())).notices("timestamp")

    def _row(self, query: str) -> tuple[Any, ...]:
        return self._run(query)[0]

    def _keep(self, query: str) -> str:
        name = f"kept{self._tables}"
        self._tables += 1
        self._run(f"CREATE TABLE {name} AS SELECT * {query}")
        return name

    def _k_core(self, table: str, k: int) -> str:
        while True:
            rare = [f'SELECT "{key}" FROM {table} GROUP BY ALL HAVING count(*) < {k}' for key in ("user", "item")]
            if not any(self._run(f"{query} LIMIT 1") for query in rare):
                return table
            table = self._keep(f'FROM {table} ANTI JOIN ({rare[0]}) USING ("user") ANTI JOIN ({rare[1]}) USING (item)')

    def _count(self, table: str) -> Counts:
        # Several times faster than count(DISTINCT ...).
        distinct = (f'(SELECT count(*) FROM (SELECT DISTINCT "{key}" FROM {table}))' for key in ("user", "item"))
        return Counts(*self._row(f"SELECT {', '.join(distinct)}, (SELECT count(*) FROM {table})"))

    def _occur(self, table: str, key: str, size: int) -> npt.NDArray[np.bool_]:
        occur = np.zeros(size, dtype=bool)
        occur[self._columns(f'SELECT DISTINCT "{key}" FROM {table}')[key]] = True
        return occur

    def _blocks(self, table: str, order: str) -> Iterator[Columns]:
        name = self._keep(f"FROM {table} ORDER BY {order}")
        (rows,) = self._row(f"SELECT count(*) FROM {name}")
        for start in range(0, rows, ROWS):
            yield self._columns(
                f"SELECT * EXCLUDE (number) FROM {name} WHERE rowid >= {start} AND rowid < {start + ROWS}"
            )


def connect(**config: str | int) -> duckdb.DuckDBPyConnection:
    """Return a database in memory, without its own progress bars and network access."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings: dict[str, str | int | bool | list[str]] = {
        "memory_limit": MEMORY,
        "threads": min(THREADS, cores),
        "autoinstall_known_extensions": False,
    }
    engine = duckdb.connect(config={**settings, **config})
    # In a notebook without ipywidgets it is off, and any change of it an error.
    if engine.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
        engine.execute("SET enable_progress_bar = false")
    return engine


@contextmanager
def engine_errors(name: str = "the data engine") -> Iterator[None]:
    """Raise DuckDB's errors (a full disk, a damaged file) as :class:`DataError`."""
    try:
        yield
    except duckdb.Error as error:
        raise DataError(f"{name}: {str(error).strip().splitlines()[0]}.") from error
