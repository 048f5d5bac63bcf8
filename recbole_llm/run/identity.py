"""Whether two runs are the same experiment."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from recbole_llm.config import Config
from recbole_llm.config.registry import stock_models
from recbole_llm.config.values import CODE_KEYS, SECRETS
from recbole_llm.errors import RecBoleLLMError
from recbole_llm.llm.resolve import resolve_causal_lm, resolve_llm
from recbole_llm.llm.spec import LLMSpec, ResolvedLLM
from recbole_llm.run.logging import SILENT

# Where and how a run is executed, not what it computes: two runs that differ only here are the same experiment.
CIRCUMSTANCES = frozenset(
    {"resume", "checkpoint_dir", "show_progress", "state", "gpu_id", "use_gpu", "worker", "data_path", "save_state"}
    | {"embedding_cache_dir", "llm_cache_dir", "rec_llm_cache_dir", "log_wandb", "wandb_project", "smoke_settings"}
    | {"nproc", "world_size", "group_offset", "offset", "ip", "port", "distributed_timeout", "find_unused_parameters"}
    | {"data_cache_mb"}
    | SECRETS
    | CODE_KEYS
)
# Settings that may differ when a run is used: where it runs and its batch sizes.
SERVING = (
    CIRCUMSTANCES - {"resume", "checkpoint_dir", "log_wandb", "wandb_project", "smoke_settings", "save_state"}
) | {"eval_batch_size", "eval_score_memory_mb", "llm_local_files_only"}
LANGUAGE_MODEL_KEYS = frozenset({"llm", "llm_revision", "llm_local_files_only", "llm_dtype", "rec_llm", "item_text"})


def plain(value: Any) -> Any:
    """Convert a value to types that YAML and JSON have."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def same_experiment(settings: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two merged configurations describe the same experiment."""
    return comparable_settings(settings) == comparable_settings(other)


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a run's numbers; the language model counts only for models that read text."""
    ignored = CIRCUMSTANCES | (LANGUAGE_MODEL_KEYS if settings.get("model") in stock_models() else frozenset())
    return {key: value for key, value in plain(settings).items() if key not in ignored and value is not None}


def changed_language_models(recorded: Iterable[Mapping[str, Any]], config: Config) -> list[str]:
    """Describe what ``auto`` meant in a run if it means something else now.

    Parameters
    ----------
    recorded : iterable of mappings
        What :func:`recbole_llm.llm.auto.recording` collected in the run.
    config : Config
    """
    changed = []
    for entry in recorded:
        options = {**config.final_config_dict, "llm": "auto", "llm_revision": entry.get("asked_revision")}
        spec = LLMSpec.from_config(options, preferred=entry["preferred"])
        now = _resolved(spec, entry["causal"], entry["weights"])
        if now is None or (now.name, now.revision) != (entry["name"], entry["revision"]):
            changed.append(f"auto was {entry['name']} and is {'not available' if now is None else now.name} now")
    return changed


@lru_cache(maxsize=32)
def _resolved(spec: LLMSpec, causal: bool, weights: bool) -> ResolvedLLM | None:
    try:
        return (resolve_causal_lm if causal else resolve_llm)(spec, SILENT, weights)
    except RecBoleLLMError:
        return None


def changed_settings(settings: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two merged configurations differ as experiments."""
    first, second = comparable_settings(settings), comparable_settings(now)
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
