"""Arrays in one file, in the layout of safetensors: written without copies, checked and memory-mapped when read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_CODES = {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "UI" for size in (1, 2, 4, 8)}
_CODES |= {"F32": "<f4", "F64": "<f8", "BOOL": "|b1"}
_NAMES = {np.dtype(dtype): code for code, dtype in _CODES.items()}


class DamagedFileError(Exception):
    """Raised for a file that is not what :func:`write_arrays` wrote."""


def write_arrays(path: Path, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write arrays, JSON values about them, and a SHA-256 of both."""
    # Large elements first, so that every array is aligned.
    ordered = {
        name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays, key=lambda name: -arrays[name].itemsize)
    }
    header: dict[str, Any] = {}
    end = 0
    for name, array in ordered.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    metadata = {"about": json.dumps(about)}
    metadata["sha256"] = _digest({**header, "__metadata__": metadata}, ordered)
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in ordered.values():
            file.write(_bytes(array))


def read_about(path: Path) -> Any:
    """Return the JSON values of a file, unchecked.

    Raises
    ------
    DamagedFileError
        If they cannot be read.
    OSError
    """
    return _read_header(path)[0]


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of a file, memory-mapped and read-only, once every byte is found as it was written.

    Raises
    ------
    DamagedFileError, OSError
    """
    _, header, start = _read_header(path)
    size = path.stat().st_size - start
    arrays: dict[str, Array] = {}
    try:
        expected = header["__metadata__"].pop("sha256")
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape = np.dtype(_CODES[entry["dtype"]]), tuple(entry["shape"])
            first, last = entry["data_offsets"]
            if last > size or last - first != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
                raise ValueError("it is truncated")
            arrays[name] = np.empty(shape, dtype)
            if first < last:  # nothing cannot be mapped
                arrays[name] = np.asarray(np.memmap(path, dtype, "r", start + first, shape))
        if _digest(header, arrays) != expected:
            raise ValueError("wrong checksum")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(str(error)) from error
    return arrays


def _read_header(path: Path) -> tuple[Any, dict[str, Any], int]:
    """Return the JSON values about the arrays, the header, and where the arrays begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise DamagedFileError("its header is damaged")
        try:
            header = json.loads(file.read(length))
            return json.loads(header["__metadata__"]["about"]), header, 8 + length
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(f"its header is damaged: {error}") from error


def _digest(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays.values():
        digest.update(_bytes(array))
    return digest.hexdigest()


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
