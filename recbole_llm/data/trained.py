"""Raw ids and histories of a run, saved next to its weights so that serving maps by raw id.

Internal ids follow the order of the file, and weights follow internal ids. A dataset that is read for a finished run
takes its ids from this file instead: rows may be in another order, the files may have grown or moved. The training
interactions are matched one by one, so that splits, counts and histories are exactly those of the run; new ones count
as history in serving.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.checksums import recorded
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import CheckpointError
from recbole_llm.files import DAMAGED_ARCHIVE

FILE = "ids.npz"


@dataclass(frozen=True)
class TrainedData:
    """Raw ids and histories of a run.

    Attributes
    ----------
    tokens : dict of numpy.ndarray
        Field -> raw ids by internal id, 0 is padding. Fields that share their ids share the array.
    items : numpy.ndarray of int, shape (interactions,)
        Internal ids of all interactions, user by user, oldest first.
    lengths : numpy.ndarray of int, shape (users,)
        Interactions of each internal user id.
    newest : float
        Newest time in the file, before any filter.
    texts : numpy.ndarray of uint64, shape (items,), optional
        A digest of each item's text (:func:`text_digests`), of a model that reads texts.
    """

    tokens: Mapping[str, np.ndarray]
    items: np.ndarray
    lengths: np.ndarray
    newest: float
    texts: np.ndarray | None = None

    @classmethod
    def of(cls, dataset: HistoryDataset, texts: np.ndarray | None = None) -> "TrainedData":
        """Of a dataset that has been built."""
        items, offsets = dataset.read_histories
        tokens = {field: np.asarray(values) for field, values in dataset.field2id_token.items()}
        return cls(tokens, items, np.diff(offsets), dataset.newest_time, texts)

    def save(self, folder: Path) -> None:
        """Write ``ids.npz``: text as UTF-8 bytes, nothing pickled, replaced atomically."""
        groups: dict[int, list[str]] = {}
        for field, values in self.tokens.items():
            groups.setdefault(id(values), []).append(field)
        arrays: dict[str, np.ndarray] = {
            "items": self.items.astype(np.min_scalar_type(int(self.items.max(initial=0)))),
            "lengths": self.lengths.astype(np.int32),
            "newest": np.array(self.newest, dtype=np.float64),
            "fields": np.frombuffer(json.dumps(list(groups.values())).encode(), dtype=np.uint8),
        }
        if self.texts is not None:
            arrays["texts"] = self.texts
        for number, fields in enumerate(groups.values()):
            parts = [str(token).encode("utf-8", "surrogatepass") for token in self.tokens[fields[0]]]
            arrays[f"bytes{number}"] = np.frombuffer(b"".join(parts), dtype=np.uint8)
            arrays[f"ends{number}"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
        with recorded(folder / FILE) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> "TrainedData":
        """Read what :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            If the file is missing or damaged.
        """
        path = folder / FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no {FILE}, which holds the raw ids of the run: without it, the run can be used on the "
                "very files it was trained on only. Point data_path at them, or train again."
            )
        try:
            with np.load(path, allow_pickle=False) as arrays:
                tokens = {}
                for number, fields in enumerate(json.loads(arrays["fields"].tobytes())):
                    raw, ends = arrays[f"bytes{number}"].tobytes(), arrays[f"ends{number}"].tolist()
                    words = _cut(raw, list(zip([0, *ends[:-1]], ends, strict=True)))
                    tokens.update(dict.fromkeys(fields, np.array(words, dtype=object)))
                items, lengths = arrays["items"].astype(np.int64), arrays["lengths"].astype(np.int64)
                texts = arrays["texts"] if "texts" in arrays.files else None
                newest = float(arrays["newest"])
            if lengths.sum() != len(items):
                raise ValueError("its histories do not have the lengths that it names")
        except DAMAGED_ARCHIVE as error:
            raise CheckpointError(
                f"{path} is damaged ({error}). Restore the file from a copy, or train again."
            ) from error
        return cls(tokens, items, lengths, newest, texts)

    def same_ids(self, dataset: HistoryDataset, fields: Iterable[str] | None = None) -> bool:
        """Whether every internal id, of all fields or of some, has the same raw id in a dataset."""
        return all(
            field in dataset.field2id_token
            and field in self.tokens
            and np.array_equal(self.tokens[field], np.asarray(dataset.field2id_token[field]))
            for field in (self.tokens if fields is None else fields)
        )

    def same_histories(self, dataset: HistoryDataset) -> bool:
        """Whether a dataset, once built, has exactly these histories."""
        items, offsets = dataset.read_histories
        return np.array_equal(self.items, items) and np.array_equal(self.lengths, np.diff(offsets))

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of all interactions, ascending, and the position of each."""
        users = np.repeat(np.arange(len(self.lengths)), self.lengths)
        keys = self._keys(users, self.items)
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def _keys(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        width = int(self.items.max(initial=0)) + 1
        return np.where(items < width, users.astype(np.int64) * width + items, -1)

    def places(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Positions of interactions among those of the run, -1 for new ones; shape (n,).

        The k-th occurrence of a (user, item) pair matches the k-th in the run.

        Parameters
        ----------
        users, items : numpy.ndarray of int, shape (n,)
            Internal ids; of every user from the oldest to the newest interaction.
        """
        known, position = self._sorted
        keys = self._keys(users, items)
        order = np.argsort(keys, kind="stable")
        ascending = keys[order]
        occurrence = np.arange(len(keys)) - np.searchsorted(ascending, ascending, side="left")
        index = np.searchsorted(known, ascending, side="left") + occurrence
        found = index < np.searchsorted(known, ascending, side="right")
        places = np.full(len(keys), -1, dtype=np.int64)
        places[order[found]] = position[index[found]]
        return places

    @staticmethod
    def numbers(tokens: np.ndarray, values: Any, grow: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return internal ids of raw values, and the raw ids by internal id.

        Parameters
        ----------
        tokens : numpy.ndarray, shape (n,)
            Raw ids by internal id, 0 is padding.
        values : sequence of str
            Raw values; missing ones become 0.
        grow : bool
            Whether an unknown value gets the next free id; otherwise it becomes 0, as a missing one.
        """
        codes, unique = pd.factorize(np.asarray(values, dtype=object))
        number = {token: index for index, token in enumerate(tokens.tolist()) if index > 0}
        fresh = [token for token in unique if token not in number] if grow else []
        number.update({token: len(tokens) + index for index, token in enumerate(fresh)})
        lookup = np.array([*(number.get(token, 0) for token in unique), 0], dtype=np.int64)
        return lookup[codes], np.array([*tokens.tolist(), *fresh], dtype=object)


def _cut(raw: bytes, places: Sequence[tuple[int, int]]) -> list[str]:
    """Texts between some places in UTF-8."""
    if raw.isascii():  # one byte a character
        text = raw.decode()
        return [text[start:end] for start, end in places]
    return [raw[start:end].decode("utf-8", "surrogatepass") for start, end in places]


def text_digests(texts: Sequence[str]) -> np.ndarray:
    """64 bits of the SHA-256 of each text, shape (n,) uint64."""
    raw = b"".join(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] for text in texts)
    return np.frombuffer(raw, dtype="<u8")
