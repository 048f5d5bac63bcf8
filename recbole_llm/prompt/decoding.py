"""Items from a generating language model: beam search, free or along a trie of item codes, and its exact oracle.

A beam's score is the sum of the log-probabilities of its tokens, the end token included. Probabilities are not
renormalised inside the trie, so the score of an item is that of teacher forcing its code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessor, StoppingCriteria
from transformers.modeling_outputs import BaseModelOutput

from recbole_llm.errors import ConfigError
from recbole_llm.llm.kept import cache_name
from recbole_llm.typing import LanguageModel, Tokenizer

# Scores at or below this belong to no sequence: generate() marks beams that could not be filled with -1e9.
NOTHING = -1e8
# Scores of the items that no beam reached lie below this, one apart; float32 counts exactly up to 2**24.
UNREACHED = -1e6


class Trie(nn.Module):
    """Codes of the catalogue as tensors: edges (node, token) -> node, sorted, so that a step is one binary search.

    Parameters
    ----------
    codes : sequence of sequences of int
        Token ids by internal item id, each with its end token; ``codes[0]``, padding, is left out.
    vocab_size : int

    Attributes
    ----------
    item_of : torch.LongTensor, shape (nodes + 1,)
        Item that ends at a node, 0 for none.
    keys, child : torch.LongTensor, shape (edges,)
        Edges as ``node * vocab_size + token``, sorted, and the nodes that they lead to.
    count, first : torch.LongTensor, shape (nodes + 1,)
        Number of edges from a node, and the place of the first one.

    Raises
    ------
    ConfigError
        Two items share a code, a code is empty, or one is the beginning of another.
    """

    item_of: torch.Tensor
    keys: torch.Tensor
    child: torch.Tensor
    count: torch.Tensor
    first: torch.Tensor

    def __init__(self, codes: Sequence[Sequence[int]], vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.max_length = max(len(code) for code in codes[1:])
        edges: dict[int, int] = {}
        item_of = [0]
        for item, code in enumerate(codes[1:], start=1):
            node = 0
            for token in code:
                key = node * vocab_size + token
                if key not in edges:
                    edges[key] = len(item_of)
                    item_of.append(0)
                node = edges[key]
            if node == 0:
                raise ConfigError(f"item_index: internal item {item} has no tokens.")
            if item_of[node]:
                raise ConfigError(f"item_index: internal items {item_of[node]} and {item} have the same tokens.")
            item_of[node] = item
        keys = torch.tensor(sorted(edges))
        child = torch.tensor([edges[key] for key in keys.tolist()])
        count = torch.bincount(keys // vocab_size, minlength=len(item_of))
        if bool((count[torch.tensor(item_of) > 0] > 0).any()):
            raise ConfigError("item_index: the tokens of one item are the beginning of another's; give them an end.")
        # The last node, one more than there are, is where strangers end.
        count = functional.pad(count, (0, 1))
        tensors = {"item_of": torch.tensor([*item_of, 0]), "keys": keys, "child": child, "count": count}
        for name, tensor in {**tensors, "first": count.cumsum(0) - count}.items():
            self.register_buffer(name, tensor, persistent=False)

    def walk(self, tokens: torch.Tensor) -> torch.Tensor:
        """Node after reading tokens from the root; (N, T) -> (N,). Tokens after an item has ended do not count."""
        stranger = len(self.item_of) - 1
        node = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        for token in tokens.unbind(1):
            key = node * self.vocab_size + token
            place = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
            there = self.keys[place] == key
            ended = self.item_of[node] > 0
            node = torch.where(ended, node, torch.where(there, self.child[place], stranger))
        return node

    def mask(self, scores: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
        """``scores`` (N, V) with every token but those that lead on from ``node`` (N,) at ``-inf``."""
        count = self.count[node]
        row = torch.repeat_interleave(torch.arange(len(node), device=node.device), count)
        place = torch.arange(len(row), device=node.device) - (count.cumsum(0) - count)[row] + self.first[node][row]
        token = self.keys[place] % self.vocab_size
        masked = torch.full_like(scores, -torch.inf)
        masked[row, token] = scores[row, token]
        return masked


class TrieConstraint(LogitsProcessor):  # type: ignore[misc]
    """Constraint of generate() to the trie; the first ``skip`` tokens of a sequence are not part of a code."""

    def __init__(self, trie: Trie, skip: int = 1) -> None:
        self.trie, self.skip = trie, skip

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See :class:`transformers.LogitsProcessor`."""
        return self.trie.mask(scores, self.trie.walk(input_ids[:, self.skip :]))


