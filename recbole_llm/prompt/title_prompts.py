"""Prompts that show titles line by line and are answered with titles, composed from token ids made once per title.

A prompt file has the sections ``[system]`` and ``[user]``; the user's holds ``{history}`` and, where items are chosen
from a list, ``{candidates}``, each on a line of its own. ``{list_length}`` is the number of titles to be written. A
tokenizer's chat template decides what stands around them, plain marks where it has none. Answers are one title, or
numbered titles.

Titles are joined where no tokenizer joins what stands on both sides: after a line break, and behind the number of a
line. See :mod:`recbole_llm.prompt.prompts`.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recbole_llm.config.registry import props_dir
from recbole_llm.errors import ConfigError
from recbole_llm.prompt.prompts import Prompts, backwards, beginning, joined, padding_id, pieces_between, tokens_of

HISTORY, CANDIDATES, LIST_LENGTH = "{history}", "{candidates}", "{list_length}"
# In a line of their own around a list; every title in it has a number in front, so that none is taken for a mark.
BEGIN, END = "[BEGIN]", "[END]"
INTRODUCTION = "Here are my recommendations."
SEPARATOR = "###"
_NUMBERED = re.compile(r"\s*\d+\s*[.)](?:\s+(.*)|)$")
_ANSWER = "<answer>"


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt file: what the ``system`` says and what the ``user`` asks."""

    name: str
    system: str
    user: str

    @classmethod
    def read(cls, name: str, with_candidates: bool) -> ChatPrompt:
        """Read ``props/prompt/<name>.txt``, or any file by its path.

        Raises
        ------
        ConfigError
            There is no such file, or it lacks the user's section or a field, or has one twice or inside a line.
        """
        ours, path = props_dir() / "prompt" / f"{name}.txt", Path(name).expanduser()
        file = ours if ours.is_file() and path.name == name else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"prompt={name!r} is neither one of ours nor a text file: {error}.") from error
        parts = re.split(r"^\[(system|user)\][ \t]*\n", text, flags=re.MULTILINE)
        sections = {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}
        if parts[0].strip() or parts[1::2] not in (["user"], ["system", "user"]):
            raise ConfigError(
                f"prompt={name!r}: {file} must have a section [user] and may have one [system] before it, each name "
                "on a line of its own."
            )
        system, user = sections.get("system", ""), sections["user"]
        wanted = [HISTORY, CANDIDATES] if with_candidates else [HISTORY]
        lines = [line for line in user.splitlines() if HISTORY in line or CANDIDATES in line]
        if lines != wanted or HISTORY in system or CANDIDATES in system:
            raise ConfigError(
                f"prompt={name!r}: the section [user] of {file} must hold {' and, after it, '.join(wanted)}, on a "
                f"line of its own and nowhere else{'' if with_candidates else f', and no {CANDIDATES}'}."
            )
        return cls(name, system, user)

    def with_length(self, list_length: int) -> ChatPrompt:
        """Return the prompt with the number of titles that are asked for in the place of ``{list_length}``."""
        system, user = (text.replace(LIST_LENGTH, str(list_length)) for text in (self.system, self.user))
        return replace(self, system=system, user=user)

    def rendered(self, tokenizer: Any, style: str) -> tuple[str, int | None]:
        """Return the whole prompt with its fields, and the token that ends an answer.

        ``style``: ``chat``, by the tokenizer's template or plain marks; ``completion``, the user's text and a line
        with :data:`SEPARATOR`.

        Raises
        ------
        ConfigError
            The chat template loses the user's text.
        """
        end = tokenizer.eos_token_id
        if style == "completion":
            return f"{self.user}\n{SEPARATOR}\n", end
        if not getattr(tokenizer, "chat_template", None):
            system = f"{SEPARATOR} System:\n{self.system}\n" if self.system else ""
            return f"{system}{SEPARATOR} User:\n{self.user}\n{SEPARATOR} Assistant:\n", end
        text = self._by_template(tokenizer, None)
        behind = self._by_template(tokenizer, _ANSWER).rpartition(_ANSWER)[2]
        turn = _first_added_token(tokenizer, behind)
        return text, end if turn is None else turn

    def _by_template(self, tokenizer: Any, answer: str | None) -> str:
        from jinja2 import TemplateError

        def apply(messages: list[dict[str, str]]) -> str:
            reply = [] if answer is None else [{"role": "assistant", "content": answer}]
            return tokenizer.apply_chat_template(
                messages + reply, tokenize=False, add_generation_prompt=answer is None, enable_thinking=False
            )

        text = ""
        if self.system:
            with suppress(TemplateError):  # some templates refuse a system message, others drop it
                text = apply([{"role": "system", "content": self.system}, {"role": "user", "content": self.user}])
        if not self.system or self.system not in text:
            text = apply([{"role": "user", "content": "\n".join(filter(None, (self.system, self.user)))}])
        if self.system not in text or self.user not in text:
            raise ConfigError(
                f"The chat template of {tokenizer.name_or_path or 'the tokenizer'} does not pass the prompt "
                f"{self.name!r} on as it is. Set prompt_style=completion, or choose another rec_llm."
            )
        return text


