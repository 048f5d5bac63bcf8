"""Atomic files as tables: what RecBole's reader takes for granted is checked, and errors name file and line."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils.enum_type import FeatureType

from recbole_llm.errors import DataError


def read_header(path: Path, separator: str, encoding: str) -> dict[str, tuple[str, FeatureType]]:
    """Line 1 of an atomic file: column as written -> name and type. DataError where it is not ``name:type``."""
    try:
        with path.open(encoding=encoding) as file:
            header = file.readline().rstrip("\r\n").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {encoding} text ({error}). Convert it, or set `encoding`.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    columns = {}
    for column in header.split(separator):
        field, colon, kind = column.partition(":")
        kinds = [ftype.value for ftype in FeatureType]
        if not colon or kind not in kinds:
            raise DataError(
                f"{path}, line 1: {column!r} is not `name:type` with a type of {', '.join(kinds)}. An atomic file "
                f"starts with such a line, its columns separated by field_separator={separator!r}."
            )
        columns[column] = (field, FeatureType(kind))
    return columns


def _check_lines(path: Path, separator: str, encoding: str, fields: int) -> None:
    """DataError for a line with another number of fields than line 1, which pandas would cut, fill or shift."""
    mark = separator.encode(encoding)
    if len(mark) == 1:
        # Of a sound file, only separators and line ends taken, nothing but this is left:
        line_marks = mark * (fields - 1) + b"\n"
        others = bytes(set(range(256)) - {mark[0], ord("\n")})
        left, sound = b"", True
        with path.open("rb") as binary:
            while sound and (block := binary.read(2**20)):
                left += block.translate(None, others)
                whole = len(left) // fields
                sound = left[: whole * fields] == line_marks * whole
                left = left[whole * fields :]
        if sound and left in (b"", line_marks[:-1]):
            return
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            found = line.count(separator) + 1
            if found != fields and line.strip(" \n"):
                raise DataError(
                    f"{path}, line {number}: {found} fields instead of the {fields} of line 1. Every line needs "
                    f"all of them, separated by field_separator={separator!r}."
                )


def read_table(
    path: Path, separator: str, encoding: str, fields: int, used: list[str], dtypes: dict[str, Any]
) -> pd.DataFrame:
    """The columns ``used`` of a file whose lines all have ``fields`` fields.

    Raises
    ------
    DataError
        For a line with another number of fields, bytes that are not ``encoding``, or a number that is none; with the
        line where it can be told.
    """
    options: dict[str, Any] = {
        # pandas takes a longer separator as a regular expression.
        "sep": separator if len(separator) == 1 else re.escape(separator),
        "usecols": used,
        "encoding": encoding,
        "engine": "c" if len(separator) == 1 else "python",
        # Quotes and words such as NA or None are text in an atomic file; only an empty field is a missing value.
        "quoting": csv.QUOTE_NONE,
        "keep_default_na": False,
        "na_values": [""],
    }
    if options["engine"] == "c":
        options["low_memory"] = False  # in one piece: merging the ids of many pieces takes as long as reading
    try:
        _check_lines(path, separator, encoding, fields)
        return pd.read_csv(path, dtype=dtypes, **options)[used]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {encoding} text ({error}). Convert it, or set `encoding`.") from error
    except pd.errors.ParserError as error:
        raise DataError(f"{path} is damaged: {error}.") from error
    except ValueError as error:
        frame = pd.read_csv(path, dtype=str, skip_blank_lines=False, **options)
        for column in used:
            if dtypes[column] is np.float64:
                bad = frame[column].notna() & pd.to_numeric(frame[column], errors="coerce").isna()
                if bad.any():
                    row = int(np.flatnonzero(bad)[0])
                    raise DataError(
                        f"{path}, line {row + 2}: {frame[column].iloc[row]!r} is not a number, as {column!r} asks."
                    ) from error
        raise DataError(f"{path} cannot be read: {error}.") from error
