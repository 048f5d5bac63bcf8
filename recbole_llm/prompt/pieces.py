"""Texts that were tokenised once, and prompts joined from their token ids.

Tokenising is a function of the whole text, so token ids of parts may only be joined where no tokenizer joins what
stands on both sides: after a line break, and before a space that a word follows. Texts are therefore cut at such
places only, and each is tokenised between what stands beside it.
"""

import itertools
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from recbole_llm.typing import Tokenizer

_CUT = re.compile(r"(?<=\n)(?!\n)|(?<=\S)(?= \S)")
NONE = -1  # instead of a piece: no text


class Prompts(NamedTuple):
    """Composed prompts: ``ids`` and ``mask`` of shape (B, W), left padded, and the ``length`` of each, (B,)."""

    ids: torch.Tensor
    mask: torch.Tensor
    length: torch.Tensor


class Layout(NamedTuple):
    """Where the tokens of joined pieces stand: one entry a token, and the number of tokens of each row, (B,)."""

    row: torch.Tensor
    column: torch.Tensor
    token: torch.Tensor  # index into the table's tokens
    length: torch.Tensor


class PieceTable(nn.Module):
    """Token ids of pieces of text, in named groups.

    Parameters
    ----------
    groups : mapping of hashable to list of list of int
        Token ids of every piece by the name of its group.

    Attributes
    ----------
    tokens : torch.IntTensor, shape (tokens,)
        All pieces, one after another.
    first, size : torch.LongTensor, shape (pieces,)
        Where each piece begins in ``tokens``, and how many tokens it has.
    """

    tokens: torch.Tensor
    first: torch.Tensor
    size: torch.Tensor

    def __init__(self, groups: Mapping[Any, Sequence[Sequence[int]]]) -> None:
        super().__init__()
        ends = itertools.accumulate(len(pieces) for pieces in groups.values())
        self._span = {name: (end - len(groups[name]), end) for name, end in zip(groups, ends, strict=True)}
        pieces = list(itertools.chain.from_iterable(groups.values()))
        size = torch.tensor([len(piece) for piece in pieces], dtype=torch.long)
        tokens = torch.tensor(list(itertools.chain.from_iterable(pieces)), dtype=torch.int32)
        # Not saved: they come from the texts and the tokenizer, which the run records.
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("size", size, persistent=False)
        self.register_buffer("first", size.cumsum(0) - size, persistent=False)

    def at(self, group: Hashable) -> int:
        """Return the number of a group's first piece."""
        return self._span[group][0]

    def sizes(self, group: Hashable) -> torch.Tensor:
        """Return how many tokens each piece of a group has."""
        return self.size[slice(*self._span[group])]

    def ids(self, group: Hashable) -> list[list[int]]:
        """Return the token ids of each piece of a group."""
        spans = range(*self._span[group])
        bounds = ((int(self.first[piece]), int(self.size[piece])) for piece in spans)
        return [self.tokens[first : first + size].tolist() for first, size in bounds]

    def column(self, group: Hashable, rows: int, present: torch.Tensor | None = None) -> torch.Tensor:
        """Return the first piece of a group for every row, or for those that are ``present`` (B,); (B, 1)."""
        numbers = torch.full((rows, 1), self.at(group), device=self.size.device)
        return numbers if present is None else torch.where(present[:, None], numbers, NONE)

    def counts(self, segments: torch.Tensor) -> torch.Tensor:
        """Return the tokens of each piece in (B, S); 0 where there is none."""
        return torch.where(segments == NONE, 0, self.size[segments])

    def layout(self, segments: torch.Tensor) -> Layout:
        """Return where each token of joined pieces stands, counted from the left.

        Parameters
        ----------
        segments : torch.LongTensor, shape (B, S)
            Numbers of the pieces of every prompt, in order; :data:`NONE` is none.
        """
        sizes = self.counts(segments)
        length = sizes.sum(1)
        device = sizes.device
        segment = torch.repeat_interleave(torch.arange(segments.numel(), device=device), sizes.flatten())
        row = segment // segments.shape[1]
        place = torch.arange(len(segment), device=device)
        inside = place - (sizes.flatten().cumsum(0) - sizes.flatten())[segment]
        column = place - (length.cumsum(0) - length)[row]
        return Layout(row, column, self.first[segments.flatten()[segment]] + inside, length)

    def left_padded(self, segments: torch.Tensor, pad: int) -> Prompts:
        """Return the prompts of joined pieces, (B, S); shorter ones begin with ``pad``."""
        row, column, token, length = self.layout(segments)
        width = int(length.max())
        ids = torch.full((len(length), width), pad, dtype=torch.long, device=length.device)
        ids[row, column + (width - length)[row]] = self.tokens[token].long()
        mask = torch.arange(width, device=length.device) >= (width - length)[:, None]
        return Prompts(ids, mask.long(), length)


