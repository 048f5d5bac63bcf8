"""Left-padded texts through a causal language model: logits and losses at their ends."""

import torch
from torch.nn import functional

from recbole_llm.llm.kept import Kept, arguments
from recbole_llm.typing import LanguageModel


def last_logits(
    lm: LanguageModel, ids: torch.Tensor, mask: torch.Tensor, last: int, kept: Kept | None = None
) -> torch.Tensor:
    """Return the logits behind the last positions of texts, and of no other position.

    Parameters
    ----------
    lm : transformers causal language model, or a PEFT model around it
    ids, mask : torch.LongTensor, shape (B, W)
    last : int
        Number of positions.
    kept : Kept, optional
        Beginnings of the texts that have been read; None: there are none.

    Returns
    -------
    torch.FloatTensor, shape (B, last, vocabulary)
    """
    return lm(input_ids=ids, logits_to_keep=last, **arguments(lm, mask, kept)).logits.float()


def summed_answer_loss(lm: LanguageModel, ids: torch.Tensor, mask: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of the last ``sizes`` (B,) tokens of texts, summed over all of them."""
    last = max(int(sizes.max()), 1) + 1
    logits, labels = last_logits(lm, ids, mask, last)[:, :-1], ids[:, 1 - last :]
    counted = torch.arange(last - 1, 0, -1, device=labels.device) <= sizes[:, None]
    return functional.cross_entropy(logits[counted], labels[counted], reduction="sum")
