"""Made-up downloads in the official layouts, built on the spot."""

import gzip
import zipfile
from pathlib import Path


def write(path, data):
    """Write text or bytes; ``.gz`` compresses, without a time stamp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def read_rows(path):
    """Return header and rows of an atomic file by the plainest means."""
    text = Path(path).read_bytes().decode()
    assert text.endswith("\n")
    header, *rows = [line.split("\t") for line in text[:-1].split("\n")]
    assert all(len(row) == len(header) for row in rows)
    return header, rows
