"""Causal language models as a model's keys say: tuning, load_in_4bit, gradient_checkpointing and lora_*."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.llm.backbone import add_lora, checkpoint_activations, dtype_to_train, load_causal_lm
from recbole_llm.llm.spec import ResolvedLLM


def check_tuning(config: Any) -> None:
    """ConfigError for a ``tuning`` that weights of 4 bits rule out."""
    if config["tuning"] == "full" and config["load_in_4bit"]:
        raise ConfigError("load_in_4bit=True: weights of 4 bits cannot be trained. Use tuning=lora.")


def tuned_dtype(resolved: ResolvedLLM, config: Any) -> str | None:
    """Return the type of a language model's weights under ``tuning``; None: the type that was asked for.

    Raises
    ------
    ConfigError
        ``tuning: full`` of weights of 16 bits.
    """
    return dtype_to_train(resolved) if config["tuning"] == "full" else None


def load_for_tuning(resolved: ResolvedLLM, config: Any, pretrained: bool, device: torch.device) -> Any:
    """Return a causal language model whose own weights learn with ``tuning: full`` only; see :func:`with_adapters`."""
    dtype = tuned_dtype(resolved, config)
    lm: Any = load_causal_lm(resolved, pretrained, dtype, in_4bit=config["load_in_4bit"], device=device)
    lm.requires_grad_(config["tuning"] == "full")
    if config["gradient_checkpointing"]:
        checkpoint_activations(lm)
    return lm


def with_adapters(lm: Any, resolved: ResolvedLLM, config: Any) -> Any:
    """Return a language model with LoRA adapters, where ``tuning: lora`` asks for them."""
    if config["tuning"] != "lora":
        return lm
    return add_lora(
        lm,
        resolved,
        int(config["lora_r"]),
        float(config["lora_alpha"]),
        config["lora_dropout"],
        config["lora_target_modules"],
    )


def save_adapters(lm: Any, config: Any, folder: Path) -> None:
    """Write the adapters in PEFT's format, where there are some."""
    if config["tuning"] == "lora":
        lm.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form


def check_base(resolved: ResolvedLLM, config: Any, name: str, revision: str | None, key: str) -> None:
    """Compare a language model with that of the run whose weights were loaded; ``key`` is the setting that names it.

    Raises
    ------
    CheckpointError
        An adapter on another base model gives other scores.
    """
    if config["tuning"] != "full" and revision != resolved.revision:
        raise CheckpointError(
            f"{key}: this run was trained on {name}, revision {revision}, and {resolved.name} is now at "
            f"{resolved.revision}. Set {key}_revision to that one, or {key} to a folder with the same files."
        )
