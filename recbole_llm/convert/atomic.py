"""Write atomic files: whole or not at all, the same bytes for the same input."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from recbole_llm.convert.catalogue import Catalogue
from recbole_llm.convert.filters import Selection
from recbole_llm.convert.spill import value_name
from recbole_llm.convert.table import IntArray, Interactions
from recbole_llm.errors import DataError
from recbole_llm.files import work_folder

#: Endings of the files that make up a converted dataset.
ENDINGS = (".inter", ".item", ".user", ".conversion.json")
_CHUNK = 1 << 16


class OutputFolder:
    """Files under construction in a hidden folder next to the final one.

    Attributes
    ----------
    name : str
        Name of the dataset; also the base name of every file.
    hashes : dict of str to str
        SHA-256 of each file written, by file name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.hashes: dict[str, str] = {}

    def write(self, ending: str, header: Sequence[str], chunks: Iterable[str]) -> None:
        """Write an atomic file from its header fields and chunks of complete lines."""
        digest = hashlib.sha256()
        with (self.folder / f"{self.name}{ending}").open("wb") as file:
            for text in chain(("\t".join(header) + "\n",), chunks):
                data = text.encode()
                digest.update(data)
                file.write(data)
        self.hashes[f"{self.name}{ending}"] = digest.hexdigest()

    def write_json(self, ending: str, content: Any) -> None:
        """Write the sidecar (sorted nowhere: the order of ``content`` is deterministic already)."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (self.folder / f"{self.name}{ending}").write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def output_folder(target: Path, overwrite: bool) -> Iterator[OutputFolder]:
    """Give a hidden folder to write to; its files move to ``target`` when the block ends without an error.

    Parameters
    ----------
    target : Path
        ``dataset/ml-1m`` gets ``ml-1m.inter`` and so on.
    overwrite : bool
        Whether the files of an earlier conversion may be replaced; other files in ``target`` are never touched.

    Raises
    ------
    DataError
        There are files already and ``overwrite`` is false, or the folder cannot be written.
    """
    check_target(target, overwrite)
    with ExitStack() as stack:
        try:
            work = stack.enter_context(work_folder(target))
        except OSError as error:
            raise DataError(f"{target}: cannot be written: {error.strerror or error}.") from error
        yield OutputFolder(work, target.name)
        try:
            if target.is_dir():
                _replace(work, target)
            else:
                work.rename(target)
        except OSError as error:
            raise DataError(f"{target}: cannot be written: {error.strerror or error}.") from error


def check_target(target: Path, overwrite: bool) -> None:
    """Raise :class:`DataError` if the output is there already; called before anything is read."""
    if target.exists() and not target.is_dir():
        raise DataError(f"{target}: is a file; the output is a folder.")
    there = [target.name + ending for ending in ENDINGS if (target / (target.name + ending)).exists()]
    if there and not overwrite:
        raise DataError(
            f"{target}: holds {', '.join(there)} already; pass --overwrite (overwrite=True) to replace them."
        )


def _replace(work: Path, target: Path) -> None:
    # The sidecar goes first and comes last: while it is missing, the folder does not claim to be a conversion.
    sidecar = target / f"{target.name}.conversion.json"
    sidecar.unlink(missing_ok=True)
    for ending in ENDINGS:
        new, old = work / (target.name + ending), target / (target.name + ending)
        if new.exists():
            new.replace(old)
        else:
            old.unlink(missing_ok=True)


class Renamed(NamedTuple):
    """Ids that are written in another form than the raw one."""

    users: dict[str, str]
    items: dict[str, str]


def write_interactions(
    out: OutputFolder, table: Interactions, chosen: Selection, renamed: Renamed, progress: bool
) -> None:
    """Write the ``.inter`` file: the records of ``chosen``, in its order."""
    users = [renamed.users.get(raw, raw) for raw in table.users]
    items = [renamed.items.get(raw, raw) for raw in table.items]
    header = ["user_id:token", "item_id:token", *(f"{name}:float" for name in table.value_fields), "timestamp:float"]

    def chunks() -> Iterator[str]:
        total, title = chosen.counts.interactions, f"{out.name}.inter"
        with tqdm(total=total, desc=title, disable=None if progress else True, leave=False) as bar:
            for block in chosen.blocks():
                for start in range(0, len(block), _CHUNK):
                    part = block[start : start + _CHUNK]
                    columns: list[Iterable[str]] = [
                        map(users.__getitem__, part["user"].tolist()),
                        map(items.__getitem__, part["item"].tolist()),
                    ]
                    columns += [_float_texts(part[value_name(place)]) for place in range(len(table.value_fields))]
                    columns.append(_time_texts(part["time"], table.time_scale))
                    yield "\n".join(map("\t".join, zip(*columns, strict=True))) + "\n"
                    bar.update(len(part))

    out.write(".inter", header, chunks())


def _float_texts(values: npt.NDArray[np.float64]) -> list[str]:
    distinct, places = np.unique(values, return_inverse=True)
    texts = [
        str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value) for value in distinct.tolist()
    ]
    return [texts[place] for place in places.tolist()]


def _time_texts(times: IntArray, scale: int) -> Iterable[str]:
    if scale == 1:
        return map(str, times.tolist())
    return [decimal_time(value, scale) for value in times.tolist()]


def decimal_time(value: int, scale: int) -> str:
    """Write ``value / scale`` exactly, without trailing zeros."""
    sign = "-" if value < 0 else ""
    whole, rest = divmod(abs(value), scale)
    return f"{sign}{whole}.{rest:0{len(str(scale)) - 1}d}".rstrip("0").rstrip(".") if rest else f"{sign}{whole}"


def write_catalogue(
    out: OutputFolder, ending: str, ids: Sequence[str], catalogue: Catalogue, renamed: dict[str, str]
) -> None:
    """Write ``.item`` or ``.user``: ``ids`` (raw) in this order; an id without a row gets empty fields."""
    header = [f"{ending[1:]}_id:token", *(f"{name}:{kind}" for name, kind in catalogue.fields)]
    empty = ("",) * len(catalogue.fields)
    lines = ("\t".join((renamed.get(raw, raw), *catalogue.rows.get(raw, empty))) + "\n" for raw in ids)
    out.write(ending, header, lines)
