"""Files as batches of columns, and errors that name file and line."""

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
from itertools import accumulate, compress, islice
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

from recbole_llm.convert.interactions import Interactions, connect, engine_errors
from recbole_llm.convert.sources import MAX_LINE_BYTES, Bundle, Skips, Source
from recbole_llm.convert.values import Catalogue, KnownGap, LineError, as_floats, as_times, field_name
from recbole_llm.errors import DataError
from recbole_llm.progress import Progress

Columns = Sequence[Sequence[Any]]
Row = tuple[Any, ...]

#: Starting worker processes takes about a second; a smaller source (bytes on disk) is read by then.
PARALLEL_FROM = 16 << 20
_BATCH_ROWS = 1 << 14
# Characters that cannot be in UTF-8 text: stand-ins for the reading of CSV.
_RETURN, _DELIMITER, _END = "\udc0d", "\udc1f", "\udc00"
# Types of parquet columns whose values have one exact text.
_ID_TYPES = re.compile(r'VARCHAR|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DECIMAL\(\d+,0\)|UUID|"NULL"')


@dataclass(frozen=True)
class Request:
    """Input of the reader of a source.

    ``metadata`` has the item text, if it is not in ``bundle``; with ``all_items``, items without interactions are read
    as well; temporary files go to ``folder``; ``stack`` closes what was opened at the end of the conversion.
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
        return self.stack.enter_context(Interactions([field_name(name) for name in value_fields], self.folder))


@dataclass
class Reading:
    """Interactions, items and users as read, every file used, and notes for the user."""

    interactions: Interactions
    items: Catalogue | None = None
    users: Catalogue | None = None
    sources: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Batch(NamedTuple):
    """One or more lines or rows of a file, their numbers, and a parser for any part of them.

    ``parse`` raises :class:`LineError`; it must be importable by name, as worker processes call it.
    """

    numbers: Sequence[int]
    rows: Sequence[Any]
    parse: Callable[[Sequence[Any]], Columns]


def take_all(
    source: Source, batches: Iterable[Batch], take: Callable[[Columns], None], skips: Skips, workers: int = 1
) -> None:
    """Pass the columns of each batch to ``take``, or row by row if that fails.

    Parameters
    ----------
    take : callable
        Gets one sequence per column; raises :class:`LineError`, and keeps nothing then, if it cannot use a row.
    workers : int
        Processes that parse a source of at least :data:`PARALLEL_FROM` bytes. They pay for Python literals, of which
        one process parses 20 to 30 MB/s, but not for JSON, which is parsed as fast as it can be handed over.
    """
    for batch, columns in _ordered_map(_parsed, batches, workers if source.size >= PARALLEL_FROM else 1):
        if columns is not None:
            try:
                take(columns)
                continue
            except LineError:
                pass
        for number, row in zip(batch.numbers, batch.rows, strict=True):
            with skips.line(source.place(number)):
                take(batch.parse([row]))


def rated(table: Interactions) -> Callable[[Columns], None]:
    """Return a function that appends columns of users, items, ratings and whole times to ``table``."""

    def take(columns: Columns) -> None:
        users, items, ratings, times = columns
        table.extend(users, items, as_times(times), [as_floats(ratings, "rating")])

    return take


def take_rows(source: Source, batches: Iterable[Batch], take: Callable[[Row], None], skips: Skips) -> None:
    """Pass the values of each row to ``take``, which raises :class:`LineError` if it cannot use them."""
    for batch in batches:
        columns = _parsed(batch)
        rows = None if columns is None else zip(*columns, strict=True)
        for number, row in zip(batch.numbers, batch.rows, strict=True):
            with skips.line(source.place(number)):
                take(next(rows) if rows else transposed(batch.parse([row]))[0])


def _parsed(batch: Batch) -> Columns | None:
    try:
        return batch.parse(batch.rows)
    except LineError:
        return None


def transposed(rows: Iterable[Sequence[Any]]) -> list[Row]:
    """Return the columns of rows, or the rows of columns."""
    return list(zip(*rows, strict=True))


# ---- files


def line_batches(
    source: Source, parse: Callable[[Sequence[bytes]], Columns], progress: bool = False, first: int = 1
) -> Iterator[Batch]:
    """Yield the lines of a file from number ``first`` on, without blank ones."""
    for start, lines in source.blocks(progress):
        numbers = [number for number, line in enumerate(lines, start) if number >= first and line.strip(b" ")]
        if numbers:
            kept = lines if len(numbers) == len(lines) else [lines[number - start] for number in numbers]
            yield Batch(numbers, kept, parse)


def split_lines(
    separator: str, fields: int, places: Sequence[int] | None = None
) -> Callable[[Sequence[bytes]], Columns]:
    """Return a parser of UTF-8 lines with a fixed number of fields, of which it returns those at ``places``."""
    return partial(_split, separator=separator, fields=fields, places=places or range(fields))


def _split(lines: Sequence[bytes], separator: str, fields: int, places: Sequence[int]) -> Columns:
    mark = separator.encode()
    for marks in set(map(methodcaller("count", mark), lines)) - {fields - 1}:
        raise LineError(f"{marks + 1} fields where {fields} are expected (separated by {separator!r})")
    # One split for the whole batch takes a third of the time of one per line.
    flat = decode(b"\n".join(lines).replace(mark, b"\n")).split("\n")
    return [flat[place::fields] for place in places]


def decode(data: bytes) -> str:
    """Decode UTF-8, or raise :class:`LineError`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise LineError(f"byte {data[error.start]:#04x} is not UTF-8") from error


