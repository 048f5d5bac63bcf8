"""Custom logs: any CSV, TSV, JSON lines or parquet file with named columns; and session files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.convert.interactions import Interactions
from recbole_llm.convert.reading import (
    Batch,
    Columns,
    Reading,
    Request,
    csv_batches,
    csv_rows,
    each_row,
    parquet_batches,
    parquet_columns,
    take_all,
)
from recbole_llm.convert.records import parse_record, record_batches
from recbole_llm.convert.sources import Bundle, Source
from recbole_llm.convert.values import Catalogue, as_exact_times, as_floats, check_ids, field_name, plain_text
from recbole_llm.errors import ConfigError, DataError

# fmt: off
OPTIONS = frozenset(
    [
        "user_col", "item_col", "time_col", "rating_col", "inter_fields", "time_format", "delimiter", "columns",
        "item_id_col", "item_fields", "title_col", "users", "user_id_col", "user_fields",
    ]
)
# fmt: on
# Column names of session logs, as they are met; compared without case and underscores.
_SESSION = {
    "user_col": ("sessionid", "session", "userid", "user", "visitorid"),
    "item_col": ("itemid", "item", "productid", "product", "article", "aid", "sku"),
    "time_col": ("timestamp", "time", "eventtime", "datetime", "date", "ts", "eventdate", "timeframe"),
}
_TITLE = ("title", "name", "producttitle", "productname", "itemname", "itemtitle")
_KINDS = ("token", "token_seq", "float")
_FORMATS = {
    **dict.fromkeys(("csv", "txt"), "csv"),
    **dict.fromkeys(("tsv", "tab"), "tsv"),
    **dict.fromkeys(("jsonl", "json", "ndjson"), "jsonl"),
    **dict.fromkeys(("parquet", "pq"), "parquet"),
}


class TableFile:
    """A CSV, TSV, JSON lines or parquet file as columns.

    Parameters
    ----------
    source : Source
    delimiter : str, optional
        Of a text table; default a comma, a tab for ``.tsv``.
    names : sequence of str, optional
        Names of the columns of a text table without header.

    Raises
    ------
    ConfigError
        The file extension does not determine the format.
    """

    def __init__(self, source: Source, delimiter: str | None = None, names: Sequence[str] | None = None) -> None:
        self.source = source
        ending = source.stem.rpartition(".")[2].lower()
        if ending not in _FORMATS and delimiter is None:
            raise ConfigError(
                f"{source.name}: cannot tell the format from the ending {ending!r}; known are "
                f"{', '.join(sorted(_FORMATS))} (also with .gz). For a text table pass --delimiter."
            )
        if delimiter is not None and (not delimiter or set(delimiter) & set('"\r\n')):
            raise ConfigError(f"delimiter is {delimiter!r}; it must be some character other than a quote or line end.")
        self.format = "csv" if delimiter is not None else _FORMATS[ending]
        self.delimiter = delimiter or ("\t" if self.format == "tsv" else ",")
        self._names = list(names) if names else None

    def columns(self) -> list[str]:
        """Return the names of the columns; of the first record for JSON lines."""
        if self.format == "parquet":
            return list(parquet_columns(self.source))
        if self.format == "jsonl":
            for block in self.source.blocks():
                for line in filter(bytes.strip, block.lines):
                    try:
                        return list(parse_record(line))
                    except ValueError:
                        continue  # the reading of the whole file says what is wrong with the line
            return []
        if self._names:
            return self._names
        for _, rows in csv_rows(self.source, self.delimiter):
            if rows:
                return [cell.strip() for cell in rows[0]]
        raise DataError(f"{self.source.name}: the file is empty.")

    def batches(self, wanted: Sequence[str], ids: int, progress: bool, optional: bool = False) -> Iterator[Batch]:
        """Yield the columns ``wanted``, of which the first ``ids`` are text as in the file.

        With ``optional`` a JSON record may lack a field. A column that does not exist raises
        :class:`~recbole_llm.errors.DataError`.
        """
        if self.format == "parquet":
            return parquet_batches(self.source, wanted, ids, progress)
        if self.format == "jsonl":
            return record_batches(self.source, wanted, ids=ids, optional=optional, progress=progress)
        return csv_batches(self.source, self.delimiter, wanted, self._names, progress)


def read(request: Request) -> Reading:
    """Read interactions, and items and users if their files are given.

    Options
    -------
    user_col, item_col, time_col, rating_col : str
        Columns of the log. Without ``time_col`` the order of the rows is the time. For ``sessions`` they are
        recognised by their usual names.
    inter_fields : str
        Additional numeric columns of the log to keep, comma-separated.
    time_format : str
        ``strptime`` pattern; without it numbers and ISO dates are recognised.
    delimiter, columns : str
        Of a text table: its separator, and the names of its columns if it has no header.
    item_id_col, item_fields, title_col : str
        Of the metadata: its id column (default ``item_col``), the columns to keep as ``name:type``, separated by
        commas, or ``column=name:type`` to rename (default: all, as ``token_seq``), and which of the new names is the
        title.
    users, user_id_col, user_fields : str
        The same for users; ``users`` is the path.
    """
    options = request.options
    named = {key: _listed(options.get(key)) for key in ("columns", "inter_fields", "item_fields", "user_fields")}
    sources = request.bundle.named or [
        source for source in request.bundle.sources if not source.basename.startswith((".", "_"))
    ]
    if not sources:
        raise DataError(f"{request.bundle}: the folder is empty.")
    columns = _columns(request, TableFile(sources[0], options.get("delimiter"), named["columns"]))
    values = (["rating"] if columns["rating_col"] else []) + (named["inter_fields"] or [])
    table = request.interactions(*values)
    for source in sources:
        file = TableFile(source, options.get("delimiter"), named["columns"])
        _read_log(file, table, columns, named["inter_fields"] or [], options.get("time_format"), request)
    reading = Reading(table, sources=list(sources))
    if not columns["time_col"]:
        reading.notes.append("there is no time column: the order of the rows is taken for the time.")
    if request.metadata is not None:
        found = request.metadata.named or request.metadata.sources
        fields, title = named["item_fields"], options.get("title_col")
        reading.items = _read_catalogue(
            found, options.get("item_id_col") or columns["item_col"], fields, title, request
        )
        reading.sources += found
    if options.get("users"):
        people = Bundle([Path(options["users"])]).named
        reading.users = _read_catalogue(
            people, options.get("user_id_col") or columns["user_col"], named["user_fields"], None, request
        )
        reading.sources += people
    return reading


def _listed(value: Any) -> list[str] | None:
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else list(value)
    return [part.strip() for part in parts if part.strip()]


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")


def _columns(request: Request, file: TableFile) -> dict[str, str | None]:
    columns = {key: request.options.get(key) for key in ("user_col", "item_col", "time_col", "rating_col")}
    if request.name == "sessions":
        there = file.columns()
        for key, usual in _SESSION.items():
            if columns[key] is None:
                columns[key] = next((name for known in usual for name in there if _plain(name) == known), None)
    for key in ("user_col", "item_col"):
        if not columns[key]:
            raise ConfigError(
                f"{request.name} needs {key} (--{key}); the columns of {file.source.name} are: "
                f"{', '.join(file.columns())}."
            )
    return columns


def _read_log(
    file: TableFile,
    table: Interactions,
    columns: dict[str, str | None],
    extra: Sequence[str],
    pattern: str | None,
    request: Request,
) -> None:
    order = [columns["user_col"], columns["item_col"], columns["time_col"], columns["rating_col"], *extra]
    wanted = [name for name in order if name]

    def take(given: Columns) -> None:
        users, items = ([value or "" for value in column] for column in given[:2])
        check_ids(users, items)
        at = 3 if columns["time_col"] else 2
        numbers = [as_floats(values, name) for values, name in zip(given[at:], wanted[at:], strict=True)]
        if columns["time_col"]:
            times, micros = as_exact_times(given[2], pattern) if users else ([], None)
        else:
            times, micros = list(range(len(table), len(table) + len(users))), None
        table.extend(users, items, times, numbers, micros)

    take_all(file.source, file.batches(wanted, 2, request.progress), take, request.skips)


def _read_catalogue(
    sources: Sequence[Source], id_col: str | None, fields: Sequence[str] | None, title: str | None, request: Request
) -> Catalogue:
    delimiter, names = request.options.get("delimiter"), None
    if not sources:
        raise DataError("metadata or users: the folder is empty; name the file itself.")
    first = TableFile(sources[0], delimiter, names)
    there = first.columns()
    if id_col not in there:
        raise DataError(f"{sources[0].name}: no column {id_col!r}; the columns are {', '.join(there)}.")
    mapping = _mapping(fields, [name for name in there if name != id_col])
    new_names = [name for _, name, _ in mapping]
    if title is not None and title not in new_names:
        raise ConfigError(f"title_col is {title!r}; the fields kept are {', '.join(new_names)}.")
    if title is None:
        title = next((name for name in new_names if _plain(name) in _TITLE), "")
    catalogue = Catalogue([(name, kind) for _, name, kind in mapping], title=title)
    for source in sources:
        file = TableFile(source, delimiter, names)
        wanted = [str(id_col), *(column for column, _, _ in mapping)]
        batches = file.batches(wanted, 1, request.progress, optional=True)
        for number, (raw_id, *values) in each_row(source, batches, request.skips):
            with request.skips.line(source.name, number):
                texts = [_text(value) for value in values]
                for text, (name, kind) in zip(texts, catalogue.fields, strict=True):
                    if kind == "float" and text:
                        as_floats([text], name)
                catalogue.add_once(raw_id or "", texts)
    return catalogue


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(plain_text(part) for part in value)
    return str(value) if isinstance(value, bool) else plain_text(value)


def _mapping(fields: Sequence[str] | None, there: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return ``(column, new name, type)`` of each field."""
    mapping = []
    for field in fields if fields is not None else there:
        column, _, new = field.rpartition("=") if fields is not None else ("", "", field)
        name, _, kind = new.partition(":") if fields is not None else (new, "", "")
        column, kind = column or name, kind or "token_seq"
        if kind not in _KINDS:
            raise ConfigError(f"{field!r}: the type is {kind!r}; allowed are {', '.join(_KINDS)}.")
        if column not in there:
            raise DataError(f"there is no column {column!r}; the columns are {', '.join(there)}.")
        mapping.append((column, field_name(name), kind))
    return mapping
