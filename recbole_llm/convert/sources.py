"""Read downloads as they come: plain files, gzip, members of a zip archive, folders of these, parquet.

Nothing is unpacked to disk and no file is held in memory: text comes in blocks of whole lines, each block with the
number of its first line, so that every message can name file and line.
"""

import fnmatch
import gzip
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from tqdm import tqdm

from recbole_llm.errors import DataError
from recbole_llm.extras import optional

#: Bytes that are read at once; what becomes of them then fits into a processor's cache.
BLOCK_BYTES = 1 << 18
#: A longer line is refused: no known download has one, and a file without line ends would fill the memory.
MAX_LINE_BYTES = 16 << 20

_LINE_END = ord("\n")
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)


class Block(NamedTuple):
    """Whole lines of a file, without their ends (``\\n`` or ``\\r\\n``)."""

    first_line: int
    lines: list[bytes]


class _Counted:
    """A binary file that moves a progress bar as it is read (by bytes on disk, also under gzip or zip)."""

    def __init__(self, raw: IO[bytes], bar: Any) -> None:
        self._raw, self._bar = raw, bar

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self._bar.update(len(data))
        return data

    def readline(self, size: int = -1) -> bytes:
        data = self._raw.readline(size)
        self._bar.update(len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def flush(self) -> None:
        pass


@dataclass(frozen=True)
class Source:
    """A file on disk, or a member of a zip archive.

    Attributes
    ----------
    path : Path
    member : str
        Name inside the archive; empty for a file of its own.
    size : int
        Bytes on disk (compressed size for a member).
    on_open : callable, optional
        Told when the source is opened.
    """

    path: Path
    member: str = ""
    size: int = 0
    on_open: Callable[["Source"], None] | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """How messages call it: ``ml-1m.zip:ml-1m/ratings.dat``."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def basename(self) -> str:
        """The last part of the name, without folders."""
        return (self.member or self.path.name).rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The base name without ``.gz``."""
        return self.basename.removesuffix(".gz")

    @contextmanager
    def open(self, progress: bool = False) -> Iterator[IO[bytes]]:
        """Open for reading, decompressed; the kind is taken from the content, not from the ending.

        Parameters
        ----------
        progress : bool
            Show a bar (on a terminal only) over the bytes on disk.

        Raises
        ------
        DataError
            The file cannot be opened or its compressed data is damaged.
        """
        self.opened()
        bar = tqdm(
            total=self.size,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            desc=self.basename,
            disable=None if progress else True,
            leave=False,
        )
        archive: zipfile.ZipFile | None = None
        try:
            try:
                if self.member:
                    archive = zipfile.ZipFile(self.path)
                    with archive.open(self.member) as start:
                        magic = start.read(2)
                    raw: IO[bytes] = archive.open(self.member)
                else:
                    raw = self.path.open("rb")
                    magic = raw.read(2)
                    raw.seek(0)
            except OSError as error:
                raise DataError(f"{self.name}: cannot be read: {error.strerror or error}.") from error
            except _DAMAGE as error:
                raise DataError(f"{self.name}: {_damage(error)}") from error
            stream = cast(IO[bytes], _Counted(raw, bar))
            try:
                yield cast(IO[bytes], gzip.GzipFile(fileobj=stream, mode="rb")) if magic == b"\x1f\x8b" else stream
            finally:
                raw.close()
        finally:
            if archive is not None:
                archive.close()
            bar.close()

    def blocks(self, progress: bool = False, size: int = BLOCK_BYTES) -> Iterator[Block]:
        """Yield the content in blocks of whole lines.

        Raises
        ------
        DataError
            Damaged compressed data, a line longer than :data:`MAX_LINE_BYTES`, or UTF-16 text.
        """
        number = 1
        with self.open(progress) as stream:
            while True:
                try:
                    chunk = stream.read(size)
                    # The rest of the last line, which may be the only one; an unended file must not fill the memory.
                    rest = stream.readline(MAX_LINE_BYTES + 1) if chunk and chunk[-1] != _LINE_END else b""
                except _DAMAGE as error:
                    raise DataError(f"{self.name}, after line {number - 1}: {_damage(error)}") from error
                except OSError as error:
                    raise DataError(f"{self.name}: cannot be read: {error.strerror or error}.") from error
                if not chunk:
                    return
                if number == 1:
                    if chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
                        raise DataError(f"{self.name}, line 1: this is UTF-16 text; save it as UTF-8.")
                    chunk = chunk.removeprefix(b"\xef\xbb\xbf")
                lines = chunk.split(b"\n")
                lines[-1] += rest.removesuffix(b"\n")
                if len(lines[-1]) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{self.name}, line {number + len(lines) - 1}: the line is longer than "
                        f"{MAX_LINE_BYTES >> 20} MiB; is this the right file, and are its lines ended?"
                    )
                if not rest and chunk[-1:] == b"\n":
                    lines.pop()
                if b"\r" in chunk:
                    lines = [line.removesuffix(b"\r") for line in lines]
                yield Block(number, lines)
                number += len(lines)

    def opened(self) -> None:
        """Tell ``on_open``."""
        if self.on_open is not None:
            self.on_open(self)


def _damage(error: BaseException) -> str:
    return f"the compressed data is damaged or cut short ({error}); download it again."


