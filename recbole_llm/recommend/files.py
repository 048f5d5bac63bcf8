"""Files around a recommender: ids and histories in, lists and vectors out. A file appears whole or not at all."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from recbole_llm.errors import ConfigError, DataError
from recbole_llm.extras import optional
from recbole_llm.files import whole

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


# ---- in


def read_ids(source: str, field: str, encoding: str = "utf-8") -> list[str]:
    """Raw ids from a file, or from a list separated by commas.

    Parameters
    ----------
    source : str
        ``50,181``, or the name of a file: one id a line; or a table separated by tabs or commas whose first line names
        a column ``field`` or ``field:token``, such as an atomic file.
    field : str
    encoding : str

    Raises
    ------
    DataError
        If there is nothing in it, or the file cannot be read.
    """
    path = Path(source)
    if not path.is_file():
        if path.suffix in (".txt", ".csv", ".tsv", ".inter", ".item", ".user") or path.parent != Path():
            raise DataError(f"There is no file {source!r} to read values of {field!r} from.")
        ids = [part.strip() for part in source.split(",") if part.strip()]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig" if encoding == "utf-8" else encoding).splitlines()
        except (OSError, UnicodeError) as error:
            raise DataError(f"{path} cannot be read as {encoding} text: {error}.") from error
        separator = "\t" if lines and "\t" in lines[0] else ","
        heads = [head.strip().partition(":")[0] for head in lines[0].split(separator)] if lines else []
        if field in heads:
            column = heads.index(field)
            ids = [line.split(separator)[column].strip() for line in lines[1:] if line.count(separator) >= column]
        elif len(heads) > 1:
            raise DataError(
                f"{path}: its first line has {len(heads)} columns and none is called {field!r}. Name it, or give one "
                "id a line."
            )
        else:
            ids = [line.strip() for line in lines]
        ids = [one for one in ids if one]
    if not ids:
        raise DataError(f"{source!r} holds no value of {field!r}.")
    return list(dict.fromkeys(ids))


def read_histories(file: str, user_field: str, item_field: str, size: int) -> Iterator[tuple[list[str], list[list]]]:
    """Users and their items from JSON lines ``{"user_id": "ann", "item_id": ["50", "181"]}``, ``size`` at a time.

    Raises
    ------
    DataError
        For a line that is not of that form.
    """
    users: list[str] = []
    histories: list[list] = []
    try:
        with Path(file).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    user, items = row[user_field], row[item_field]
                    if not isinstance(items, list):
                        raise TypeError(f"{item_field} is no list")
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{file}, line {number}: {error}. Each line must be like "
                        f'{{"{user_field}": "ann", "{item_field}": ["50", "181"]}}, oldest item first.'
                    ) from error
                users.append(str(user))
                histories.append(items)
                if len(users) == size:
                    yield users, histories
                    users, histories = [], []
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    if users:
        yield users, histories


def read_items(file: str, item_field: str, separator: str = "\t") -> list[dict[str, Any]]:
    """New items: an atomic file (``name:type`` in its first line), or JSON lines.

    Raises
    ------
    DataError
        For a line that cannot be read.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    if file.endswith(".jsonl"):
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DataError(f"{file}, line {number}: {error}. One JSON object a line is needed.") from error
        return rows
    heads = [head.partition(":")[0].strip() for head in lines[0].split(separator)]
    if item_field not in heads:
        raise DataError(f"{file}: the first line has no field {item_field!r}; it has {', '.join(heads)}.")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.rstrip("\r").split(separator)
        if line.strip() and len(cells) != len(heads):
            raise DataError(f"{file}, line {number}: {len(cells)} fields instead of the {len(heads)} of line 1.")
        if line.strip():
            rows.append(dict(zip(heads, cells, strict=True)))
    return rows


# ---- out


def check_format(file: Path) -> None:
    """ConfigError for a name that says no known format, MissingExtraError for one that needs a package."""
    if file.suffix not in FORMATS:
        raise ConfigError(f"out={str(file)!r}: the name must end in one of {', '.join(FORMATS)}.")
    if file.suffix == ".parquet":
        optional("pyarrow.parquet", "convert", "writing parquet")