def _first_added_token(tokenizer: Any, text: str) -> int | None:
    """Return the token that a text begins with, blanks aside, if it was added to the vocabulary, special or not."""
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if token in added:
            return token
        if tokenizer.decode([token]).strip():
            break
    return None


def list_lines(titles: Sequence[str]) -> str:
    """An answer that is a list, as text."""
    lines = [f"{number}. {title}" for number, title in enumerate(titles, start=1)]
    return "\n".join([INTRODUCTION, BEGIN, *lines, END])


def parse_title(text: str) -> str:
    """Return the first line of an answer that is not blank; what a model writes behind it is no part of the title."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def parse_list(text: str, limit: int) -> list[str]:
    """Titles of an answer that is a list, at most ``limit``.

    What stands between the marks, or where they are missing the whole text; numbered lines, or where there is none
    all lines but the introduction.
    """
    lines = [line.strip() for line in text.splitlines()]
    if BEGIN in lines:
        lines = lines[lines.index(BEGIN) + 1 :]
    if END in lines:
        lines = lines[: lines.index(END)]
    matches = [_NUMBERED.match(line) for line in lines]
    if any(matches):
        return [(match[1] or "").strip() for match in matches if match][:limit]
    return [line for line in lines if line and line != INTRODUCTION][:limit]


class TitlePrompts(nn.Module):
    """Token ids of prompts and answers for batches of item ids.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    prompt : ChatPrompt
    titles : list of str
        What an item is called, by internal id; entry 0 (PAD) is never used.
    style : {"chat", "completion"}
        ``completion`` also numbers the history.
    list_length : int
        Titles of an answer; 0: answers are one title alone.
    max_history : int
        At most so many items of history: the newest.
    max_length : int, optional
        Tokens of a prompt at most. The oldest items of the history go first; nothing else is ever cut. None: no limit.

    Attributes
    ----------
    end : int
        The token behind every answer.
    example : str
        A prompt with its fields.
    inexact : int
        Pieces that the tokenizer joins with what stands beside them.
    """

    table: torch.Tensor
    start: torch.Tensor
    size: torch.Tensor

    def __init__(
        self,
        tokenizer: Any,
        prompt: ChatPrompt,
        titles: Sequence[str],
        style: str,
        list_length: int,
        max_history: int,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.max_history, self.max_length, self.list_length = max_history, max_length, list_length
        self.numbered = style == "completion"
        self.pad, self.inexact = padding_id(tokenizer), 0
        text, end = prompt.with_length(list_length).rendered(tokenizer, style)
        self.example = text
        if end is None:
            raise ConfigError(f"{tokenizer.name_or_path or 'The tokenizer'} has no end token, so no answer would end.")
        self.end = int(end)
        first, *others = re.split("|".join(map(re.escape, (HISTORY, CANDIDATES))), text)
        # Every line of a list ends with a line break of its own.
        pieces = self._pieces(tokenizer, first, [part.lstrip("\n") for part in others], list(titles))
        size = torch.tensor([len(piece) for piece in pieces])
        # Not saved: they come from the texts and the tokenizer, which the run records.
        table = torch.tensor([*itertools.chain.from_iterable(pieces)], dtype=torch.int32)
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("size", size, persistent=False)
        self.register_buffer("start", size.cumsum(0) - size, persistent=False)
        if self.inexact:
            logging.getLogger().warning(
                f"The tokenizer joins {self.inexact} titles or parts of prompts with what stands beside them; their "
                "token ids are not exactly those of the whole text."
            )

    # ---- pieces

    def _pieces(self, tokenizer: Any, first: str, others: list[str], titles: list[str]) -> list[list[int]]:
        """Token ids of everything a prompt or an answer is made of: opening, text between two lists, closing; opening
        and closing of a list in an answer; numbers, lines, lines behind a number, titles that are an answer."""

        def between(before: str, texts: list[str], after: str) -> list[list[int]]:
            pieces, inexact = pieces_between(tokenizer, before, texts, after)
            self.inexact += inexact
            return pieces

        opening = beginning(tokenizer, first) + tokenizer(first, add_special_tokens=False)["input_ids"]
        rest = [between("a\n", [part], "a")[0] for part in others]
        # `{candidates}` is missing in most prompts.
        between_lists, closing = rest if len(rest) == 2 else ([], rest[0])
        numbers = [f"{number}." for number in range(1, max(self.max_history, self.list_length) + 1)]
        numbered, one = self.numbered or self.list_length, not self.list_length
        before = "a\n" + others[-1]
        self._number = 5
        self._line = self._number + len(numbers)
        self._entry = self._line + len(titles)
        self._answer = self._entry + len(titles) * bool(numbered)
        return [
            opening,
            between_lists,
            closing,
            between(before, [f"{INTRODUCTION}\n{BEGIN}\n"], "1.")[0],
            between("a\n", [END], "")[0] + [self.end],
            *between("a\n", numbers, " a"),
            *between("a\n", [title + "\n" for title in titles], "a"),
            *(between("a\n1.", [f" {title}\n" for title in titles], "2.") if numbered else []),
            *([ids + [self.end] for ids in between(before, titles, "")] if one else []),
        ]

    def codes(self) -> list[list[int]]:
        """Token ids of every item as an answer, end token included, by internal id; ``[]`` for padding."""
        first, n = self._answer, self._entry - self._line
        bounds = zip(self.start[first : first + n].tolist(), self.size[first : first + n].tolist(), strict=True)
        codes = [self.table[start : start + size].tolist() for start, size in bounds]
        return [[], *codes[1:]]

    def longest_answer(self, share: float = 1.0) -> int:
        """Tokens of an answer with none but titles of this quantile of length, end token included."""
        first = self._entry if self.list_length else self._answer
        title = int(torch.quantile(self.size[first + 1 : first + self._entry - self._line].float(), share).ceil())
        if not self.list_length:
            return title
        numbers = int(self.size[self._number : self._number + self.list_length].sum())
        return int(self.size[3] + self.size[4]) + numbers + self.list_length * title

    def item_costs(self) -> torch.Tensor:
        """Tokens that an item adds to a prompt, shape (n_items,): what batches of similar length are made by."""
        return self.size[self._line : self._entry]

    # ---- prompts and answers

    def forward(self, history: torch.Tensor, length: torch.Tensor, candidates: torch.Tensor | None = None) -> Prompts:
        """Compose prompts.

        Parameters
        ----------
        history : torch.LongTensor, shape (B, L)
            Item ids, oldest first, right padded.
        length : torch.LongTensor, shape (B,)
        candidates : torch.LongTensor, shape (B, C), optional
            Item ids; 0 at the end where there are fewer.

        Returns
        -------
        Prompts

        Raises
        ------
        ConfigError
            If a prompt is longer than ``max_length`` even without a history.
        """
        return self._joined(self._segments(history, length, candidates))

    def with_answers(
        self, history: torch.Tensor, length: torch.Tensor, candidates: torch.Tensor | None, answers: torch.Tensor
    ) -> tuple[Prompts, torch.Tensor]:
        """Prompts with their answers, ``answers`` (B, 1) or (B, list_length), 0 is none; and the answers' tokens (B,).

        See :meth:`forward`.
        """
        segments = torch.cat([self._segments(history, length, candidates), self._answer_segments(answers)], dim=1)
        return self._joined(segments), self.answer_sizes(answers)

    def answer_sizes(self, answers: torch.Tensor) -> torch.Tensor:
        """Tokens of answers, end token included; (B, C) item ids -> (B,)."""
        return tokens_of(self._answer_segments(answers), self.size).sum(1)

    def _joined(self, segments: torch.Tensor) -> Prompts:
        return joined(segments, self.table, self.start, self.size, self.pad)

    def _answer_segments(self, answers: torch.Tensor) -> torch.Tensor:
        if not self.list_length:
            return self._answer + answers
        here = answers > 0
        number = self._number + torch.arange(answers.shape[1], device=answers.device).expand_as(answers)
        lines = torch.stack([number, self._entry + answers], dim=2)
        lines = torch.where(here[..., None], lines, -1).flatten(1)
        opening = torch.full((len(answers), 1), 3, device=answers.device)
        return torch.cat([opening, lines, opening + 1], dim=1)

    def _segments(self, history: torch.Tensor, length: torch.Tensor, candidates: torch.Tensor | None) -> torch.Tensor:
        """Numbers of the pieces of every prompt, (B, S); -1 is none."""
        device = history.device
        pool = torch.zeros(len(history), 0, dtype=torch.long, device=device)
        if candidates is not None:
            pool = torch.where(candidates > 0, self._line + candidates, -1)
        recent = min(self.max_history, history.shape[1])
        newest = backwards(history, length, recent)
        fixed = tokens_of(pool, self.size).sum(1) + self.size[:3].sum()
        kept = self._fitting(newest, length.clamp(max=recent), fixed)
        item = backwards(newest, kept, recent)
        place = torch.arange(recent, device=device)
        past = (self._entry if self.numbered else self._line) + item
        if self.numbered:
            past = torch.stack([(self._number + place).expand_as(past), past], dim=2)
            past = torch.where((place < kept[:, None])[..., None], past, -1).flatten(1)
        else:
            past = torch.where(place < kept[:, None], past, -1)
        one = torch.zeros(len(history), 1, dtype=torch.long, device=device)
        return torch.cat([one, past, one + 1, pool, one + 2], dim=1)

    def _fitting(self, newest: torch.Tensor, length: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """How many of the newest items, (B, recent), fit beside ``fixed`` (B,) tokens; (B,)."""
        if self.max_length is None:
            return length
        recent = newest.shape[1]
        cost = self.size[(self._entry if self.numbered else self._line) + newest]
        if self.numbered:
            cost = cost + self.size[self._number : self._number + recent]
        here = torch.arange(recent, device=newest.device) < length[:, None]
        kept = (here & (fixed[:, None] + cost.cumsum(1) <= self.max_length)).sum(1)
        if bool(((kept == 0) & (length > 0)).any()):
            raise ConfigError(
                f"max_prompt_tokens={self.max_length} is too small: the prompt without a history has "
                f"{int(fixed.max())} tokens, and not one title fits beside it. Raise it, or lower max_title_tokens, "
                "list_length or clusters."
            )
        return kept
