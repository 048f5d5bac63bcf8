"""Files with one record a line: JSON, or a Python literal in the older downloads (Amazon 2014 metadata, Steam).

A literal of plain data differs from JSON only in its quotes, its escapes and three words, so a line is rewritten as
JSON and parsed by the JSON parser, several times faster than :func:`ast.literal_eval` (benchmarks/convert.py). What
cannot be rewritten (tuples, sets, triple quotes) goes to ``ast.literal_eval``, but only after a guard on length, depth
and vocabulary: the interpreter's own parser can be made to exhaust memory or stack by a hostile line.
"""

import ast
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from operator import itemgetter
from typing import Any

from recbole_llm.convert.lines import LineError, Skips, shown
from recbole_llm.convert.parallel import ordered_map
from recbole_llm.convert.reading import decode
from recbole_llm.convert.sources import Block, Source

_STANDARD = json.JSONDecoder(parse_constant=lambda _: None)
_AS_WRITTEN = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None)


def standard_loads(text: str | bytes) -> Any:
    """Parse one JSON text with the standard library; ``NaN`` and ``Infinity`` become ``None``."""
    return _STANDARD.decode(text.decode("utf-8") if isinstance(text, bytes) else text)


#: Parser of one JSON text, str or bytes; both possible ones raise a ValueError. orjson rounds whole numbers of more
#: than 64 bits to floats, so this one is for records of which only texts and numbers of known size are used.
fast_loads: Callable[[Any], Any] = standard_loads
with suppress(ImportError):  # orjson is optional; the standard library takes about three times as long
    import orjson

    fast_loads = orjson.loads


def loads(text: str | bytes) -> Any:
    """Parse one JSON text exactly; raise ValueError if it is none."""
    value = fast_loads(text)
    return standard_loads(text) if _may_be_rounded(value) else value


def _may_be_rounded(value: Any) -> bool:
    if isinstance(value, float):
        return abs(value) >= 2.0**63
    if isinstance(value, dict):
        return any(map(_may_be_rounded, value.values()))
    return isinstance(value, list) and any(map(_may_be_rounded, value))


def numbers_as_written(text: str | bytes) -> Any:
    """Parse one JSON text with every number as the text that stands there: ``1.0``, ``1e5``, ``-0``."""
    return _AS_WRITTEN.decode(text.decode("utf-8") if isinstance(text, bytes) else text)


