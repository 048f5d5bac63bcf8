"""Prepared data on disk: what reading, filtering and numbering atomic files gave, for whoever reads them next.

An entry of the cache is found by the SHA-256 of the ``.inter`` file and of the code that reads it. It applies where
the other files that were read have the same SHA-256, and where every setting that was read has the same value: which
settings those are is recorded while the data is prepared, not listed, so that none can be forgotten. A second file
holds the interactions in order of user and time. Both are checked byte by byte before they are used; a damaged one is
reported, removed and made again. Entries lie in ``$XDG_CACHE_HOME/recbole-llm/data`` (``~/.cache`` where the variable
is not set) and take no more than ``data_cache_mb``: those that were not used for longest go first.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from logging import getLogger
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import recbole
import torch
from recbole.utils.enum_type import FeatureSource, FeatureType

from recbole_llm import __version__
from recbole_llm.array_file import Array, DamagedFileError, read_about, read_arrays, write_arrays
from recbole_llm.config import Config
from recbole_llm.data.row_dataset import RowDataset
from recbole_llm.errors import DataError
from recbole_llm.files import cache_root, content_sha256, remove_left_overs, whole

#: Smaller files are read as quickly as an entry.
LEAST_BYTES = 2**22
# Where the files are and what they are called: their contents count.
_PLACES = frozenset({"data_path", "dataset"})

# Data that is prepared with them is prepared anew each time.
_NOT_KEPT = ("benchmark_filename", "numerical_features", "preload_weight", "additional_feat_suffix")


#: Columns of the interactions in order of user and time, their times in that order, and notices about the times.
Sorted: TypeAlias = tuple[dict[str, torch.Tensor], Array, list[str]]


class RecordedConfig:
    """A configuration that records which settings are read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.read: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        self.read[key] = value = self.config[key]
        return value

    def __contains__(self, key: str) -> bool:
        self[key]
        return key in self.config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def prepare(dataset: RowDataset, make: Callable[[], None]) -> Path | None:
    """Fill a dataset from the cache, or by ``make`` and the cache from it.

    Returns
    -------
    pathlib.Path, optional
        The entry, for :func:`histories`; None for data that is not kept.
    """
    config = dataset.config
    source = Path(config["data_path"]) / f"{config['dataset']}.inter"
    room = _room(config)
    kept = room > 0 and not any(config[key] for key in _NOT_KEPT)
    if not kept or not source.is_file() or source.stat().st_size < LEAST_BYTES:
        make()
        return None
    folder, digest = cache_root() / "data", content_sha256(source)
    name = hashlib.sha256(f"{digest} {_code_digest()}".encode()).hexdigest()[:32]
    for path in _entries(folder, f"{name}-*.table"):
        found = _checked(path, lambda about: _applies(about, source, config))
        if found is not None:
            _restore(dataset, *found)
            return path
    dataset.config = recorded = cast(Config, RecordedConfig(config))
    try:
        make()
    finally:
        dataset.config = config
    settings = {key: _json(value) for key, value in recorded.read.items() if key not in _PLACES}
    files = {path.suffix: content_sha256(path) for path in dataset.source_files}
    packed = _pack(dataset)
    if packed is None or files.pop(source.suffix) != digest:  # changed while it was read
        return None
    arrays, about = packed
    for suffix in (".user", ".item"):
        if suffix not in files and not source.with_suffix(suffix).exists():
            files[suffix] = ""
    about |= {"settings": settings, "files": files, "notices": dataset.noticed, "warnings": dataset.warned}
    path = folder / f"{name}-{hashlib.sha256(json.dumps([settings, files]).encode()).hexdigest()[:16]}.table"
    return path if _write(path, arrays, about, room) else None


