"""Prompts with a history and candidates, composed from token ids that are made once per item.

A prompt file holds the text around ``{history}`` and ``{candidates}``. Both become entries ``(mark) title`` joined by
space, newline, space, as in LlamaRec (arXiv 2311.02089, Sec. 3.2.2): the history is marked by numbers from its oldest
entry on, the candidates by the words that the answer is read from.

Tokenising is a function of the whole text, so token ids of parts may only be joined where no tokenizer joins what
stands on both sides: after a line break, and before a blank that a word follows. Titles are tokenised together with
everything up to the next such place: once as an entry like any other, once as the last of the history, once as the
last of the candidates.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from recbole_llm.config.registry import props_dir
from recbole_llm.errors import ConfigError

JOINER = " \n "
_FIELDS = ("{history}", "{candidates}")
_CUT = re.compile(r"(?<=\n)(?!\n)|(?<=\S)(?= \S)")


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt file: the text ``before`` the history, ``between`` it and the candidates, and ``after`` them."""

    name: str
    before: str
    between: str
    after: str

    @classmethod
    def read(cls, name: str) -> PromptTemplate:
        """Read ``props/prompt/<name>.txt``, or any file by its path.

        Raises
        ------
        ConfigError
            If there is no such file, or it does not hold ``{history}`` and then ``{candidates}``.
        """
        ours = props_dir() / "prompt" / f"{name}.txt"
        path = Path(name).expanduser()
        file = ours if ours.is_file() and path.name == name else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(sorted(path.stem for path in (props_dir() / "prompt").glob("*.txt")))
            raise ConfigError(f"prompt={name!r} is neither one of ours ({known}) nor a text file: {error}.") from error
        parts = re.split("|".join(map(re.escape, _FIELDS)), text)
        if re.findall("|".join(map(re.escape, _FIELDS)), text) != [*_FIELDS]:
            raise ConfigError(f"prompt={name!r}: {file} must hold {_FIELDS[0]} once and, after it, {_FIELDS[1]} once.")
        return cls(name, *parts)

    def text(self, history: Sequence[str], candidates: Sequence[str], words: Sequence[str]) -> str:
        """The prompt as one string: titles of the history, oldest first, and of the candidates."""
        entries = [
            JOINER.join(f"({mark}) {title}" for mark, title in zip(marks, titles, strict=False))
            for marks, titles in ((itertools.count(1), history), (words, candidates))
        ]
        return self.before + entries[0] + self.between + entries[1] + self.after


def cut_titles(tokenizer: Any, titles: Sequence[str], limit: int | None) -> list[str]:
    """Titles of at most ``limit`` tokens, as text.

    A token may be a part of a character; the cut is then made before that character.
    """
    titles = [title.strip() for title in titles]
    if limit is None:
        return titles
    ids = tokenizer(titles, add_special_tokens=False)["input_ids"]
    return [_cut(tokenizer, title, row, limit) for title, row in zip(titles, ids, strict=True)]


def _cut(tokenizer: Any, title: str, ids: list[int], limit: int) -> str:
    if len(ids) <= limit:
        return title
    for kept in range(limit, 0, -1):
        text = tokenizer.decode(ids[:kept], clean_up_tokenization_spaces=False)
        if title.startswith(text.strip()):
            return text.strip()
    return tokenizer.decode(ids[:limit]).strip()  # a tokenizer that changes letters, such as to lower case


class Prompts(NamedTuple):
    """Composed prompts: ``ids`` and ``mask`` of shape (B, W), left padded, and the ``length`` of each, (B,)."""

    ids: torch.Tensor
    mask: torch.Tensor
    length: torch.Tensor


def padding_id(tokenizer: Any) -> int:
    """The token that stands in front of shorter prompts, where nothing attends to it."""
    known = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    return next((token for token in known if token is not None), 0)


def beginning(tokenizer: Any, opening: str) -> list[int]:
    """The token that a text begins with where the tokenizer puts one there and ``opening`` does not have it."""
    bos = tokenizer.bos_token_id
    if bos is None or opening.startswith(tokenizer.bos_token):
        return []
    return [bos] if tokenizer(opening)["input_ids"][:1] == [bos] else []


def pieces_between(tokenizer: Any, before: str, texts: Sequence[str], after: str) -> tuple[list[list[int]], int]:
    """Token ids of each text as they are between ``before`` and ``after``.

    Returns
    -------
    pieces : list of list of int
    inexact : int
        How many texts the tokenizer joins with what stands beside them: their pieces are not what the whole text has
        there.
    """
    if not texts:
        return [], 0

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    head = ids_of(before)
    tail = ids_of(before + after)[len(head) :]
    pieces: list[list[int]] = []
    inexact = 0
    whole = tokenizer([before + text + after for text in texts], add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, whole, strict=True):
        inner = len(ids) - len(tail)
        if not text:
            pieces.append([])
        elif ids[: len(head)] == head and ids[inner:] == tail and inner >= len(head):
            pieces.append(ids[len(head) : inner])
        else:
            inexact += 1
            alone = ids_of(before + text)
            pieces.append(alone[len(head) :] if alone[: len(head)] == head else ids_of(text))
    return pieces, inexact


