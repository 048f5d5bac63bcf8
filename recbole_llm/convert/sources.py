"""Downloads as they come: plain files, gzip, members of a zip archive, folders of these.

Nothing is unpacked to disk and no file is held in memory: text comes in blocks of numbered lines.
"""

import fnmatch
import gzip
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NoReturn, cast

from tqdm.utils import CallbackIOWrapper

from recbole_llm.config.given import check_value
from recbole_llm.convert.values import KnownGap, LineError
from recbole_llm.errors import DataError
from recbole_llm.progress import Progress

#: Bytes that are read at once; what becomes of them then fits into a processor's cache.
BLOCK_BYTES = 1 << 18
#: A longer line is refused; no known download has one.
MAX_LINE_BYTES = 16 << 20

_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass
class Skips:
    """Counts of skipped lines by reason, with the first place of each.

    ``on_error`` says what an unusable line does: ``'stop'`` the conversion, or be counted (``'skip'``).
    """

    on_error: str = "stop"
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    place: str = ""

    def __post_init__(self) -> None:
        check_value("on_error", self.on_error, {"on_error": Literal["stop", "skip"]})

    def count(self, reason: str) -> None:
        """Count something about the current line."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, self.place)

    @contextmanager
    def line(self, place: str | None = None) -> Iterator[None]:
        """Handle a :class:`LineError` of the line at ``place``, by default the current one."""
        self.place = place or self.place
        try:
            yield
        except LineError as error:
            if self.on_error == "stop" and not isinstance(error, KnownGap):
                raise DataError(
                    f"{self.place}: {error} (on_error=skip, --on_error skip, counts such lines instead)."
                ) from None
            self.count(str(error))


@dataclass(frozen=True)
class Source:
    """A file on disk, or the ``member`` of a zip archive; ``size`` is in bytes on disk, compressed for a member."""

    path: Path
    member: str = ""
    size: int = 0

    @property
    def name(self) -> str:
        """Name in messages: ``ml-1m.zip:ml-1m/ratings.dat``."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def basename(self) -> str:
        """The last part of the name, without folders."""
        return (self.member or self.path.name).rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        """The base name without ``.gz``."""
        return self.basename.removesuffix(".gz")

    def place(self, number: int) -> str:
        """Return what messages call a line, or a row of a parquet file."""
        return f"{self.name}, {'row' if self.stem.endswith('.parquet') else 'line'} {number}"

    @contextmanager
    def open(self, progress: bool = False) -> Iterator[IO[bytes]]:
        """Open for reading, decompressed; whether it is compressed is taken from its content, not from its name.

        ``progress`` shows a bar (on a terminal) of the bytes read from disk.

        Raises
        ------
        DataError
            The file cannot be opened, or its compressed data is damaged.
        """
        with ExitStack() as stack:
            try:
                if self.member:
                    raw = stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(self.member))
                else:
                    raw = stack.enter_context(self.path.open("rb"))
                magic = raw.read(2)
                raw.seek(0)
            except (OSError, *_DAMAGE) as error:
                self._fail(error)
            if progress:
                bar = stack.enter_context(Progress(self.size, self.basename, "bytes"))
                raw = CallbackIOWrapper(bar.update, raw, "read")
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb")) if magic == b"\x1f\x8b" else raw

    def _fail(self, error: BaseException, place: str = "") -> NoReturn:
        if isinstance(error, _DAMAGE):
            text = f"{place}: the compressed data is damaged or cut short ({error}); download it again."
        else:
            text = f": cannot be read: {getattr(error, 'strerror', None) or error}."
        raise DataError(f"{self.name}{text}") from error

    def blocks(self, progress: bool = False, size: int = BLOCK_BYTES) -> Iterator[tuple[int, list[bytes]]]:
        """Yield blocks of lines, without their ends (``\\n`` or ``\\r\\n``), and the number of the first of each.

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
                    # The rest of the last line; limited, as a file without line breaks must not fill the memory.
                    rest = stream.readline(MAX_LINE_BYTES + 1) if chunk and chunk[-1:] != b"\n" else b""
                except (OSError, *_DAMAGE) as error:
                    self._fail(error, f", after line {number - 1}")
                if not chunk:
                    return
                if number == 1:
                    if chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
                        raise DataError(f"{self.name}, line 1: this is UTF-16 text; save it as UTF-8.")
                    chunk = chunk.removeprefix(b"\xef\xbb\xbf")
                data = chunk + rest
                lines = data.split(b"\n")
                if data.endswith(b"\n"):
                    lines.pop()
                if len(lines[-1]) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{self.name}, line {number + len(lines) - 1}: the line is longer than "
                        f"{MAX_LINE_BYTES >> 20} MiB; is this the right file, and does it have line breaks?"
                    )
                if b"\r" in data:
                    lines = [line.removesuffix(b"\r") for line in lines]
                yield number, lines
                number += len(lines)

    def first_line(self) -> bytes | None:
        """Return line 1, or None for an empty file."""
        return next((lines[0] for _, lines in self.blocks(size=4096)), None)


class Bundle:
    """All files of an input, which names files, folders (read two levels deep) and zip archives.

    ``sources`` are all of them, ``named`` those that were not found in a folder. A path that does not exist or an
    archive that cannot be read raises :class:`~recbole_llm.errors.DataError`.
    """

    def __init__(self, inputs: Sequence[str | Path]) -> None:
        self.inputs = [Path(path) for path in inputs]
        self.sources: list[Source] = []
        self.named: list[Source] = []
        for path in self.inputs:
            if path.is_dir():
                files = [file for pattern in ("*", "*/*") for file in sorted(path.glob(pattern)) if file.is_file()]
                self.sources += [Source(file, size=file.stat().st_size) for file in files]
            elif path.is_file():
                self.named += self._members(path)
            else:
                raise DataError(f"{path}: there is no such file or folder.")
        self.sources += self.named

    def __str__(self) -> str:
        return ", ".join(str(path) for path in self.inputs)

    def _members(self, path: Path) -> list[Source]:
        source = Source(path, size=path.stat().st_size)
        if not zipfile.is_zipfile(path):
            return [source]
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        except (OSError, *_DAMAGE) as error:
            source._fail(error)
        return [
            Source(path, entry.filename, entry.compress_size)
            for entry in entries
            if not re.match(r"(__MACOSX/|.*/\._)", entry.filename)
        ]

    def find(self, pattern: str) -> list[Source]:
        """Return the files whose name, with or without ``.gz``, matches a shell pattern."""
        return [file for file in self.sources if fnmatch.filter((file.basename, file.stem), pattern)]

    def nothing(self, what: str) -> NoReturn:
        """Raise a :class:`DataError` that lists the files found instead of ``what``."""
        listed = sorted({source.basename for source in self.sources})
        found = ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "") if listed else "nothing"
        raise DataError(f"{self}: {what} found there; it holds {found}.")

    def one(self, pattern: str) -> Source:
        """Return the only file that matches, or raise a :class:`DataError`."""
        found = self.find(pattern)
        if not found:
            self.nothing(f"no {pattern}")
        if len(found) > 1:
            raise DataError(
                f"{self}: more than one file matches {pattern}: {', '.join(source.name for source in found[:6])}; "
                "pass the file itself as the input."
            )
        return found[0]

    def folders(self) -> "Bundle":
        """Return the folders of the files that were given by name."""
        return Bundle(sorted({source.path.parent for source in self.named}))
