"""Custom logs: any CSV, TSV, JSON lines or parquet file with named columns; and session files."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from recbole_llm.convert.interactions import Interactions
from recbole_llm.convert.options import names
from recbole_llm.convert.reading import (
    Batch,
    Columns,
    Reading,
    Request,
    Row,
    check_columns,
    csv_batches,
    csv_rows,
    parquet_batches,
    parquet_columns,
    take_all,
    take_rows,
)
from recbole_llm.convert.records import parse_record, record_batches
from recbole_llm.convert.sources import Bundle, Source
from recbole_llm.convert.values import Catalogue, as_exact_times, as_floats, as_text, field_name
from recbole_llm.errors import ConfigError, DataError

# Usual names of the columns of session logs, without case, underscores and spaces.
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

    ``delimiter`` is that of a text table, by default a comma, a tab for ``.tsv``; ``names`` are its columns if it has
    no header. A file name that does not tell the format raises :class:`~recbole_llm.errors.ConfigError`.
    """

    def __init__(self, source: Source, delimiter: str | None = None, names: Sequence[str] | None = None) -> None:
        self.source, self._names = source, names
        ending = source.stem.rpartition(".")[2].lower()
        if ending not in _FORMATS and delimiter is None:
            raise ConfigError(
                f"{source.name}: cannot tell the format from the ending {ending!r}; known are "
                f"{', '.join(sorted(_FORMATS))} (also with .gz). For a text table pass --delimiter."
            )
        if delimiter is not None and (not delimiter or set(delimiter) & set('"\r\n')):
            raise ConfigError(
                f"delimiter is {delimiter!r}; it must not be empty or have quotation marks or line breaks."
            )
        self.format = "csv" if delimiter is not None else _FORMATS[ending]
        self.delimiter = delimiter or ("\t" if self.format == "tsv" else ",")

    @cached_property
    def columns(self) -> Sequence[str]:
        """Names of the columns; of the first record for JSON lines."""
        if self.format == "parquet":
            return list(parquet_columns(self.source))
        if self.format == "jsonl":
            for _, lines in self.source.blocks():
                for line in filter(bytes.strip, lines):
                    try:
                        return list(parse_record(line))
                    except ValueError:
                        continue  # reported when the whole file is read
            return []
        if self._names:
            return self._names
        for _, rows in csv_rows(self.source, self.delimiter):
            return [cell.strip() for cell in rows[0]]
        raise DataError(f"{self.source.name}: the file is empty.")

    def batches(self, wanted: Sequence[str], ids: int, progress: bool, optional: bool = False) -> Iterator[Batch]:
        """Yield the columns ``wanted``; the first ``ids`` of them are text as in the file.

        With ``optional``, a JSON record may lack a field; any other missing column is a
        :class:`~recbole_llm.errors.DataError`.
        """
        if self.format == "parquet":
            return parquet_batches(self.source, wanted, ids, progress)
        if self.format == "jsonl":
            return record_batches(self.source, wanted, ids=ids, optional=optional, progress=progress)
        return csv_batches(self.source, self.delimiter, wanted, self._names, progress)


def read(request: Request) -> Reading:
    """Read interactions, and items and users if their files are given; :mod:`~recbole_llm.convert.options` says how.

    The columns of ``sessions`` are recognised by their usual names.
    """
    options = request.options
    extra = names(options.get("inter_fields")) or []
    sources = request.bundle.named or [
        source for source in request.bundle.sources if not source.basename.startswith((".", "_"))
    ]
    if not sources:
        raise DataError(f"{request.bundle}: the folder is empty.")
    files = [TableFile(source, options.get("delimiter"), names(options.get("columns"))) for source in sources]
    columns = _columns(request, files[0])
    table = request.interactions(*(["rating"] if columns["rating_col"] else []), *extra)
    for file in files:
        _read_log(file, table, columns, extra, request)
    reading = Reading(table, sources=list(sources))
    if not columns["time_col"]:
        reading.notes.append("there is no time column: the order of the rows is used instead.")
    if request.metadata is not None:
        found = request.metadata.named or request.metadata.sources
        id_col = options.get("item_id_col") or columns["item_col"]
        reading.items = _read_catalogue(found, id_col, options.get("item_fields"), options.get("title_col"), request)
        reading.sources += found
    if options.get("users"):
        found = Bundle([Path(options["users"])]).named
        id_col = options.get("user_id_col") or columns["user_col"]
        reading.users = _read_catalogue(found, id_col, options.get("user_fields"), None, request)
        reading.sources += found
    return reading


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")