def write_lists(frames: Iterable[pd.DataFrame], file: Path | None, progress: Callable[[int], None]) -> int:
    """Lists as they come, to a file or, as CSV, to standard output; returns how many.

    Parameters
    ----------
    frames : iterable of pandas.DataFrame
        As :meth:`recbole_llm.recommend.Recommender.recommend_users` gives them: user, item, rank, score, perhaps
        target.
    file : pathlib.Path, optional
        ``.csv``, ``.tsv``, ``.parquet``: one line an item. ``.jsonl``: one line a list.
    progress : callable
        Gets the number of lists of every frame.
    """
    if file is None:
        return _write(frames, lambda frame, first: _delimited(frame, sys.stdout, ",", first), progress)
    check_format(file)
    with whole(file) as partial:
        if file.suffix == ".parquet":
            return _write_parquet(frames, partial, progress)
        with partial.open("w", encoding="utf-8", newline="") as out:
            if file.suffix == ".jsonl":
                return _write(frames, lambda frame, first: out.writelines(_json_lines(frame)), progress)
            separator = "," if file.suffix == ".csv" else "\t"
            return _write(frames, lambda frame, first: _delimited(frame, out, separator, first), progress)


def _write(frames: Iterable[pd.DataFrame], write: Callable[[pd.DataFrame, bool], Any], progress: Any) -> int:
    lists = 0
    for number, frame in enumerate(frames):
        write(frame, number == 0)
        count = int((frame["rank"] == 1).sum())
        lists += count
        progress(count)
    return lists


def _delimited(frame: pd.DataFrame, out: IO[str], separator: str, header: bool) -> None:
    frame.to_csv(out, sep=separator, index=False, header=header, lineterminator="\n")


def _json_lines(frame: pd.DataFrame) -> Iterator[str]:
    user_field, item_field = frame.columns[:2]
    starts = np.flatnonzero(frame["rank"] == 1)
    ends = [*starts[1:], len(frame)]
    users, items = frame[user_field].tolist(), frame[item_field].tolist()
    # The shortest decimals that are this float32 again.
    scores = [float(score) for score in frame["score"].to_numpy().astype(str)]
    targets = frame["target"].tolist() if "target" in frame else None
    for start, end in zip(starts, ends, strict=True):
        row = {user_field: users[start], item_field: items[start:end], "score": scores[start:end]}
        if targets is not None:
            row["target"] = targets[start]
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _write_parquet(frames: Iterable[pd.DataFrame], file: Path, progress: Any) -> int:
    arrow = optional("pyarrow", "convert", "writing parquet")
    parquet = optional("pyarrow.parquet", "convert", "writing parquet")
    kinds = {"rank": arrow.int32(), "score": arrow.float32()}
    writer: Any = None

    def write(frame: pd.DataFrame, first: bool) -> None:
        nonlocal writer
        if writer is None:
            schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in frame.columns])
            writer = parquet.ParquetWriter(file, schema)
        writer.write_table(arrow.Table.from_pandas(frame, schema=writer.schema, preserve_index=False))

    try:
        return _write(frames, write, progress)
    finally:
        if writer is not None:
            writer.close()


def write_ids(ids: Iterable[str], file: Path) -> None:
    """One raw id a line, in UTF-8."""
    with whole(file) as partial, partial.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(f"{one}\n" for one in ids)


def write_matrix(parts: Iterable[np.ndarray], shape: tuple[int, int], file: Path) -> None:
    """Rows as they come into a ``.npy`` file of float32, without holding them all."""
    with whole(file) as partial:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for part in parts:
            array[start : start + len(part)] = part
            start += len(part)
        array.flush()
        del array


def write_faiss(vectors: np.ndarray, factory: str, file: Path) -> None:
    """A FAISS index for the inner product; row i of the vectors is id i.

    Parameters
    ----------
    vectors : numpy.ndarray, float32, shape (n, d)
    factory : str
        As ``faiss.index_factory`` reads it: Flat (exact), HNSW32, "IVF1024,Flat", ...
    file : pathlib.Path

    Raises
    ------
    MissingExtraError
        Without faiss.
    ConfigError
        For a factory that FAISS does not take.
    """
    faiss = optional("faiss", "faiss", "a FAISS index")
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"faiss={factory!r} cannot be built for {len(vectors)} vectors of width {vectors.shape[1]}: {reason} "
            "Flat is exact; HNSW32 or 'IVF256,Flat' are faster on large catalogues."
        ) from error
    with whole(file) as partial:
        faiss.write_index(index, str(partial))


def check_faiss() -> None:
    """MissingExtraError where faiss is not installed."""
    optional("faiss", "faiss", "a FAISS index")
