"""Letters behind a prompt: their logits, the loss of the right one, and what each has whatever the prompt says."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional

from recbole_llm.errors import ConfigError
from recbole_llm.llm.head import float32_logits
from recbole_llm.llm.kept import Kept
from recbole_llm.llm.left_padded import last_logits
from recbole_llm.prompt.beginnings import SharedBeginnings
from recbole_llm.prompt.letters import PromptComposer, PromptTemplate
from recbole_llm.prompt.pieces import Prompts
from recbole_llm.prompt.verbalizer import ids_alone, ids_in_context, only_logits_of
from recbole_llm.typing import LanguageModel, Tokenizer

# Titles without content (Zhao et al., "Calibrate Before Use", arXiv 2102.09690, use such words).
CONTENT_FREE = ("N/A", "[MASK]", "item")


class LetterReader(nn.Module):
    """Reader of a causal language model's answers, which are letters.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    composer : PromptComposer
        Makes the prompts; its ``words`` are the letters.
    example : str
        A prompt, as text.
    loss : {"letter_eos", "letter", "candidates"}
        Cross-entropy over the vocabulary of letter and end token, or of the letter; or of the letter among the
        candidates' letters.
    in_context : bool
        Read the token that a letter is behind the prompt, not the one that it is alone.
    calibrated : bool
        Letters have a :attr:`bias` to take off.

    Attributes
    ----------
    answer_ids, letter_ids : torch.LongTensor, shape (C,)
        Tokens that are trained, and tokens that are read.
    bias : torch.Tensor, shape (C,)
        Mean log-probability of each letter among the letters; ``inf``: not known for the present weights. Saved with
        the weights; only if ``calibrated``.

    Raises
    ------
    ConfigError
        A letter is not one token, or there is no end token to train.
    """

    answer_ids: torch.Tensor
    letter_ids: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        tokenizer: Tokenizer,
        composer: PromptComposer,
        example: str,
        loss: str,
        in_context: bool = True,
        calibrated: bool = False,
    ) -> None:
        super().__init__()
        if loss == "letter_eos" and tokenizer.eos_token_id is None:
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise ConfigError(f"ranker_loss=letter_eos: {name} has no end token. Use ranker_loss=letter.")
        answers = ids_in_context(tokenizer, example, composer.words)
        read = answers if in_context else ids_alone(tokenizer, composer.words)
        self.loss, self.eos, self.calibrated = loss, tokenizer.eos_token_id, calibrated
        # Not saved: they come from the tokenizer, which the run records.
        self.register_buffer("answer_ids", torch.tensor(answers), persistent=False)
        self.register_buffer("letter_ids", torch.tensor(read), persistent=False)
        if calibrated:
            self.register_buffer("bias", torch.full((len(read),), torch.inf))

    # ---- logits

    def letters(
        self, lm: LanguageModel, ids: torch.Tensor, mask: torch.Tensor, count: int, kept: Kept | None = None
    ) -> torch.Tensor:
        """Logits of the first letters behind left-padded texts, (B, count); of no other word."""
        of = only_logits_of if torch.is_grad_enabled() else float32_logits
        with of(lm, self.letter_ids[:count]):
            return last_logits(lm, ids, mask, 1, kept)[:, -1]

    @torch.no_grad()
    def by_length(self, lm: LanguageModel, orders: Sequence[Prompts], count: int, batch: int) -> torch.Tensor:
        """As :meth:`letters`, ``batch`` prompts of similar length at a time; what they share is read once.

        Parameters
        ----------
        lm : transformers causal language model
        orders : sequence of Prompts
            Those of B rows, as many times as there are orders of the candidates.
        count, batch : int

        Returns
        -------
        torch.FloatTensor, shape (orders, B, count)
        """
        result = torch.empty(len(orders), len(orders[0].ids), count, device=orders[0].ids.device)
        beginnings = SharedBeginnings(lm, orders)
        for rows in orders[0].length.argsort().split(batch):
            for number, (ids, mask, kept) in enumerate(beginnings.rests(rows)):
                result[number, rows] = self.letters(lm, ids, mask, count, kept)
        return result

    # ---- loss

    @property
    def answers(self) -> int:
        """Number of tokens of an answer that are trained."""
        return 2 if self.loss == "letter_eos" else 1

    @property
    def whole_logits(self) -> int:
        """At most how many positions of a text have their logits over the vocabulary computed in training."""
        return 0 if self.loss == "candidates" else 2

    def summed_loss(
        self, lm: LanguageModel, ids: torch.Tensor, mask: torch.Tensor, label: torch.Tensor, here: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the cross-entropies of right answers.

        Parameters
        ----------
        lm : transformers causal language model
        ids, mask : torch.LongTensor, shape (B, W)
            Left-padded prompts.
        label : torch.LongTensor, shape (B,)
            Which candidate is right.
        here : torch.BoolTensor, shape (B, C)
            Which candidates there are.
        """
        answer = self.answer_ids[label]
        if self.loss == "candidates":
            scores = self.letters(lm, ids, mask, here.shape[1])
            return functional.cross_entropy(scores.masked_fill(~here, -torch.inf), label, reduction="sum")
        if self.loss == "letter":
            return functional.cross_entropy(last_logits(lm, ids, mask, 1)[:, -1], answer, reduction="sum")
        ids = torch.cat([ids, answer[:, None]], dim=1)
        logits = last_logits(lm, ids, functional.pad(mask, (0, 1), value=1), 2)
        targets = torch.stack([answer, torch.full_like(answer, self.eos)], dim=1)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    # ---- calibration

    @property
    def needs_bias(self) -> bool:
        """Whether :meth:`calibrate` is due."""
        return self.calibrated and bool(torch.isinf(self.bias).any())

    def forget_bias(self) -> None:
        """Weights change: the bias is no longer theirs."""
        if self.calibrated:
            self.bias.fill_(torch.inf)

    @torch.no_grad()
    def calibrate(self, lm: LanguageModel, prompts: Iterable[Prompts], batch: int) -> None:
        """Take the mean log-probability of each letter over prompts with all letters as its bias."""
        logits = [self.by_length(lm, [part], len(self.letter_ids), batch)[0] for part in prompts]
        self.bias.copy_(functional.log_softmax(torch.cat(logits), dim=1).mean(0))

    def unbiased(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) of the first letters without their bias."""
        return logits - self.bias[: logits.shape[1]] if self.calibrated else logits


def content_free_prompts(
    tokenizer: Tokenizer, template: PromptTemplate, words: list[str], history: int, max_length: int
) -> list[Prompts]:
    """Return prompts with all candidates, and as many items of history as fit, that have no content."""
    prompts = []
    for title in CONTENT_FREE:
        composer = PromptComposer(tokenizer, template, ["", title], words, history, max_length)
        shown, length = torch.ones(1, history, dtype=torch.long), torch.tensor([history])
        prompts.append(composer(shown, length, torch.ones(1, len(words), dtype=torch.long)))
    return prompts
