"""Writing of lists and vectors to files, atomically."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from recbole_llm.errors import ConfigError
from recbole_llm.extras import optional
from recbole_llm.files import whole

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


def check_format(file: Path) -> None:
    """Raise ConfigError for an unknown file format, MissingExtraError if its package is missing."""
    if file.suffix not in FORMATS:
        raise ConfigError(f"out={str(file)!r}: the name must end in one of {', '.join(FORMATS)}.")
    if file.suffix == ".parquet":
        optional("pyarrow.parquet", "convert", "writing parquet")


def write_lists(frames: Iterable[pd.DataFrame], file: Path | None, progress: Callable[[int], None]) -> int:
    """Write lists as they arrive, to a file or as CSV to standard output; return their number.

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
    # The shortest decimals that parse back to this float32.
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
    """Write one raw id per line, in UTF-8."""
    with whole(file) as partial, partial.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(f"{one}\n" for one in ids)


def write_matrix(parts: Iterable[np.ndarray], shape: tuple[int, int], file: Path) -> None:
    """Stream rows into a float32 ``.npy`` file without keeping them in memory."""
    with whole(file) as partial:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for part in parts:
            array[start : start + len(part)] = part
            start += len(part)
        array.flush()
        del array
