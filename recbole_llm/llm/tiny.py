"""Tiny, randomly initialised language models that need no file and no network: for smoke runs and tests.

They share ByT5's tokenizer, which reads bytes and therefore needs no vocabulary file.
"""

from typing import Any

import torch

from recbole_llm.typing import ModelConfig, Tokenizer

TINY_NAMES = ("tiny-random-t5", "tiny-random-bert", "tiny-random-llama")
SEED = 20240215  # fixed: two runs, or two processes, get the same "pretrained" weights

_HIDDEN, _LAYERS, _HEADS, _FEED_FORWARD, _POSITIONS = 32, 2, 2, 64, 512


def tiny_config(name: str) -> ModelConfig:
    """Return the transformers configuration of a tiny model: hidden size 32, 2 layers, 2 heads.

    Raises
    ------
    KeyError
        `name` is not one of :data:`TINY_NAMES`.
    """
    from transformers import BertConfig, LlamaConfig, T5Config

    vocabulary = len(tiny_tokenizer())
    common: dict[str, Any] = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    shape: dict[str, Any] = {
        "hidden_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "intermediate_size": _FEED_FORWARD,
        "max_position_embeddings": _POSITIONS,
    }
    return {
        "tiny-random-t5": lambda: T5Config(
            vocab_size=vocabulary,
            d_model=_HIDDEN,
            d_kv=_HIDDEN // _HEADS,
            d_ff=_FEED_FORWARD,
            num_layers=_LAYERS,
            num_heads=_HEADS,
            decoder_start_token_id=0,
        ),
        "tiny-random-bert": lambda: BertConfig(**common, **shape),
        # Prompts of bytes are long; positions are rotations and have no weights.
        "tiny-random-llama": lambda: LlamaConfig(
            **common, **{**shape, "max_position_embeddings": 8192}, num_key_value_heads=_HEADS
        ),
    }[name]()


def tiny_tokenizer() -> Tokenizer:
    """Return the byte-level tokenizer of all tiny models (pad 0, ``</s>`` 1, one id per byte from 3 on)."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(model_max_length=_POSITIONS)


class fixed_seed:  # noqa: N801 - reads like a function: `with fixed_seed():`
    """Context in which torch draws from :data:`SEED`; the CPU generator is put back afterwards."""

    def __enter__(self) -> None:
        self._state = torch.get_rng_state()
        torch.default_generator.manual_seed(SEED)  # not torch.manual_seed: that reseeds the GPUs, too

    def __exit__(self, *exception: object) -> None:
        torch.set_rng_state(self._state)
