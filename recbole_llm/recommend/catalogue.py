"""Items by raw and by internal id."""

from collections.abc import Iterable, Mapping, Sequence
from logging import getLogger
from typing import Any

import numpy as np
import torch

from recbole_llm.config.values import choice
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import DataError
from recbole_llm.recommend.reading import as_id
from recbole_llm.text.item_text import ItemText

UNKNOWN = ("error", "skip")


class Catalogue:
    """The items of a run, and those that were added to it.

    Attributes
    ----------
    tokens : numpy.ndarray of str, shape (n,)
        Raw ids by internal id; the first is padding.
    ids : dict
        Raw id -> internal id.
    """

    def __init__(self, dataset: HistoryDataset) -> None:
        self.tokens = np.asarray(dataset.field2id_token[dataset.iid_field], dtype=object)
        self.ids = dict(dataset.field2token_id[dataset.iid_field])

    def __len__(self) -> int:
        return len(self.tokens)

    def internal(self, histories: Sequence[Sequence[str]], unknown: str) -> list[list[int]]:
        """Return internal ids; unknown tokens raise an error or are left out."""
        choice({"unknown": unknown}, "unknown", UNKNOWN)
        result: list[list[int]] = []
        skipped: set[str] = set()
        for number, history in enumerate(histories):
            if isinstance(history, (str, bytes)):
                raise DataError(
                    f"histories[{number}] is {history!r}, not a list of item ids. Put one history into a list: "
                    '[["50", "181"]].'
                )
            history = [as_id(item, f"An item of history {number}") for item in history]
            ids = [self.ids.get(item, 0) for item in history]
            if 0 in ids:
                bad = next(item for item, known in zip(history, ids, strict=True) if not known)
                if unknown == "error":
                    raise DataError(
                        f"Item {bad!r} of history {number} is not known to the run. Leave it "
                        "out, set unknown='skip', or add it with add_items."
                    )
                skipped.update(item for item, known in zip(history, ids, strict=True) if not known)
                ids = [item for item in ids if item]
            if not ids and unknown == "error":
                raise DataError(f"History {number} is empty: a sequential model needs at least one item.")
            result.append(ids)
        if skipped:
            getLogger().warning(f"{len(skipped)} unknown items left out: {some(sorted(skipped))}.")
        return result

    def allowed(self, allow: Iterable[str] | None, deny: Iterable[str] | None) -> torch.Tensor | None:
        """Which internal ids may be recommended, (n_items,) bool; None for all."""
        if allow is None and deny is None:
            return None
        allowed = torch.full((len(self.tokens),), allow is None)
        for name, items, value in (("allow", allow, True), ("deny", deny, False)):
            if items is None:
                continue
            tokens = [as_id(item, name) for item in items]
            ids = [self.ids.get(token, 0) for token in tokens]
            missing = [token for token, known in zip(tokens, ids, strict=True) if not known]
            if missing:
                getLogger().warning(
                    f"{name}: {len(missing)} of {len(tokens)} items are not known to the run: {some(missing)}."
                )
            allowed[ids] = value
        allowed[0] = False
        if not allowed.any():
            raise DataError("allow and deny leave no item that could be recommended.")
        return allowed

    def read(self, rows: Sequence[Mapping[str, Any]], field: str, text: ItemText) -> tuple[list[str], list[str]]:
        """Return ids and texts of new items; DataError for items that are known or have no text."""
        tokens: list[str] = []
        texts: list[str] = []
        for number, row in enumerate(rows):
            if row.get(field) in (None, ""):
                raise DataError(f"Row {number} of the new items has no {field!r}, the id of the item.")
            token = as_id(row[field], f"{field} of row {number}")
            if token in self.ids or token in tokens:
                raise DataError(f"Item {token!r} is already in the catalogue; new items need new ids.")
            tokens.append(token)
            texts.append(text.of(row, f"New item {token!r}"))
            if not texts[-1]:
                raise DataError(
                    f"New item {token!r} has no text: the template {text.template!r} needs {', '.join(text.fields)}."
                )
        return tokens, texts

    def append(self, tokens: Sequence[str]) -> None:
        """Append new items to the catalogue."""
        self.ids.update((token, len(self.tokens) + number) for number, token in enumerate(tokens))
        self.tokens = np.concatenate([self.tokens, np.array(tokens, dtype=object)])


def some(names: Sequence[str], shown: int = 5) -> str:
    """Join the first few names for a message."""
    return ", ".join(map(repr, names[:shown])) + (", ..." if len(names) > shown else "")