class PieceMaker:
    """Tokenises texts between what stands beside them.

    Attributes
    ----------
    inexact : int
        Texts so far that the tokenizer joins with what stands beside them: their pieces are not, token by token, what
        the whole text has in that place.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.inexact = 0

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text by itself."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def opening(self, text: str) -> list[int]:
        """Return the token ids of a text that begins a prompt, with the token that the tokenizer puts in front."""
        return beginning(self.tokenizer, text) + self.ids(text)

    def between(self, before: str, texts: Sequence[str], after: str) -> list[list[int]]:
        """Return the token ids of each text as they are between ``before`` and ``after``."""
        if not texts:
            return []
        head = self.ids(before)
        tail = self.ids(before + after)[len(head) :]
        pieces: list[list[int]] = []
        whole = self.tokenizer([before + text + after for text in texts], add_special_tokens=False)["input_ids"]
        for text, ids in zip(texts, whole, strict=True):
            inner = len(ids) - len(tail)
            if not text:
                pieces.append([])
            elif ids[: len(head)] == head and ids[inner:] == tail and inner >= len(head):
                pieces.append(ids[len(head) : inner])
            else:
                self.inexact += 1
                alone = self.ids(before + text)
                pieces.append(alone[len(head) :] if alone[: len(head)] == head else self.ids(text))
        return pieces


def padding_id(tokenizer: Tokenizer) -> int:
    """Return the token that pads shorter prompts on the left, where nothing attends to it."""
    known = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    return next((token for token in known if token is not None), 0)


def beginning(tokenizer: Tokenizer, opening: str) -> list[int]:
    """Return the token that a text begins with where the tokenizer puts one there and ``opening`` does not have it."""
    bos = tokenizer.bos_token_id
    if bos is None or opening.startswith(tokenizer.bos_token):
        return []
    return [bos] if tokenizer(opening)["input_ids"][:1] == [bos] else []


def split_space(text: str) -> tuple[str, str]:
    """Return what stands before a space at the end, and the space."""
    return (text[:-1], " ") if text.endswith(" ") else (text, "")


def split_cut(text: str) -> tuple[str, str]:
    """Split a text at its first place where no tokenizer joins what stands on both sides."""
    match = next((match for match in _CUT.finditer(text) if match.start() > 0), None)
    return (text, "") if match is None else (text[: match.start()], text[match.start() :])


def cut_titles(tokenizer: Tokenizer, titles: Sequence[str], limit: int | None) -> list[str]:
    """Return titles of at most ``limit`` tokens, as text; None cuts none.

    A token may be a part of a character; the cut is then made before that character.
    """
    titles = [title.strip() for title in titles]
    if limit is None:
        return titles
    ids = tokenizer(titles, add_special_tokens=False)["input_ids"]
    return [_cut(tokenizer, title, row, limit) for title, row in zip(titles, ids, strict=True)]


def _cut(tokenizer: Tokenizer, title: str, ids: list[int], limit: int) -> str:
    if len(ids) <= limit:
        return title
    for kept in range(limit, 0, -1):
        text = tokenizer.decode(ids[:kept], clean_up_tokenization_spaces=False)
        if title.startswith(text.strip()):
            return text.strip()
    return tokenizer.decode(ids[:limit]).strip()  # a tokenizer that changes letters, such as to lower case


def backwards(ids: torch.Tensor, length: torch.Tensor, count: int) -> torch.Tensor:
    """Return the last ``count`` of the first ``length`` ids of each row, (B, L) and (B,), last first.

    Beyond a row's first id there are any ids.
    """
    place = torch.arange(count, device=ids.device)
    return ids.gather(1, (length[:, None] - 1 - place).clamp(min=0))
