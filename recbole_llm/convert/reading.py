"""Files as batches of columns, with exact places in errors."""

import csv
import glob
import io
import multiprocessing
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, islice
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from recbole_llm.convert.interactions import Interactions, connect, engine_errors
from recbole_llm.convert.sources import MAX_LINE_BYTES, Bundle, Skips, Source
from recbole_llm.convert.values import Catalogue, KnownGap, LineError, field_name
from recbole_llm.errors import DataError

Columns = Sequence[Sequence[Any]]
Take = Callable[[Columns], None]

#: Starting worker processes takes about a second; a smaller source (bytes on disk) is done by then.
PARALLEL_FROM = 16 << 20
_BATCH_ROWS = 1 << 14
_RETURN, _END = "\udc0d", "\udc00"
# Types of parquet columns whose values have one exact text.
_ID_TYPES = re.compile(r'VARCHAR|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DECIMAL\(\d+,0\)|UUID|"NULL"')


@dataclass(frozen=True)
class Request:
    """Input of the reader of one kind of download.

    ``metadata`` is where the item text is, if not in ``bundle``; ``all_items`` whether to read items without any
    interaction as well; ``options`` are those of this kind of source only; temporary files may be made in ``folder``,
    and ``stack`` closes what was opened when the conversion is over.
    """

    name: str
    bundle: Bundle
    metadata: Bundle | None
    skips: Skips
    progress: bool
    all_items: bool
    options: dict[str, Any]
    folder: Path
    stack: ExitStack

    def interactions(self, *value_fields: str) -> Interactions:
        """Return an empty table; its fields get names that the header of an atomic file can hold."""
        value_fields = tuple(map(field_name, value_fields))
        return self.stack.enter_context(Interactions(value_fields, self.folder))


@dataclass
class Reading:
    """Result of reading: interactions, items and users, every file used, and notes for the user."""

    interactions: Interactions
    items: Catalogue | None = None
    users: Catalogue | None = None
    sources: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Batch(NamedTuple):
    """Lines or rows of a file, the number of each, and what turns any of them into columns.

    ``parse`` must be importable by name, as worker processes call it, and raises :class:`LineError`.
    """

    numbers: Sequence[int]
    rows: Sequence[Any]
    parse: Callable[[Sequence[Any]], Columns]


def take_all(source: Source, batches: Iterable[Batch], take: Take, skips: Skips, workers: int = 1) -> None:
    """Pass all columns to ``take``, batch by batch; row by row if that fails.

    Parameters
    ----------
    take : callable
        Gets one sequence per column. It must check everything before it keeps anything, and raises
        :class:`LineError` if any row cannot be used.
    workers : int
        Processes that parse, for a source of at least :data:`PARALLEL_FROM` bytes. It pays for Python literals, of
        which one process manages 20 to 30 MB/s; not for JSON, which orjson parses as fast as it can be handed over.
    """
    for batch, columns in _ordered_map(_parsed, batches, workers if source.size >= PARALLEL_FROM else 1):
        if columns is not None:
            try:
                take(columns)
                continue
            except LineError:
                pass
        for number, row in zip(batch.numbers, batch.rows, strict=True):
            with skips.line(source.name, number):
                take(batch.parse([row]))


def each_row(source: Source, batches: Iterable[Batch], skips: Skips) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield ``(number, values)`` of each row that can be parsed."""
    for batch in batches:
        columns = _parsed(batch)
        if columns is not None:
            yield from zip(batch.numbers, zip(*columns, strict=True), strict=True)
            continue
        for number, row in zip(batch.numbers, batch.rows, strict=True):
            found: list[tuple[Any, ...]] = []
            with skips.line(source.name, number):
                found = transposed(batch.parse([row]))
            yield from ((number, values) for values in found)


def _parsed(batch: Batch) -> Columns | None:
    try:
        return batch.parse(batch.rows)
    except LineError:
        return None


def transposed(rows: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return the columns of rows, or the rows of columns."""
    return list(zip(*rows, strict=True))


# ---- files


def line_batches(
    source: Source, parse: Callable[[Sequence[bytes]], Columns], progress: bool = False, first: int = 1
) -> Iterator[Batch]:
    """Yield the lines of a file from number ``first`` on, skipping blank lines."""
    for block in source.blocks(progress):
        lines, numbers = block.lines, range(block.first_line, block.first_line + len(block.lines))
        if block.first_line < first:
            lines, numbers = lines[first - block.first_line :], numbers[first - block.first_line :]
        kept = [(number, line) for number, line in zip(numbers, lines, strict=True) if line.strip(b" ")]
        if len(kept) == len(lines):
            yield Batch(numbers, lines, parse)
        else:
            yield Batch([number for number, _ in kept], [line for _, line in kept], parse)


