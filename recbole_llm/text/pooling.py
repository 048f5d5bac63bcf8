"""Token outputs -> one vector per text."""

from collections.abc import Collection
from typing import Any, get_args

import torch

from recbole_llm.config import Config
from recbole_llm.config.schema.blocks import Pooling
from recbole_llm.config.values import choice
from recbole_llm.errors import ConfigError
from recbole_llm.llm.spec import ResolvedLLM
from recbole_llm.typing import Tokenizer

POOLINGS: tuple[str, ...] = get_args(Pooling)


def resolve_pooling(pooling: str, resolved: ResolvedLLM) -> str:
    """Return the pooling, with "auto" resolved, after checking that the model supports it.

    Raises
    ------
    ConfigError
        Unknown name, or "sentence" for a model that is not a sentence-transformers pipeline.
    """
    choice({"item_pooling": pooling}, "item_pooling", POOLINGS)
    if pooling == "sentence" and not resolved.is_sentence_transformer:
        raise ConfigError(
            "item_pooling: sentence needs a sentence-transformers model (a folder with modules.json), which "
            f"{resolved.name} is not. Choose auto, mean, cls or last."
        )
    if pooling != "auto":
        return pooling
    if resolved.is_sentence_transformer:
        return "sentence"
    return "last" if resolved.family == "decoder" else "mean"


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return what "mean_no_eos" leaves out: tokens that a tokenizer adds, not the unknown one, which is text."""
    return frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def pooling_of(config: Config, resolved: ResolvedLLM, gradient: bool = False) -> str:
    """Return the pooling for a resolved model: ``item_pooling``, unless it belongs to another family.

    Where ``auto`` means a T5 and took a model of another family in its place, a pooling that is T5's (a mean over
    tokens) gives way to what the model was trained with, and a notice of the run says so.

    Parameters
    ----------
    config : Config or dict
        ``item_pooling``; its ``notices``, where it has any, get the change.
    resolved : ResolvedLLM
    gradient : bool
        The vectors are to have a gradient, which a pipeline ("sentence") does not give.
    """
    asked = str(config["item_pooling"])
    of_t5 = asked in ("mean", "mean_no_eos", "mean_padded") and "t5" in resolved.spec.preferred
    if resolved.requested != "auto" or resolved.family == "t5" or not of_t5:
        return resolve_pooling(asked, resolved)
    taken = resolve_pooling("auto", resolved)
    taken = "mean" if taken == "sentence" and gradient else taken
    if taken != asked:
        notice = (
            f"llm=auto took {resolved.label()} in place of {resolved.spec.preferred}: item_pooling={asked} is "
            f"meant for a T5 and became {taken}. Name the model (--llm) to pool it as you like."
        )
        if notice not in getattr(config, "notices", [notice]):
            config.notices.append(notice)
    return taken


def pool_tokens(
    output: Any, ids: torch.Tensor, mask: torch.Tensor, pooling: str, special_ids: Collection[int] = ()
) -> torch.Tensor:
    """Pool a model's output over the tokens of each text; differentiable, computed in float32.

    Parameters
    ----------
    output : transformers.utils.ModelOutput
        With ``last_hidden_state`` (B, L, d), and ``pooler_output`` (B, d) for "pooler".
    ids, mask : torch.Tensor
        (B, L) token ids, right padded, and 1 at real tokens; every text has at least one.
    pooling : str
        Any of :data:`POOLINGS` but "auto" and "sentence"; :class:`recbole_llm.text.encoder.TextEncoder` explains them.
    special_ids : collection of int
        Tokens that "mean_no_eos" excludes.

    Returns
    -------
    torch.Tensor
        (B, d) float32.
    """
    if pooling == "pooler":
        return output.pooler_output.float()
    hidden = output.last_hidden_state.float()  # (B, L, d)
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    if pooling == "mean_padded":
        return hidden.mean(dim=1)
    if pooling == "mean_no_eos":
        special = torch.tensor(sorted(special_ids), dtype=ids.dtype, device=ids.device)
        kept = mask * ~torch.isin(ids, special)
        mask = torch.where(kept.any(dim=1, keepdim=True), kept, mask)  # a text of special tokens only keeps them
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
