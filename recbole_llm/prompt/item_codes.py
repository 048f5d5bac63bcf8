"""Codes of a catalogue as tensors: what a run stores of an item index, and the tokens that a decoder is taught."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from recbole_llm.layer.code_loss import NO_TOKEN
from recbole_llm.prompt.item_index import ItemIndex

CODE_BYTES = 64  # codes are stored in rows of a multiple of this many bytes


def pack(index: ItemIndex) -> torch.Tensor:
    """Return the codes of items and then users as rows of UTF-8, padded with 0; shape (n_items + n_users, width)."""
    rows = [code.encode() for code in (*index.items, *index.users)]
    width = -(-max(map(len, rows)) // CODE_BYTES) * CODE_BYTES
    table = np.zeros((len(rows), width), dtype=np.uint8)
    for place, row in enumerate(rows):
        table[place, : len(row)] = np.frombuffer(row, dtype=np.uint8)
    return torch.from_numpy(table)


def unpack(packed: torch.Tensor, index: ItemIndex) -> ItemIndex:
    """Return an index with the codes of :func:`pack` in place of its own."""
    texts = [bytes(row[row > 0]).decode() for row in packed.cpu().numpy()]
    n_items = len(index.items)
    return replace(index, items=texts[:n_items], users=texts[n_items:])


def labels_of(codes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return token ids of every code, (n_items, T), -100 after its end."""
    labels = torch.full((len(codes), max(map(len, codes))), NO_TOKEN)
    for item, code in enumerate(codes):
        labels[item, : len(code)] = torch.tensor(code, dtype=torch.long)
    return labels
