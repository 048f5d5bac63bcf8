"""Fingerprints of model files, cheap enough to compute at every start."""

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

from recbole_llm.files import file_sha256

_WHOLE = 64 * 2**20  # files up to this size are hashed whole: well under a second
_BLOCK, _BLOCKS_PER_TENSOR = 4096, 16


def folder_revision(folder: Path) -> str:
    """Return ``sha256:...`` over the files of a model folder that decide what the model computes.

    Small files count whole. Of a large safetensors file the header and blocks spread over every tensor are read, so
    that training any dense layer changes the result while 15 GB cost a fraction of a second; neither the folder's name
    nor its modification times matter, so that a copy has the same revision.
    """
    digest = hashlib.sha256()
    wanted = {".json", ".txt", ".model", ".safetensors", ".jinja", ".tiktoken", ".py"}
    for path in sorted(p for p in folder.rglob("*") if p.suffix in wanted and p.is_file()):
        content = file_sha256(path) if path.stat().st_size <= _WHOLE else _sampled_sha256(path)
        digest.update(f"{path.relative_to(folder).as_posix()}\n{content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _sampled_sha256(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        data_start, spans = _tensor_spans(file, size)
        file.seek(0)
        digest.update(file.read(data_start))
        for start, end in spans:
            step = max((end - start) // _BLOCKS_PER_TENSOR, _BLOCK)
            for offset in range(start, end, step):
                file.seek(offset)
                digest.update(file.read(min(_BLOCK, end - offset)))
    return digest.hexdigest()


def _tensor_spans(file: BinaryIO, size: int) -> tuple[int, list[tuple[int, int]]]:
    """Return where the data begin and first and last byte of each tensor; one span if it is not a safetensors file."""
    header_size = int.from_bytes(file.read(8), "little")
    data_start = 8 + header_size
    if data_start > size:
        return 0, [(0, size)]
    try:
        entries = [entry for name, entry in json.loads(file.read(header_size)).items() if name != "__metadata__"]
        spans = sorted((data_start + start, data_start + end) for start, end in (e["data_offsets"] for e in entries))
    except (ValueError, AttributeError, KeyError, TypeError):
        return 0, [(0, size)]  # damaged or another format: loading it will tell the user
    return data_start, spans
