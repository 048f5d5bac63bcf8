"""Atomic files as tables. Ids are text and never parsed; an error names the file, the line and the column.

A file is read by pyarrow. What pyarrow rejects or reads differently from the format is read line by line, which also
gives errors their line number.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from recbole.utils.enum_type import FeatureType

from recbole_llm.data.lines import has_lone_carriage_return, read_header, read_rows
from recbole_llm.data.times import parse_number
from recbole_llm.errors import ConfigError, DataError

# A line longer than this is read line by line.
_BLOCK_BYTES = 2**23


@dataclass(frozen=True)
class AtomicFormat:
    """File format of a dataset's atomic files.

    Attributes
    ----------
    field_separator : str
        Between the fields of a line.
    seq_separator : str
        Between the parts of a ``token_seq`` or ``float_seq`` field.
    encoding : str
    """

    field_separator: str = "\t"
    seq_separator: str = " "
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        for key in ("field_separator", "seq_separator"):
            value = getattr(self, key)
            if not isinstance(value, str) or not value or "\n" in value or "\r" in value:
                raise ConfigError(f"{key}={value!r} must be one or more characters, without line breaks.")
        if self.field_separator == self.seq_separator:
            raise ConfigError(
                f"field_separator and seq_separator are both {self.field_separator!r}: parts of a field could not be "
                "told from fields."
            )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "AtomicFormat":
        """Return the format that a configuration describes."""
        return cls(config["field_separator"], config["seq_separator"], config["encoding"] or "utf-8")


def read_types(path: Path, form: AtomicFormat) -> dict[str, FeatureType]:
    """Return the name and type of each field, in file order; DataError if line 1 is not a header."""
    return {name: FeatureType(kind) for name, kind in read_header(path, form.field_separator, form.encoding).items()}


def read_table(path: Path, form: AtomicFormat, header: Mapping[str, FeatureType], used: Sequence[str]) -> pd.DataFrame:
    """Read the fields ``used`` of an atomic file.

    Returns
    -------
    pandas.DataFrame
        Of a ``token`` field, a categorical whose categories are the texts in order of their first appearance; of a
        ``float`` field, float64; of a ``token_seq`` or ``float_seq`` field, arrays of str or float64. An empty token
        or float is missing; an empty sequence has no parts.

    Raises
    ------
    DataError
        For a line with a different number of fields than ``header``, bytes that are not in the encoding, or a value of
        a float field that is not a finite number.
    """
    columns = _read_whole(path, form, header, used)
    if columns is None:
        columns = _read_by_line(path, form, header, used)
    return pd.DataFrame(columns, copy=False)


def _read_whole(
    path: Path, form: AtomicFormat, header: Mapping[str, FeatureType], used: Sequence[str]
) -> dict[str, Any] | None:
    """Read a file with pyarrow; None if it must be read line by line."""
    separator = form.field_separator
    # pyarrow takes one byte as separator, ends a line at a carriage return, and knows blank lines as empty ones only.
    if len(separator) > 1 or not separator.isascii() or separator == " " or len(header) == 1:
        return None
    codec = codecs.lookup(form.encoding).name
    if "\r\n".encode(codec) != b"\r\n" or has_lone_carriage_return(path):
        return None
    try:
        table = pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(column_names=list(header), skip_rows=1, encoding=codec, block_size=_BLOCK_BYTES),
            pyarrow.csv.ParseOptions(delimiter=separator, quote_char=False, double_quote=False),
            pyarrow.csv.ConvertOptions(
                column_types={
                    name: pa.float64() if header[name] == FeatureType.FLOAT else pa.string() for name in header
                },
                include_columns=list(used),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        columns = {name: _column(table.column(name), header[name], form.seq_separator) for name in used}
        del table
        pa.default_memory_pool().release_unused()  # its texts are done with; NumPy could not use that memory
        return columns
    except (pa.ArrowException, ValueError):
        return None


def _column(column: pa.ChunkedArray, ftype: FeatureType, seq_separator: str) -> Any:
    if ftype == FeatureType.TOKEN:
        # Encoded after reading, with one dictionary for all blocks: the reader's have dictionaries of their own.
        column = column.dictionary_encode()
        if len({_place(chunk.dictionary) for chunk in column.chunks}) > 1:
            column = column.unify_dictionaries()
        words = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
        codes = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in column.chunks]
        return _categories(np.concatenate(codes) if codes else np.array([], dtype=np.int32), words)
    if ftype == FeatureType.FLOAT:
        values = column.to_numpy()
        if np.isinf(values).any() or np.isnan(values).sum() > column.null_count:
            raise ValueError("a number that is not finite")
        return values
    read = _reader(ftype, seq_separator, {})
    return _sequences([read(text or "") for text in column.to_pylist()])


def _place(array: pa.Array) -> tuple[int, ...]:
    """Return the addresses of an array's memory: comparing dictionaries text by text takes longer than making them."""
    return (len(array), *(0 if buffer is None else buffer.address for buffer in array.buffers()))


def _read_by_line(
    path: Path, form: AtomicFormat, header: Mapping[str, FeatureType], used: Sequence[str]
) -> dict[str, Any]:
    names = list(header)
    words: dict[str, dict[str, int]] = {name: {} for name in used}
    values: dict[str, list[Any]] = {name: [] for name in used}
    readers = [(names.index(name), name, _reader(header[name], form.seq_separator, words[name])) for name in used]
    for number, cells in read_rows(path, header, form.field_separator, form.encoding):
        for place, name, read in readers:
            try:
                values[name].append(read(cells[place]))
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}, column {name!r}: {error}. Leave the field empty where there is no value."
                ) from None
    columns: dict[str, Any] = {}
    for name in used:
        if header[name] == FeatureType.TOKEN:
            columns[name] = _categories(np.array(values[name], dtype=np.int32), list(words[name]))
        elif header[name] == FeatureType.FLOAT:
            columns[name] = np.array(values[name], dtype=np.float64)
        else:
            columns[name] = _sequences(values[name])
    return columns


def _reader(ftype: FeatureType, seq_separator: str, words: dict[str, int]) -> Callable[[str], Any]:
    """Return the parser of a field's text; ``words`` numbers the texts of a token field."""
    if ftype == FeatureType.TOKEN:
        return lambda text: words.setdefault(text, len(words)) if text else -1
    if ftype == FeatureType.FLOAT:
        return lambda text: parse_number(text) if text else np.nan
    if ftype == FeatureType.TOKEN_SEQ:
        # dtype object: fixed-width strings would cost the longest word for every word.
        return lambda text: np.array([word for word in text.split(seq_separator) if word], dtype=object)
    return lambda text: np.array([parse_number(word) for word in text.split(seq_separator) if word], dtype=np.float64)


def _categories(codes: np.ndarray, words: list[str]) -> pd.Categorical:
    # dtype object: pandas 3.1 takes words that look like numbers for numbers.
    return pd.Categorical.from_codes(codes, pd.Index(words, dtype=object))


def _sequences(parts: list[np.ndarray]) -> np.ndarray:
    return np.fromiter(parts, dtype=object, count=len(parts))
