"""LlamaRec's prompt (arXiv 2311.02089, Sec. 3.2.2): a numbered history, and candidates marked by letters.

A prompt file holds the text around ``{history}`` and ``{candidates}``. Both become entries ``(mark) title`` joined by
space, newline, space: the history is marked by numbers from its oldest entry on, the candidates by the words that the
answer is read from.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recbole_llm.errors import ConfigError
from recbole_llm.prompt.lists import ListPrompts, ListStyle, ListText
from recbole_llm.prompt.pieces import cut_titles
from recbole_llm.prompt.templates import check_placeholders, read_prompt
from recbole_llm.typing import Tokenizer

JOINER = " \n "
_FIELDS = ("{history}", "{candidates}")


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt file: the text ``before`` the history, ``between`` it and the candidates, and ``after`` them."""

    name: str
    before: str
    between: str
    after: str

    @classmethod
    def read(cls, name: str) -> "PromptTemplate":
        """Read ``props/prompt/<name>.txt``, or any file by its path.

        Raises
        ------
        ConfigError
            If there is no such file, or it does not hold ``{history}`` and then ``{candidates}``.
        """
        file, text = read_prompt(name)
        parts = re.split("|".join(map(re.escape, _FIELDS)), text)
        if re.findall("|".join(map(re.escape, _FIELDS)), text) != [*_FIELDS]:
            raise ConfigError(f"prompt={name!r}: {file} must hold {_FIELDS[0]} once and, after it, {_FIELDS[1]} once.")
        check_placeholders(text, _FIELDS, f"prompt={name!r}: {file}")
        return cls(name, *parts)

    def text(self, history: Sequence[str], candidates: Sequence[str], words: Sequence[str]) -> str:
        """Return the prompt as one string: titles of the history, oldest first, and of the candidates."""
        listed = _numbered(len(history)).text(history), _marked(words).text(candidates)
        return self.before + listed[0] + self.between + listed[1] + self.after


class PromptComposer(ListPrompts):
    """Token ids of LlamaRec's prompts for batches of item ids.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    template : PromptTemplate
    titles : list of str
        Title of every internal item id; entry 0 (PAD) is never used.
    words : list of str
        Marks of the candidates, at least as many as a prompt has.
    max_history : int
        Newest items of the history that are shown.
    max_length : int
        Maximum number of tokens of a prompt. The oldest items of the history go first; nothing else is ever cut.
    max_title_tokens : int, optional
        Longer titles are cut; None cuts none.

    Attributes
    ----------
    titles : list of str
        As shown in the prompts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: PromptTemplate,
        titles: Sequence[str],
        words: Sequence[str],
        max_history: int,
        max_length: int,
        max_title_tokens: int | None = None,
    ) -> None:
        self.words = list(words)
        super().__init__(
            tokenizer,
            ListText(template.before, template.between, template.after),
            cut_titles(tokenizer, titles, max_title_tokens),
            _numbered(max_history),
            _marked(words),
            max_history,
            max_length,
        )


def _numbered(count: int) -> ListStyle:
    return _marked(range(1, count + 1))


def _marked(words: Iterable[object]) -> ListStyle:
    return ListStyle(JOINER, tuple(f"({word})" for word in words))
