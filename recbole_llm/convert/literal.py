"""Lines that hold a Python literal (Amazon 2014 metadata, Steam): read without ``eval`` and without surprises.

A literal of plain data differs from JSON only in its quotes, its escapes and three words, so a line is rewritten as
JSON and parsed by the JSON parser, several times faster than :func:`ast.literal_eval` (benchmarks/convert.py). What
cannot be rewritten (tuples, sets, triple quotes) goes to ``ast.literal_eval``, but only after a guard on length, depth
and vocabulary: the interpreter's own parser can be made to exhaust memory or stack by a hostile line.
"""

import ast
import re
import warnings
from functools import lru_cache
from typing import Any

from recbole_llm.convert.jsonlines import loads
from recbole_llm.convert.lines import LineError, shown

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