def split_lines(separator: str, fields: int) -> Callable[[Sequence[bytes]], Columns]:
    """Return a parser of UTF-8 lines with a fixed number of fields."""
    return partial(_split, separator=separator, fields=fields)


def _split(lines: Sequence[bytes], separator: str, fields: int) -> Columns:
    mark = separator.encode()
    counts = set(map(methodcaller("count", mark), lines))
    if counts - {fields - 1}:
        bad = (counts - {fields - 1}).pop()
        raise LineError(f"{bad + 1} fields where {fields} are expected (separated by {separator!r})")
    # One split for the whole batch takes a third of the time of one per line.
    flat = decode(b"\n".join(lines).replace(mark, b"\n")).split("\n")
    return [flat[place::fields] for place in range(fields)] if lines else []


def decode(data: bytes) -> str:
    """Decode UTF-8, or raise :class:`LineError`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise LineError(f"byte {data[error.start]:#04x} is not UTF-8") from error


def csv_rows(
    source: Source, delimiter: str, progress: bool = False
) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
    """Yield rows of a delimited UTF-8 file in batches, with the number of the last line of each.

    Quoted fields may hold delimiters and line ends; with a delimiter of several characters a quote is a character like
    any other. Blank lines are skipped.

    Raises
    ------
    DataError
        A byte is not UTF-8, or a quote is never closed.
    """
    lines = _CsvLines(source, progress)
    quoted = len(delimiter) == 1
    reader: Any = csv.reader(lines, delimiter=delimiter) if quoted else _split_rows(lines, delimiter)
    done = 0
    # The default of 131,072 characters is less than a product description can hold.
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        while rows := list(islice(reader, _BATCH_ROWS)):
            read = reader.line_num if quoted else done + len(rows)
            numbers = _last_lines(rows, done, read)
            if rows[-1] == [_END]:
                numbers, rows = numbers[:-1], rows[:-1]
            elif rows[-1] and rows[-1][-1].endswith(_END):
                start = read - sum(cell.count("\n") for cell in rows[-1])
                raise DataError(
                    f"{source.name}, line {start}: a quote is opened here and not closed where it should be."
                )
            numbers, rows = _without_blank(numbers, rows)
            yield numbers, [[cell.replace(_RETURN, "\r") for cell in row] for row in rows] if lines.returns else rows
            done = read
    except csv.Error as error:
        raise DataError(f"{source.name}, line {reader.line_num}: {error}.") from error
    finally:
        csv.field_size_limit(before)


class _CsvLines:
    """Lines of a UTF-8 file as ``csv.reader`` takes them, and :data:`_END`: a row of its own, unless a quote is open.

    A lone carriage return ends no line, but it does for ``csv.reader``: ``_RETURN``, which UTF-8 cannot hold, replaces
    it, and ``returns`` says so.
    """

    def __init__(self, source: Source, progress: bool) -> None:
        self.source, self.progress = source, progress
        self.returns = False

    def __iter__(self) -> Iterator[str]:
        for block in self.source.blocks(self.progress):
            data = b"\n".join(block.lines)
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                number = block.first_line + data.count(b"\n", 0, error.start)
                raise DataError(
                    f"{self.source.name}, line {number}: byte {data[error.start]:#04x} is not UTF-8; convert the "
                    "file, for instance with `iconv -f latin1 -t utf8`."
                ) from error
            if "\r" in text:
                text, self.returns = text.replace("\r", _RETURN), True
            yield from io.StringIO(text + "\n", newline="\n")
        yield _END


def _split_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    return (line.rstrip("\n").split(delimiter) if line != "\n" else [] for line in lines)


def _last_lines(rows: Sequence[Sequence[str]], before: int, last: int) -> Sequence[int]:
    """Return the number of the last line of each row, of rows that end at lines ``before + 1`` to ``last``."""
    if last - before == len(rows):
        return range(before + 1, last + 1)
    spans = (1 + sum(cell.count("\n") for cell in row) for row in rows)
    return list(accumulate(spans, initial=before))[1:]


def _without_blank(numbers: Sequence[int], rows: list[list[str]]) -> tuple[Sequence[int], list[list[str]]]:
    if min(map(len, rows), default=2) > 1:
        return numbers, rows
    kept = [(n, row) for n, row in zip(numbers, rows, strict=True) if len(row) > 1 or "".join(row).strip(" ")]
    return [number for number, _ in kept], [row for _, row in kept]


def csv_batches(
    source: Source, delimiter: str, wanted: Sequence[str], names: Sequence[str] | None = None, progress: bool = False
) -> Iterator[Batch]:
    """Yield the columns ``wanted`` of a delimited file; ``names`` are its columns if it has no header.

    A column that does not exist raises :class:`~recbole_llm.errors.DataError`.
    """
    parse: Callable[[Sequence[Any]], Columns] | None = None
    for numbers, rows in csv_rows(source, delimiter, progress):
        if parse is None and rows:
            if names is None:
                names, numbers, rows = [cell.strip() for cell in rows[0]], numbers[1:], rows[1:]
            absent = [name for name in wanted if name not in names]
            if absent:
                raise DataError(f"{source.name}, line 1: no column {absent[0]!r}; the columns are {', '.join(names)}.")
            places = [list(names).index(name) for name in wanted]
            parse = partial(_pick, places=places, width=len(names), delimiter=delimiter)
        if parse is not None:
            yield Batch(numbers, rows, parse)
    if parse is None:
        raise DataError(f"{source.name}: the file is empty.")


def _pick(rows: Sequence[Sequence[str]], places: Sequence[int], width: int, delimiter: str) -> Columns:
    widths = set(map(len, rows)) - {width}
    if widths:
        raise LineError(f"{widths.pop()} fields where {width} are expected (separated by {delimiter!r})")
    if len(rows) == 1 and not any(rows[0]):
        raise KnownGap("a row without any value")
    columns = transposed(rows) if rows else [()] * width
    return [columns[place] for place in places]


def parquet_columns(source: Source) -> dict[str, str]:
    """Return name and type of the columns of a parquet file; DataError if it is damaged."""
    if source.member:
        raise DataError(f"{source.name}: a parquet file is read from disk, not from inside an archive; unpack it.")
    with engine_errors(f"{source.name}: the parquet data is damaged"), connect() as engine:
        return {
            name: kind for name, kind, *_ in engine.execute(f"DESCRIBE FROM {_PARQUET}", [_path(source)]).fetchall()
        }


# Without patterns and without columns made of folder names; older writers do not mark text as such.
_PARQUET = "read_parquet(?, binary_as_string = true, hive_partitioning = false)"


def _path(source: Source) -> str:
    return glob.escape(str(source.path))


def parquet_batches(source: Source, wanted: Sequence[str], ids: int = 0, progress: bool = False) -> Iterator[Batch]:
    """Yield columns of a parquet file; the first ``ids`` of them as text, whole numbers in all their digits.

    Raises
    ------
    DataError
        The file is damaged, a column is missing, or an id column is neither text nor whole numbers: a float has no
        text that was in the file.
    """
    types = parquet_columns(source)
    terms = []
    for place, name in enumerate(wanted):
        if name not in types:
            raise DataError(f"{source.name}: no column {name!r}; the columns are {', '.join(types)}.")
        term, kind = '"' + name.replace('"', '""') + '"', types[name]
        if place < ids:
            if not _ID_TYPES.fullmatch(kind):
                raise DataError(
                    f"{source.name}: the column {name!r} holds ids of the type {kind}; ids are text or whole numbers. "
                    f"With pandas: frame[{name!r}] = frame[{name!r}].astype('Int64') before it is written."
                )
            term = f"CAST({term} AS VARCHAR)"
        elif kind == "TIMESTAMP WITH TIME ZONE":
            term = f"make_timestamp(epoch_us({term}))"  # in UTC
        terms.append(term)
    row = 1
    with connect(threads=1) as engine, engine_errors(f"{source.name}: the parquet data is damaged"):
        total = engine.execute(f"SELECT count(*) FROM {_PARQUET}", [_path(source)]).fetchall()[0][0]
        engine.execute(f"SELECT {', '.join(terms)} FROM {_PARQUET}", [_path(source)])
        with tqdm(total=total, desc=source.basename, disable=None if progress else True, leave=False) as bar:
            while rows := engine.fetchmany(_BATCH_ROWS):
                yield Batch(range(row, row + len(rows)), rows, transposed)
                row += len(rows)
                bar.update(len(rows))


# ---- processes


def default_workers() -> int:
    """Return the default number of processes: one per idle core, at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(4, cores - round(busy)))


def _ordered_map(
    function: Callable[[Batch], Columns | None], batches: Iterable[Batch], workers: int
) -> Iterator[tuple[Batch, Columns | None]]:
    """Yield ``(batch, function(batch))`` in order; batches are drawn only ``2 * workers`` ahead of the results."""
    if workers <= 1:
        yield from ((batch, function(batch)) for batch in batches)
        return
    # Fresh processes: a forked one could inherit a lock that a thread of torch or tqdm holds. The parent alone answers
    # to Ctrl-C.
    executor = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    waiting: deque[tuple[Batch, Future[Columns | None]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, executor.submit(function, batch)))
            if len(waiting) >= 2 * workers:
                done, result = waiting.popleft()
                yield done, result.result()
        for done, result in waiting:
            yield done, result.result()
    except BrokenProcessPool as error:
        raise DataError("a worker process was killed, perhaps for want of memory; try --workers 1.") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
