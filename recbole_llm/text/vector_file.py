"""Item vectors provided by the user: a file with raw item ids and one vector each.

========================  ==========================================================================================
``.npz``                  arrays ``ids`` (text or whole numbers) and ``vectors`` (n, d)
``.npy``, ``.safetensors``  the vectors (n, d), in a safetensors file under the name ``vectors``; ids in a text file
                          beside it, ``NAME.ids.txt``, one a line in the same order, or as a tensor ``ids`` of whole
                          numbers
``.parquet``              a column with the ids (named as in the dataset, ``item_id`` or ``id``) and one column of
                          lists, or one column of numbers for each of the d
anything else             an atomic file of RecBole: a header line ``name:type``, one ``token`` and one ``float_seq``
========================  ==========================================================================================
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.data.lines import read_header, read_lines, read_rows
from recbole_llm.errors import ConfigError, DataError

FORMATS = ".npz, .npy, .safetensors, .parquet, or an atomic file"


def read_item_vectors(
    file: str | Path,
    tokens: Sequence[str],
    item_field: str = "item_id",
    missing: str = "error",
    field_separator: str = "\t",
    seq_separator: str = " ",
    encoding: str = "utf-8",
    logger: logging.Logger | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Vectors of a catalogue, found by raw item id.

    Parameters
    ----------
    file : str or Path
        In one of the formats above. Vectors of items outside the catalogue are ignored.
    tokens : sequence of str
        Raw item id of each internal id; ``tokens[0]`` is PAD.
    item_field : str
        Name of the id column in a parquet file.
    missing : {"error", "zero"}
        How to treat an item without a vector.
    field_separator, seq_separator, encoding : str
        Of an atomic file.
    logger : logging.Logger, optional

    Returns
    -------
    vectors : numpy.ndarray, shape (n_items, d), float32
        Row 0 (PAD) is zero.
    info : dict
        file, dim, in_file, used, missing.

    Raises
    ------
    DataError
        The file is missing, damaged or of the wrong shape, an id stands in it twice, a vector that is needed is not
        finite, or, with ``missing="error"``, is not there.
    """
    logger = logger or logging.getLogger(__name__)
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"item_vectors: there is no file {str(path)!r} (looked from {Path.cwd()}).")
    try:
        ids, found = _read(path, item_field, field_separator, seq_separator, encoding)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # noqa: BLE001 - every library has its own for a damaged file
        raise DataError(
            f"item_vectors: {path} cannot be read ({type(error).__name__}: {error}). Known: {FORMATS}."
        ) from error
    rows = _rows_of_items(path, ids, found, tokens)
    there = rows >= 0
    absent = [str(token) for token, is_there in zip(tokens[1:], there[1:], strict=True) if not is_there]
    if absent:
        text = f"{path} lacks {len(absent)} of {len(tokens) - 1} items, e.g. {', '.join(absent[:10])}."
        if missing == "error":
            raise DataError(
                f"item_vectors: {text} Add them, or give them zero vectors with item_vectors_missing=zero."
            )
        logger.warning("%s They get a zero vector.", text)
    vectors = np.zeros((len(tokens), found.shape[1]), dtype=np.float32)
    vectors[there] = found[rows[there]]
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise DataError(
            f"item_vectors: {len(bad)} vectors of {path} are not finite in float32, the first that of item "
            f"{str(tokens[int(bad[0])])!r}."
        )
    used = int(there.sum())
    if len(ids) > used:
        logger.info("%d of the %d vectors in %s belong to no item here.", len(ids) - used, len(ids), path)
    info = {"file": str(path), "dim": found.shape[1], "in_file": len(ids), "used": used, "missing": len(absent)}
    return vectors, info


def _rows_of_items(path: Path, ids: list[str], found: np.ndarray, tokens: Sequence[str]) -> np.ndarray:
    """Return the row of each item's vector, -1 for PAD and where there is none.

    Raises
    ------
    DataError
        The vectors are not one row of numbers per id, an id stands twice, or no item is there.
    """
    if found.ndim != 2 or len(found) != len(ids) or not found.shape[1]:
        raise DataError(
            f"item_vectors: {path} has vectors of shape {found.shape} for {len(ids)} ids; one row per id is needed, "
            f"({len(ids)}, d)."
        )
    if found.dtype.kind not in "fiu":
        raise DataError(f"item_vectors: the vectors of {path} are of type {found.dtype}; numbers are needed.")
    row_of = {token: row for row, token in enumerate(ids)}
    if len(row_of) < len(ids):
        twice = next(token for row, token in enumerate(ids) if row_of[token] != row)
        raise DataError(
            f"item_vectors: {path} has the id {twice!r} more than once ({len(ids) - len(row_of)} too many)."
        )

    rows = np.array([row_of.get(str(token), -1) for token in list(tokens)])
    rows[0] = -1
    if not (rows >= 0).any():
        raise DataError(
            f"item_vectors: {path} has no item of the dataset. Its ids are raw item ids as in the .inter file: there "
            f"e.g. {str(tokens[1])!r}, here e.g. {ids[0] if ids else None!r}."
        )
    return rows


