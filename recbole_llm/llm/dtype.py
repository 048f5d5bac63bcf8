"""Types of a language model's weights: what suits a processor, and what can be trained."""

from typing import Any

import torch

from recbole_llm.errors import ConfigError
from recbole_llm.llm.spec import DTYPES, ResolvedLLM


def resolve_dtype(resolved: ResolvedLLM, dtype: str | None = None) -> torch.dtype:
    """Return the torch type of the weights: `dtype`, else the spec's; "auto" is what suits the spec's device.

    Raises
    ------
    ConfigError
        The name is not one of :data:`DTYPES`.
    """
    name = dtype or resolved.spec.dtype
    if name not in DTYPES:
        raise ConfigError(f"invalid value for llm_dtype: {name!r} (choose from {', '.join(DTYPES)}).")
    if name == "auto":
        return native_dtype(resolved.spec.device)
    return getattr(torch, name)


def dtype_to_train(resolved: ResolvedLLM) -> str:
    """Return the type of weights that are trained themselves, without adapters: "float32", also for "auto".

    A weight of 16 bits moves in steps of 1/256 of its size; nearly all updates are smaller and would be lost.

    Raises
    ------
    ConfigError
        The spec says 16 bits.
    """
    name = resolved.spec.dtype
    if name in ("bfloat16", "float16"):
        raise ConfigError(
            f"llm_dtype={name!r} (or rec_llm_dtype): the weights of {resolved.name} are trained, and most updates "
            "would be lost in 16 bits. Set it to float32, and amp=bf16 for the speed; or train adapters, where the "
            "model has tuning=lora."
        )
    return "float32"


def native_dtype(device: Any) -> torch.dtype:
    """Return bfloat16 where the device multiplies it natively, else float32 (where bfloat16 is emulated, slowly)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    # No public name for it before torch.cpu.get_capabilities(); `bool` stands for a processor that cannot.
    ways = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.bfloat16 if any(getattr(torch.cpu, way, bool)() for way in ways) else torch.float32
