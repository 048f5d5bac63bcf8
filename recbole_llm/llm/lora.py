"""Language models with adapters (LoRA), and causal ones as configured by ``tuning``, ``load_in_4bit`` etc."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recbole_llm.config import Config
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.llm.backbone import checkpoint_activations, load_causal_lm, transformer_layers
from recbole_llm.llm.dtype import dtype_to_train
from recbole_llm.llm.spec import ResolvedLLM
from recbole_llm.typing import LanguageModel, Settings


def tuned_dtype(resolved: ResolvedLLM, config: Config) -> str | None:
    """Return the type of a language model's weights under ``tuning``; None: the requested type.

    Raises
    ------
    ConfigError
        ``tuning: full`` of weights of 16 bits.
    """
    return dtype_to_train(resolved) if config["tuning"] == "full" else None


def load_for_tuning(resolved: ResolvedLLM, config: Config, pretrained: bool, device: torch.device) -> LanguageModel:
    """Return a causal language model whose own weights learn with ``tuning: full`` only; see :func:`with_adapters`."""
    dtype = tuned_dtype(resolved, config)
    lm: LanguageModel = load_causal_lm(resolved, pretrained, dtype, in_4bit=config["load_in_4bit"], device=device)
    lm.requires_grad_(config["tuning"] == "full")
    if config["gradient_checkpointing"]:
        checkpoint_activations(lm)
    return lm


def with_adapters(lm: LanguageModel, resolved: ResolvedLLM, config: Config) -> LanguageModel:
    """Return a language model, with LoRA adapters if ``tuning: lora``."""
    if config["tuning"] != "lora":
        return lm
    return add_lora(
        lm,
        resolved,
        int(config["lora_r"]),
        float(config["lora_alpha"]),
        config["lora_dropout"],
        config["lora_target_modules"],
        layers=config["lora_layers"],
    )


def save_adapters(lm: LanguageModel, config: Settings, folder: Path) -> None:
    """Write the adapters in PEFT's format, if there are any."""
    if config["tuning"] == "lora":
        lm.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form


def check_base(resolved: ResolvedLLM, config: Settings, name: str, revision: str | None, key: str) -> None:
    """Compare a language model with that of the run whose weights were loaded; ``key`` is the setting that names it.

    Raises
    ------
    CheckpointError
        If the adapter would be on another base model, which changes the scores.
    """
    if config["tuning"] != "full" and revision != resolved.revision:
        raise CheckpointError(
            f"{key}: this run was trained on {name}, revision {revision}, and {resolved.name} is now at "
            f"{resolved.revision}. Set {key}_revision to that one, or {key} to a folder with the same files."
        )


def add_lora(
    module: torch.nn.Module,
    resolved: ResolvedLLM,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str] | str,
    task: str = "CAUSAL_LM",
    layers: int | None = None,
) -> Any:
    """Freeze a model and put low-rank adapters (LoRA) beside some of its linear layers.

    Parameters
    ----------
    module : transformers model
    resolved : ResolvedLLM
        Its name and revision are recorded in the adapter's ``adapter_config.json``.
    rank, alpha, dropout
        Width r of the adapters, their scale alpha / r, and the dropout in front of them.
    targets : list of str or str
        Last parts of the names of layers, or PEFT's ``all-linear``.
    task : str
        PEFT's name of what the model does: ``CAUSAL_LM``, or ``FEATURE_EXTRACTION`` for one without a head.
    layers : int, optional
        Transformer layers with adapters, counted from the last one; None: all. The layers below keep no activations
        and have no backward pass.

    Returns
    -------
    peft.PeftModel

    Raises
    ------
    ConfigError
        A target does not exist, the message lists those that do; or there are fewer layers.
    """
    from peft import LoraConfig, get_peft_model

    names = lora_targets(module, resolved, targets, layers)
    if not 0 <= float(dropout) < 1 or rank < 1:
        raise ConfigError(f"lora_r={rank} must be at least 1 and lora_dropout={dropout} in [0, 1).")
    config = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=float(dropout),
        target_modules="all-linear" if names == ["all-linear"] else names,
        bias="none",
    )
    with warnings.catch_warnings():
        # PEFT still reads an attribute that transformers has renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        adapted = get_peft_model(module, config)
    # What a reader of the adapter needs to find the base model; PEFT puts in the folder it was read from.
    config.base_model_name_or_path = resolved.name
    config.revision = resolved.revision if resolved.source in ("hub", "cache") else None
    return adapted


def lora_targets(
    module: torch.nn.Module, resolved: ResolvedLLM, targets: Sequence[str] | str, layers: int | None = None
) -> list[str]:
    """Return what gets an adapter: last parts of names, or ``all-linear``; with ``layers``, whole names.

    Raises
    ------
    ConfigError
        One does not exist, the message lists those that do; or there are fewer layers.
    """
    within = ("",) if layers is None else _last_layers(module, resolved, layers)
    linear = [name for name, part in module.named_modules() if _is_linear(part) and name.startswith(within)]
    known = sorted({name.rpartition(".")[2] for name in linear})
    names = [targets] if isinstance(targets, str) else [str(target) for target in targets]
    absent = [name for name in names if name not in known and name != "all-linear"]
    if absent or not names:
        where = "" if layers is None else f" in its last {layers} transformer layers"
        raise ConfigError(
            f"lora_target_modules={targets!r}: {resolved.name} has no layer {', '.join(absent) or 'of no name'}"
            f"{where}. It has {', '.join(known)}."
        )
    if layers is None:
        return names
    wanted = known if names == ["all-linear"] else names
    return [name for name in linear if name.rpartition(".")[2] in wanted]


def _last_layers(module: torch.nn.Module, resolved: ResolvedLLM, count: int) -> tuple[str, ...]:
    """Return the beginnings of the names of what the last ``count`` transformer layers are made of."""
    found = transformer_layers(module)
    if found is None or count > len(found[1]):
        has = "no list of layers" if found is None else f"{len(found[1])} layers"
        raise ConfigError(f"lora_layers={count}: {resolved.name} has {has}. Set lora_layers=~ for all of them.")
    name, layers = found
    return tuple(f"{name}.{number}." for number in range(len(layers) - count, len(layers)))


def _is_linear(module: torch.nn.Module) -> bool:
    # GPT-2 keeps its linear layers transposed, in a class of that name.
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
