"""CSV, TSV, JSON lines and parquet as rows of chosen columns, whatever the file."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from recbole_llm.convert.lines import LineError, Skips
from recbole_llm.convert.reading import csv_batches
from recbole_llm.convert.records import each_record
from recbole_llm.convert.sources import Source, parquet_batches, parquet_columns
from recbole_llm.errors import ConfigError, DataError

#: Line (or row) numbers and, for each, the values of the chosen columns.
Batch = tuple[Sequence[int], list[tuple[Any, ...]]]
_FORMATS = {
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "txt": "csv",
    "jsonl": "jsonl",
    "json": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "pq": "parquet",
}
_JSON_BATCH = 1 << 14


class TableFile:
    """A file with named columns.

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
        The ending says nothing about the format.
    """

    def __init__(self, source: Source, delimiter: str | None = None, names: Sequence[str] | None = None) -> None:
        self.source = source
        ending = source.stem.rpartition(".")[2].lower()
        if ending not in _FORMATS and delimiter is None:
            raise ConfigError(
                f"{source.name}: cannot tell the format from the ending {ending!r}; known are "
                f"{', '.join(sorted(_FORMATS))} (also with .gz). For a text table pass --delimiter."
            )
        self.format = "csv" if delimiter is not None else _FORMATS[ending]
        self.delimiter = delimiter or ("\t" if self.format == "tsv" else ",")
        self._names = list(names) if names else None

    def columns(self) -> list[str]:
        """Return the names of the columns; of the first record for JSON lines."""
        if self.format == "parquet":
            return parquet_columns(self.source)
        if self.format == "jsonl":
            for _, record in each_record(self.source, Skips("skip")):
                return list(record)
            return []
        if self._names:
            return self._names
        for _, rows in csv_batches(self.source, self.delimiter):
            return [cell.strip() for cell in rows[0]]
        raise DataError(f"{self.source.name}: the file is empty.")

    def rows(
        self, wanted: Sequence[str], skips: Skips, progress: bool = False, optional: bool = False
    ) -> Iterator[Batch]:
        """Yield batches of the wanted columns, in the order asked for.

        Parameters
        ----------
        wanted : sequence of str
            First the id of a catalogue (``optional``), or the user and the item of a log.
        skips : Skips
            Gets rows with another number of cells than the header, and records that lack a field.
        progress : bool
        optional : bool
            Whether a JSON record may lack a field (``None`` then), save the first one wanted.

        Raises
        ------
        DataError
            A column does not exist.
        """
        if self.format == "parquet":
            ids = wanted[: 1 if optional else 2]
            for first, batch in parquet_batches(self.source, wanted, progress, ids):
                columns = batch.to_pydict()
                found = list(zip(*(columns[name] for name in wanted), strict=True))
                yield range(first, first + len(found)), found
        elif self.format == "jsonl":
            yield from self._json_rows(wanted, skips, progress, optional)
        else:
            yield from self._text_rows(wanted, skips, progress)

    def _json_rows(self, wanted: Sequence[str], skips: Skips, progress: bool, optional: bool) -> Iterator[Batch]:
        numbers: list[int] = []
        found: list[tuple[Any, ...]] = []
        ids = wanted[: 1 if optional else 2]
        for number, record in each_record(self.source, skips, progress, ids=ids):
            absent = next((name for name in (wanted[:1] if optional else wanted) if name not in record), None)
            if absent is not None:
                skips.handle(LineError(f"the record has no {absent!r}"), self.source.name, number)
                continue
            numbers.append(number)
            found.append(tuple([record.get(name) for name in wanted]))
            if len(found) >= _JSON_BATCH:
                yield numbers, found
                numbers, found = [], []
        if found:
            yield numbers, found

    def _text_rows(self, wanted: Sequence[str], skips: Skips, progress: bool) -> Iterator[Batch]:
        header = self._names
        pick: Any = None
        for numbers, rows in csv_batches(self.source, self.delimiter, progress):
            if pick is None:
                if header is None:
                    header = [cell.strip() for cell in rows[0]]
                    numbers, rows = numbers[1:], rows[1:]
                absent = [name for name in wanted if name not in header]
                if absent:
                    raise DataError(
                        f"{self.source.name}, line 1: no column {absent[0]!r}; the columns are {', '.join(header)}."
                    )
                places = [header.index(name) for name in wanted]
                pick = itemgetter(*places) if len(places) > 1 else lambda row, place=places[0]: (row[place],)
                width = len(header)
            if set(map(len, rows)) - {width}:
                numbers, rows = self._whole(numbers, rows, width, skips)
            if rows:
                yield numbers, list(map(pick, rows))

    def _whole(self, numbers: Sequence[int], rows: list[list[str]], width: int, skips: Skips) -> tuple[Any, Any]:
        kept = []
        for number, row in zip(numbers, rows, strict=True):
            if len(row) == width:
                kept.append((number, row))
            elif row != [""]:
                error = LineError(f"{len(row)} fields where {width} are expected (separated by {self.delimiter!r})")
                skips.handle(error, self.source.name, number)
        return [number for number, _ in kept], [row for _, row in kept]
