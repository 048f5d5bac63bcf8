"""Pretrained language models by name: resolved to files, and loaded.

:func:`resolve_llm` turns what the user asked for into files on this machine, with a revision that names their content;
:func:`load_tokenizer` and :func:`load_encoder` open those files and never use the network.
"""

import importlib.util
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from recbole_llm.config.values import nearest
from recbole_llm.errors import ConfigError, MissingExtraError, ModelNotFoundError
from recbole_llm.llm.dtype import dtype_to_train, resolve_dtype
from recbole_llm.llm.hf import first_line, has_tokenizer, needs_sentencepiece, quiet_transformers, read_config
from recbole_llm.llm.resolve import remedies, resolve_llm
from recbole_llm.llm.spec import LLMSpec, ResolvedLLM
from recbole_llm.llm.tiny import fixed_seed, tiny_config, tiny_tokenizer
from recbole_llm.typing import ModelConfig, Tokenizer

__all__ = [
    "LLMSpec",
    "ResolvedLLM",
    "checkpoint_activations",
    "hidden_size",
    "load_causal_lm",
    "load_config",
    "load_encoder",
    "load_seq2seq",
    "load_tokenizer",
    "position_limit",
    "resolve_llm",
]

_DROPOUT_KEYS = (
    *("dropout_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout"),
    *("dropout", "activation_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "embedding_dropout", "mlp_dropout"),
)


def load_config(resolved: ResolvedLLM) -> ModelConfig:
    """Return the model's transformers configuration.

    Raises
    ------
    ModelNotFoundError
        The file is missing or damaged.
    """
    if resolved.source == "random":
        return tiny_config(resolved.name)
    return read_config(Path(resolved.path), resolved.spec.trust_remote_code)


def position_limit(resolved: ResolvedLLM) -> int | None:
    """How many tokens a text may have, where the model says so."""
    shape = load_config(resolved)
    shape = shape.get_text_config() if hasattr(shape, "get_text_config") else shape
    return getattr(shape, "max_position_embeddings", None)


def load_tokenizer(resolved: ResolvedLLM) -> Tokenizer:
    """Return the model's tokenizer, which pads and truncates on the right.

    Raises
    ------
    ModelNotFoundError
        Its files are missing or damaged.
    MissingExtraError
        It is read by SentencePiece, which is not installed.
    """
    if resolved.source == "random":
        return tiny_tokenizer()
    from transformers import AutoTokenizer

    try:
        if not has_tokenizer(Path(resolved.path)):
            raise FileNotFoundError("no tokenizer files")
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                resolved.path,
                local_files_only=True,
                trust_remote_code=resolved.spec.trust_remote_code,
                padding_side="right",
                truncation_side="right",
            )
        # where only the vocabulary is missing, transformers goes on without one and reads every word as unknown
        expected = getattr(load_config(resolved).get_text_config(), "vocab_size", 0) or 0
        if len(tokenizer) < expected / 2:
            raise ValueError(f"{len(tokenizer)} tokens where the model has {expected}")
    except Exception as error:
        if needs_sentencepiece(Path(resolved.path)):
            raise MissingExtraError(
                f"llm: {resolved.path} has its vocabulary as a SentencePiece file only: pip install sentencepiece"
            ) from error
        raise ModelNotFoundError(
            f"llm: the tokenizer of {resolved.name} cannot be loaded from {resolved.path} ({first_line(error)}). "
            f"Fetch the model again, with its tokenizer files.{remedies()}"
        ) from error
    return tokenizer


def load_encoder(
    resolved: ResolvedLLM,
    pretrained: bool = True,
    dtype: str | None = None,
    dropout: float | None = None,
    shape: Mapping[str, Any] | None = None,
) -> torch.nn.Module:
    """Return the part of a model that turns tokens or vectors into hidden states, in evaluation mode on the CPU.

    The encoder alone of a T5 (no decoder weights), the base model of anything else (no language-model head). Takes
    ``input_ids`` (B, L) or ``inputs_embeds`` (B, L, d) with ``attention_mask`` (B, L), and its output has
    ``last_hidden_state`` (B, L, d).

    Parameters
    ----------
    resolved : ResolvedLLM
        From :func:`resolve_llm`.
    pretrained : bool
        False: the same architecture with random weights, drawn from torch's global generator; the weights' file is not
        read.
    dtype : str, optional
        As ``LLMSpec.dtype``, which is the default.
    dropout : float, optional
        In [0, 1): replaces every dropout rate of the configuration; None keeps them.
    shape : dict, optional
        Entries of the configuration to replace, such as ``{"d_model": 64}``; without pretrained weights only.

    Raises
    ------
    ModelNotFoundError
        Weights or configuration are missing, damaged or do not belong together.
    ConfigError
        `dropout`, `dtype` or `shape` is not allowed, or the architecture has no dropout.
    """
    config = _reshaped(load_config(resolved), shape, pretrained, resolved.name)
    if dropout is not None:
        _set_dropout(config, dropout, resolved.name)
    weight_type = resolve_dtype(resolved, dtype)
    options: dict[str, Any] = {"trust_remote_code": resolved.spec.trust_remote_code}
    if resolved.spec.attn_implementation is not None:
        options["attn_implementation"] = resolved.spec.attn_implementation
    if not pretrained or resolved.source == "random":
        with fixed_seed() if pretrained else nullcontext():
            module = _auto_class(resolved.family).from_config(config, **options).to(weight_type)
    else:
        module = _load_weights(resolved, config, weight_type, options)
    if resolved.family == "other" and getattr(config, "is_encoder_decoder", False):
        module = module.get_encoder()
    return module.eval()


