"""Prompts put together from words that were tokenised once: templates with a user and a history.

A template is plain text with ``{history}``, ``{user}`` or both; punctuation may follow either at
once (``{history},``). Tokenizers split at blanks first, so a prompt's tokens are those of its words side by side; the
last item of a history takes the punctuation with it, because a tokenizer may join a digit and a comma.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from recbole_llm.errors import ConfigError

RULES = ("entity", "word", "none")
ITEM, SEPARATOR = 1, 2  # roles of segments that belong to the history


def entity_marks(pieces: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """POD's rule: a piece ``_``, the piece before it and the pieces of digits right after it are one entity.

    Returns
    -------
    starts, inside : list of bool
        For every piece, whether an entity starts with it, and whether it belongs to one.
    """
    starts, inside = [False] * len(pieces), [False] * len(pieces)
    for place, piece in enumerate(pieces):
        if piece != "_":
            continue
        end = place + 1
        while end < len(pieces) and pieces[end].isdigit():
            end += 1
        first = max(place - 1, 0)
        starts[first] = True
        inside[first:end] = [True] * (end - first)
    return starts, inside


def word_marks(pieces: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """P5's rule: every piece that starts a word starts something; everything belongs to it."""
    return [piece.startswith(("\u2581", " ")) or place == 0 for place, piece in enumerate(pieces)], [True] * len(
        pieces
    )


