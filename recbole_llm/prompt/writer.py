"""Answers that a causal language model writes to prompts: sampled, or by beam search, several to a prompt."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig

from recbole_llm.llm.head import float32_logits
from recbole_llm.llm.kept import cache_name
from recbole_llm.prompt.decoding import NOTHING, LineEnd, Trie, TrieConstraint
from recbole_llm.prompt.pieces import Prompts
from recbole_llm.prompt.sampling import SeededSampling, scramble
from recbole_llm.typing import LanguageModel, Tokenizer


@dataclass(frozen=True)
class Writing:
    """How answers are written.

    Attributes
    ----------
    decoding : {"sample", "beam", "trie"}
        ``trie`` is a beam search that stays on a trie.
    temperature, top_p : float
        Of ``sample``; at temperature 0 the likeliest token is taken.
    answers : int
        Answers to a prompt.
    max_new_tokens : int
        Of an answer.
    batch_size : int
        Prompts that are answered at once.
    """

    decoding: str
    temperature: float
    top_p: float
    answers: int
    max_new_tokens: int
    batch_size: int

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.decoding == "sample" and self.temperature > 0

    @property
    def distinct(self) -> int:
        """Number of answers to a prompt that can differ: without chance every sample is the same."""
        return 1 if self.decoding == "sample" and not self.samples else self.answers


class Writer:
    """A causal language model that answers.

    Parameters
    ----------
    lm : transformers causal language model, or a PEFT model around it
    tokenizer : transformers tokenizer
    writing : Writing
    ends : list of int
        Tokens that end an answer.
    pad : int
        Token behind the end of the shorter answers of a batch.
    trie : Trie, optional
        What ``decoding: trie`` stays on.
    line_end : LineEnd, optional
        Ends answers at the end of their first line.

    Attributes
    ----------
    tokens : int
        Number of tokens that were written, end tokens included.
    """

    def __init__(
        self,
        lm: LanguageModel,
        tokenizer: Tokenizer,
        writing: Writing,
        ends: list[int],
        pad: int,
        trie: Trie | None = None,
        line_end: LineEnd | None = None,
    ) -> None:
        self.lm, self.tokenizer, self.writing = lm, tokenizer, writing
        self.ends, self.pad = ends, pad
        self.trie, self.line_end = trie, line_end
        self.tokens = 0

    def answers(self, prompts: Prompts, keys: torch.Tensor) -> list[list[str]]:
        """Answer prompts, those of similar length together.

        Parameters
        ----------
        prompts : Prompts
        keys : torch.LongTensor, shape (B, 1)
            What the draws of each row are made from.

        Returns
        -------
        list of list of str
            As many answers to each prompt as :class:`Writing` asks for.
        """
        order = prompts.length.argsort(stable=True)
        widths = prompts.length[order].tolist()
        answers: list[list[str]] = [[] for _ in widths]
        for start in range(0, len(order), self.writing.batch_size):
            rows = order[start : start + self.writing.batch_size]
            width = widths[start + len(rows) - 1]
            with float32_logits(self.lm):
                texts = self._continued(prompts.ids[rows, -width:], prompts.mask[rows, -width:], keys[rows])
            repeats = self.writing.answers // self.writing.distinct
            for row, text in zip(rows.tolist(), texts, strict=True):
                answers[row] = text * repeats
        return answers

    def _continued(self, ids: torch.Tensor, mask: torch.Tensor, keys: torch.Tensor) -> list[list[str]]:
        """Answers to left-padded prompts, (B, W): prompts are read once, however many answers there are."""
        writing, count, (rows, width) = self.writing, self.writing.distinct, ids.shape
        beams = writing.decoding != "sample" and count > 1
        cache = self._cache(ids, mask, count)
        processors: list[Any] = [] if self.trie is None else [TrieConstraint(self.trie, skip=width)]
        options: dict[str, Any] = {}
        if beams:
            options = {
                "num_beams": count,
                "num_return_sequences": count,
                "length_penalty": 0.0,
                "early_stopping": False,
            }
        else:
            ids, mask = ids.repeat_interleave(count, 0), mask.repeat_interleave(count, 0)
            if writing.samples:
                number = torch.arange(1, count + 1, device=ids.device)
                drawn = scramble(keys + scramble(number)).view(-1, 1)
                processors = [SeededSampling(drawn, width, writing.temperature, writing.top_p)]
        output = self.lm.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=writing.max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=self.pad,
                eos_token_id=self.ends,
                output_scores=beams,
                return_dict_in_generate=True,
                **options,
            ),
            logits_processor=processors,
            stopping_criteria=[] if self.line_end is None else [self.line_end.behind(width)],
            **{cache_name(self.lm): cache},
        )
        texts = self._decoded(output.sequences[:, width:].tolist())
        if beams:
            # Where there are fewer names than beams.
            filled = (output.sequences_scores > NOTHING).tolist()
            texts = [text if has else "" for text, has in zip(texts, filled, strict=True)]
        return [texts[first : first + count] for first in range(0, rows * count, count)]

    def _cache(self, ids: torch.Tensor, mask: torch.Tensor, count: int) -> Any:
        """Keys and values of all tokens of the prompts but the last, ``count`` times each."""
        if ids.shape[1] == 1:
            return None
        places = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.lm.config)
        self.lm(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=places[:, :-1],
            use_cache=True,
            logits_to_keep=1,
            **{cache_name(self.lm): cache},
        )
        cache.batch_repeat_interleave(count)
        return cache

    def _decoded(self, written: list[list[int]]) -> list[str]:
        """Texts up to their end, which need not be a special token, or up to the padding behind a stopped one."""
        ends = {*self.ends, self.pad}
        sizes = [next((n for n, token in enumerate(row) if token in ends), len(row)) for row in written]
        self.tokens += sum(min(size + 1, len(row)) for size, row in zip(sizes, written, strict=True))
        texts = [row[:size] for size, row in zip(sizes, written, strict=True)]
        return self.tokenizer.batch_decode(texts, skip_special_tokens=True, clean_up_tokenization_spaces=False)