def parse_json(line: bytes) -> Any:
    """Parse one line.

    What orjson refuses and the standard library reads is taken from the latter: ``NaN`` and ``Infinity``, which some
    tools write although JSON has no such words (they become ``None``), and half surrogate pairs.

    Raises
    ------
    LineError
        The line is not UTF-8 or not JSON, or it is nested too deep.
    """
    if b"NaN" not in line:
        with suppress(ValueError, RecursionError):
            return loads(line)
    try:
        return standard_loads(line)
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8 (byte {line[error.start]:#04x} at position {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise LineError(f"not JSON ({error})") from error


def parse_lines(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """Parse lines that hold one JSON object each.

    Raises
    ------
    LineError
        A line is not a JSON object.
    """
    try:
        records = list(map(loads, lines))
    except (ValueError, RecursionError):
        records = [parse_json(line) for line in lines]
    if set(map(type, records)) - {dict}:
        raise LineError("not a JSON object")
    return records


# ---- Python literals

#: Longest line that is handed to ``ast.literal_eval``: its syntax tree takes some 100 bytes per character.
MAX_LITERAL_CHARS = 256 << 10
#: Deepest nesting of brackets that is handed to ``ast.literal_eval``.
MAX_DEPTH = 32

_STRING = re.compile(r"""([uU]?'[^'\\]*(?:\\.[^'\\]*)*'|[uU]?"[^"\\]*(?:\\.[^"\\]*)*")""", re.DOTALL)
_LETTER = re.compile(r"[A-Za-z]")
_WORD = re.compile(r"True|False|None|nan")
_JSON_WORD = {"True": "true", "False": "false", "None": "null", "nan": "null"}
# Escapes that do not mean the same in JSON, after quotes and backslashes are out of the way.
_OTHER_ESCAPE = re.compile(r"\\[^nrtbfu]")
_HEX_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")
_WIDE_ESCAPE = re.compile(r"\\U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4})")
_STAND_INS = re.compile("[\x00-\x02]")
_PLAIN = re.compile(r"(?:True|False|None|[bB]?'|[\[\](){}:,\s0-9.eE+\-_])*")
_NUMBER_TOO_LONG = re.compile(r"[0-9_.eE]{65}")
_SIGNS = re.compile(r"[+-]\s*[+-]")


def parse_literal(line: str) -> Any:
    """Parse one line that holds a Python literal.

    Parameters
    ----------
    line : str

    Returns
    -------
    object
        What ``ast.literal_eval`` returns, save that ``nan`` is ``None``.

    Raises
    ------
    LineError
        The line is not a literal, or it is too long, too deep or holds anything but data.
    """
    try:
        return loads(_as_json(line))
    except (LineError, ValueError, RecursionError):
        return _evaluate(line)


def literal_as_written(line: str) -> Any:
    """As :func:`parse_literal`, with numbers as they are written; raise ValueError if that cannot be told."""
    return numbers_as_written(_as_json(line))


def _as_json(line: str) -> str:
    """Rewrite as JSON; the result is not JSON where the line is no plain literal, which the parser then finds."""
    escaped = "\\" in line
    if escaped:
        if _STAND_INS.search(line):
            raise LineError("a control character inside")
        # One character each for the escapes that hold a quote or a backslash: then every quote left opens or closes.
        line = line.replace("\\\\", "\0").replace("\\'", "\1").replace('\\"', "\2")
        if _OTHER_ESCAPE.search(line):
            line = _WIDE_ESCAPE.sub(lambda found: chr(int(found.group(1), 16)), _HEX_ESCAPE.sub(r"\\u00\1", line))
            if _OTHER_ESCAPE.search(line):
                raise LineError("an escape that is left to ast.literal_eval")
    line = _double_quotes(line)
    if escaped:
        line = line.replace("\1", "'").replace("\2", '\\"').replace("\0", "\\\\")
    return line


def _double_quotes(line: str) -> str:
    # Python writes most strings in single quotes and those that hold an apostrophe in double ones. The steps of this
    # loop are the double quotes, so nearly all work is done by str.split and str.join.
    if '"' not in line:
        return _single_quoted(line)
    done: list[str] = []
    start = 0
    while (place := line.find('"', start)) >= 0:
        if line.count("'", start, place) % 2 == 0:
            # It opens a string.
            end = line.find('"', place + 1)
            if end < 0:
                raise LineError("a string without end")
            done += (_single_quoted(line[start:place]), line[place : end + 1])
            start = end + 1
        else:
            # It stands inside a string in single quotes.
            end = line.find("'", place + 1)
            opened = line.rfind("'", start, place)
            if end < 0:
                raise LineError("a string without end")
            done += (_single_quoted(line[start:opened]), '"', line[opened + 1 : end].replace('"', '\\"'), '"')
            start = end + 1
    done.append(_single_quoted(line[start:]))
    return "".join(done)


def _single_quoted(part: str) -> str:
    """Rewrite a stretch that starts and ends outside of strings and whose strings are all in single quotes."""
    pieces = part.split("'")
    pieces[0::2] = map(_outside, pieces[0::2])
    return '"'.join(pieces)


@lru_cache(maxsize=4096)
def _outside(part: str) -> str:
    if _LETTER.search(part) is None:
        return part
    part = _WORD.sub(lambda word: _JSON_WORD[word.group()], part)
    return part[:-1] if part[-1] in "uU" else part


def _evaluate(line: str) -> Any:
    if len(line) > MAX_LITERAL_CHARS:
        raise LineError(f"a literal of {len(line)} characters that is not plain data (at most {MAX_LITERAL_CHARS})")
    outside = "''".join(_STRING.split(line)[0::2])
    plain = _PLAIN.match(outside)
    if plain is None or plain.end() != len(outside):
        where = plain.end() if plain else 0
        raise LineError(f"not JSON and not a literal of plain data (at {shown(outside[where : where + 20])})")
    if _SIGNS.search(outside) or _NUMBER_TOO_LONG.search(outside):
        raise LineError("a number that no data file would hold")
    depth = 0
    for bracket in re.finditer(r"[\[({\])}]", outside):
        depth += 1 if bracket.group() in "[({" else -1
        if depth > MAX_DEPTH:
            raise LineError(f"brackets nested more than {MAX_DEPTH} deep")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise LineError(f"not JSON and not a Python literal ({getattr(error, 'msg', None) or error})") from error


# ---- files

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
    ids: Sequence[str] = (),
) -> Iterator[tuple[int, Record]]:
    """Yield ``(line number, record)``.

    Parameters
    ----------
    source : Source
    skips : Skips
    progress : bool
    wanted : callable, optional
        Says from the raw line whether it has to be parsed at all.
    ids : sequence of str
        Fields that hold ids, which become the text of the file, also where they are numbers.
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
                    yield number, _with_ids(parse_any([line])[0], line, ids)
                except LineError as error:
                    skips.handle(error, source.name, number)
            continue
        for (number, line), record in zip(numbered, records, strict=True):
            try:
                record = _with_ids(record, line, ids)
            except LineError as error:
                skips.handle(error, source.name, number)
            else:
                yield number, record


def _with_ids(record: Record, line: bytes, ids: Sequence[str]) -> Record:
    for name in ids:
        value = record.get(name)
        if type(value) is int and value:
            record[name] = str(value)
        elif type(value) in (int, float):
            # 1.0, 1e5 and -0 have left no trace of how they were written.
            record[name] = _as_written(line)[name]
        elif value is not None and not isinstance(value, str):
            raise LineError(f"an id that is neither text nor a number: {shown(value)}")
    return record


def _as_written(line: bytes) -> Any:
    try:
        return numbers_as_written(line)
    except ValueError:
        try:
            return literal_as_written(decode([line])[0])
        except ValueError as error:
            raise LineError("an id that is a number, in a record that is neither JSON nor a plain literal") from error


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
                return list(zip(*map(itemgetter(*self.fields), map(fast_loads, lines)), strict=True))
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
