"""From blocks of a file to batches of columns, with exact places for what goes wrong."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller

from recbole_llm.convert.lines import LineError, Skips
from recbole_llm.convert.sources import MAX_LINE_BYTES, Source
from recbole_llm.errors import DataError

#: Line numbers and, for each, the cells of a row.
Rows = tuple[Sequence[int], list[list[str]]]


def read_lines(
    source: Source,
    take: Callable[[list[bytes]], None],
    skips: Skips,
    progress: bool = False,
    skip_first: bool = False,
) -> int:
    """Hand all lines of a source to ``take`` in large batches; where that fails, line by line.

    Parameters
    ----------
    source : Source
    take : callable
        Gets a list of lines (no blank ones). It must check everything before it keeps anything, and raises
        :class:`LineError` if any line cannot be used.
    skips : Skips
        What happens then.
    progress : bool
    skip_first : bool
        Whether line 1 is a header.

    Returns
    -------
    int
        Number of lines.
    """
    total = 0
    for block in source.blocks(progress):
        lines = block.lines
        total += len(lines)
        first = block.first_line
        if first == 1 and skip_first:
            lines, first = lines[1:], 2
        batch = [line for line in lines if line] if b"" in lines else lines
        if not batch:
            continue
        try:
            take(batch)
        except LineError:
            for number, line in enumerate(lines, first):
                if not line.strip():
                    continue
                try:
                    take([line])
                except LineError as error:
                    skips.handle(error, source.name, number)
    return total


def decode(lines: Sequence[bytes], encoding: str = "utf-8") -> list[str]:
    """Decode a batch at once.

    Raises
    ------
    LineError
        A byte is not of that encoding.
    """
    try:
        return b"\n".join(lines).decode(encoding).split("\n")
    except UnicodeDecodeError as error:
        raise LineError(f"byte {error.object[error.start]:#04x} is not {encoding.upper()}") from error


def decode_latin(line: bytes) -> str:
    """Decode a line of the older MovieLens files: latin-1, or UTF-8 where somebody has re-encoded the file.

    Accented latin-1 text is practically never valid UTF-8, so the two are told apart line by line.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def split_fields(lines: Sequence[bytes], separator: str, fields: int) -> list[list[str]]:
    """Split UTF-8 lines into columns.

    Returns
    -------
    list of list of str
        One list per column.

    Raises
    ------
    LineError
        A line has another number of fields, or a byte is not UTF-8.
    """
    mark = separator.encode()
    counts = list(map(methodcaller("count", mark), lines))
    if set(counts) != {fields - 1}:
        bad = next(count for count in counts if count != fields - 1)
        raise LineError(f"{bad + 1} fields where {fields} are expected (separated by {separator!r})")
    # One split for the whole batch takes a third of the time of one per line.
    flat = decode([b"\n".join(lines).replace(mark, b"\n")])
    return [flat[place::fields] for place in range(fields)]


def csv_batches(source: Source, delimiter: str, progress: bool = False) -> Iterator[Rows]:
    """Yield ``(line numbers, rows)`` of a delimited UTF-8 file; quoted fields may hold delimiters and line ends.

    A blank line is a row with one empty cell. The number of a row is that of its last line.

    Raises
    ------
    DataError
        A byte is not UTF-8, or a quote is never closed.
    """
    waiting: list[bytes] = []
    start = 1
    for block in source.blocks(progress):
        if not waiting:
            start = block.first_line
        waiting += block.lines
        data = b"\n".join(waiting)
        # An odd number of quotes: a quoted field goes on behind this block.
        if b'"' in data and data.count(b'"') % 2:
            if len(data) > MAX_LINE_BYTES:
                break
            continue
        waiting = []
        yield _csv_rows(data, delimiter, source, start)
    if waiting:
        odd = next(
            number for number, line in enumerate(b"\n".join(waiting).split(b"\n"), start) if line.count(b'"') % 2
        )
        raise DataError(f"{source.name}, line {odd}: a quote is opened here and not closed where it should be.")


def _csv_rows(data: bytes, delimiter: str, source: Source, start: int) -> Rows:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = start + data.count(b"\n", 0, error.start)
        raise DataError(
            f"{source.name}, line {line}: byte {data[error.start]:#04x} is not UTF-8; "
            "convert the file, for instance with `iconv -f latin1 -t utf8`."
        ) from error
    if '"' not in text:
        rows = [line.split(delimiter) for line in text.split("\n")]
        return range(start, start + len(rows)), rows
    # The default of 131,072 characters is less than a product description can hold.
    before = csv.field_size_limit(MAX_LINE_BYTES)
    # A lone carriage return ends no line, but it does for csv.reader: a character that does not occur takes its place.
    stand_in = next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in text) if "\r" in text else ""
    text = text.replace("\r", stand_in) if stand_in else text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        numbered = [(start + reader.line_num - 1, row or [""]) for row in reader]
        rows = [row for _, row in numbered]
        if stand_in:
            rows = [[cell.replace(stand_in, "\r") for cell in row] for row in rows]
        return [number for number, _ in numbered], rows
    except csv.Error as error:
        raise DataError(f"{source.name}, line {start + reader.line_num - 1}: {error}.") from error
    finally:
        csv.field_size_limit(before)
