"""Whether two runs are the same experiment."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recbole_llm.config.registry import stock_models
from recbole_llm.config.values import CODE_KEYS, SECRETS

# Where and how a run is carried out, not what it computes: two runs that differ only here are the same experiment.
CIRCUMSTANCES = frozenset(
    {"resume", "checkpoint_dir", "show_progress", "state", "gpu_id", "use_gpu", "worker", "data_path", "save_state"}
    | {"embedding_cache_dir", "llm_cache_dir", "rec_llm_cache_dir", "log_wandb", "wandb_project", "smoke_settings"}
    | {"nproc", "world_size", "group_offset", "offset", "ip", "port", "distributed_timeout", "find_unused_parameters"}
    | SECRETS
    | CODE_KEYS
)
# What of a run may differ when it is put to use: where it runs and how large its batches are.
SERVING = (
    CIRCUMSTANCES - {"resume", "checkpoint_dir", "log_wandb", "wandb_project", "smoke_settings", "save_state"}
) | {"eval_batch_size", "eval_score_memory_mb", "llm_local_files_only"}
LANGUAGE_MODEL_KEYS = frozenset({"llm", "llm_revision", "llm_local_files_only", "llm_dtype", "rec_llm", "item_text"})


def plain(value: Any) -> Any:
    """The same value in the types that YAML and JSON have."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def same_experiment(settings: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two merged configurations ask for the same numbers."""
    return comparable_settings(settings) == comparable_settings(other)


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers of a run. RecBole's own models read no text, so no language model is part of theirs."""
    ignored = CIRCUMSTANCES | (LANGUAGE_MODEL_KEYS if settings.get("model") in stock_models() else frozenset())
    return {key: value for key, value in plain(settings).items() if key not in ignored and value is not None}


def changed_settings(settings: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys in which two merged configurations are other experiments."""
    first, second = comparable_settings(settings), comparable_settings(now)
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
