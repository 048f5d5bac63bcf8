"""Language models of the shapes that rankers have, small enough to make here."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.toy_tokenizers import by_name


def save_llama(folder, kind, texts=(), seed=0):
    """A folder as ``save_pretrained`` writes it, with random weights.

    ``llama2``: a head for every query head, untied, rotary base 10,000. ``llama3``: grouped heads, tied, 500,000.
    """
    tokenizer = by_name(kind, texts)
    newer = kind == "llama3"
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2 if newer else 4,
        rope_theta=500000.0 if newer else 10000.0,
        tie_word_embeddings=newer,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # scores far enough apart to be in one order whatever the rounding
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
