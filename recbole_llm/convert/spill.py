"""Records in unnamed temporary files, and an external sort: memory does not follow the number of interactions."""

import io
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm.errors import DataError

Records = npt.NDArray[np.void]

#: Interactions that are held at once. Up to so many take no temporary file at all.
ROWS = 1 << 20
# Least rows of a run to read at a time, however many runs there are.
_LEAST = 1 << 10


def record_type(value_fields: Sequence[str]) -> np.dtype[np.void]:
    """Return the type of one interaction; ``number`` is its place in the input, so that no two are the same."""
    fields = [("time", np.int64), ("number", np.int64), ("user", np.int32), ("item", np.int32)]
    # The names of a user's own columns could be any of these, so the values go by their place.
    return np.dtype([*fields, *((value_name(place), np.float64) for place in range(len(value_fields)))])


def value_name(place: int) -> str:
    """Return what the float column at ``place`` is called in a record."""
    return f"value{place}"


class Spill:
    """Where temporary files are made: in the folder nearest to the output that exists, on the same disk therefore.

    The files have no name, so the system frees them however the process ends; leaving the ``with`` block does it at
    once.
    """

    def __init__(self, target: Path) -> None:
        self._target, self._files = target, ExitStack()

    def __enter__(self) -> "Spill":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    @staticmethod
    def due(rows: int) -> bool:
        """Whether so many interactions are too many to stay in memory."""
        return rows > ROWS

    def file(self, dtype: np.dtype[Any]) -> "RecordFile":
        """Return a new file; raise :class:`DataError` if none can be made."""
        folder = next(parent for parent in self._target.absolute().parents if parent.is_dir())
        try:
            stream = self._files.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        except OSError as error:
            raise DataError(f"{folder}: no temporary file can be made: {error.strerror or error}.") from error
        return RecordFile(stream, dtype, folder)


class RecordFile:
    """Records of one type on disk, appended and read in blocks."""

    def __init__(self, stream: io.BufferedRandom, dtype: np.dtype[Any], folder: Path) -> None:
        self.dtype, self._stream, self._folder, self._length = dtype, stream, folder, 0

    def __len__(self) -> int:
        return self._length

    def append(self, records: Records) -> None:
        """Write records behind the others."""
        try:
            self._stream.seek(self._length * self.dtype.itemsize)
            self._stream.write(np.ascontiguousarray(records).view(np.uint8).data)
            self._stream.flush()
        except OSError as error:
            raise DataError(
                f"{self._folder}: the temporary file cannot be written: {error.strerror or error}."
            ) from error
        self._length += len(records)

    def read(self, start: int, stop: int) -> Records:
        """Return the records ``start ... stop - 1``."""
        records = np.empty(stop - start, dtype=self.dtype)
        self._stream.seek(start * self.dtype.itemsize)
        if self._stream.readinto(records.view(np.uint8).data) != records.nbytes:
            raise DataError(f"{self._folder}: the temporary file is shorter than what was written to it.")
        return records

    def blocks(self) -> Iterator[Records]:
        """Yield all records in blocks."""
        size = _block_rows()
        for start in range(0, self._length, size):
            yield self.read(start, min(start + size, self._length))

    def close(self) -> None:
        """Free the disk space."""
        self._stream.close()
        self._length = 0


def sorted_blocks(
    blocks: Iterable[Records], keys: Sequence[str], new_file: Callable[[], RecordFile]
) -> Iterator[Records]:
    """Yield all records in ascending order of ``keys``, the first one leading, of which no two may be equal.

    Blocks are sorted one by one, written, and merged with a few rows of each in memory.
    """
    file = new_file()
    ends = []
    for block in _filled(blocks):
        file.append(block[_order(block, keys)])
        ends.append(len(file))
    yield from _merged(file, ends, keys)
    file.close()


def _merged(file: RecordFile, ends: list[int], keys: Sequence[str]) -> Iterator[Records]:
    size = max(min(_LEAST, _block_rows()), _block_rows() // max(1, len(ends)))
    names = list(keys)

    def key(record: Any) -> tuple[int, ...]:
        return tuple(record[names].item())

    runs = [_Run(file, start, end) for start, end in zip([0, *ends], ends, strict=False)]
    while runs:
        for run in runs:
            if not len(run.head):
                run.read(size, key)
        # What is not read yet of a run lies behind its last record in memory: up to the least of these all is here.
        limit = min((run.last for run in runs if run.start < run.end), default=None)
        ready = []
        for run in runs:
            if limit is None or run.first <= limit:
                cut = len(run.head) if limit is None else bisect_right(run.head, limit, key=key)
                ready.append(run.head[:cut])
                run.head = run.head[cut:]
                if len(run.head):
                    run.first = key(run.head[0])
        block = np.concatenate(ready)
        yield block[_order(block, keys)]
        runs = [run for run in runs if len(run.head) or run.start < run.end]


class _Run:
    """A sorted part of a file: ``head`` is in memory, ``start ... end - 1`` still on disk."""

    def __init__(self, file: RecordFile, start: int, end: int) -> None:
        self.file, self.start, self.end = file, start, end
        self.head: Records = np.empty(0, dtype=file.dtype)
        self.first: tuple[int, ...] = ()
        self.last: tuple[int, ...] = ()

    def read(self, size: int, key: Callable[[Any], tuple[int, ...]]) -> None:
        stop = min(self.start + size, self.end)
        self.head, self.start = self.file.read(self.start, stop), stop
        self.first, self.last = key(self.head[0]), key(self.head[-1])


def _order(block: Records, keys: Sequence[str]) -> npt.NDArray[np.intp]:
    return np.lexsort([block[name] for name in reversed(keys)])


def _filled(blocks: Iterable[Records]) -> Iterator[Records]:
    """Join small blocks, as a filter leaves them, to such that are worth a run of their own."""
    waiting: list[Records] = []
    for block in blocks:
        if len(block):
            waiting.append(block)
        if sum(map(len, waiting)) >= _block_rows():
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _block_rows() -> int:
    # Sorting holds a block about three times.
    return max(1, ROWS // 4)
