"""Prompts that show titles line by line and are answered with titles (LLMSeqPrompt).

A prompt file has the sections ``[system]`` and ``[user]``; the user's holds ``{history}`` and, where items are chosen
from a list, ``{candidates}``, each on a separate line. ``{list_length}`` is the number of titles to be written. A
tokenizer's chat template decides what stands around them, plain marks if it has none. Answers are one title, or
numbered titles.
"""

import re
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from recbole_llm.errors import ConfigError
from recbole_llm.llm.backbone import position_limit
from recbole_llm.llm.spec import ResolvedLLM
from recbole_llm.prompt.lists import ListPrompts, ListStyle, ListText
from recbole_llm.prompt.pieces import NONE, PieceMaker, Prompts
from recbole_llm.prompt.templates import check_placeholders, read_prompt
from recbole_llm.typing import Tokenizer

HISTORY, CANDIDATES, LIST_LENGTH = "{history}", "{candidates}", "{list_length}"
# In a line of their own around a list; every title in it has a number in front, so that none is taken for a mark.
BEGIN, END = "[BEGIN]", "[END]"
INTRODUCTION = "Here are my recommendations."
SEPARATOR = "###"
_NUMBERED = re.compile(r"\s*\d+\s*[.)](?:\s+(.*)|)$")
_ANSWER = "<answer>"
LINES = ListStyle("\n")
MAX_PROMPT_TOKENS = 4096  # where neither the settings nor the language model say less


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt file: the ``system`` and ``user`` texts."""

    name: str
    system: str
    user: str

    @classmethod
    def read(cls, name: str, with_candidates: bool) -> "ChatPrompt":
        """Read ``props/prompt/<name>.txt``, or any file by its path.

        Raises
        ------
        ConfigError
            There is no such file, or it lacks the user's section or a field, or has one twice or inside a line.
        """
        file, text = read_prompt(name)
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
        check_placeholders(text, [*wanted, LIST_LENGTH], f"prompt={name!r}: {file}")
        return cls(name, system, user)

    def with_length(self, list_length: int) -> "ChatPrompt":
        """Return the prompt with ``{list_length}`` replaced by the number of titles."""
        system, user = (text.replace(LIST_LENGTH, str(list_length)) for text in (self.system, self.user))
        return replace(self, system=system, user=user)

    def rendered(self, tokenizer: Tokenizer, style: str) -> tuple[str, int | None]:
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

    def _by_template(self, tokenizer: Tokenizer, answer: str | None) -> str:
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


def _first_added_token(tokenizer: Tokenizer, text: str) -> int | None:
    """Return the token that a text begins with, blanks aside, if it was added to the vocabulary, special or not."""
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if token in added:
            return token
        if tokenizer.decode([token]).strip():
            break
    return None


def parse_title(text: str) -> str:
    """Return the first line of an answer that is not blank; text after it is not part of the title."""
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


class TitlePrompts(ListPrompts):
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
        Newest items of the history that are shown.
    max_length : int, optional
        Maximum number of tokens of a prompt. The oldest items of the history go first; nothing else is ever cut. None:
        no limit.

    Attributes
    ----------
    end : int
        The token behind every answer.
    example : str
        A prompt with its fields.
    """

    length_key = "max_prompt_tokens"
    remedies = "lower max_title_tokens, list_length or clusters"
    needs_history = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: ChatPrompt,
        titles: Sequence[str],
        style: str,
        list_length: int,
        max_history: int,
        max_length: int | None = None,
    ) -> None:
        self.list_length = list_length
        self.example, end = prompt.with_length(list_length).rendered(tokenizer, style)
        if end is None:
            raise ConfigError(f"{tokenizer.name_or_path or 'The tokenizer'} has no end token, so no answer would end.")
        self.end = int(end)
        before, *others = re.split("|".join(map(re.escape, (HISTORY, CANDIDATES))), self.example)
        super().__init__(
            tokenizer,
            ListText(before, others[0] if len(others) == 2 else None, others[-1]),
            titles,
            _numbered_lines(max_history) if style == "completion" else LINES,
            LINES if len(others) == 2 else None,
            max_history,
            max_length,
        )

    def _groups(self, maker: PieceMaker) -> dict[Hashable, list[list[int]]]:
        groups = super()._groups(maker)
        if not self.list_length:
            # One title, directly behind the prompt.
            titles = maker.between("a\n" + self.list_text.after, self.titles, "")
            groups["answers"] = [ids + [self.end] for ids in titles]
            return groups
        style = _numbered_lines(self.list_length)
        groups["answer opening"] = maker.between("a\n", [f"{INTRODUCTION}\n{BEGIN}\n"], "1.")
        groups["answer closing"] = [maker.between("a\n", [END], "")[0] + [self.end]]
        groups["answer numbers"] = maker.between("a\n", style.marks, " a")
        self._line = self._add_titles(groups, maker, style, style.joiner, "2.")
        return groups

    def codes(self) -> list[list[int]]:
        """Return the token ids of every item as an answer, end token included, by internal id; ``[]`` for padding."""
        return [[], *self.pieces.ids("answers")[1:]]

    def longest_answer(self, share: float = 1.0) -> int:
        """Return the tokens of an answer whose titles all have this quantile of length, end token included."""
        sizes = self.pieces.sizes(self._line if self.list_length else "answers")
        title = int(torch.quantile(sizes[1:].float(), share).ceil())
        if not self.list_length:
            return title
        around = sum(int(self.pieces.sizes(f"answer {part}").sum()) for part in ("opening", "closing", "numbers"))
        return around + self.list_length * title

    def with_answers(
        self, history: torch.Tensor, length: torch.Tensor, candidates: torch.Tensor | None, answers: torch.Tensor
    ) -> tuple[Prompts, torch.Tensor]:
        """Return prompts with their answers, and how many tokens the answers have, (B,).

        ``answers``: item ids (B, 1) or (B, list_length); 0 is padding. See :meth:`forward`.
        """
        segments = torch.cat([self._segments(history, length, candidates), self._answer_segments(answers)], dim=1)
        return self.pieces.left_padded(segments, self.pad), self.answer_sizes(answers)

    def answer_sizes(self, answers: torch.Tensor) -> torch.Tensor:
        """Return the tokens of answers, end token included; (B, C) item ids -> (B,)."""
        return self.pieces.counts(self._answer_segments(answers)).sum(1)

    def _answer_segments(self, answers: torch.Tensor) -> torch.Tensor:
        pieces, rows = self.pieces, len(answers)
        if not self.list_length:
            return pieces.at("answers") + answers
        number = pieces.at("answer numbers") + torch.arange(answers.shape[1], device=answers.device)
        lines = torch.stack([number.expand_as(answers), pieces.at(self._line) + answers], dim=2)
        lines = torch.where((answers > 0)[..., None], lines, NONE).flatten(1)
        return torch.cat([pieces.column("answer opening", rows), lines, pieces.column("answer closing", rows)], dim=1)


def _numbered_lines(count: int) -> ListStyle:
    return ListStyle("\n", tuple(f"{number}." for number in range(1, count + 1)))


def prompt_limit(wanted: int | None, answer: int, resolved: ResolvedLLM) -> int:
    """Return the maximum number of tokens of a prompt whose answer has up to ``answer`` tokens.

    Raises
    ------
    ConfigError
        If prompt and answer do not fit into the positions of the language model.
    """
    positions = position_limit(resolved)
    limit = wanted
    if limit is None:
        limit = MAX_PROMPT_TOKENS if positions is None else min(MAX_PROMPT_TOKENS, positions - answer)
    if limit < 1 or (positions is not None and limit + answer > positions):
        raise ConfigError(
            f"max_prompt_tokens={limit} and an answer of up to {answer} tokens are beyond the {positions} positions "
            f"of {resolved.name}: lower max_prompt_tokens, max_title_tokens or list_length."
        )
    return limit
