"""``SHA256SUMS`` of a folder: which bytes the files had when this package wrote them.

The file has the format of ``sha256sum``, so that ``sha256sum -c SHA256SUMS`` verifies a folder without this package.
While a file is replaced, its old and its new bytes are listed, one line each: at any moment, even between two steps of
a killed process, the old file or the new one is there, and is as one of its lines says.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_llm.errors import CheckpointError
from recbole_llm.files import file_sha256, json_text

SUMS = "SHA256SUMS"


@contextmanager
def recorded(file: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes ``file`` at the end, with its SHA-256 in the ``SHA256SUMS`` beside it.

    Raises
    ------
    OSError
        If the file cannot be written; the old one is then still there.

    Examples
    --------
    >>> with recorded(Path("run/results.json")) as temporary:  # doctest: +SKIP
    ...     temporary.write_text("{}")
    """
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        yield temporary
        sums, new = read_sums(file.parent), (file_sha256(temporary),)
        old = (sums.get(file.name) or (file_sha256(file),)) if file.is_file() else ()
        _write_sums(file.parent, {**sums, file.name: (*old, *new)})
        os.replace(temporary, file)
        if old:
            _write_sums(file.parent, {**sums, file.name: new})
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """Write JSON as :func:`recorded` does."""
    with recorded(file) as temporary:
        temporary.write_text(json_text(content), encoding="utf-8")


def _write_sums(folder: Path, sums: Mapping[str, Sequence[str]]) -> None:
    temporary = folder / f"{SUMS}.tmp"
    lines = [f"{digest}  {name}\n" for name, digests in sums.items() for digest in dict.fromkeys(digests)]
    try:
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, folder / SUMS)
    finally:
        temporary.unlink(missing_ok=True)


def read_sums(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the SHA-256 (hex) of each file that a folder's ``SHA256SUMS`` lists; empty without one.

    A file has two where a process was killed while it replaced it.

    Raises
    ------
    CheckpointError
        If the list itself is damaged.
    """
    file = folder / SUMS
    if not file.is_file():
        return {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        sums: dict[str, tuple[str, ...]] = {}
        for digest, name in (line.split("  ", 1) for line in lines):
            if len(digest) != 64 or not name:
                raise ValueError("a line is not `<64 hexadecimal digits>  <name>`")
            sums[name] = (*sums.get(name, ()), digest)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}). Restore it from a copy.") from error
    return sums


def verify(folder: Path) -> None:
    """Check the files of a folder against its ``SHA256SUMS``; a folder without one is said to be unverified.

    Listed files that are gone are not looked for here: whoever needs one says so.

    Raises
    ------
    CheckpointError
        If a file is not as it was written.
    """
    sums = read_sums(folder)
    if not sums:
        _say_unverified(folder)
    for name, expected in sums.items():
        file = folder / name
        if file.is_file() and (found := file_sha256(file)) not in expected:
            raise CheckpointError(
                f"{file} is damaged or was changed after it was written: its SHA-256 is {found}, but {SUMS} beside it "
                f"says {' or '.join(expected)}. Restore it from a copy. Other settings are given on the command line, "
                "or to a new run by --config_files."
            )


@cache
def _say_unverified(folder: Path) -> None:
    getLogger().warning(f"{folder} has no {SUMS} (a run of an earlier version): its files cannot be verified.")
