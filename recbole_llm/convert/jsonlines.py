"""JSON lines: with orjson where it is installed, otherwise with the standard library."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from recbole_llm.convert.lines import LineError

_STANDARD = json.JSONDecoder(parse_constant=lambda _: None)


def _standard(text: str | bytes) -> Any:
    return _STANDARD.decode(text.decode("utf-8") if isinstance(text, bytes) else text)


#: Parser of one JSON text, str or bytes; both possible ones raise a ValueError.
loads: Callable[[Any], Any] = _standard
with suppress(ImportError):  # orjson is optional; the standard library takes about three times as long
    import orjson

    loads = orjson.loads


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
        return _standard(line)
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