def histories(entry: Path | None, kind: str, config: Config, make: Callable[[], Sorted]) -> Sorted:
    """Return sorted interactions from the cache, or by ``make`` and the cache from them.

    Parameters
    ----------
    entry : pathlib.Path, optional
        From :func:`prepare`.
    kind : str
        What the order depends on besides the entry.
    config : Config
    make : callable
    """
    if entry is None:
        return make()
    path = entry.with_suffix(f".{kind}")
    found = _checked(path, lambda about: True) if path.is_file() else None
    if found is not None:
        about, arrays = found
        return (
            {field: _tensor(arrays[f"column {field}"]) for field in about["fields"]},
            arrays["times"],
            about["notices"],
        )
    columns, times, notices = make()
    arrays = {f"column {field}": _narrow(values.numpy()) for field, values in columns.items()}
    _write(path, {**arrays, "times": times}, {"fields": list(columns), "notices": notices}, _room(config))
    return columns, times, notices


def _room(config: Config) -> int:
    """Bytes that the cache may take; 0 switches it off."""
    return int(config["data_cache_mb"]) * 2**20


# ---- entries of the cache


def _entries(folder: Path, pattern: str) -> list[Path]:
    with suppress(OSError):
        return sorted(folder.glob(pattern))
    return []


def _checked(path: Path, applies: Callable[[Any], bool]) -> tuple[Any, dict[str, Array]] | None:
    """Return what an entry holds, if it applies; None, with a warning, if it is damaged."""
    try:
        about = read_about(path)
        if not applies(about):
            return None
        arrays = read_arrays(path)
    except DamagedFileError as error:
        getLogger().warning(f"Cache of prepared data: {path} is damaged ({error}); the files are read again.")
        with suppress(OSError):
            path.unlink()
        return None
    except OSError:  # another process has just removed it
        return None
    with suppress(OSError):
        os.utime(path)
    return about, arrays


def _applies(about: Mapping[str, Any], source: Path, config: Config) -> bool:
    if any(_json(config[key]) != value for key, value in about["settings"].items()):
        return False
    for suffix, digest in about["files"].items():
        path = source.with_suffix(suffix)
        if (content_sha256(path) if path.is_file() else "") != digest:
            return False
    return True


def _write(path: Path, arrays: Mapping[str, Array], about: Mapping[str, Any], room: int) -> bool:
    """Write an entry after making room for it; False, with a warning where it matters, if that is not possible."""
    if sum(array.nbytes for array in arrays.values()) > room:
        return False
    try:
        with whole(path) as temporary:
            write_arrays(temporary, arrays, about)
            _make_room(path.parent, room - temporary.stat().st_size)
    except DataError as error:
        getLogger().warning(f"Cache of prepared data: {error} The files will be read again next time.")
        return False
    return True


def _make_room(folder: Path, room: int) -> None:
    """Remove what killed processes left, and entries from the one that was not used for longest, until they fit."""
    for left in _entries(folder, ".*.partial"):
        remove_left_overs(folder / left.name[1:].rsplit(".", 2)[0], ".partial")
    sizes: list[tuple[float, int, Path]] = []
    for path in _entries(folder, "[!.]*"):
        with suppress(OSError):
            sizes.append((path.stat().st_mtime, path.stat().st_size, path))
    taken = sum(size for _, size, _ in sizes)
    for _, size, path in sorted(sizes):
        if taken <= room:
            return
        with suppress(OSError):
            path.unlink()
            taken -= size