def _read(
    path: Path, item_field: str, field_separator: str, seq_separator: str, encoding: str
) -> tuple[list[str], np.ndarray]:
    kind = path.suffix.lower()
    if kind == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            _need({"ids", "vectors"}, set(arrays.files), path, "arrays")
            return _texts(arrays["ids"], path), arrays["vectors"]
    if kind == ".npy":
        return _ids_beside(path), np.load(path, mmap_mode="r", allow_pickle=False)
    if kind == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(path)
        _need({"vectors"}, set(tensors), path, "tensors")
        ids = _texts(tensors["ids"].numpy(), path) if "ids" in tensors else _ids_beside(path)
        return ids, tensors["vectors"].float().numpy()
    if kind == ".parquet":
        return _read_parquet(path, item_field)
    return _read_atomic(path, field_separator, seq_separator, encoding)


def _need(names: set[str], there: set[str], path: Path, what: str) -> None:
    if not names <= there:
        raise DataError(
            f"item_vectors: {path} needs the {what} {', '.join(sorted(names))}; it has {', '.join(sorted(there))}."
        )


def _texts(ids: np.ndarray, path: Path) -> list[str]:
    if ids.dtype.kind not in "iuUS" or ids.ndim != 1:
        raise DataError(
            f"item_vectors: the ids of {path} are of type {ids.dtype} and shape {ids.shape}; one text or whole number "
            "each is needed (numpy: np.array(ids, dtype=str))."
        )
    return [token.decode() for token in ids.tolist()] if ids.dtype.kind == "S" else [str(i) for i in ids.tolist()]


def _ids_beside(path: Path) -> list[str]:
    file = path.with_suffix(".ids.txt")
    if not file.is_file():
        raise DataError(
            f"item_vectors: {path} holds no ids, and there is no {file} beside it: a text file with the raw item "
            "id of each row, one a line."
        )
    return [line for _, line in read_lines(file)]


def _read_parquet(path: Path, item_field: str) -> tuple[list[str], np.ndarray]:
    from pyarrow import parquet, types

    table = parquet.read_table(path)
    column = next((name for name in (item_field, "item_id", "id") if name in table.column_names), None)
    if column is None:
        raise DataError(
            f"item_vectors: {path} has no column {item_field!r}, 'item_id' or 'id'; it has "
            f"{', '.join(table.column_names)}."
        )
    kind = table.schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if (
        not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))
        or table[column].null_count
    ):
        raise DataError(
            f"item_vectors: the column {column!r} of {path} holds {kind} and {table[column].null_count} missing "
            "values; one text or whole number in every row is needed."
        )
    ids = [str(token) for token in table[column].to_pylist()]
    lists = [f.name for f in table.schema if types.is_list(f.type) or types.is_fixed_size_list(f.type)]
    if len(lists) == 1:
        rows = table[lists[0]].to_pylist()
        widths = {None if row is None else len(row) for row in rows}
        if len(widths) != 1 or None in widths:
            raise DataError(f"item_vectors: the lists of {path}, column {lists[0]!r}, are not all of one length.")
        return ids, np.array(rows, dtype=np.float32)
    numbers = [f.name for f in table.schema if f.name != column and types.is_floating(f.type)]
    if lists or not numbers:
        raise DataError(
            f"item_vectors: {path} needs one column of lists, or floating-point columns, beside {column!r}; it has "
            f"{', '.join(f'{f.name} ({f.type})' for f in table.schema)}."
        )
    return ids, np.stack([table[name].to_numpy() for name in numbers], axis=1)


def _read_atomic(path: Path, field_separator: str, seq_separator: str, encoding: str) -> tuple[list[str], np.ndarray]:
    try:
        header = read_header(path, field_separator, encoding)
    except DataError as error:
        raise DataError(f"item_vectors: {path} is none of {FORMATS}: {error}") from error
    kinds = list(header.values())
    if sorted(kind for kind in kinds if kind in ("token", "float_seq")) != ["float_seq", "token"]:
        raise DataError(
            f"item_vectors: the first line of {path} must name one token field and one float_seq field, such as "
            "'item_id:token\\tvector:float_seq'."
        )
    ids: list[str] = []
    rows: list[np.ndarray] = []
    for number, cells in read_rows(path, header, field_separator, encoding):
        try:
            row = np.array(cells[kinds.index("float_seq")].split(seq_separator), dtype=np.float32)
        except ValueError as error:
            raise DataError(f"item_vectors: {path}, line {number}: {error}.") from None
        if rows and len(row) != len(rows[0]):
            raise DataError(
                f"item_vectors: {path}, line {number}: {len(row)} numbers where the first has {len(rows[0])}."
            )
        ids.append(cells[kinds.index("token")])
        rows.append(row)
    return ids, np.stack(rows) if rows else np.zeros((0, 0))
