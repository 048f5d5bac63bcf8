"""Atomic files, and cleaning up after killed processes.

Whoever writes holds a lock beside the unfinished file, which the system gives back when the process ends, however it
ends: what nobody holds is a left-over, and the next one who writes the same file removes it.
"""

import hashlib
import json
import os
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock

from recbole_llm.errors import DataError

#: What reading a damaged ``.npz`` may raise, wherever the damage is.
DAMAGED_ARCHIVE = (OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes ``file`` at the end; if writing fails, nothing is left.

    Raises
    ------
    DataError
        If the file cannot be written.

    Examples
    --------
    >>> with whole(Path("lists.csv")) as partial:  # doctest: +SKIP
    ...     partial.write_text("user,item")
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _reserved(file, ".partial") as partial:
            yield partial
            os.replace(partial, file)
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error}.") from error


def write_text(file: Path, text: str) -> None:
    """Write a text file as :func:`whole` does: UTF-8, line breaks as they are."""
    with whole(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def json_text(content: Any) -> str:
    """Return JSON as this package writes it: one entry a line, characters as they are."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file as :func:`whole` does."""
    write_text(file, json_text(content))


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``target``, ``.NAME.<random>.part``, and remove it at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _reserved(target, ".part") as folder:
        folder.mkdir()
        yield folder


@contextmanager
def _reserved(target: Path, suffix: str) -> Iterator[Path]:
    """Reserve a temporary name beside ``target``, locked by this process until the block ends."""
    remove_left_overs(target, suffix)
    mine = target.with_name(f".{target.name}.{secrets.token_hex(4)}{suffix}")
    lock = _lock_of(mine)
    with lock:
        try:
            yield mine
        finally:
            _remove(mine)
            Path(lock.lock_file).unlink(missing_ok=True)


def remove_left_overs(target: Path, suffix: str) -> list[Path]:
    """Remove and return partial files of ``target`` that killed processes left; locked ones stay."""
    beginning, removed = f".{target.name}.", []
    ends = (suffix, f"{suffix}.lock")
    names = {path.name.removesuffix(".lock") for path in target.parent.iterdir() if path.name.endswith(ends)}
    for name in sorted(names):
        if not name.startswith(beginning) or "." in name[len(beginning) : -len(suffix)]:
            continue  # of another file
        left = target.with_name(name)
        lock = _lock_of(left)
        with suppress(filelock.Timeout, OSError), lock.acquire(timeout=0):
            _remove(left)
            Path(lock.lock_file).unlink(missing_ok=True)
            removed.append(left)
    return removed


def _lock_of(path: Path) -> filelock.FileLock:
    return filelock.FileLock(f"{path}.lock")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def cache_root() -> Path:
    """Return ``$XDG_CACHE_HOME/recbole-llm``, with ``~/.cache`` where the variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "recbole-llm"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, computed once per process, size and modification time."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _file_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    return content_sha256(path)


def content_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of what is in a file now, whatever its size and modification time say."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
