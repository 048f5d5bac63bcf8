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
from functools import lru_cache, partial
from itertools import compress
from operator import itemgetter
from typing import Any

from recbole_llm.convert.reading import Batch, Columns, decode, line_batches, transposed
from recbole_llm.convert.sources import Source
from recbole_llm.convert.values import LineError, shown

#: Longest line that is handed to ``ast.literal_eval``: its syntax tree takes some 100 bytes per character.
MAX_LITERAL_CHARS = 256 << 10
#: Deepest nesting of brackets that is handed to ``ast.literal_eval``.
MAX_DEPTH = 32

Record = dict[str, Any]


# ---- files


def record_batches(
    source: Source,
    fields: Sequence[str],
    *,
    ids: int = 0,
    optional: bool = False,
    wanted: Callable[[bytes], bool] | None = None,
    progress: bool = False,
) -> Iterator[Batch]:
    """Yield the columns ``fields`` of a file with one record a line.

    The first ``ids`` fields may be numbers and become the text of the file. With ``optional``, a field that a record
    lacks is None. ``wanted`` says of a raw line whether it must be parsed at all.
    """
    parse = partial(parse_columns, fields=tuple(fields), ids=ids, optional=optional)
    for numbers, lines, _ in line_batches(source, parse, progress):
        kept = list(map(wanted, lines)) if wanted else [True]
        if all(kept):
            yield Batch(numbers, lines, parse)
        elif any(kept):
            yield Batch(list(compress(numbers, kept)), list(compress(lines, kept)), parse)


def mentions(ids: Collection[str], field: str) -> Callable[[bytes], bool]:
    """Return a test whether a raw line may have one of ``ids`` in ``field``.

    Parsing takes the time, and a metadata file describes many products that nobody has reviewed. A line is skipped
    only if every id found in it is another one.
    """
    pattern = re.compile(rf"""["']{field}["']\s*:\s*u?["']([^"'\\]+)["']""".encode())

    def test(line: bytes) -> bool:
        found = pattern.findall(line)
        return not found or any(raw.decode("utf-8", "replace") in ids for raw in found)

    return test


def parse_columns(lines: Sequence[bytes], fields: tuple[str, ...], ids: int, optional: bool) -> Columns:
    """Return the columns ``fields`` of lines; raise :class:`LineError` if any line cannot be used."""
    columns: list[Sequence[Any]] | None = None
    if not optional and lines[0].startswith(b'{"') and len(fields) > 1:
        # One record lives at a time; a list of them all would double the time, which then goes to memory.
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            columns = list(transposed(map(itemgetter(*fields), map(fast_loads, lines))))
    if columns is None:
        records = [parse_record(line) for line in lines]
        if optional:
            columns = [[record.get(name) for record in records] for name in fields]
        else:
            absent = next((name for record in records for name in fields if name not in record), None)
            if absent is not None:
                raise LineError(f"the record has no {absent!r}")
            columns = [[record[name] for record in records] for name in fields]
    for place, name in enumerate(fields[:ids]):
        if set(map(type, columns[place])) - {str}:
            columns[place] = [_id(value, line, name) for value, line in zip(columns[place], lines, strict=True)]
    return columns


def _id(value: object, line: bytes, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if type(value) is int and value:
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LineError(f"an id that is neither text nor a number: {shown(value)}")
    # 1.0, 1e5 and -0 have left no trace of how they were written.
    try:
        return str(_AS_WRITTEN.decode(decode(line))[name])
    except ValueError:
        try:
            return str(_AS_WRITTEN.decode(_as_json(decode(line)))[name])
        except ValueError as error:
            raise LineError(f"an id that is a number of unusual form: {shown(value)}") from error


# ---- one record


def standard_loads(text: str | bytes) -> object:
    """Parse one JSON text with the standard library; ``NaN`` and ``Infinity`` become ``None``."""
    return _STANDARD.decode(text.decode() if isinstance(text, bytes) else text)


_STANDARD = json.JSONDecoder(parse_constant=lambda _: None)
_AS_WRITTEN = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None)

#: Parser of one JSON text, str or bytes; both possible ones raise a ValueError. orjson rounds whole numbers of more
#: than 64 bits to floats, so this one is for records of which only texts and numbers of known size are used.
fast_loads: Callable[[str | bytes], Any] = standard_loads
with suppress(ImportError):  # orjson is optional; the standard library takes about three times as long
    import orjson

    fast_loads = orjson.loads


def loads(text: str | bytes) -> object:
    """Parse one JSON text exactly; raise ValueError if it is none."""
    value = fast_loads(text)
    return standard_loads(text) if _may_be_rounded(value) else value


def _may_be_rounded(value: object) -> bool:
    if isinstance(value, float):
        return abs(value) >= 2.0**63
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_may_be_rounded(part) for part in parts if type(part) is not str)


def parse_record(line: bytes) -> Record:
    """Parse a line that holds a JSON object or a Python dictionary.

    What orjson refuses and the standard library reads is taken from the latter: ``NaN`` and ``Infinity``, which some
    tools write although JSON has no such words (they become ``None``), and half surrogate pairs.

    Raises
    ------
    LineError
        The line is neither, it is nested too deep, or not UTF-8.
    """
    json_error = None
    if line.lstrip().startswith(b'{"'):
        for parser in (standard_loads,) if b"NaN" in line else (loads, standard_loads):
            try:
                return _record(parser(line))
            except UnicodeDecodeError as error:
                json_error = LineError(f"not UTF-8 (byte {line[error.start]:#04x} at position {error.start})")
            except (ValueError, RecursionError) as error:
                json_error = LineError(f"not JSON ({error})")
    try:
        return _record(parse_literal(decode(line)))
    except LineError as error:
        raise (json_error or error) from None


def _record(value: object) -> Record:
    if not isinstance(value, dict):
        raise LineError("not a dictionary")
    return value


# ---- Python literals

# An unclosed string runs to the end of the line: a search for its end from every quote in it would be quadratic.
_STRING = re.compile(r"""([uU]?'[^'\\]*(?:\\.[^'\\]*)*'?|[uU]?"[^"\\]*(?:\\.[^"\\]*)*"?)""", re.DOTALL)
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


def parse_literal(line: str) -> object:
    """Parse one line that holds a Python literal, as ``ast.literal_eval`` does, save that ``nan`` is ``None``.

    Raises
    ------
    LineError
        The line is not a literal, or it is too long, too deep or holds anything but data.
    """
    try:
        return loads(_as_json(line))
    except (LineError, ValueError, RecursionError):
        return _evaluate(line)


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


def _evaluate(line: str) -> object:
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