class Bundle:
    """Everything that was given as input: one file, several, an archive or a folder.

    Parameters
    ----------
    inputs : sequence of path-like
        Zip archives are looked into; folders are searched two levels deep.

    on_open : callable, optional
        Told of each source that is opened.

    Raises
    ------
    DataError
        A path does not exist, or an archive cannot be read.
    """

    def __init__(self, inputs: Sequence[str | Path], on_open: Callable[[Source], None] | None = None) -> None:
        self._on_open = on_open
        self.inputs = [Path(path) for path in inputs]
        self.sources: list[Source] = []
        self.named: list[Source] = []
        for path in self.inputs:
            if path.is_dir():
                for pattern in ("*", "*/*"):
                    self.sources += [
                        Source(file, size=file.stat().st_size, on_open=on_open)
                        for file in sorted(path.glob(pattern))
                        if file.is_file()
                    ]
            elif path.is_file():
                found = (
                    _members(path, on_open)
                    if zipfile.is_zipfile(path)
                    else [Source(path, size=path.stat().st_size, on_open=on_open)]
                )
                self.sources += found
                self.named += found
            else:
                raise DataError(f"{path}: there is no such file or folder.")

    def __str__(self) -> str:
        return ", ".join(str(path) for path in self.inputs)

    def find(self, *patterns: str) -> list[Source]:
        """Return the sources whose base name, with or without ``.gz``, matches the first pattern that any matches."""
        for pattern in patterns:
            found = [
                source
                for source in self.sources
                if fnmatch.fnmatchcase(source.basename, pattern) or fnmatch.fnmatchcase(source.stem, pattern)
            ]
            if found:
                return found
        return []

    def one(self, *patterns: str) -> Source:
        """Return the only source that matches, or raise a :class:`DataError` that lists what is there."""
        found = self.find(*patterns)
        if not found:
            listed = sorted({source.basename for source in self.sources})
            there = ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "") if listed else "nothing"
            raise DataError(f"{self}: no {' or '.join(patterns)} found there; it holds {there}.")
        if len(found) > 1:
            raise DataError(
                f"{self}: more than one file matches {patterns[0]}: {', '.join(source.name for source in found[:6])}; "
                "give the file itself as the input."
            )
        return found[0]

    def folders(self) -> "Bundle":
        """Return the folders of the files that were given by name."""
        return Bundle(sorted({source.path.parent for source in self.named}), self._on_open)

    def beside(self, *patterns: str) -> list[Source]:
        """As :meth:`find`, then also in the folder of a file that was given by itself."""
        found = self.find(*patterns)
        if found:
            return found
        return self.folders().find(*patterns)


def _members(path: Path, on_open: Callable[[Source], None] | None) -> list[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [
                Source(path, entry.filename, entry.compress_size, on_open)
                for entry in archive.infolist()
                if not entry.is_dir() and not re.match(r"(__MACOSX/|.*/\._)", entry.filename)
            ]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: {_damage(error)}") from error


def _parquet(source: Source) -> Any:
    parquet = optional("pyarrow.parquet", "convert", f"{source.name}: reading parquet")
    if source.member:
        raise DataError(f"{source.name}: a parquet file is read from disk, not from inside an archive; unpack it.")
    return parquet


def parquet_columns(source: Source) -> list[str]:
    """Return the names of the columns of a parquet file.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    DataError
        The file is damaged.
    """
    parquet = _parquet(source)
    try:
        return list(parquet.read_schema(source.path).names)
    except (ValueError, OSError) as error:  # pyarrow's errors derive from these
        raise DataError(f"{source.name}: the parquet data is damaged ({error}).") from error


def parquet_batches(
    source: Source, columns: Sequence[str], progress: bool = False, ids: Sequence[str] = ()
) -> Iterator[tuple[int, Any]]:
    """Yield ``(first row number, pyarrow record batch)`` of a parquet file, row group by row group.

    The columns ``ids`` come as text: whole numbers in all their digits.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    DataError
        The file is damaged, a column is missing, or one of ``ids`` is neither text nor whole numbers: a float has no
        text that was in the file.
    """
    parquet = _parquet(source)
    source.opened()
    row = 1
    try:
        with parquet.ParquetFile(source.path) as file:
            there = file.schema_arrow.names
            absent = [column for column in columns if column not in there]
            if absent:
                raise DataError(f"{source.name}: no column {absent[0]!r}; the columns are {', '.join(there)}.")
            with tqdm(total=file.metadata.num_rows, desc=source.basename, disable=None if progress else True) as bar:
                for batch in file.iter_batches(batch_size=1 << 16, columns=list(columns)):
                    yield row, _ids_as_text(batch, ids, source)
                    row += batch.num_rows
                    bar.update(batch.num_rows)
    except DataError:
        raise
    except (ValueError, OSError) as error:  # pyarrow's errors derive from these
        raise DataError(f"{source.name}, after row {row - 1}: the parquet data is damaged ({error}).") from error


def _ids_as_text(batch: Any, ids: Sequence[str], source: Source) -> Any:
    types = import_module("pyarrow.types")
    for name in ids:
        column = batch.column(name)
        kind = column.type.value_type if types.is_dictionary(column.type) else column.type
        if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0) or types.is_binary(kind):
            batch = batch.set_column(batch.schema.names.index(name), name, column.cast("string"))
        elif not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)):
            raise DataError(
                f"{source.name}: the column {name!r} holds ids of the type {kind}; ids are text or whole numbers. "
                f"With pandas: frame[{name!r}] = frame[{name!r}].astype('Int64') before it is written."
            )
    return batch