def load_seq2seq(
    resolved: ResolvedLLM,
    pretrained: bool = True,
    dropout: float | None = None,
    feed_forward: int | None = None,
    shape: Mapping[str, Any] | None = None,
) -> torch.nn.Module:
    """Return a T5 with its decoder and language-model head, in evaluation mode on the CPU.

    Parameters
    ----------
    resolved, pretrained, dropout, shape
        As in :func:`load_encoder`.
    feed_forward : int, optional
        Another inner width of the feed-forward networks, whose weights are then random (LightLM).

    Raises
    ------
    ModelNotFoundError
        Weights or configuration are missing, damaged or do not belong together.
    ConfigError
        The model is no T5, or a value is not allowed.
    """
    from transformers import AutoModelForSeq2SeqLM

    if resolved.family != "t5":
        raise ConfigError(
            f"llm: {resolved.name} is not a T5, and this model needs an encoder with a decoder.{remedies()} "
            "tiny-random-t5 is there for trials."
        )
    config = _reshaped(load_config(resolved), shape, pretrained, resolved.name)
    if dropout is not None:
        _set_dropout(config, dropout, resolved.name)
    if feed_forward is not None:
        config.d_ff = feed_forward
    options: dict[str, Any] = {"trust_remote_code": resolved.spec.trust_remote_code}
    weight_type = resolve_dtype(resolved, dtype_to_train(resolved))
    if not pretrained or resolved.source == "random":
        with fixed_seed() if pretrained else nullcontext():
            module = AutoModelForSeq2SeqLM.from_config(config, **options).to(weight_type)
    else:
        if feed_forward is not None:
            options["ignore_mismatched_sizes"] = True
        module = _load_weights(resolved, config, weight_type, options, AutoModelForSeq2SeqLM)
    return module.eval()


def _auto_class(family: str) -> Any:
    from transformers import AutoModel, AutoModelForTextEncoding

    return AutoModelForTextEncoding if family == "t5" else AutoModel


def load_causal_lm(
    resolved: ResolvedLLM,
    pretrained: bool = True,
    dtype: str | None = None,
    in_4bit: bool = False,
    device: Any = "cpu",
) -> torch.nn.Module:
    """Return a causal language model with its head, in evaluation mode.

    Parameters
    ----------
    resolved : ResolvedLLM
        From :func:`recbole_llm.llm.resolve.resolve_causal_lm`.
    pretrained : bool
        False: the same architecture with random weights, drawn from torch's global generator.
    dtype : str, optional
        As ``LLMSpec.dtype``, which is the default. With `in_4bit` the type that is computed in.
    in_4bit : bool
        Keep the weights of linear layers in 4 bits (NF4 with double quantisation, as QLoRA does) through bitsandbytes.
    device : torch.device or str
        Where the model goes.

    Raises
    ------
    ModelNotFoundError
        Weights or configuration are missing, damaged or do not belong together.
    MissingExtraError
        `in_4bit` without bitsandbytes.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(resolved)
    weight_type = resolve_dtype(resolved, dtype)
    options: dict[str, Any] = {"trust_remote_code": resolved.spec.trust_remote_code}
    if resolved.spec.attn_implementation is not None:
        options["attn_implementation"] = resolved.spec.attn_implementation
    if in_4bit:
        options |= {"quantization_config": _four_bits(weight_type), "device_map": {"": device}}
    if not pretrained or resolved.source == "random":
        if in_4bit:
            raise ConfigError(f"load_in_4bit=True: {resolved.name} has no saved weights to quantise.")
        with fixed_seed() if pretrained else nullcontext():
            module = AutoModelForCausalLM.from_config(config, **options).to(weight_type)
    else:
        module = _load_weights(resolved, config, weight_type, options, AutoModelForCausalLM)
    return (module if in_4bit else module.to(device)).eval()


def causal_lm_skeleton(resolved: ResolvedLLM) -> torch.nn.Module:
    """Return a causal language model without weights (on torch's meta device), to look at its layers."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            load_config(resolved), trust_remote_code=resolved.spec.trust_remote_code
        )


