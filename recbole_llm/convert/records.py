"""Files with one record a line: JSON, or a Python literal in the older downloads."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

from recbole_llm.convert.jsonlines import loads, parse_json, parse_lines
from recbole_llm.convert.lines import LineError, Skips
from recbole_llm.convert.literal import parse_literal
from recbole_llm.convert.parallel import ordered_map
from recbole_llm.convert.reading import decode
from recbole_llm.convert.sources import Block, Source

#: Starting processes takes about a second; a smaller source (bytes on disk) is done by then.
PARALLEL_FROM = 16 << 20

Record = dict[str, Any]
Parser = Callable[[Sequence[bytes]], list[Record]]


def parse_any(lines: Sequence[bytes]) -> list[Record]:
    """Parse lines that are JSON or Python literals, as they come.

    Raises
    ------
    LineError
        A line is neither, or not a dictionary.
    """
    if all(line.startswith(b'{"') for line in lines):
        try:
            return parse_lines(lines)
        except LineError:
            pass  # a single line may still be a literal: {"title": 'x'}
    records = [_parse_one(line) for line in lines]
    if set(map(type, records)) - {dict}:
        raise LineError("not a dictionary")
    return records


def _parse_one(line: bytes) -> Any:
    looks_like_json = line.lstrip().startswith(b'{"')
    if looks_like_json:
        try:
            return parse_json(line)
        except LineError as error:
            json_error = error
    try:
        return parse_literal(decode([line])[0])
    except LineError as error:
        raise (json_error if looks_like_json else error) from None


def columns_of(records: Sequence[Record], fields: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return one tuple per field.

    Raises
    ------
    LineError
        A record lacks one of the fields.
    """
    try:
        return list(zip(*map(itemgetter(*fields), records), strict=True))
    except KeyError as error:
        raise LineError(f"the record has no {error.args[0]!r}") from error


def each_record(
    source: Source,
    skips: Skips,
    progress: bool = False,
    wanted: Callable[[bytes], bool] | None = None,
) -> Iterator[tuple[int, Record]]:
    """Yield ``(line number, record)``.

    Parameters
    ----------
    source : Source
    skips : Skips
    progress : bool
    wanted : callable, optional
        Says from the raw line whether it has to be parsed at all.
    """
    for block in source.blocks(progress):
        numbered = [
            (number, line)
            for number, line in enumerate(block.lines, block.first_line)
            if line.strip() and (wanted is None or wanted(line))
        ]
        try:
            records = parse_any([line for _, line in numbered])
        except LineError:
            for number, line in numbered:
                try:
                    yield number, parse_any([line])[0]
                except LineError as error:
                    skips.handle(error, source.name, number)
        else:
            yield from zip((number for number, _ in numbered), records, strict=True)


def mentions(ids: Collection[str], pattern: Any) -> Callable[[bytes], bool]:
    """Return a test whether a raw line can be about one of ``ids``.

    Parsing is what takes the time, and a metadata file describes many products that nobody in the reviews has
    bought. A line is passed over only if every id that ``pattern`` finds in it is a foreign one; if none is found it
    is parsed.
    """

    def test(line: bytes) -> bool:
        found = pattern.findall(line)
        return not found or any(raw.decode("utf-8", "replace") in ids for raw in found)

    return test


class _Extract:
    """Parse a block of lines and keep some fields: what a worker process does."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        self.fields = fields

    def __call__(self, block: Block) -> list[tuple[Any, ...]] | None:
        lines = block.lines
        if b"" in lines:
            lines = [line for line in lines if line]
        if not lines:
            return []
        if lines[0].startswith(b'{"'):
            # One record lives at a time; a list of them all would double the time, which then goes to memory.
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                return list(zip(*map(itemgetter(*self.fields), map(loads, lines)), strict=True))
        try:
            return columns_of(parse_any(lines), self.fields)
        except LineError:
            return None


def read_columns(
    source: Source,
    fields: Sequence[str],
    take: Callable[[Sequence[Sequence[Any]]], None],
    skips: Skips,
    progress: bool = False,
    workers: int = 1,
) -> None:
    """Hand the columns ``fields`` of all records to ``take`` in large batches; where that fails, record by record.

    Parameters
    ----------
    take : callable
        Gets one sequence per field, must check everything before it keeps anything, and raises :class:`LineError`.
    workers : int
        Processes that parse, for a source of at least :data:`PARALLEL_FROM` bytes. Pays for Python literals, of which
        one process manages 20 to 30 MB/s; not for JSON, which orjson parses about as fast as it can be handed over.
    """
    if source.size < PARALLEL_FROM:
        workers = 1
    for block, columns in ordered_map(_Extract(tuple(fields)), source.blocks(progress), workers):
        try:
            if columns is None:
                raise LineError
            if columns:
                take(columns)
        except LineError:
            for number, line in enumerate(block.lines, block.first_line):
                if not line.strip():
                    continue
                try:
                    take(columns_of(parse_any([line]), fields))
                except LineError as error:
                    skips.handle(error, source.name, number)
