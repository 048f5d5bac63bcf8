"""From the words that mark candidates to token ids whose logits are their scores."""

import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from recbole_llm.errors import ConfigError
from recbole_llm.llm.head import replaced_head
from recbole_llm.typing import LanguageModel, Tokenizer


def label_words(words: Sequence[str] | None, count: int) -> list[str]:
    """``count`` words that mark candidates: the given ones, or the letters from A on.

    Raises
    ------
    ConfigError
        If there are fewer words than candidates, or two are equal.
    """
    known = list(string.ascii_uppercase) if words is None else [str(word) for word in words]
    if len(known) < count:
        given = f"label_words has {len(known)}" if words is not None else "there are 26 letters"
        raise ConfigError(
            f"n_candidates={count} is too many: {given}. List as many label_words, each one token behind the prompt, "
            "such as [A, B, ..., Z, a, b, ...]."
        )
    if len(set(known)) < len(known):
        raise ConfigError(f"label_words={known!r} holds a word twice.")
    return known[:count]


def ids_in_context(tokenizer: Tokenizer, prompt: str, words: Sequence[str]) -> list[int]:
    """Return the token that each word is directly after a prompt: the one a model is trained to answer.

    Raises
    ------
    ConfigError
        If a word is not one token there, if it changes the tokens before it, or if two words share one.
    """
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer([prompt + word for word in words], add_special_tokens=False)["input_ids"]
    for word, ids in zip(words, after, strict=True):
        if ids[:-1] != before:
            found = tokenizer.convert_ids_to_tokens(ids[-3:])
            raise ConfigError(
                f"label_words: {word!r} is not one token of its own behind the prompt for {_name(tokenizer)} (the "
                f"text ends with the tokens {found}). Choose other label_words, or let the prompt end with a line "
                "break."
            )
    return _distinct(tokenizer, words, [ids[-1] for ids in after])


def ids_alone(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """Return the token that each word is by itself: the one LlamaRec's released code reads.

    A tokenizer that puts a blank before every text, such as Llama 2's, gives another token here than behind a line
    break, which training never touches.

    Raises
    ------
    ConfigError
        If a word is not one token, or if two words share one.
    """
    ids = tokenizer(list(words), add_special_tokens=False)["input_ids"]
    for word, row in zip(words, ids, strict=True):
        if len(row) != 1:
            raise ConfigError(
                f"verbalizer=original: {word!r} has {len(row)} tokens for {_name(tokenizer)}; it must be one. Use "
                "verbalizer=in_context."
            )
    return _distinct(tokenizer, words, [row[0] for row in ids])


def _distinct(tokenizer: Tokenizer, words: Sequence[str], ids: list[int]) -> list[int]:
    for number, (word, token) in enumerate(zip(words, ids, strict=True)):
        if token in ids[:number]:
            raise ConfigError(
                f"label_words: {words[ids.index(token)]!r} and {word!r} are the same token for {_name(tokenizer)}. "
                "Choose other label_words."
            )
    return ids


def _name(tokenizer: Tokenizer) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


@contextmanager
def only_logits_of(lm: LanguageModel, tokens: torch.Tensor) -> Iterator[None]:
    """Inside, a causal language model computes the logits of these tokens only, in their order and in 32 bits.

    The rest of the vocabulary costs as much as a layer or more: at d = 256 and 32,000 words, a third of a Llama of 6
    layers at 300 tokens on a CPU. Whatever the model does to its logits after its head, it does to these.

    Parameters
    ----------
    lm : transformers.PreTrainedModel or peft.PeftModel
        Its logits become ``(B, L, n)``; no other thread may call it meanwhile.
    tokens : torch.LongTensor, shape (n,)
        Ids in its vocabulary.
    """
    with replaced_head(lm, lambda head: _Rows(head, tokens)):
        yield


class _Rows(nn.Module):
    """Some outputs of a head."""

    def __init__(self, head: nn.Module, tokens: torch.Tensor) -> None:
        super().__init__()
        # Not registered: the head stays the model's own.
        self.head, self.tokens = (head,), tokens

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        (head,) = self.head
        if type(head) is not nn.Linear:  # quantized, or with adapters
            return head(hidden)[..., self.tokens]
        bias = None if head.bias is None else head.bias[self.tokens].float()
        # In 16 bits a quarter of 20 letters would be tied.
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), head.weight[self.tokens].float(), bias)