def whole_word_ids(starts: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Running number of the entity or word of each token, 0 outside; (..., T) bool -> (..., T) int64."""
    return starts.cumsum(-1) * inside


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, right padded.

    Attributes
    ----------
    input_ids, attention_mask, whole_word_ids : torch.LongTensor, shape (B, T)
        Padding and the end token have whole-word id 0.
    dropped : int
        Items of history left out because the prompts were too long.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    whole_word_ids: torch.Tensor
    dropped: int


class PromptTable:
    """Tokens of every word that can stand in a prompt.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        With an end and a padding token.
    templates : list of str
    items, users : list of str
        Words by internal id; entry 0, padding, is not used.
    separators : list of str
        Between two items of a history, for instance ``" "`` or ``" , "``. Every template comes with each of them:
        template ``t`` with separator ``s`` has the number ``t * len(separators) + s``.
    rule : {'entity', 'word', 'none'}
        Whole-word ids: POD's, P5's, or all 0.
    items_are_entities : bool
        With ``entity``: each item is one entity whatever its text is made of (titles).

    Raises
    ------
    ConfigError
        For a template with neither or with something else in braces.
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: Sequence[str],
        items: Sequence[str],
        users: Sequence[str],
        separators: Sequence[str] = (" ",),
        rule: str = "entity",
        items_are_entities: bool = False,
    ) -> None:
        self.tokenizer, self.rule = tokenizer, rule
        self.items_are_entities = items_are_entities
        self.end, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self._flat: list[list[int]] = []
        self._starts: list[list[bool]] = []
        self._inside: list[list[bool]] = []
        self._base: dict[Any, int] = {}
        self._words = {"user": list(users), "history": list(items)}
        self._pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        between = [self._text(text.strip(), leading=True) if text.strip() else None for text in separators]
        self.templates = [(parts, text) for parts in map(self._parse, templates) for text in between]
        lengths = torch.tensor([len(tokens) for tokens in self._flat])
        self.count = torch.cat([lengths, torch.zeros(1, dtype=torch.long)])  # the last entry is the absent segment
        self.first = self.count.cumsum(0) - self.count
        self.absent = len(lengths)
        self.tokens = torch.tensor([token for tokens in self._flat for token in tokens])
        self.starts = torch.tensor([mark for marks in self._starts for mark in marks])
        self.inside = torch.tensor([mark for marks in self._inside for mark in marks])
        del self._flat, self._starts, self._inside, self._words, self._pieces

    def _parse(self, template: str) -> list[tuple[str, int, int]]:
        """Parts of a template: (text, segment, -), (user, base, -) or (history, base inside, base at the end)."""
        words = template.split()
        times = [template.count(f"{{{kind}}}") for kind in ("user", "history")]
        if max(times) != 1:
            raise ConfigError(f"templates: {template!r} must hold {{user}} or {{history}} or both, each once.")
        parts: list[tuple[str, int, int]] = []
        text: list[str] = []
        for word in words:
            kind = next((kind for kind in ("user", "history") if f"{{{kind}}}" in word), None)
            before, after = word.split(f"{{{kind}}}") if kind else ("", "")
            if "{" in before + after or (kind is None and ("{" in word or "}" in word)):
                raise ConfigError(
                    f"templates: {word!r} of {template!r}: only {{user}} and {{history}} may be in braces."
                )
            if kind is None:
                text.append(word)
                continue
            if kind == "history" and before:
                raise ConfigError(f"templates: {word!r} of {template!r}: nothing may stand right before {{history}}.")
            if text:
                parts.append(("text", self._text(" ".join(text), leading=bool(parts)), 0))
                text = []
            leading = bool(parts)
            if kind == "user":
                parts.append(("user", self._column("user", before, after, leading), 0))
            else:
                middle = self._column("history", "", "", True)
                # The first item has no blank before it only if the history opens the prompt.
                parts.append(("history", middle, self._column("history", "", after, True)))
        if text:
            parts.append(("text", self._text(" ".join(text), leading=bool(parts)), 0))
        return parts

    def _text(self, text: str, leading: bool) -> int:
        key = ("text", text, leading)
        if key not in self._base:
            self._base[key] = self._append([text], leading)
        return self._base[key]

    def _column(self, kind: str, before: str, after: str, leading: bool) -> int:
        """Segment number of entry 0 of a column with all users or items."""
        key = (kind, before, after, leading)
        if key not in self._base:
            words = [before + word + after for word in self._words[kind]]
            self._base[key] = self._append(words, leading, whole=kind == "history" and self.items_are_entities)
        return self._base[key]

    def _append(self, texts: list[str], leading: bool, whole: bool = False) -> int:
        base = len(self._flat)
        blank = " " if leading else ""
        for tokens in self.tokenizer([blank + text for text in texts], add_special_tokens=False).input_ids:
            starts, inside = self._marks(tokens, whole)
            self._flat.append(tokens)
            self._starts.append(starts)
            self._inside.append(inside)
        return base

    def _marks(self, tokens: list[int], whole: bool) -> tuple[list[bool], list[bool]]:
        if self.rule == "none":
            return [False] * len(tokens), [False] * len(tokens)
        if self.rule == "entity" and whole:
            return [place == 0 for place in range(len(tokens))], [True] * len(tokens)
        pieces = [self._pieces[token] for token in tokens]
        return (entity_marks if self.rule == "entity" else word_marks)(pieces)

    def build(
        self,
        user: torch.Tensor,
        history: torch.Tensor,
        length: torch.Tensor,
        template: torch.Tensor,
        max_tokens: int,
        cut: str = "oldest",
    ) -> Prompts:
        """Prompts of a batch.

        Parameters
        ----------
        user, length, template : torch.LongTensor, shape (B,)
        history : torch.LongTensor, shape (B, L)
            Internal item ids, oldest first, right padded.
        max_tokens : int
            End token included.
        cut : {'oldest', 'right'}
            What gives way in a prompt that is too long: the oldest items, or the end of the prompt (P5's way, which
            loses the newest items).

        Raises
        ------
        ConfigError
            The words around the history alone are longer than ``max_tokens``.
        """
        device = user.device
        user, history, length, template = (t.cpu() for t in (user, history, length, template))
        segments, role = self._segments(user, history, length, template)
        count = self.count[segments]
        dropped = 0
        excess = count.sum(1, keepdim=True) + 1 - max_tokens
        if cut == "oldest" and bool((excess > 0).any()):
            of_history = count * (role > 0)
            drop = (role == ITEM) & (count > 0) & (of_history.cumsum(1) - of_history < excess)
            dropped = int(drop.sum())
            # A separator goes with the item before it.
            drop[:, 1:] |= (role[:, 1:] == SEPARATOR) & drop[:, :-1]
            segments = torch.where(drop, self.absent, segments)
            count = self.count[segments]
            if bool((count.sum(1) + 1 > max_tokens).any()):
                raise ConfigError(
                    f"max_prompt_tokens={max_tokens} does not hold the words around the history; raise it."
                )
        total = count.sum(1)
        flat = torch.repeat_interleave(self.first[segments].flatten(), count.flatten())
        step = torch.arange(len(flat)) - torch.repeat_interleave(
            count.flatten().cumsum(0) - count.flatten(), count.flatten()
        )
        place = flat + step
        kept = total.clamp(max=max_tokens - 1)
        width = int(kept.max()) + 1
        input_ids = torch.full((len(user), width), self.pad)
        row = torch.repeat_interleave(torch.arange(len(user)), total)
        column = torch.arange(len(row)) - (total.cumsum(0) - total)[row]
        inside = column < kept[row]
        row, column, place = row[inside], column[inside], place[inside]
        input_ids[row, column] = self.tokens[place]
        starts = torch.zeros(len(user), width, dtype=torch.bool)
        member = torch.zeros(len(user), width, dtype=torch.bool)
        starts[row, column] = self.starts[place]
        member[row, column] = self.inside[place]
        input_ids[torch.arange(len(user)), kept] = self.end
        mask = (torch.arange(width) <= kept[:, None]).long()
        return Prompts(input_ids.to(device), mask.to(device), whole_word_ids(starts, member).to(device), dropped)

    def _segments(
        self, user: torch.Tensor, history: torch.Tensor, length: torch.Tensor, template: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Segment numbers (B, S) of every prompt, and which of them are items or separators of the history."""
        step = torch.arange(history.shape[1])
        here, last = step < length[:, None], step == length[:, None] - 1
        rows: list[torch.Tensor] = []
        marks: list[torch.Tensor] = []
        order: list[torch.Tensor] = []
        for number in template.unique().tolist():
            chosen = (template == number).nonzero().flatten()
            columns, flags = [], []
            parts, separator = self.templates[number]
            for kind, base, end in parts:
                if kind == "text":
                    columns.append(torch.full((len(chosen), 1), base))
                elif kind == "user":
                    columns.append(base + user[chosen, None])
                else:
                    items = torch.where(last[chosen], end, base) + history[chosen]
                    items = torch.where(here[chosen], items, self.absent)
                    if separator is not None:
                        between = torch.where(here[chosen] & ~last[chosen], separator, self.absent)
                        items = torch.stack([items, between], dim=2).flatten(1)
                    columns.append(items)
                flags.append(torch.full(columns[-1].shape, ITEM if kind == "history" else 0))
                if kind == "history" and separator is not None:
                    flags[-1][:, 1::2] = SEPARATOR
            rows.extend(torch.cat(columns, dim=1).unbind(0))
            marks.extend(torch.cat(flags, dim=1).unbind(0))
            order.append(chosen)
        back = torch.cat(order).argsort()
        segments = pad_sequence(rows, batch_first=True, padding_value=self.absent)[back]
        return segments, pad_sequence(marks, batch_first=True)[back]
