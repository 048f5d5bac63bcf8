"""Hashes of the files that are read, made in a second thread while the first one parses."""

import hashlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from recbole_llm.convert.sources import Source

# Large, so that the thread seldom asks the parsing one for Python's lock.
_CHUNK = 4 << 20


class Fingerprints:
    """Name, size and SHA-256 of files; hashing starts when a file is opened and runs beside the parsing.

    ``hashlib`` works without Python's lock, so a second core does it for nothing; on a single core it takes about as
    long as reading. As a context manager it stops the thread, also in the middle of a file.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._jobs: dict[Path, Future[str]] = {}
        self._stop = threading.Event()

    def __enter__(self) -> "Fingerprints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, source: Source) -> None:
        """Hash the file of ``source`` on disk (the whole archive for a member), once."""
        if source.path not in self._jobs:
            self._jobs[source.path] = self._pool.submit(self._hash, source.path)

    def of(self, sources: list[Source]) -> list[dict[str, Any]]:
        """Return the files of ``sources``, each once, without their folders, which differ between machines."""
        for source in sources:
            self.start(source)
        return [
            {"file": path.name, "bytes": path.stat().st_size, "sha256": self._jobs[path].result()}
            for path in dict.fromkeys(source.path for source in sources)
        ]

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while not self._stop.is_set() and (chunk := stream.read(_CHUNK)):
                digest.update(chunk)
        return digest.hexdigest()
