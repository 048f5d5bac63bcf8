"""Ids, histories and new items from files. An id is text, exactly as written: nothing is parsed or trimmed."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.config.values import as_list
from recbole_llm.data.lines import read_lines
from recbole_llm.data.times import parse_number
from recbole_llm.errors import DataError
from recbole_llm.extras import optional

_TABLES = (".csv", ".tsv", ".inter", ".item", ".user", ".parquet")


def as_id(value: Any, name: str = "An id") -> str:
    """Return an id as text; integers are written out, anything else is an error.

    Raises
    ------
    DataError
        For a value such as None, True or 1.0, whose original spelling is unknown.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        f"{name} is {value!r}, of type {type(value).__name__}; ids are text: write {str(value)!r} as text."
    )


def read_ids(source: str, field: str, encoding: str = "utf-8") -> list[str]:
    """Raw ids from a file, or from a list separated by commas.

    Parameters
    ----------
    source : str
        ``50,181``, or the name of a file: one id a line; a table (``.csv``, ``.tsv``, ``.parquet``, an atomic file)
        with a column ``field`` or ``field:token``.
    field : str
    encoding : str

    Raises
    ------
    DataError
        If there is nothing in it, or the file cannot be read.

    Examples
    --------
    >>> read_ids("007, 7,1.0", "user_id")
    ['007', '7', '1.0']
    """
    path = Path(source)
    if path.is_file():
        ids = [row[0] for row in _columns(path, [field], encoding)] if _is_table(path, field, encoding) else None
        if ids is None:
            ids = [line for _, line in read_lines(path, encoding)]
            ids = ids[1:] if ids and ids[0].partition(":")[0] == field else ids
    elif path.suffix in (".txt", *_TABLES) or path.parent != Path():
        raise DataError(f"There is no file {source!r} to read values of {field!r} from.")
    else:
        ids = as_list(source)
    ids = [one for one in ids if one]
    if not ids:
        raise DataError(f"{source!r} holds no value of {field!r}.")
    return list(dict.fromkeys(ids))


def _is_table(path: Path, field: str, encoding: str) -> bool:
    """Whether a file has columns; one id a line has none."""
    if path.suffix == ".parquet":
        return True
    _, first = next(read_lines(path, encoding), (0, ""))
    heads = [head.partition(":")[0] for separator in "\t," for head in first.split(separator)]
    if field in heads and len(first.split("\t")) + len(first.split(",")) > 2:
        return True
    if path.suffix in _TABLES and field not in heads or "\t" in first:
        raise DataError(
            f"{path}: no column in its first line is called {field!r}: {first[:200]!r}. Name it, or give one id "
            "a line in a .txt file."
        )
    return False


def _columns(
    path: Path, fields: list[str], encoding: str = "utf-8", time_field: str | None = None
) -> Iterator[tuple[Any, ...]]:
    """Read some columns of a table, row by row, as text; behind them the time, a number, if there is such a column."""
    if path.suffix == ".parquet":
        yield from _parquet_columns(path, fields, time_field)
        return
    lines = read_lines(path, encoding)
    first = next(lines, (0, ""))[1]
    separator = "\t" if "\t" in first else ","
    heads = [head.partition(":")[0] for head in first.split(separator)]
    places = [_place(path, field, heads) for field in fields]
    time = heads.index(time_field) if time_field in heads else None
    # Quotation marks are part of an atomic file's ids; in other tables they hold a cell together.
    atomic = path.suffix in (".inter", ".item", ".user") or ":token" in first
    for number, line in lines:
        cells = line.split(separator) if atomic else next(csv.reader([line], delimiter=separator))
        if len(cells) != len(heads):
            raise DataError(f"{path}, line {number}: {len(cells)} fields instead of the {len(heads)} of line 1.")
        row = tuple(cells[place] for place in places)
        if time is None:
            yield row
            continue
        try:
            yield (*row, parse_number(cells[time]))
        except ValueError as error:
            raise DataError(f"{path}, line {number}, column {time_field!r}: {error}.") from None


def _place(path: Path, field: str, heads: list[str]) -> int:
    if field not in heads:
        raise DataError(f"{path} has no column {field!r}; it has {', '.join(heads)}.")
    return heads.index(field)