def csv_rows(
    source: Source, delimiter: str, progress: bool = False
) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
    """Yield batches of rows of a delimited UTF-8 file, without blank ones, and the number of the last line of each.

    Quoted fields may hold delimiters and line breaks. With a delimiter of several characters, a quotation mark is a
    character like any other.

    Raises
    ------
    DataError
        A byte is not UTF-8, or a quotation mark is never closed.
    """
    lines, done = _CsvLines(source, delimiter, progress), 0
    if len(delimiter) == 1:
        reader = csv.reader(lines, delimiter=delimiter)
    else:
        reader = csv.reader(lines, delimiter=_DELIMITER, quoting=csv.QUOTE_NONE)
    # The default limit of 131,072 characters is less than a product description can have.
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        while rows := list(islice(reader, _BATCH_ROWS)):
            numbers: Sequence[int] = range(done + 1, reader.line_num + 1)
            if len(numbers) > len(rows):  # some cells hold line breaks
                spans = (1 + sum(cell.count("\n") for cell in row) for row in rows)
                numbers = list(accumulate(spans, initial=done))[1:]
            done = reader.line_num
            if rows[-1] == [_END]:
                rows.pop()
            elif rows[-1] and rows[-1][-1].endswith(_END):
                place = source.place(done - sum(cell.count("\n") for cell in rows[-1]))
                raise DataError(f"{place}: a quote is opened here and not closed where it should be.")
            kept = [len(row) > 1 or bool("".join(row).strip(" ")) for row in rows]
            if not all(kept):
                rows = list(compress(rows, kept))
            if lines.returns:
                rows = [[cell.replace(_RETURN, "\r") for cell in row] for row in rows]
            if rows:
                yield list(compress(numbers, kept)), rows
    except csv.Error as error:
        raise DataError(f"{source.place(reader.line_num)}: {error}.") from error
    finally:
        csv.field_size_limit(before)


class _CsvLines:
    """Lines of a UTF-8 file as ``csv.reader`` takes them, and :data:`_END`: a row of its own, unless a quote is open.

    Characters that UTF-8 cannot hold stand for what ``csv.reader`` takes for something else: a delimiter of several
    characters, and a lone carriage return (``returns`` says whether there was one).
    """

    def __init__(self, source: Source, delimiter: str, progress: bool) -> None:
        self.source, self.delimiter, self.progress = source, delimiter, progress
        self.returns = False

    def __iter__(self) -> Iterator[str]:
        for number, lines in self.source.blocks(self.progress):
            data = b"\n".join(lines)
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                place = self.source.place(number + data.count(b"\n", 0, error.start))
                raise DataError(
                    f"{place}: byte {data[error.start]:#04x} is not UTF-8; convert the file, for instance with "
                    "`iconv -f latin1 -t utf8`."
                ) from error
            if "\r" in text:
                text, self.returns = text.replace("\r", _RETURN), True
            if len(self.delimiter) > 1:
                text = text.replace(self.delimiter, _DELIMITER)
            yield from io.StringIO(text + "\n", newline="\n")
        yield _END