def require_bitsandbytes() -> None:
    """Raise :class:`MissingExtraError` where models cannot be loaded in 4 bits."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            'load_in_4bit=True needs the package bitsandbytes: pip install "recbole-llm[4bit]". Without it, '
            "llm_dtype=bfloat16 takes 2 bytes a weight instead of about .6, and trains faster."
        )


def _four_bits(dtype: torch.dtype) -> Any:
    require_bitsandbytes()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def checkpoint_activations(module: Any) -> None:
    """Compute activations again in the backward pass instead of keeping them, layer by layer."""
    how = {"use_reentrant": False}  # the other way needs inputs with gradients, which frozen embeddings do not give
    if hasattr(module, "activation_checkpointing_enable"):  # renamed within transformers 5
        module.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def _load_weights(
    resolved: ResolvedLLM, config: ModelConfig, dtype: torch.dtype, options: dict[str, Any], auto_class: Any = None
) -> torch.nn.Module:
    try:
        with quiet_transformers():
            module, report = (auto_class or _auto_class(resolved.family)).from_pretrained(
                resolved.path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        raise ModelNotFoundError(
            f"llm: {resolved.name} cannot be loaded from {resolved.path} ({first_line(error)}). Files damaged or "
            f"incomplete, or memory too small: fetch the model again or choose another one.{remedies()}"
        ) from error
    absent = sorted(report["missing_keys"])
    without_pooler = [key for key in absent if "pooler." not in key]
    if without_pooler:  # transformers would go on with random numbers there
        raise ModelNotFoundError(
            f"llm: {resolved.path} lacks {len(without_pooler)} of the model's weights, e.g. {without_pooler[0]}. Its "
            "files do not belong together; fetch the model again."
        )
    if absent:
        module.pooler = None  # better none than a random one
    return module


def _reshaped(config: ModelConfig, shape: Mapping[str, Any] | None, pretrained: bool, name: str) -> ModelConfig:
    """Return the configuration with some of its entries replaced."""
    if not shape:
        return config
    if pretrained:
        raise ConfigError(
            f"scratch_shape={dict(shape)}: the weights of {name} have a shape. Set rec_llm_init=scratch."
        )
    entries = config.to_dict()
    for key in shape:
        if key not in entries:
            raise ConfigError(f"scratch_shape: {name} ({config.model_type}) has no {key!r}.{nearest(key, entries)}")
    # A T5's decoder has as many layers as its encoder, unless both are given.
    both = {}
    if "num_layers" in shape and "num_decoder_layers" in entries:
        both = {"num_decoder_layers": shape["num_layers"]}
    return type(config).from_dict({**entries, **both, **shape})


def _set_dropout(config: ModelConfig, dropout: float, name: str) -> None:
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"invalid value for dropout: {dropout!r} (choose a number in [0, 1)).")
    keys = [key for key in _DROPOUT_KEYS if isinstance(getattr(config, key, None), (int, float))]
    if not keys:
        raise ConfigError(f"dropout: {dropout} was asked for, but {name} ({config.model_type}) has no dropout rate.")
    for key in keys:
        setattr(config, key, float(dropout))


def hidden_size(module_or_config: Any) -> int:
    """Return the width d of a model's hidden states.

    Raises
    ------
    ConfigError
        The configuration does not say.
    """
    config = getattr(module_or_config, "config", module_or_config)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for key in ("hidden_size", "d_model", "n_embd", "dim"):
        value = getattr(config, key, None)
        if isinstance(value, int):
            return value
    raise ConfigError(f"llm: the configuration of {getattr(config, 'model_type', config)!r} names no hidden size.")


def transformer_layers(module: torch.nn.Module) -> tuple[str, torch.nn.ModuleList] | None:
    """Return the list of a decoder's layers and its name within the module; None where there is no such list."""
    count = getattr(module.config.get_text_config(), "num_hidden_layers", None)  # type: ignore[operator, union-attr]
    lists = ((name, part) for name, part in module.named_modules() if isinstance(part, torch.nn.ModuleList))
    return next(((name, part) for name, part in lists if len(part) == count), None)
