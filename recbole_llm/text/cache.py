"""Text vectors on disk, keyed by everything that determines them.

A folder per key (model, revision, pooling, prompt, maximum length, dtype) holds immutable segments: safetensors files
with the SHA-256 of each text (n, 32) and its vector (n, d). Adding vectors writes one more segment to a temporary file
and renames it, so that a crash leaves old segments whole; when there are many, they are merged.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recbole_llm.files import cache_root

FORMAT = "recbole-llm.embeddings.1"
MAX_SEGMENTS = 8  # one more, and they are merged into one


class DamagedSegmentError(Exception):
    """Raised for a truncated, altered or misnamed cache file; never leaves this module."""


def default_cache_dir() -> Path:
    """Return ``$XDG_CACHE_HOME/recbole-llm/embeddings``, with ``~/.cache`` where the variable is not set."""
    return cache_root() / "embeddings"


def text_digest(text: str) -> bytes:
    """Return the 32 bytes under which a text's vector is stored."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class EmbeddingCache:
    """Vectors of texts under one key.

    File problems never stop a run: a damaged file is reported in a warning and skipped; a folder that cannot be
    written is reported once and only read from then on.

    Parameters
    ----------
    key : mapping
        What determines a vector besides its text; JSON values.
    cache_dir : str or Path, optional
        Parent of all keys' folders; :func:`default_cache_dir` by default.
    logger : logging.Logger, optional
        Takes the warnings.
    """

    def __init__(
        self, key: Mapping[str, Any], cache_dir: str | Path | None = None, logger: logging.Logger | None = None
    ):
        self.key = {"format": FORMAT, **key}
        self.key_json = json.dumps(self.key, sort_keys=True, ensure_ascii=True)
        self.logger = logger or logging.getLogger(__name__)
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in str(key.get("name", "model")))[:60]
        digest = hashlib.sha256(self.key_json.encode()).hexdigest()[:16]
        parent = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.folder = parent / f"{name}-{digest}"
        self._writable = True

    def lookup(self, digests: Sequence[bytes], locked: bool = False) -> dict[bytes, np.ndarray]:
        """Return the vectors that are stored.

        Parameters
        ----------
        digests : sequence of bytes
            :func:`text_digest` of each text.
        locked : bool
            True inside :meth:`lock`: damaged files are reported in a warning and deleted. Without the lock they are
            skipped silently; their vectors are then missing, so that the caller returns with the lock.

        Returns
        -------
        dict of bytes to numpy.ndarray
            Digest -> (d,) float32, a view into a memory-mapped file.
        """
        wanted, found = set(digests), {}
        for path in self.segments():
            try:
                stored, vectors = _read_segment(path, self.key_json)
            except (DamagedSegmentError, OSError) as error:  # OSError also: another process has just merged it
                if locked:
                    self.logger.warning(
                        "Embedding cache: %s is damaged (%s); its vectors are made again.", path, error
                    )
                    if isinstance(error, DamagedSegmentError):
                        with suppress(OSError):
                            path.unlink()
                continue
            raw = stored.tobytes()
            for row in range(len(stored)):
                digest = raw[32 * row : 32 * row + 32]
                if digest in wanted:
                    found[digest] = vectors[row]
        return found

    def add(self, digests: Sequence[bytes], vectors: np.ndarray) -> Path | None:
        """Store vectors (n, d) float32 under `digests`; return the new file, or None if it cannot be written."""
        if not self._writable or not len(digests):
            return None
        hashes = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), 32)
        try:
            path = self._write(hashes, np.ascontiguousarray(vectors, dtype=np.float32))
            if len(self.segments()) > MAX_SEGMENTS:
                path = self._merge()
            return path
        except (OSError, SafetensorError) as error:
            self._give_up_writing(error)
            return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Context in which no other process encodes for this key; continues without a lock if none is available."""
        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self.logger.info("Embedding cache: another process is encoding for %s; waiting for it.", self.folder)
                lock.acquire()
            for left_over in self.folder.glob(".writing-*"):  # of a process that was killed while it wrote
                left_over.unlink(missing_ok=True)
        except (OSError, NotImplementedError) as error:
            self._give_up_writing(error)
        try:
            yield
        finally:
            lock.release()

    def segments(self) -> list[Path]:
        """Return the files that hold vectors, oldest name first."""
        try:
            return sorted(self.folder.glob("*.safetensors"))
        except OSError:
            return []

    def _give_up_writing(self, error: Exception) -> None:
        if self._writable:
            self.logger.warning(
                "Embedding cache: %s cannot be written (%s). The run goes on, but the vectors will be made again next "
                "time; set embedding_cache_dir to a folder with room that you may write to.",
                *(self.folder, error),
            )
        self._writable = False

    def _write(self, hashes: np.ndarray, vectors: np.ndarray) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        metadata = {"key": self.key_json, "checksum": _checksum(hashes, vectors)}
        # not tempfile: that makes files which only their owner can read, and a cache may be shared
        temporary = self.folder / f".writing-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            save_file({"hashes": hashes, "vectors": vectors}, temporary, metadata=metadata)
            return temporary.replace(self.folder / f"{metadata['checksum'][:32]}.safetensors")
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _merge(self) -> Path:
        old = self.segments()
        merged: dict[bytes, np.ndarray] = {}
        for path in old:
            with suppress(DamagedSegmentError):
                stored, vectors = _read_segment(path, self.key_json)
                merged.update(zip((row.tobytes() for row in stored), vectors, strict=True))
        hashes = np.frombuffer(b"".join(merged), dtype=np.uint8).reshape(len(merged), 32)
        new = self._write(hashes, np.stack(list(merged.values())))
        for path in old:
            if path != new:
                path.unlink(missing_ok=True)
        return new


def _checksum(hashes: np.ndarray, vectors: np.ndarray) -> str:
    digest = hashlib.sha256(hashes.tobytes())
    digest.update(str(vectors.shape).encode())
    digest.update(vectors.reshape(-1).view(np.uint8).data if vectors.size else b"")
    return digest.hexdigest()


def _read_segment(path: Path, key_json: str) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes (n, 32) uint8 and vectors (n, d) float32, memory-mapped, after checking every byte."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
    except SafetensorError as error:
        raise DamagedSegmentError(str(error)) from error
    if names != {"hashes", "vectors"} or metadata.get("key") != key_json:
        raise DamagedSegmentError("it belongs to something else")
    with path.open("rb") as raw:
        header_size = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(header_size))

    def view(name: str, dtype: type) -> np.ndarray:
        entry = header[name]
        if 0 in entry["shape"]:
            raise DamagedSegmentError("it is empty")
        return np.memmap(path, dtype, "r", 8 + header_size + entry["data_offsets"][0], tuple(entry["shape"]))

    if (header["hashes"]["dtype"], header["vectors"]["dtype"]) != ("U8", "F32"):
        raise DamagedSegmentError("its arrays do not have the right type")
    hashes, vectors = view("hashes", np.uint8), view("vectors", np.float32)
    if vectors.ndim != 2 or hashes.shape != (len(vectors), 32):
        raise DamagedSegmentError("its arrays do not have the right shape")
    if _checksum(hashes, vectors) != metadata.get("checksum"):
        raise DamagedSegmentError("wrong checksum")
    return hashes, vectors
