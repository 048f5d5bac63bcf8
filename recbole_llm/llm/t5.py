"""The T5 of generative recommenders: with its decoder, or the encoder alone."""

import torch

from recbole_llm.config.schema import models as schema
from recbole_llm.llm.backbone import load_encoder, load_seq2seq
from recbole_llm.llm.dtype import dtype_to_train
from recbole_llm.llm.spec import ResolvedLLM
from recbole_llm.typing import LanguageModel, Tokenizer


def load_t5(resolved: ResolvedLLM, settings: schema.Generative) -> LanguageModel:
    """Return the T5 that the settings describe; ``head: projection`` needs no decoder.

    Raises
    ------
    ModelNotFoundError
        Weights or configuration are missing, damaged or do not belong together.
    ConfigError
        The model is no T5, or a value is not allowed.
    """
    pretrained, rate, shape = settings.rec_llm_init == "pretrained", settings.dropout, settings.scratch_shape
    if settings.head == "decoder":
        return load_seq2seq(resolved, pretrained, rate, settings.feed_forward_size, shape)
    return load_encoder(resolved, pretrained, dtype_to_train(resolved), rate, shape)


def redraw_numbers(t5: LanguageModel, tokenizer: Tokenizer, bound: float) -> None:
    """Reinitialise embeddings of number tokens from U(-bound, bound) (LightLM)."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    numbers = [token for token, piece in enumerate(pieces) if piece and piece.lstrip("\u2581").isdigit()]
    table = t5.get_input_embeddings().weight
    with torch.no_grad():
        table[numbers] = torch.empty(len(numbers), table.shape[1]).uniform_(-bound, bound)