class LineEnd(nn.Module):
    """Stopping criterion for one-line answers: the line break after the first words.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    vocab_size : int
        Width of the logits.
    """

    words: torch.Tensor
    breaks: torch.Tensor
    whole: torch.Tensor

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        super().__init__()
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
        lines = [text.split("\n") for text in texts][:vocab_size]
        rest = vocab_size - len(lines)
        words = [any(line.strip() for line in parts) for parts in lines]
        breaks = [len(parts) > 1 for parts in lines]
        whole = [any(line.strip() for line in parts[:-1]) for parts in lines]
        for name, marks in {"words": words, "breaks": breaks, "whole": whole}.items():
            self.register_buffer(name, functional.pad(torch.tensor(marks), (0, rest)), persistent=False)

    def behind(self, width: int) -> StoppingCriteria:
        """Return the criterion for prompts of ``width`` tokens."""
        return _AtLineEnd(self, width)


class _AtLineEnd(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, line: LineEnd, width: int) -> None:
        self.line, self.width = line, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        written, last = input_ids[:, self.width :], input_ids[:, -1]
        begun = self.line.words[written[:, :-1]].any(1)
        return self.line.breaks[last] & (begun | self.line.whole[last])


@dataclass
class DecodingCounts:
    """Counts of beams by outcome, over all rows since the last reset."""

    counts: dict[str, float] = field(default_factory=dict)

    def add(self, **numbers: float) -> None:
        """Add to the counts."""
        for name, number in numbers.items():
            self.counts[name] = self.counts.get(name, 0) + number

    def rates(self) -> dict[str, float]:
        """Shares of beams that are no item, repeat one or are in the history; and of list places by their origin.

        ``named_rate``: places of the final lists, without what the mask removes, that a beam took; ``filled_rate``:
        the others.
        """
        beams = max(self.counts.get("beams", 0), 1)
        shares = {f"{name}_rate": self.counts.get(name, 0) / beams for name in ("invalid", "duplicate", "seen")}
        filled = self.counts.get("filled", 0) / max(self.counts.get("places", 0), 1)
        return {**shares, "named_rate": 1 - filled, "filled_rate": filled}


class BeamCache(EncoderDecoderCache):  # type: ignore[misc]
    """Keys and values of a T5 decoder in a beam search.

    What the decoder reads of the prompt is the same for all beams of a row. generate() would compute it for each of
    them, and copy it whenever beams change places: at 20 beams and 100 tokens that costs more than the decoder.

    Parameters
    ----------
    model : transformers T5ForConditionalGeneration
    encoder_hidden : torch.Tensor, shape (B, T, d)
    beams : int
    """

    def __init__(self, model: LanguageModel, encoder_hidden: torch.Tensor, beams: int) -> None:
        cross = DynamicCache()
        for number, block in enumerate(model.get_decoder().block):
            attention = block.layer[1].EncDecAttention
            shape = (*encoder_hidden.shape[:2], -1, attention.key_value_proj_dim)
            key, value = (
                part(encoder_hidden).view(shape).transpose(1, 2).repeat_interleave(beams, dim=0)
                for part in (attention.k, attention.v)
            )
            cross.update(key, value, number)
        super().__init__(DynamicCache(), cross)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Follow the beams, which only move within their row."""
        self.self_attention_cache.reorder_cache(beam_idx)


@torch.no_grad()
def beam_search(
    model: LanguageModel,
    encoder_hidden: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: Trie,
    beams: int,
    constrained: bool,
    max_length: int | None = None,
    length_penalty: float = 0.0,
    early_stopping: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of the best beams, by transformers' ``generate``.

    Parameters
    ----------
    model : transformers encoder-decoder model
    encoder_hidden : torch.Tensor, shape (B, T, d)
        Output of the encoder.
    attention_mask : torch.Tensor, shape (B, T)
        What the decoder may attend to.
    trie : Trie
        Codes of the catalogue.
    beams : int
    constrained : bool
        Whether every step stays on the trie.
    max_length : int, optional
        New tokens at most; default: the longest code.
    length_penalty : float
        A beam's score is divided by its length to this power; 0 ranks by probability.
    early_stopping : bool
        Stop as soon as there are ``beams`` finished sequences, as P5 and POD do.

    Returns
    -------
    item : torch.LongTensor, shape (B, beams)
        0 where a beam is no item of the catalogue.
    score : torch.Tensor, shape (B, beams)
        Descending.
    """
    processors = [TrieConstraint(trie)] if constrained else []
    output = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden),
        attention_mask=attention_mask,
        logits_processor=processors,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=trie.max_length if max_length is None else max_length,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        do_sample=False,
        use_cache=True,
        output_scores=True,
        return_dict_in_generate=True,
        **{cache_name(model): BeamCache(model, encoder_hidden, beams)},
    )
    item = trie.item_of[trie.walk(output.sequences[:, 1:])]
    score = output.sequences_scores
    return (item * (score > NOTHING)).view(-1, beams), score.view(-1, beams)


