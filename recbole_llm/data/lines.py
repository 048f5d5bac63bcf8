"""Lines of a text file, defined once for every reader of atomic files.

A line ends with a line feed, or a carriage return and a line feed. Anything else is part of a field, including a lone
carriage return and the other Unicode line separators. A line of spaces only is skipped. A byte order mark at the start
of the file belongs to no field.
"""

import codecs
from collections.abc import Collection, Iterator
from pathlib import Path

from recbole_llm.errors import ConfigError, DataError

FIELD_TYPES = ("token", "token_seq", "float", "float_seq")


def read_lines(path: Path, encoding: str = "utf-8", errors: str = "strict") -> Iterator[tuple[int, str]]:
    r"""Yield the number, from 1, and the text, without its end, of every line that is not blank.

    ``errors`` says how to handle bytes that are not ``encoding``, as for :func:`open`.

    Raises
    ------
    ConfigError
        For an ``encoding`` that Python does not know.
    DataError
        For a file that cannot be opened, or has bytes that are not ``encoding``; with the line.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "shop.item"
    >>> _ = path.write_bytes(b"item_id:token\r\n\na\rb")
    >>> list(read_lines(path))
    [(1, 'item_id:token'), (3, 'a\rb')]
    """
    try:
        # A byte order mark is part of the text under utf-8, but not under utf-8-sig.
        codec = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    except (LookupError, ValueError):
        raise ConfigError(f"encoding={encoding!r} is not a text encoding known to Python.") from None
    try:
        with path.open(encoding=codec, errors=errors, newline="\n") as file:
            for number, line in enumerate(file, 1):
                text = line.removesuffix("\n").removesuffix("\r")
                if text.strip(" "):
                    yield number, text
    except UnicodeError as error:
        raise DataError(
            f"{path}, line {_undecodable_line(path, codec)}: not {encoding} text ({error}). Set `encoding` to that of "
            "the file (often latin-1 or cp1252), or convert the file to utf-8."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def read_header(path: Path, separator: str, encoding: str = "utf-8", errors: str = "strict") -> dict[str, str]:
    """Return the name and type of each field of an atomic file, in its order.

    Raises
    ------
    DataError
        If line 1 is not made of ``name:type``, or names a field twice; also as :func:`read_lines`.
    """
    number, line = next(read_lines(path, encoding, errors), (1, ""))
    header: dict[str, str] = {}
    for cell in (line if number == 1 else "").split(separator):
        name, _, kind = cell.partition(":")
        if not name or kind not in FIELD_TYPES:
            raise DataError(
                f"{path}, line 1: {cell!r} is not `name:type` with a type of {', '.join(FIELD_TYPES)}. An atomic file "
                f"starts with such a line, its fields separated by field_separator={separator!r}."
            )
        if name in header:
            raise DataError(f"{path}, line 1: the field {name!r} occurs twice.")
        header[name] = kind
    return header


def read_rows(path: Path, header: Collection[str], separator: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of every line after the first; DataError for one with too few or too many."""
    for number, line in read_lines(path, encoding):
        if number == 1:
            continue
        fields = line.split(separator)
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields instead of the {len(header)} of line 1 "
                f"({', '.join(header)}). Every line needs all of them, separated by field_separator={separator!r}; a "
                "text must not contain the separator or a line break."
            )
        yield number, fields


def has_lone_carriage_return(path: Path) -> bool:
    """Whether some carriage return is not followed by a line feed; in an encoding that keeps both as in ASCII."""
    with path.open("rb") as file:
        while block := file.read(2**22):
            while block.endswith(b"\r") and (following := file.read(1)):
                block += following
            if b"\r" in block and block.count(b"\r") != block.count(b"\r\n"):
                return True
    return False


def _undecodable_line(path: Path, codec: str) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(codec)
            except UnicodeError:
                return str(number)
    return "unknown"  # encodings of two bytes a character cannot be cut at the byte of a line feed
