"""Negative log-likelihood of item codes, teacher forced, with the averages of P5, POD and LightLM."""

from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from recbole_llm.typing import LanguageModel

NO_TOKEN = -100  # after the end of a code: ignored by cross-entropy


@dataclass(frozen=True)
class CodeLoss:
    """Mean of -log p(token of the code | prompt, tokens before it).

    Attributes
    ----------
    reduction : {"token", "sample"}
        Whether the mean is over all tokens, or over rows of the means of their tokens.
    pad : int, optional
        Token that the shorter codes of a batch are filled with and that counts as well; None: only the code counts.
    """

    reduction: str
    pad: int | None = None

    def __call__(
        self, t5: LanguageModel, hidden: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Parameters
        ----------
        t5 : transformers T5ForConditionalGeneration
        hidden : torch.Tensor, shape (B, P, d)
            Encoder states.
        mask : torch.LongTensor, shape (B, P)
            What the decoder may attend to.
        labels : torch.LongTensor, shape (B, T)
            Tokens of the codes, :data:`NO_TOKEN` after their end.
        """
        if self.pad is not None:
            labels = labels.masked_fill(labels == NO_TOKEN, self.pad)
        # Not by `labels`: transformers would compute a loss of its own besides.
        logits = t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=t5.prepare_decoder_input_ids_from_labels(labels),
            use_cache=False,
        ).logits
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        counted = labels != NO_TOKEN
        if self.reduction == "token":
            return losses.sum() / counted.sum()
        return (losses.sum(1) / counted.sum(1)).mean()

    def weight(self, labels: torch.Tensor) -> torch.Tensor | float:
        """Return how many tokens, or rows, the loss of these labels is the mean of."""
        if self.reduction == "sample":
            return len(labels)
        count = (labels != NO_TOKEN).sum(1)
        return count.sum() if self.pad is None else count.max() * len(count)
