"""Read downloads as they come: plain files, gzip, members of a zip archive, folders of these.

Nothing is unpacked to disk and no file is held in memory: text comes in blocks of whole lines, each block with the
number of its first line, so that every message can name file and line.
"""

import fnmatch
import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, cast

from tqdm import tqdm

from recbole_llm.convert.values import KnownGap, LineError
from recbole_llm.errors import ConfigError, DataError

#: Bytes that are read at once; what becomes of them then fits into a processor's cache.
BLOCK_BYTES = 1 << 18
#: A longer line is refused: no known download has one, and a file without line ends would fill the memory.
MAX_LINE_BYTES = 16 << 20

_HASH_BYTES = 1 << 20
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass
class Skips:
    """Counts of skipped lines by reason, with the first place of each.

    ``on_error`` says whether an unexpected line stops the conversion (``'stop'``) or is counted (``'skip'``). Damaged
    compression, missing files and lines without end always stop it.
    """

    on_error: str = "stop"
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error is {self.on_error!r}; allowed are 'stop' and 'skip'.")

    def count(self, reason: str, where: str) -> None:
        """Count a line that is always skipped."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    @contextmanager
    def line(self, where: str, number: int) -> Iterator[None]:
        """Count a :class:`LineError` of the block, or raise it with its place if ``on_error`` is ``stop``."""
        try:
            yield
        except LineError as error:
            place = f"{where}, line {number}"
            if not isinstance(error, KnownGap) and self.on_error == "stop":
                raise DataError(
                    f"{place}: {error} (on_error=skip, --on_error skip, counts such lines instead)."
                ) from None
            self.count(str(error), place)


class Block(NamedTuple):
    """Whole lines of a file, without their ends (``\\n`` or ``\\r\\n``)."""

    first_line: int
    lines: list[bytes]


@dataclass(frozen=True)
class Source:
    """A file on disk, or the ``member`` of a zip archive; ``size`` is in bytes on disk, compressed for a member."""

    path: Path
    member: str = ""
    size: int = 0

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

        ``progress`` shows a bar (on a terminal only) over the bytes on disk. A file that cannot be opened, or whose
        compressed data is damaged, raises :class:`~recbole_llm.errors.DataError`.
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
                bar = tqdm.wrapattr(raw, "read", total=self.size, desc=self.basename, disable=None, leave=False)
                raw = stack.enter_context(bar)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb")) if magic == b"\x1f\x8b" else raw

    def _fail(self, error: BaseException, place: str = "") -> NoReturn:
        if isinstance(error, _DAMAGE):
            text = f"{place}: the compressed data is damaged or cut short ({error}); download it again."
        else:
            text = f": cannot be read: {getattr(error, 'strerror', None) or error}."
        raise DataError(f"{self.name}{text}") from error

    def blocks(self, progress: bool = False, size: int = BLOCK_BYTES) -> Iterator[Block]:
        """Yield the content in blocks of whole lines; a line ends with ``\\n`` or ``\\r\\n`` and nothing else.

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
                    rest = stream.readline(MAX_LINE_BYTES + 1) if chunk and chunk[-1:] != b"\n" else b""
                except (OSError, *_DAMAGE) as error:
                    self._fail(error, f", after line {number - 1}")
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
                if b"\r" in chunk or b"\r" in rest:
                    lines = [line.removesuffix(b"\r") for line in lines]
                yield Block(number, lines)
                number += len(lines)

    def first_line(self) -> bytes | None:
        """Return line 1, or None for an empty file."""
        block = next(iter(self.blocks(size=4096)), None)
        return block.lines[0] if block else None


class Bundle:
    """Everything that was given as input: files, folders (two levels deep) and zip archives, which are looked into.

    ``sources`` are all of them, ``named`` those that were given by name. A path that does not exist or an archive that
    cannot be read raises :class:`~recbole_llm.errors.DataError`.
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

    def nothing(self, what: str) -> NoReturn:
        """Raise a :class:`DataError` that lists what is there instead."""
        listed = sorted({source.basename for source in self.sources})
        there = ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "") if listed else "nothing"
        raise DataError(f"{self}: {what} found there; it holds {there}.")

    def one(self, *patterns: str) -> Source:
        """Return the only source that matches, or raise a :class:`DataError`."""
        found = self.find(*patterns)
        if not found:
            self.nothing(f"no {' or '.join(patterns)}")
        if len(found) > 1:
            raise DataError(
                f"{self}: more than one file matches {patterns[0]}: {', '.join(source.name for source in found[:6])}; "
                "give the file itself as the input."
            )
        return found[0]

    def folders(self) -> "Bundle":
        """Return the folders of the files that were given by name."""
        return Bundle(sorted({source.path.parent for source in self.named}))


def fingerprints(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return name, size and SHA-256 of each file, without its folder, which differs between machines."""
    found = []
    for path in dict.fromkeys(source.path for source in sources):
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(_HASH_BYTES):
                digest.update(chunk)
        found.append({"file": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()})
    return found
