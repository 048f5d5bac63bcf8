"""Lines that hold a Python literal (Amazon 2014 metadata, Steam): read without ``eval`` and without surprises.

A literal of plain data differs from JSON only in its quotes, its escapes and three words, so a line is rewritten as
JSON and parsed by the JSON parser, several times faster than :func:`ast.literal_eval` (benchmarks/convert.py). What
cannot be rewritten (tuples, sets, triple quotes) goes to ``ast.literal_eval``, but only after a guard on length, depth
and vocabulary: the interpreter's own parser can be made to exhaust memory or stack by a hostile line.
"""

import ast
import re
import warnings
from typing import Any

from recbole_llm.convert.jsonlines import loads
from recbole_llm.convert.lines import LineError, shown

#: Longest line that is handed to ``ast.literal_eval``: its syntax tree takes some 100 bytes per character.
MAX_LITERAL_CHARS = 256 << 10
#: Deepest nesting of brackets that is handed to ``ast.literal_eval``.
MAX_DEPTH = 32

_STRING = re.compile(r"""([uU]?'[^'\\]*(?:\\.[^'\\]*)*'|[uU]?"[^"\\]*(?:\\.[^"\\]*)*")""", re.DOTALL)
_WORD = re.compile(r"True|False|None|nan")
_JSON_WORD = {"True": "true", "False": "false", "None": "null", "nan": "null"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
_SAME = frozenset('"\\nrtbf')
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
    except (LineError, ValueError):
        return _evaluate(line)


def _as_json(line: str) -> str:
    if '"' not in line and "\\" not in line:
        # Every string is in single quotes and holds none: what stands between quotes alternates with what does not.
        parts = line.split("'")
        parts[0::2] = [_outside(part) for part in parts[0::2]]
        return '"'.join(parts)
    parts = _STRING.split(line)
    parts[0::2] = [_outside(part) for part in parts[0::2]]
    parts[1::2] = [_json_string(part) for part in parts[1::2]]
    return "".join(parts)


def _outside(part: str) -> str:
    if part in (", ", ": ", ""):
        return part
    part = _WORD.sub(lambda word: _JSON_WORD[word.group()], part)
    return part[:-1] if part[-1:] in ("u", "U") else part


def _json_string(quoted: str) -> str:
    start = 1 if quoted[0] in "'\"" else 2
    body = quoted[start:-1]
    if "\\" in body:
        body = _ESCAPE.sub(_json_escape, body)
        if quoted[-1] == "'":
            # Quotes that are escaped already must not be escaped again.
            body = re.sub(r'(\\.)|"', lambda found: found.group(1) or '\\"', body)
    elif '"' in body:
        body = body.replace('"', '\\"')
    return f'"{body}"'


def _json_escape(found: re.Match[str]) -> str:
    what = found.group(1)
    if what in _SAME or (what[0] == "u" and len(what) == 5):
        return found.group()
    if what == "'":
        return "'"
    if what[0] in "xU" and len(what) > 1:
        code = int(what[1:], 16)
    elif what[0] in "01234567":
        code = int(what, 8)
    elif what in "av":
        code = {"a": 7, "v": 11}[what]
    elif what == "\n":
        return ""
    elif what in "NxuU":
        raise LineError("an escape that is left to ast.literal_eval")
    else:
        # Python keeps the backslash of an escape that it does not know.
        return "\\\\" + what
    if code > 0xFFFF:
        if code > 0x10FFFF:
            raise LineError("an escape beyond Unicode")
        return chr(code)
    return f"\\u{code:04x}"


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
    depth = deepest = 0
    for character in re.findall(r"[\[({\])}]", outside):
        depth += 1 if character in "[({" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise LineError(f"brackets nested {deepest} deep (at most {MAX_DEPTH})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise LineError(f"not JSON and not a Python literal ({getattr(error, 'msg', None) or error})") from error