def csv_batches(
    source: Source, delimiter: str, wanted: Sequence[str], names: Sequence[str] | None = None, progress: bool = False
) -> Iterator[Batch]:
    """Yield the columns ``wanted`` of a delimited file; ``names`` are its columns if it has no header.

    Raises
    ------
    DataError
        The file is empty or has no such column.
    """
    parse: Callable[[Sequence[Any]], Columns] | None = None
    for numbers, rows in csv_rows(source, delimiter, progress):
        if parse is None:
            header = names
            if header is None:
                header, numbers, rows = [cell.strip() for cell in rows[0]], numbers[1:], rows[1:]
            places = [header.index(name) for name in check_columns(source.place(1), header, wanted)]
            parse = partial(_pick, places=places, width=len(header), delimiter=delimiter)
        if rows:
            yield Batch(numbers, rows, parse)
    if parse is None:
        raise DataError(f"{source.name}: the file is empty.")


def check_columns(place: str, columns: Sequence[str], wanted: Sequence[str]) -> Sequence[str]:
    """Return ``wanted``, or raise :class:`DataError` if one of them is not among ``columns``."""
    for name in wanted:
        if name not in columns:
            raise DataError(f"{place}: no column {name!r}; the columns are {', '.join(columns)}.")
    return wanted


def _pick(rows: Sequence[Sequence[str]], places: Sequence[int], width: int, delimiter: str) -> Columns:
    for fields in set(map(len, rows)) - {width}:
        raise LineError(f"{fields} fields where {width} are expected (separated by {delimiter!r})")
    if len(rows) == 1 and not any(rows[0]):
        raise KnownGap("a row without any value")
    columns = transposed(rows)
    return [columns[place] for place in places]


# No patterns in the path, no columns made of folder names; older writers do not mark text as such.
_PARQUET = "read_parquet(?, binary_as_string = true, hive_partitioning = false)"


def parquet_columns(source: Source) -> dict[str, str]:
    """Return the name and type of the columns of a parquet file; DataError if it is damaged."""
    if source.member:
        raise DataError(f"{source.name}: a parquet file cannot be read inside an archive; unpack it.")
    with engine_errors(f"{source.name}: the parquet data is damaged"), connect() as engine:
        rows = engine.execute(f"DESCRIBE FROM {_PARQUET}", [glob.escape(str(source.path))]).fetchall()
        return {name: kind for name, kind, *_ in rows}


def parquet_batches(source: Source, wanted: Sequence[str], ids: int = 0, progress: bool = False) -> Iterator[Batch]:
    """Yield columns of a parquet file; the first ``ids`` of them as text, whole numbers with all digits.

    Raises
    ------
    DataError
        The file is damaged, a column is missing, or an id column is neither text nor whole numbers: a float has no
        text that was in the file.
    """
    types, path = parquet_columns(source), [glob.escape(str(source.path))]
    terms = []
    for place, name in enumerate(check_columns(source.name, list(types), wanted)):
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
        ((total,),) = engine.execute(f"SELECT count(*) FROM {_PARQUET}", path).fetchall()
        engine.execute(f"SELECT {', '.join(terms)} FROM {_PARQUET}", path)
        with Progress(total, source.basename, "rows", progress) as bar:
            while rows := engine.fetchmany(_BATCH_ROWS):
                yield Batch(range(row, row + len(rows)), rows, transposed)
                row += len(rows)
                bar.update(len(rows))


# ---- processes


def default_workers() -> int:
    """Return the number of idle cores, at least one and at most four."""
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
    # Spawned, as a forked process could inherit a lock that a thread holds. The parent alone answers to Ctrl-C.
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
        raise DataError("a worker process was killed, perhaps because memory ran out; try --workers 1.") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