def exact_scores(
    model: LanguageModel,
    encoder_hidden: torch.Tensor,
    attention_mask: torch.Tensor,
    codes: Sequence[Sequence[int]],
    chunk: int = 256,
) -> torch.Tensor:
    """Log-probability of every item's code by teacher forcing: the oracle of beam search, for small catalogues.

    Returns
    -------
    torch.Tensor, shape (B, n_items)
        Column 0 is ``-inf``.
    """
    start = model.config.decoder_start_token_id
    rows = []
    for hidden, mask in zip(encoder_hidden, attention_mask, strict=True):
        parts = [torch.full((1,), -torch.inf, device=hidden.device)]
        for first in range(1, len(codes), chunk):
            group = [torch.tensor(code) for code in codes[first : first + chunk]]
            labels = torch.nn.utils.rnn.pad_sequence(group, batch_first=True, padding_value=-100).to(hidden.device)
            inputs = functional.pad(labels.clamp(min=0), (1, -1), value=start)
            logits = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden.expand(len(group), -1, -1)),
                attention_mask=mask.expand(len(group), -1),
                decoder_input_ids=inputs,
                use_cache=False,
            ).logits.float()
            losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            parts.append(-losses.sum(1))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def item_scores(item: torch.Tensor, score: torch.Tensor, fill: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Scores of the whole catalogue from beams: an item has that of its best beam, the others follow in random order.

    No two items that no beam reached are tied, so that a list's tail is neither the smallest ids nor the same for
    everybody.

    Parameters
    ----------
    item, score : torch.Tensor, shape (B, beams)
        From :func:`beam_search`.
    fill : torch.LongTensor, shape (n_items - 1,)
        A permutation of 0 .. n_items - 2.
    shift : torch.LongTensor, shape (B,)
        Where in the permutation each row begins.

    Returns
    -------
    torch.Tensor, shape (B, n_items)
        Column 0 is ``-inf``.
    """
    rank, score = (fill + shift[:, None]) % len(fill), score.float()
    scores = functional.pad(UNREACHED - rank.to(score.dtype), (1, 0), value=-torch.inf)
    reached = torch.where(item > 0, score, -torch.inf)
    best = torch.full_like(scores, -torch.inf).scatter_reduce(1, item, reached, "amax", include_self=True)
    best[:, 0] = -torch.inf
    return torch.where(best > -torch.inf, best, scores)


def count_beams(
    counts: DecodingCounts, item: torch.Tensor, history: torch.Tensor, left_out: torch.Tensor, k: int
) -> None:
    """Count invalid, repeated and already-seen items among beams, and list places that no beam takes.

    Parameters
    ----------
    counts : DecodingCounts
    item : torch.LongTensor, shape (B, beams)
    history : torch.LongTensor, shape (B, L), padded with 0
    left_out : torch.LongTensor, shape (B, W), padded with 0
        What may not be recommended: beams on it take no place.
    k : int
        Length of the lists that are read.
    """
    valid = item > 0
    seen = (item[:, :, None] == history[:, None, :]).any(2) & valid
    listed = torch.where((item[:, :, None] == left_out[:, None, :]).any(2), 0, item)
    ordered, kept = item.sort(1).values, listed.sort(1).values
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
    distinct = (kept[:, :1] > 0).sum(1) + ((kept[:, 1:] != kept[:, :-1]) & (kept[:, 1:] > 0)).sum(1)
    # One transfer for all of them.
    numbers = torch.stack([(~valid).sum(), repeated.sum(), seen.sum(), (k - distinct).clamp(min=0).sum()]).tolist()
    invalid, duplicate, known, filled = numbers
    counts.add(
        beams=item.numel(), invalid=invalid, duplicate=duplicate, seen=known, filled=filled, places=len(item) * k
    )
