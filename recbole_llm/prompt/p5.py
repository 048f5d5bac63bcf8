"""Prompts of P5, POD and LightLM: plain sentences with a user, a history, candidates or an item in them.

A template holds any of ``{user}``, ``{history}``, ``{candidates}`` and ``{item}``, each at most once; punctuation may
follow a field at once (``{history},``). Tokenizers split at spaces first, so a prompt's tokens are those of its words
side by side; the last item of a list takes the punctuation with it, because a tokenizer may join a digit and a comma.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from recbole_llm.errors import ConfigError
from recbole_llm.prompt.pieces import NONE, PieceTable
from recbole_llm.prompt.templates import FIELD
from recbole_llm.typing import Tokenizer

LISTS = ("history", "candidates")
ITEM, SEPARATOR = 1, 2  # roles of segments that belong to the history


def entity_marks(pieces: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Apply POD's rule: a piece ``_``, the piece before it and the pieces of digits right after it are one entity.

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
    """Apply P5's rule: every piece that starts a word starts something; everything belongs to it."""
    return [piece.startswith(("\u2581", " ")) or place == 0 for place, piece in enumerate(pieces)], [True] * len(
        pieces
    )


def whole_word_ids(starts: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Return the running number of the entity or word of each token, 0 outside; (..., T) bool -> (..., T) int64."""
    return starts.cumsum(-1) * inside


@dataclass(frozen=True)
class WordPrompts:
    """A batch of prompts, right padded.

    Attributes
    ----------
    input_ids, attention_mask, whole_word_ids : torch.LongTensor, shape (B, T)
        Padding and the end token have whole-word id 0.
    dropped : int
        History items dropped because the prompts were too long.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    whole_word_ids: torch.Tensor
    dropped: int


class _Part(NamedTuple):
    """A part of a template: a text or a field; ``end`` is the group of a list's last entry."""

    kind: str
    group: Any
    end: Any = None


class PromptTable:
    """Tokens of every word that can occur in a prompt.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        With an end and a padding token.
    templates : list of str
    items, users : list of str
        Words by internal id; entry 0, padding, is not used.
    separators : list of str
        Between two items of a list, for instance ``" "`` or ``" , "``. Every template comes with each of them:
        template ``t`` with separator ``s`` has the number ``t * len(separators) + s``.
    rule : {'entity', 'word', 'none'}
        Whole-word ids: POD's, P5's, or all 0.
    items_are_entities : bool
        With ``entity``: each item is one entity whatever its text is made of (titles).

    Attributes
    ----------
    longest_item : int
        Tokens of the longest item with a separator behind it.

    Raises
    ------
    ConfigError
        For a template with none of the fields, with one twice, or with something else in braces.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
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
        self._groups: dict[Any, list[list[int]]] = {}
        self._whole: set[Any] = set()
        self._words = {"user": list(users), **{field: list(items) for field in (*LISTS, "item")}}
        between = [self._text(text.strip(), True) if text.strip() else None for text in separators]
        self.templates = [(parts, text) for parts in map(self._parse, templates) for text in between]
        self.pieces = PieceTable(self._groups)
        starts, inside = self._marks(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
        self.starts, self.inside = torch.tensor(starts, dtype=torch.bool), torch.tensor(inside, dtype=torch.bool)
        self.longest_item = self._longest_item()
        del self._groups, self._whole, self._words

    def _longest_item(self) -> int:
        """Tokens of the longest item with the longest separator behind it."""
        items = max((max(map(len, rows)) for (kind, *_), rows in self._groups.items() if kind == "item"), default=1)
        separators = max((len(self._groups[group][0]) for _, group in self.templates if group is not None), default=0)
        return items + separators

    def _parse(self, template: str) -> list[_Part]:
        found = [field[1:-1] for field in FIELD.findall(template)]
        if not {"user", "history"} & set(found) or len(set(found)) < len(found):
            raise ConfigError(
                f"templates: {template!r} must hold {{user}} or {{history}} or both, and may hold {{candidates}} or "
                "{item}, each once."
            )
        parts: list[_Part] = []
        text: list[str] = []
        for word in template.split():
            field = FIELD.search(word)
            before, after = (word[: field.start()], word[field.end() :]) if field else (word, "")
            if "{" in before + after or "}" in before + after:
                raise ConfigError(
                    f"templates: {word!r} of {template!r}: only {{user}}, {{history}}, {{candidates}} and {{item}} "
                    "may be in braces, one in a word."
                )
            if field is None:
                text.append(word)
                continue
            kind = field.group()[1:-1]
            if kind in LISTS and before:
                raise ConfigError(f"templates: {word!r} of {template!r}: nothing may stand right before {{{kind}}}.")
            if text:
                parts.append(_Part("text", self._text(" ".join(text), bool(parts))))
                text = []
            if kind in LISTS:
                parts.append(_Part(kind, self._column(kind, "", "", True), self._column(kind, "", after, True)))
            else:
                parts.append(_Part(kind, self._column(kind, before, after, bool(parts))))
        if text:
            parts.append(_Part("text", self._text(" ".join(text), bool(parts))))
        return parts

    def _text(self, text: str, leading: bool) -> Any:
        return self._add(("text", text, leading), [text], leading)

    def _column(self, kind: str, before: str, after: str, leading: bool) -> Any:
        """Group of all users or items with ``before`` and ``after`` at once beside them."""
        group = ("user" if kind == "user" else "item", before, after, leading)
        if kind != "user" and self.items_are_entities:
            self._whole.add(group)
        return self._add(group, [before + word + after for word in self._words[kind]], leading)

    def _add(self, group: Any, texts: list[str], leading: bool) -> Any:
        if group not in self._groups:
            space = " " if leading else ""
            self._groups[group] = self.tokenizer([space + text for text in texts], add_special_tokens=False).input_ids
        return group

    def _marks(self, vocabulary: list[str]) -> tuple[list[bool], list[bool]]:
        """Whole-word marks of all tokens of the table."""
        starts: list[bool] = []
        inside: list[bool] = []
        for group, rows in self._groups.items():
            for tokens in rows:
                if self.rule == "none":
                    marks = [False] * len(tokens), [False] * len(tokens)
                elif self.rule == "entity" and group in self._whole:
                    marks = [place == 0 for place in range(len(tokens))], [True] * len(tokens)
                else:
                    rule = entity_marks if self.rule == "entity" else word_marks
                    marks = rule([vocabulary[token] for token in tokens])
                starts += marks[0]
                inside += marks[1]
        return starts, inside

    def build(
        self,
        user: torch.Tensor,
        history: torch.Tensor,
        length: torch.Tensor,
        template: torch.Tensor,
        max_tokens: int,
        cut: str = "oldest",
        candidates: torch.Tensor | None = None,
        item: torch.Tensor | None = None,
    ) -> WordPrompts:
        """Return the prompts of a batch.

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
        candidates : torch.LongTensor, shape (B, C), optional
            For templates with ``{candidates}``; 0 at the end where there are fewer.
        item : torch.LongTensor, shape (B,), optional
            For templates with ``{item}``.

        Raises
        ------
        ConfigError
            The words around the history alone are longer than ``max_tokens``.
        """
        device = user.device
        given = {"user": user[:, None], "history": history, "candidates": candidates}
        given["item"] = None if item is None else item[:, None]
        fields = {name: value.cpu() for name, value in given.items() if value is not None}
        segments, role = self._segments(fields, length.cpu(), template.cpu())
        dropped = 0
        if cut == "oldest":
            segments, dropped = self._without_oldest(segments, role, max_tokens)
        layout = self.pieces.layout(segments)
        kept = layout.length.clamp(max=max_tokens - 1)
        shape = (len(user), int(kept.max()) + 1)
        inside = layout.column < kept[layout.row]
        row, column, token = layout.row[inside], layout.column[inside], layout.token[inside]
        input_ids = torch.full(shape, self.pad)
        input_ids[row, column] = self.pieces.tokens[token].long()
        input_ids[torch.arange(len(user)), kept] = self.end
        starts, member = torch.zeros(2, *shape, dtype=torch.bool)
        starts[row, column], member[row, column] = self.starts[token], self.inside[token]
        mask = (torch.arange(shape[1]) <= kept[:, None]).long()
        return WordPrompts(input_ids.to(device), mask.to(device), whole_word_ids(starts, member).to(device), dropped)

    def _without_oldest(self, segments: torch.Tensor, role: torch.Tensor, max_tokens: int) -> tuple[torch.Tensor, int]:
        """Segments less the oldest items of too long prompts, and how many items that were."""
        count = self.pieces.counts(segments)
        excess = count.sum(1, keepdim=True) + 1 - max_tokens
        if not bool((excess > 0).any()):
            return segments, 0
        of_history = count * (role > 0)
        drop = (role == ITEM) & (count > 0) & (of_history.cumsum(1) - of_history < excess)
        dropped = int(drop.sum())
        # A separator goes with the item before it.
        drop[:, 1:] |= (role[:, 1:] == SEPARATOR) & drop[:, :-1]
        segments = torch.where(drop, NONE, segments)
        if bool((self.pieces.counts(segments).sum(1) + 1 > max_tokens).any()):
            raise ConfigError(
                f"max_prompt_tokens={max_tokens} does not hold the words around the history; raise it, or lower the "
                "number of candidates."
            )
        return segments, dropped

    def _segments(
        self, fields: dict[str, torch.Tensor], length: torch.Tensor, template: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Segment numbers (B, S) of every prompt, and which of them are items or separators of the history."""
        lengths = {"history": length}
        if "candidates" in fields:
            lengths["candidates"] = (fields["candidates"] > 0).sum(1)
        rows: list[torch.Tensor] = []
        marks: list[torch.Tensor] = []
        order: list[torch.Tensor] = []
        for number in template.unique().tolist():
            chosen = (template == number).nonzero().flatten()
            columns, flags = [], []
            parts, separator = self.templates[number]
            for part in parts:
                if part.kind in LISTS:
                    column = self._list(part, separator, fields[part.kind][chosen], lengths[part.kind][chosen])
                elif part.kind == "text":
                    column = self.pieces.column(part.group, len(chosen))
                else:
                    column = self.pieces.at(part.group) + fields[part.kind][chosen]
                flag = torch.full(column.shape, ITEM if part.kind == "history" else 0)
                if part.kind == "history" and separator is not None:
                    flag[:, 1::2] = SEPARATOR
                columns.append(column)
                flags.append(flag)
            rows.extend(torch.cat(columns, dim=1).unbind(0))
            marks.extend(torch.cat(flags, dim=1).unbind(0))
            order.append(chosen)
        back = torch.cat(order).argsort()
        segments = pad_sequence(rows, batch_first=True, padding_value=NONE)[back]
        return segments, pad_sequence(marks, batch_first=True)[back]

    def _list(self, part: _Part, separator: Any, items: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        step = torch.arange(items.shape[1])
        here, last = step < length[:, None], step == length[:, None] - 1
        numbers = items + torch.where(last, self.pieces.at(part.end), self.pieces.at(part.group))
        numbers = torch.where(here, numbers, NONE)
        if separator is None:
            return numbers
        between = torch.where(here & ~last, self.pieces.at(separator), NONE)
        return torch.stack([numbers, between], dim=2).flatten(1)