def _columns(request: Request, file: TableFile) -> dict[str, str | None]:
    columns = {key: request.options.get(key) for key in ("user_col", "item_col", "time_col", "rating_col")}
    if request.name == "sessions":
        for key, usual in _SESSION.items():
            if columns[key] is None:
                columns[key] = next((name for known in usual for name in file.columns if _plain(name) == known), None)
    for key in ("user_col", "item_col"):
        if not columns[key]:
            raise ConfigError(
                f"{request.name} needs {key} (--{key}); the columns of {file.source.name} are: "
                f"{', '.join(file.columns)}."
            )
    return columns


def _read_log(
    file: TableFile, table: Interactions, columns: dict[str, str | None], extra: Sequence[str], request: Request
) -> None:
    order = [columns["user_col"], columns["item_col"], columns["time_col"], columns["rating_col"], *extra]
    wanted = [name for name in order if name]
    at = 3 if columns["time_col"] else 2

    def take(given: Columns) -> None:
        users, items = given[:2]
        numbers = [as_floats(column, name) for column, name in zip(given[at:], wanted[at:], strict=True)]
        times: Sequence[int] = range(len(table), len(table) + len(users))
        micros = None
        if columns["time_col"]:
            times, micros = as_exact_times(given[2], request.options.get("time_format"))
        table.extend(users, items, times, numbers, micros)

    take_all(file.source, file.batches(wanted, 2, request.progress), take, request.skips)


def _read_catalogue(
    sources: Sequence[Source],
    id_col: str | None,
    fields: str | Sequence[str] | None,
    title: str | None,
    request: Request,
) -> Catalogue:
    if not sources:
        raise DataError("metadata or users: the folder is empty; pass the file itself.")
    files = [TableFile(source, request.options.get("delimiter")) for source in sources]
    columns = files[0].columns
    check_columns(sources[0].name, columns, [str(id_col)])
    mapping = _mapping(names(fields), [name for name in columns if name != id_col])
    kept = [name for _, name, _ in mapping]
    if title is None:
        title = next((name for name in kept if _plain(name) in _TITLE), "")
    elif title not in kept:
        raise ConfigError(f"title_col is {title!r}; the fields kept are {', '.join(kept)}.")
    catalogue = Catalogue([f"{name}:{kind}" for _, name, kind in mapping], title=title)

    def take(values: Row) -> None:
        texts = list(map(_text, values[1:]))
        for text, (_, name, kind) in zip(texts, mapping, strict=True):
            if kind == "float" and text:
                as_floats([text], name)
        catalogue.add(values[0] or "", texts)

    for file in files:
        wanted = [str(id_col), *(column for column, _, _ in mapping)]
        take_rows(file.source, file.batches(wanted, 1, request.progress, optional=True), take, request.skips)
    return catalogue


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(as_text, value))
    return str(value) if isinstance(value, bool) else as_text(value)


def _mapping(fields: Sequence[str] | None, columns: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return ``(column, new name, type)`` of each field."""
    if fields is None:
        return [(column, field_name(column), "token_seq") for column in columns]
    mapping = []
    for field in fields:
        column, _, new = field.rpartition("=")
        name, _, kind = new.partition(":")
        kind = kind or "token_seq"
        if kind not in _KINDS:
            raise ConfigError(f"{field!r}: the type is {kind!r}; allowed are {', '.join(_KINDS)}.")
        check_columns(repr(field), columns, [column or name])
        mapping.append((column or name, field_name(name), kind))
    return mapping
