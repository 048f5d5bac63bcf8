"""Prompts of a history and, where items are chosen from a list, candidates, composed for batches of item ids."""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from recbole_llm.errors import ConfigError
from recbole_llm.prompt.pieces import (
    NONE,
    PieceMaker,
    PieceTable,
    Prompts,
    backwards,
    padding_id,
    split_cut,
    split_space,
)
from recbole_llm.typing import Tokenizer


@dataclass(frozen=True)
class ListStyle:
    """How a list is written: an entry is ``mark title``, or the title alone without ``marks``.

    Attributes
    ----------
    joiner : str
        Between two entries; with a line break in it.
    marks : tuple of str
        By position in the list, at least as many as a list has entries; empty for none.
    """

    joiner: str
    marks: tuple[str, ...] = ()

    def text(self, titles: Sequence[str]) -> str:
        """Return the list as text."""
        marks = [f"{mark} " for mark in self.marks] or [""] * len(titles)
        return self.joiner.join(mark + title for mark, title in zip(marks, titles, strict=False))


@dataclass(frozen=True)
class ListText:
    """The text of a prompt around its lists; ``between`` is None where there are no candidates."""

    before: str
    between: str | None
    after: str


class ListPrompts(nn.Module):
    """Token ids of prompts with a history and, possibly, candidates.

    Every title is tokenised with what follows it in a list: the joiner, or, for the last entry, what stands behind the
    list up to the first place where tokens may be joined.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    text : ListText
    titles : list of str
        What an item is called in the prompt, by internal id; entry 0 (PAD) is never used.
    history, candidates : ListStyle
    max_history : int
        Newest items of the history that are shown.
    max_length : int, optional
        Maximum number of tokens of a prompt. The oldest items of the history go first; nothing else is ever cut. None:
        no limit.

    Attributes
    ----------
    pieces : PieceTable
    inexact : int
        Pieces that the tokenizer joins with what stands beside them: their prompts are not, token by token, what
        tokenising the whole text gives.
    """

    # What an error calls the limit, and what it advises.
    length_key = "max_prompt_length"
    remedies = "lower max_title_tokens or n_candidates"
    needs_history = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        text: ListText,
        titles: Sequence[str],
        history: ListStyle,
        candidates: ListStyle | None,
        max_history: int,
        max_length: int | None,
    ) -> None:
        super().__init__()
        self.max_history, self.max_length = max_history, max_length
        # What stands for padding is never shown.
        self.titles = ["a", *titles[1:]]
        self.styles = {"history": history, **({} if candidates is None else {"candidates": candidates})}
        self.list_text = text
        self.pad = padding_id(tokenizer)
        # Groups of titles: in the list, and at its end.
        self._entry: dict[str, Hashable] = {}
        self._last: dict[str, Hashable] = {}
        maker = PieceMaker(tokenizer)
        self.pieces = PieceTable(self._groups(maker))
        self.inexact = maker.inexact
        if self.inexact:
            logging.getLogger().warning(
                f"The tokenizer joins {self.inexact} entries of prompts with what stands beside them; their token ids "
                "are not exactly those of the whole text."
            )

    # ---- pieces

    def _groups(self, maker: PieceMaker) -> dict[Hashable, list[list[int]]]:
        """Token ids of everything that a prompt is made of, by group."""
        text = self.list_text
        following = [text.after] if text.between is None else [text.between, text.after]
        opening, lead = split_space(text.before)
        groups: dict[Hashable, list[list[int]]] = {"opening": [maker.opening(opening)]}
        before = opening
        for number, (name, behind) in enumerate(zip(self.styles, following, strict=True)):
            is_last = number == len(following) - 1
            end, rest = split_cut(behind)
            rest, next_lead = (rest, "") if is_last else split_space(rest)
            after = rest or ("" if is_last else next_lead + self._example_mark("candidates", 0))
            self._add_list(groups, maker, name, before, lead, end, after)
            style = self.styles[name]
            beside = "" if is_last else next_lead + self._example_mark("candidates", 0)
            head = f"a{style.joiner}{self._example_mark(name, 1)} a" if style.marks else "a"
            groups[f"after {name}"] = maker.between(head + end, [rest], beside)
            before, lead = head + end + rest, next_lead
        return groups

    def _example_mark(self, name: str, place: int) -> str:
        """Return a mark, to tokenise beside; where there are none, the beginning of a title."""
        marks = self.styles[name].marks
        return marks[min(place, len(marks) - 1)] if marks else "a"

    def _add_list(
        self,
        groups: dict[Hashable, list[list[int]]],
        maker: PieceMaker,
        name: str,
        before: str,
        lead: str,
        end: str,
        after: str,
    ) -> None:
        style = self.styles[name]
        head, tail = split_space(style.joiner)
        if style.marks:
            first, *others = style.marks
            groups[f"{name} marks"] = [
                *maker.between(before, [lead + first], " a"),
                *maker.between("a" + head, [tail + mark for mark in others], " a"),
            ]
        groups[f"no {name}"] = maker.between(before, [lead + end], after)
        following = tail + (self._example_mark(name, 2) if style.marks else "a")
        self._entry[name] = self._add_titles(groups, maker, style, head, following)
        self._last[name] = self._add_titles(groups, maker, style, end, after)

    def _add_titles(
        self, groups: dict[Hashable, list[list[int]]], maker: PieceMaker, style: ListStyle, suffix: str, after: str
    ) -> Hashable:
        """Add all titles as entries of a list with ``suffix`` behind them, unless they are there; return the group."""
        mark = style.marks[min(1, len(style.marks) - 1)] if style.marks else ""
        group = ("titles", bool(mark), suffix)
        if group not in groups:
            space = " " if mark else ""
            groups[group] = maker.between(
                "a" + style.joiner + mark, [space + title + suffix for title in self.titles], after
            )
        return group

    # ---- prompts

    def text(self, history: Sequence[int], candidates: Sequence[int] = ()) -> str:
        """Return the prompt of one row as text; item ids, oldest first, of at most ``max_history`` items."""
        text = self.list_text
        shown = self.styles["history"].text([self.titles[i] for i in history])
        if text.between is None:
            return text.before + shown + text.after
        listed = self.styles["candidates"].text([self.titles[i] for i in candidates])
        return text.before + shown + text.between + listed + text.after

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
        return self.pieces.left_padded(self._segments(history, length, candidates), self.pad)

    def item_costs(self) -> torch.Tensor:
        """Return the tokens that an item adds to a prompt, (n_items,): batches of similar length are made by them."""
        sizes = self.pieces.sizes(self._entry["history"])
        return sizes + self.pieces.sizes("history marks")[0] if self.styles["history"].marks else sizes

    def _segments(self, history: torch.Tensor, length: torch.Tensor, candidates: torch.Tensor | None) -> torch.Tensor:
        """Numbers of the pieces of every prompt, (B, S)."""
        rows, pieces = len(history), self.pieces
        behind = [pieces.column("after history", rows)]
        if candidates is not None:
            listed = self._list("candidates", candidates, (candidates > 0).sum(1))
            behind += [listed, pieces.column("after candidates", rows)]
        parts = [pieces.column("opening", rows), *behind]
        recent = min(self.max_history, history.shape[1])
        newest = backwards(history, length, recent)
        fixed = pieces.counts(torch.cat(parts, dim=1)).sum(1)
        kept = self._fitting(newest, length.clamp(max=recent), fixed)
        return torch.cat([parts[0], self._list("history", backwards(newest, kept, recent), kept), *behind], dim=1)

    def _list(self, name: str, items: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Pieces of the first ``count`` (B,) of ``items`` (B, C) as a list."""
        place = torch.arange(items.shape[1], device=items.device)
        entry, last = self.pieces.at(self._entry[name]), self.pieces.at(self._last[name])
        numbers = items + torch.where(place == count[:, None] - 1, last, entry)
        if self.styles[name].marks:
            marks = (self.pieces.at(f"{name} marks") + place).expand_as(numbers)
            numbers = torch.stack([marks, numbers], dim=2)
            numbers = torch.where((place < count[:, None])[..., None], numbers, NONE).flatten(1)
        else:
            numbers = torch.where(place < count[:, None], numbers, NONE)
        return torch.cat([numbers, self.pieces.column(f"no {name}", len(items), count == 0)], dim=1)

    def _fitting(self, newest: torch.Tensor, length: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """How many of the newest items, (B, recent), fit beside ``fixed`` (B,) tokens; (B,)."""
        if self.max_length is None:
            return length
        cost = self.pieces.sizes(self._entry["history"])[newest]
        cost[:, :1] = self.pieces.sizes(self._last["history"])[newest[:, :1]]
        if self.styles["history"].marks:
            cost = cost + self.pieces.sizes("history marks")[: newest.shape[1]]
        place = torch.arange(newest.shape[1], device=newest.device)
        kept = ((place < length[:, None]) & (fixed[:, None] + cost.cumsum(1) <= self.max_length)).sum(1)
        without = fixed + self.pieces.sizes("no history")[0]
        wanted = length > 0 if self.needs_history else without > self.max_length
        if bool(((kept == 0) & wanted).any()):
            raise ConfigError(
                f"{self.length_key}={self.max_length} is too small: the prompt without a history has "
                f"{int(without.max())} tokens{', and not one title fits beside it' * self.needs_history}. Raise it, "
                f"or {self.remedies}."
            )
        return kept
