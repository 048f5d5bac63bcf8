"""Settings of every run that RecBole does not have, by concern; defaults and comments: ``props/overall.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from recbole_llm.config.schema.section import Section
from recbole_llm.config.types import (
    AboveZero,
    Bounds,
    Count,
    Name,
    NonNegative,
    Positive,
    Seed,
    Share,
    Text,
    TextName,
)

Control = Literal["none", "random_vectors", "shuffled_text", "shuffled_history", "shuffled_history_train"]
View = Literal["prefix", "segment", "p5", "sequence"]
DType = Literal["float32", "bfloat16", "float16", "auto"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


@dataclass(frozen=True, kw_only=True)
class Protocol(Section):
    """Data split, ranking protocol and metrics."""

    protocol: Literal["eval_args", "loo", "temporal_session"]
    temporal_session_test_ratio: Annotated[float, Bounds(gt=0, lt=1)]
    temporal_session_valid_ratio: Annotated[float, Bounds(ge=0, lt=1)]
    temporal_session_valid_max: Positive
    temporal_session_seed: Seed
    temporal_session_fold: Positive | None
    temporal_session_folds: Positive
    allow_rank_times: bool
    mask_history: bool
    time_order: Literal["exact", "recbole"]
    popularity_counts: Literal["train", "all"]
    tail_ratio: Share | None
    valid_users_sample: Positive | None
    eval_score_memory_mb: Positive
    timing_batches: Count
    control: Control
    control_seed: Seed


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Data files, item texts and training rows."""

    encoding: Name | None
    data_cache_mb: Count
    cold_items: Annotated[float, Bounds(ge=0, lt=1)]
    cold_items_seed: Seed
    cold_items_in_history: bool
    item_text: TextName | list[Name] | None
    item_title: TextName | list[Name] | None
    item_vectors: TextName | None
    item_vectors_missing: Literal["error", "zero"]
    train_view: View | None
    windows: Literal["all", "original", "newest"]
    shuffle_ties: bool
    max_train_rows_per_user: Positive | None


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Section):
    """The language model that reads item texts: name, source and dtype."""

    llm: TextName
    llm_revision: TextName | None
    llm_cache_dir: TextName | None
    llm_local_files_only: bool
    llm_token: TextName | None
    llm_dtype: DType
    llm_trust_remote_code: bool
    llm_attn_implementation: Attention | None
    embedding_cache_dir: TextName | None


@dataclass(frozen=True, kw_only=True)
class Training(Section):
    """Optimisation settings that RecBole lacks, initial weights and resuming."""

    amp: Literal["bf16", "fp16"] | None
    accumulate_grad_batches: Positive
    lr_schedule: Literal["constant", "linear", "cosine"]
    warmup_ratio: Share
    warmup_updates: Count | None
    eval_updates: Positive | None
    adam_eps: AboveZero
    decay_groups: Literal["all", "no_bias_norm"]
    save_state: bool
    init_from: TextName | None
    final_fit: dict[str, Any] | None
    resume: TextName | bool | None


@dataclass(frozen=True, kw_only=True)
class Processes(Section):
    """Distributed training: several processes with one device each."""

    nproc: Positive
    world_size: Literal[-1] | Positive
    group_offset: Count
    offset: Count | None
    local_rank: Any
    ip: Name
    port: Annotated[int, Bounds(ge=1, le=65535)] | None
    distributed_timeout: Positive
    find_unused_parameters: bool | None


@dataclass(frozen=True, kw_only=True)
class Smoke(Section):
    """Quick check of a configuration with few users and a tiny random language model."""

    smoke: bool
    smoke_users: Positive
    smoke_interactions: Positive
    smoke_settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Files(Section):
    """Settings files and unknown keys."""

    config_files: Text | list[Any] | None
    allow_unknown_keys: bool


@dataclass(frozen=True, kw_only=True)
class Comparison(Section):
    """Keys of a comparison; defaults and comments: ``props/compare.yaml``."""

    models: list[Any] | None
    seeds: Seed | list[Seed] | None
    baselines: Name | list[Name] | None
    significance_test: Literal["t-test", "permutation", "wilcoxon"]
    significance_level: Annotated[float, Bounds(gt=0, lt=1)]
    tune: dict[str, Any] | None
    reuse: bool
    comparison_dir: TextName | None
    open: bool


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Section):
    """Options of a study; defaults and comments: ``props/tune.yaml``."""

    algo: Literal["exhaustive", "random", "bayes"] | None
    max_evals: Positive | None
    early_stop: Count | None
    max_hours: NonNegative | None
    random_trials: Positive
    pruner: Literal["none", "median", "percentile", "halving"]
    prune_after: Count
    prune_trials: Positive
    prune_keep: Annotated[float, Bounds(gt=0, lt=1)]
    prune_factor: Annotated[int, Bounds(ge=2)]
    keep_trials: Literal["light", "all", "best"]
    study: TextName | None
    retry_failed: bool
    tool: Literal["Optuna", "Ray"]
    ray_address: TextName | None
    parallel: Positive | None
    cpus_per_trial: NonNegative | None
    gpus_per_trial: NonNegative | None

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Refuse resources of trials where no Ray shares them out."""
        for key in ("ray_address", "parallel", "cpus_per_trial", "gpus_per_trial"):
            if settings["tool"] != "Ray" and settings[key] is not None:
                return f"{key}={settings[key]!r} applies to trials under Ray only: add --tool=Ray."
        return None


GENERAL: tuple[type[Section], ...] = (Protocol, Data, LanguageModel, Training, Processes, Smoke, Files)
