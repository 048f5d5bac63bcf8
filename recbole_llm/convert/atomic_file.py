"""Rows of an atomic file, with what a run rejects and what stock RecBole misreads in them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.convert.reading import transposed
from recbole_llm.convert.report import Findings
from recbole_llm.convert.values import MISSING_WORDS
from recbole_llm.data.lines import read_header, read_lines
from recbole_llm.data.times import parse_number
from recbole_llm.errors import DataError
from recbole_llm.progress import Progress

_BATCH = 1 << 14
_ESCAPED_BYTE = re.compile("[\ud800-\udfff]")


class AtomicFile:
    """Rows of an atomic file; counts what a run rejects and what stock RecBole misreads as it reads."""

    def __init__(self, path: Path, settings: Mapping[str, Any], findings: Findings, progress: bool) -> None:
        self.path, self.settings, self._findings, self._progress = path, settings, findings, progress
        self._found: dict[str, list[Any]] = {}
        self.fields = read_header(path, settings["field_separator"], settings["encoding"], "surrogateescape")

    def place(self, key: str) -> int:
        """Return the position of the column that the setting ``key`` names; DataError if it is missing."""
        name = self.settings[key]
        if name not in self.fields:
            raise DataError(
                f"{self.path}, line 1: there is no field {name!r} ({key}); the fields are {', '.join(self.fields)}. "
                f"Name the right one with --{key}=NAME."
            )
        return list(self.fields).index(name)

    def batches(self) -> Iterator[tuple[list[int], list[tuple[str, ...]]]]:
        """Yield ``(line numbers, columns)``; lines with a wrong number of fields are counted and skipped."""
        width, separator = len(self.fields), self.settings["field_separator"]
        lines = read_lines(self.path, self.settings["encoding"], "surrogateescape")
        next(lines)
        with Progress(None, self.path.name, "lines", self._progress) as bar:
            while batch := list(islice(lines, _BATCH)):
                numbers, rows = [], []
                for number, line in batch:
                    cells = line.split(separator)
                    if len(cells) == width:
                        numbers.append(number)
                        rows.append(cells)
                    else:
                        text = f"lines have a different number of fields than the header ({width})"
                        self.note("field_count", text, number)
                if rows:
                    columns = transposed(rows)
                    for column, (name, kind) in zip(columns, self.fields.items(), strict=True):
                        self._check(name, kind, column, numbers)
                    yield numbers, columns
                bar.update(len(batch))
        for key, (severity, text, count, line) in self._found.items():
            self._findings.add(key, severity, f"{self.path.name}: {count:,} {text} (first: line {line})", count)

    def note(self, key: str, text: str, line: int, times: int = 1, severity: str = "error") -> None:
        """Count something about lines."""
        self._found.setdefault(key, [severity, text, 0, line])[2] += times

    def _check(self, name: str, kind: str, values: Sequence[str], numbers: Sequence[int]) -> None:
        def count(key: str, text: str, is_wrong: Callable[[str], bool], severity: str = "error") -> None:
            wrong = set(filter(is_wrong, set(values)))
            if wrong:
                places = [number for number, value in zip(numbers, values, strict=True) if value in wrong]
                self.note(key, text, places[0], len(places), severity)

        if not "".join(values).isascii():
            text = f"values are not {self.settings['encoding']} text"
            count("not_utf8", text, lambda value: _ESCAPED_BYTE.search(value) is not None)
        if kind.startswith("float"):
            mark = self.settings["seq_separator"] if kind == "float_seq" else None

            def is_no_number(value: str) -> bool:
                return not are_numbers([part for part in (value.split(mark) if mark else [value]) if part])

            if mark or not are_numbers([value for value in values if value]):
                count(f"not_a_number:{name}", f"values of {name}:{kind} are not finite numbers", is_no_number)
            return
        if name in (self.settings["USER_ID_FIELD"], self.settings["ITEM_ID_FIELD"]):
            text = f"values of {name} have a NUL character, which no id may have"
            count(f"nul:{name}", text, lambda value: "\0" in value)
        for key, (text, is_misread) in _MISREAD.items():
            count(f"{key}:{name}", f"values of {name} {text}", is_misread, "warning")


# Valid text in an atomic file that stock RecBole's reader takes for something else.
_MISREAD: dict[str, tuple[str, Callable[[str], bool]]] = {
    "missing_words": ("are words that stock RecBole reads as missing (NA, None ...)", MISSING_WORDS.__contains__),
    "leading_quotes": (
        'start with ", so stock RecBole reads on to the next quotation mark',
        lambda text: text[:1] == '"',
    ),
    "line_breaks": (
        "contain a CR or NUL, where stock RecBole ends the row",
        lambda text: "\r" in text or "\0" in text,
    ),
    "too_long": (
        "are longer than the 131,072 characters that stock RecBole accepts",
        lambda text: len(text) > 131_072,
    ),
}


def are_numbers(values: Sequence[str]) -> bool:
    """Whether a run reads all values as finite numbers."""
    joined = "".join(values)
    try:
        if joined.isascii() and "_" not in joined and np.isfinite(list(map(float, values))).all():
            return True
        return all(map(np.isfinite, map(parse_number, values)))
    except ValueError:
        return False