@cache
def _code_digest() -> str:
    """SHA-256 of the code that prepares data, so that no other version uses what this one wrote."""
    versions = (__version__, recbole.__version__, np.__version__, pd.__version__, pa.__version__)
    digest = hashlib.sha256(" ".join(versions).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


# ---- a dataset as arrays and JSON values


def _pack(dataset: RowDataset) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """Return arrays and JSON values from which :func:`_restore` makes the same dataset; None if that cannot be."""
    arrays: dict[str, Array] = {}
    frames: dict[str, list[list[str]]] = {}
    for name in dataset.feat_name_list:
        frame = getattr(dataset, name)
        if not isinstance(frame.index, pd.RangeIndex):
            return None
        frames[name] = []
        for field in frame:
            column, key = frame[field].to_numpy(), f"{name} {field}"
            frames[name].append([str(field), str(column.dtype)])
            if column.dtype == object:
                if not len(column) or len({getattr(part, "dtype", None) for part in column}) > 1:
                    return None
                arrays[f"{key} ends"] = np.cumsum([len(part) for part in column], dtype=np.int64)
                column = np.concatenate(column)
            if column.dtype not in (np.int64, np.float64):
                return None
            arrays[key] = _narrow(column)
    tokens: dict[int, list[str]] = {}
    for field, words in dataset.field2id_token.items():
        tokens.setdefault(id(words), []).append(field)
    for fields in tokens.values():
        words = dataset.field2id_token[fields[0]]
        arrays[f"tokens {fields[0]}"] = words.view(np.uint32).reshape(len(words), -1)
    exact = dataset._exact_time
    if exact is not None and not np.array_equal(exact, dataset.inter_feat[dataset.time_field]):
        arrays["exact time"] = exact
    return arrays, {
        "frames": frames,
        "tokens": list(tokens.values()),
        "types": {field: kind.value for field, kind in dataset.field2type.items()},
        "sources": {
            field: [isinstance(source, FeatureSource), getattr(source, "value", source)]
            for field, source in dataset.field2source.items()
        },
        "lengths": dataset.field2seqlen,
        "buckets": dataset.field2bucketnum,
        "alias": {name: [str(field) for field in fields] for name, fields in dataset.alias.items()},
        "rest": [str(field) for field in dataset._rest_fields],
        "source_files": [path.name for path in dataset.source_files],
        "newest_time": dataset.newest_time,
    }


def _restore(dataset: RowDataset, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    dataset._get_preset()
    dataset._get_field_from_config()
    dataset.source_files = [Path(dataset.dataset_path) / name for name in about["source_files"]]
    dataset.field2type = {field: FeatureType(kind) for field, kind in about["types"].items()}
    dataset.field2source = {
        field: FeatureSource(source) if known else source for field, (known, source) in about["sources"].items()
    }
    dataset.field2seqlen, dataset.field2bucketnum = about["lengths"], about["buckets"]
    dataset.alias = {name: np.array(fields) for name, fields in about["alias"].items()}
    dataset._rest_fields = np.array(about["rest"], dtype=str)
    for fields in about["tokens"]:
        words = arrays[f"tokens {fields[0]}"]
        tokens = words.view(f"<U{words.shape[1]}").reshape(-1)
        ids = {token: number for number, token in enumerate(tokens.tolist())}
        dataset.field2id_token.update(dict.fromkeys(fields, tokens))
        dataset.field2token_id.update(dict.fromkeys(fields, ids))
    dataset.user_feat = dataset.item_feat = None
    for name, columns in about["frames"].items():
        make = partial(_frame, arrays, name, columns)
        setattr(dataset, name, make if name == "inter_feat" else make())
    dataset.feat_name_list = list(about["frames"])
    dataset._exact_time = arrays.get("exact time", arrays[f"inter_feat {dataset.time_field}"])
    dataset.newest_time = about["newest_time"]
    dataset._notice(about["notices"])
    for text in about["warnings"]:
        dataset._warn(text)


def _frame(arrays: Mapping[str, Array], name: str, columns: list[list[str]]) -> pd.DataFrame:
    return pd.DataFrame({field: _column(arrays, f"{name} {field}", dtype) for field, dtype in columns}, copy=False)


def _tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64 if values.dtype.kind == "i" else values.dtype))


def _column(arrays: Mapping[str, Array], key: str, dtype: str) -> Any:
    values = arrays[key]
    if values.dtype.kind == "i":
        values = values.astype(np.int64)
    if dtype != "object":
        return values
    parts = np.split(values, arrays[f"{key} ends"][:-1])
    return np.fromiter(parts, dtype=object, count=len(parts))


def _narrow(values: Array) -> Array:
    """Whole numbers in 32 bits, if they fit."""
    if values.dtype.kind != "i" or values.dtype.itemsize <= 4 or len(values) == 0:
        return values
    fits = values.min() >= -(2**31) and values.max() < 2**31
    return values.astype(np.int32) if fits else values