def _parquet_columns(path: Path, fields: list[str], time_field: str | None = None) -> Iterator[tuple[Any, ...]]:
    parquet = optional("pyarrow.parquet", "convert", "reading parquet")
    try:
        file = parquet.ParquetFile(path)
        for field in fields:
            _place(path, field, file.schema_arrow.names)
        times = [time_field] if time_field in file.schema_arrow.names else []
        number = -1
        for batch in file.iter_batches(columns=[*fields, *times]):
            values = [batch.column(field).to_pylist() for field in (*fields, *times)]
            for row in zip(*values, strict=True):
                number += 1
                ids = [as_id(value, f"{path}, row {number}: an id") for value in row[: len(fields)]]
                if None in row[len(fields) :]:
                    raise DataError(f"{path}, row {number}: there is no {time_field!r}.")
                yield (*ids, *row[len(fields) :])
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as parquet: {error}.") from error


# ---- histories


def read_histories(
    file: str, user_field: str, item_field: str, size: int, encoding: str = "utf-8", time_field: str | None = None
) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Users and their items, ``size`` users at a time.

    Parameters
    ----------
    file : str
        JSON lines ``{"user_id": "ann", "item_id": ["50", "181"]}``, or a table (``.csv``, ``.tsv``, ``.parquet``,
        ``.inter``) with a line an interaction. Oldest item first, but for tables with a column ``time_field``, which
        decides; equal times keep the order of the file.
    user_field, item_field : str
    size : int
    encoding : str
    time_field : str, optional

    Raises
    ------
    DataError
        For a line of another form, an id that is neither text nor an integer, or a file without a history.
    """
    path = Path(file)
    rows: Iterable[tuple[str, list[str]]]
    if path.suffix in _TABLES:
        if not path.is_file():
            raise DataError(f"There is no file {file!r} to read histories from.")
        rows = _table_histories(path, user_field, item_field, encoding, time_field)
    else:
        rows = _json_histories(path, user_field, item_field, encoding)
    users: list[str] = []
    histories: list[list[str]] = []
    empty = True
    for user, items in rows:
        empty = False
        users.append(user)
        histories.append(items)
        if len(users) == size:
            yield users, histories
            users, histories = [], []
    if empty:
        raise DataError(f"{file} holds no history.")
    if users:
        yield users, histories


def _table_histories(
    path: Path, user_field: str, item_field: str, encoding: str, time_field: str | None
) -> Iterator[tuple[str, list[str]]]:
    grouped: dict[str, list[tuple[Any, ...]]] = {}
    for user, *event in _columns(path, [user_field, item_field], encoding, time_field):
        if not user or not event[0]:
            raise DataError(f"{path}: an interaction has no {item_field if user else user_field}: {(user, *event)}.")
        grouped.setdefault(user, []).append(tuple(event))
    for user, events in grouped.items():
        yield user, [item for item, *_ in sorted(events, key=lambda event: event[1:])]


def _json_histories(path: Path, user_field: str, item_field: str, encoding: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in read_lines(path, encoding):
        try:
            row = _parsed(line)
            if missing := [name for name in (user_field, item_field) if name not in row]:
                raise ValueError(f"there is no {missing[0]!r}")
            user, items = row[user_field], row[item_field]
            if not isinstance(items, list):
                raise TypeError(f"{item_field} is not a list")
            yield as_id(user, user_field), [as_id(item, item_field) for item in items]
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: {str(error).rstrip('.')}. Each line must be like "
                f'{{"{user_field}": "ann", "{item_field}": ["50", "181"]}}, oldest item first.'
            ) from error


def _parsed(line: str) -> dict[str, Any]:
    """Parse a JSON object, keeping numbers as the text they are written as."""
    row = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
    if not isinstance(row, dict):
        raise TypeError("it is not an object")
    return row


# ---- new items


def read_items(file: str, item_field: str, separator: str = "\t", encoding: str = "utf-8") -> list[dict[str, Any]]:
    """Read new items: an atomic file (``name:type`` in its first line), or JSON lines.

    Raises
    ------
    DataError
        For a line that cannot be read.
    """
    path, rows = Path(file), []
    lines = read_lines(path, encoding)
    if path.suffix == ".jsonl":
        for number, line in lines:
            try:
                rows.append(_parsed(line))
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(f"{file}, line {number}: {error}. Write one JSON object per line.") from error
        return rows
    heads = [head.partition(":")[0] for head in next(lines, (0, ""))[1].split(separator)]
    if item_field not in heads:
        raise DataError(f"{file}: the first line has no field {item_field!r}; it has {', '.join(heads)}.")
    for number, line in lines:
        cells = line.split(separator)
        if len(cells) != len(heads):
            raise DataError(f"{file}, line {number}: {len(cells)} fields instead of the {len(heads)} of line 1.")
        rows.append(dict(zip(heads, cells, strict=True)))
    return rows
