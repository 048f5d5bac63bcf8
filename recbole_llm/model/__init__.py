"""One model per file, readable next to its paper: ``from recbole_llm.model import LLM2SASRec``."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return a model class of this package by its name."""
    from recbole_llm.config.registry import get_model, own_models

    if name.startswith("_") or name not in own_models():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return get_model(name)