def backwards(ids: torch.Tensor, length: torch.Tensor, count: int) -> torch.Tensor:
    """The last ``count`` of the first ``length`` ids of each row, (B, L) and (B,), last first; any ids beyond them."""
    place = torch.arange(count, device=ids.device)
    return ids.gather(1, (length[:, None] - 1 - place).clamp(min=0))


def tokens_of(segments: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Tokens of each piece in (B, S), as :func:`joined` takes them; none where there is no piece."""
    return torch.where(segments >= 0, size[segments], 0)


def joined(segments: torch.Tensor, table: torch.Tensor, start: torch.Tensor, size: torch.Tensor, pad: int) -> Prompts:
    """Prompts of pieces.

    Parameters
    ----------
    segments : torch.LongTensor, shape (B, S)
        Numbers of the pieces of every prompt, in order; -1 is none.
    table : torch.Tensor, shape (tokens,)
        Token ids of all pieces, one after another.
    start, size : torch.LongTensor, shape (pieces,)
        Where each piece begins in ``table`` and how many tokens it has.
    pad : int
    """
    sizes = tokens_of(segments, size)
    total = sizes.sum(1)
    width = int(total.max())
    segment = torch.repeat_interleave(torch.arange(segments.numel(), device=sizes.device), sizes.flatten())
    row = segment // segments.shape[1]
    token = torch.arange(len(segment), device=sizes.device)
    inside = token - (sizes.flatten().cumsum(0) - sizes.flatten())[segment]
    column = token - (total.cumsum(0) - total)[row] + (width - total)[row]
    ids = torch.full((len(total), width), pad, dtype=torch.long, device=sizes.device)
    ids[row, column] = table[start[segments.flatten()[segment]] + inside].long()
    mask = torch.arange(width, device=sizes.device) >= (width - total)[:, None]
    return Prompts(ids, mask.long(), total)


class PromptComposer(nn.Module):
    """Token ids of prompts for batches of item ids.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    template : PromptTemplate
    titles : list of str
        Title of every internal item id; entry 0 (PAD) is never used.
    words : list of str
        Marks of the candidates, at least as many as a prompt has.
    max_history : int
        At most so many items of history: the newest.
    max_length : int
        Tokens of a prompt at most. The oldest items of the history go first; nothing else is ever cut.
    max_title_tokens : int, optional
        Longer titles are cut; None cuts none.

    Attributes
    ----------
    titles : list of str
        As they stand in the prompts.
    inexact : int
        Entries that the tokenizer joins with what stands beside them: their prompts are not, token by token, what
        tokenising the whole text gives.
    """

    table: torch.Tensor
    start: torch.Tensor
    size: torch.Tensor

    def __init__(
        self,
        tokenizer: Any,
        template: PromptTemplate,
        titles: Sequence[str],
        words: Sequence[str],
        max_history: int,
        max_length: int,
        max_title_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.template, self.words = template, list(words)
        self.max_history, self.max_length = max_history, max_length
        self.titles = cut_titles(tokenizer, titles, max_title_tokens)
        self.pad = padding_id(tokenizer)
        self.inexact = 0
        self._tokenizer = tokenizer
        pieces = self._pieces()
        del self._tokenizer
        size = torch.tensor([len(piece) for piece in pieces])
        # Not saved: they come from the texts and the tokenizer, which the run records.
        self.register_buffer(
            "table", torch.tensor([*itertools.chain.from_iterable(pieces)], dtype=torch.int32), persistent=False
        )
        self.register_buffer("size", size, persistent=False)
        self.register_buffer("start", size.cumsum(0) - size, persistent=False)
        if self.inexact:
            logging.getLogger().warning(
                f"The tokenizer joins {self.inexact} entries of prompts with what stands beside them; their token ids "
                "are not exactly those of the whole text."
            )

    # ---- pieces

    def _pieces(self) -> list[list[int]]:
        """Token ids of everything a prompt is made of; the order is what ``_at`` counts on."""
        n, words = len(self.titles), self.words
        opening, first = _split_blank(self.template.before)
        end_of_history, bridge = _split_cut(self.template.between)
        bridge, first_candidate = _split_blank(bridge)
        end_of_candidates, closing = _split_cut(self.template.after)
        entry_end, blank = JOINER[:-1], JOINER[-1:]

        numbers = [f"({i})" for i in range(1, self.max_history + 1)]
        marks = [f"({word})" for word in words]
        entry = "a" + JOINER + "(2)"
        titles = [" " + title for title in self.titles]
        self._number, self._mark = 4, 4 + len(numbers)
        self._title = self._mark + len(marks)
        self._n_titles = n
        return [
            self._bos(opening) + self._ids(opening),
            *self._inside(entry + " a" + end_of_history, [bridge], first_candidate + marks[0]),
            *self._inside(entry + " a" + end_of_candidates, [closing], ""),
            *self._inside(opening, [first + end_of_history], bridge),  # no history at all
            *self._inside(opening, [first + numbers[0]], " a"),
            *self._inside("a" + entry_end, [blank + number for number in numbers[1:]], " a"),
            *self._inside(entry + " a" + end_of_history + bridge, [first_candidate + marks[0]], " a"),
            *self._inside("a" + entry_end, [blank + mark for mark in marks[1:]], " a"),
            *self._inside(entry, [title + entry_end for title in titles], blank + "(3)"),
            *self._inside(entry, [title + end_of_history for title in titles], bridge or first_candidate + marks[0]),
            *self._inside(entry, [title + end_of_candidates for title in titles], closing),
        ]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _bos(self, opening: str) -> list[int]:
        return beginning(self._tokenizer, opening)

    def _inside(self, before: str, texts: list[str], after: str) -> list[list[int]]:
        """Token ids of texts as they are between ``before`` and ``after``."""
        pieces, inexact = pieces_between(self._tokenizer, before, texts, after)
        self.inexact += inexact
        return pieces

    # ---- prompts

    def text(self, history: Sequence[int], candidates: Sequence[int]) -> str:
        """The prompt of one row as text; item ids, oldest first, of the newest ``max_history`` items at most."""
        titles = self.titles
        return self.template.text([titles[i] for i in history], [titles[i] for i in candidates], self.words)

    def forward(self, history: torch.Tensor, length: torch.Tensor, candidates: torch.Tensor) -> Prompts:
        """Compose prompts.

        Parameters
        ----------
        history : torch.LongTensor, shape (B, L)
            Item ids, oldest first, right padded.
        length : torch.LongTensor, shape (B,)
        candidates : torch.LongTensor, shape (B, C)
            Item ids; 0 at the end where there are fewer.

        Returns
        -------
        Prompts

        Raises
        ------
        ConfigError
            If a prompt is longer than ``max_length`` even without a history.
        """
        segments = self._segments(history, length, candidates)
        return joined(segments, self.table, self.start, self.size, self.pad)

    def _segments(self, history: torch.Tensor, length: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Numbers of the pieces of every prompt, (B, S); -1 is none."""
        device, n = history.device, self._n_titles
        here = candidates > 0
        count = here.sum(1, keepdim=True)
        place = torch.arange(candidates.shape[1], device=device)
        title = self._title + candidates + torch.where(place == count - 1, 2 * n, 0)
        pool = torch.stack([(self._mark + place).expand_as(title), title], dim=2)
        pool = torch.where(here[..., None], pool, -1).flatten(1)

        recent = min(self.max_history, history.shape[1])
        newest = backwards(history, length, recent)
        fixed = tokens_of(pool, self.size).sum(1) + self.size[:3].sum()
        kept = self._fitting(newest, length.clamp(max=recent), fixed)
        place = torch.arange(recent, device=device)
        item = backwards(newest, kept, recent)
        title = self._title + item + torch.where(place == kept[:, None] - 1, n, 0)
        past = torch.stack([(self._number + place).expand_as(title), title], dim=2)
        past = torch.where((place < kept[:, None])[..., None], past, -1).flatten(1)

        def piece(number: int) -> torch.Tensor:
            return torch.full((len(history), 1), number, device=device)

        nothing = torch.where(kept == 0, 3, -1)[:, None]
        return torch.cat([piece(0), past, nothing, piece(1), pool, piece(2)], dim=1)

    def _fitting(self, newest: torch.Tensor, length: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """How many of the newest items, (B, recent), fit beside ``fixed`` (B,) tokens; (B,)."""
        n, recent = self._n_titles, newest.shape[1]
        entries = self.size[self._title + newest]
        entries[:, :1] = self.size[self._title + n + newest[:, :1]]
        numbers = self.size[self._number : self._number + recent]
        cost = (entries + numbers).cumsum(1)
        here = torch.arange(recent, device=newest.device) < length[:, None]
        kept = (here & (fixed[:, None] + cost <= self.max_length)).sum(1)
        too_long = (kept == 0) & (fixed + self.size[3] > self.max_length)
        if bool(too_long.any()):
            raise ConfigError(
                f"max_prompt_length={self.max_length} is too small: instruction and candidates alone have "
                f"{int((fixed + self.size[3]).max())} tokens. Raise it, or lower max_title_tokens or n_candidates."
            )
        return kept

    def item_costs(self) -> torch.Tensor:
        """Tokens that an item adds to a prompt, shape (n_items,): what batches of similar length are made by."""
        return self.size[self._title : self._title + self._n_titles] + self.size[self._number]


def _split_blank(text: str) -> tuple[str, str]:
    """What stands before a blank at the end, and the blank."""
    return (text[:-1], " ") if text.endswith(" ") else (text, "")


def _split_cut(text: str) -> tuple[str, str]:
    """A text at its first place where no tokenizer joins what stands on both sides."""
    match = next((match for match in _CUT.finditer(text) if match.start() > 0), None)
    return (text, "") if match is None else (text[: match.start()], text[match.start() :])
