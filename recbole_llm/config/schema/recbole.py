"""RecBole's settings: those of every run, and those of its sequential models.

RecBole's property files give defaults without a machine-readable type, and RecBole checks next to none of them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from recbole_llm.config.schema.section import Section
from recbole_llm.config.types import (
    AboveZero,
    Bounds,
    Count,
    Dropout,
    Interval,
    Name,
    NonNegative,
    Note,
    Positive,
    Rule,
    Seed,
    Share,
    Text,
    TextName,
    Verbatim,
    one_of,
)

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
# Of RecBole's ranking metrics and ours; the evaluator's list is tested to be the same.
METRICS = (
    *("recall", "mrr", "ndcg", "hit", "map", "precision"),
    *("itemcoverage", "averagepopularity", "shannonentropy", "giniindex", "tailpercentage"),
    *("serendipity", "novelty", "catalogcoverage"),
)
Columns = dict[str, list[Name] | Literal["*"] | None]
Activation = Literal["gelu", "relu", "swish", "tanh", "sigmoid"]
LossType = Literal["CE", "BPR"]
Mode = Annotated[
    str,
    Rule(
        lambda value: re.fullmatch(r"full|(?:uni|pop)[1-9]\d{0,8}", value) is not None, "full, uniN or popN (uni100)"
    ),
]
Metric = Annotated[str, one_of(METRICS)]


class Split(TypedDict, total=False):
    """One entry: how interactions are divided."""

    LS: Literal["valid_and_test", "valid_only", "test_only"]
    RS: Annotated[
        list[NonNegative],
        Rule(lambda shares: len(shares) == 3 and sum(shares) > 0, "three shares such as [0.8, 0.1, 0.1]"),
    ]


class Modes(TypedDict, total=False):
    """Candidates in validation and test."""

    valid: Mode
    test: Mode


class EvalArgs(TypedDict, total=False):
    """RecBole's ``eval_args``."""

    split: Annotated[
        Split,
        Rule(
            lambda split: len(split) == 1,
            "{LS: valid_and_test}, {LS: valid_only}, {LS: test_only}, or three shares such as {RS: [0.8, 0.1, 0.1]}",
        ),
    ]
    order: Annotated[Literal["TO"], Note("sequences are ordered in time")]
    group_by: Literal["user", "none"] | None
    mode: Mode | Modes


class NegativeSampling(TypedDict, total=False):
    """RecBole's ``train_neg_sample_args``."""

    distribution: Literal["uniform", "popularity", "none"]
    sample_num: Positive
    alpha: NonNegative
    dynamic: bool
    candidate_num: Count


class Clipping(TypedDict, total=False):
    """Arguments of :func:`torch.nn.utils.clip_grad_norm_`."""

    max_norm: AboveZero
    norm_type: Annotated[float, Bounds(gt=0, infinite=True)]
    error_if_nonfinite: bool
    foreach: bool | None


@dataclass(frozen=True, kw_only=True)
class Environment(Section):
    """Devices, folders, logs."""

    model: Annotated[Any, Verbatim()]
    dataset: TextName
    gpu_id: Annotated[int, Bounds(ge=0)] | str | list[Any] | None
    worker: Count
    use_gpu: bool
    seed: Seed
    state: Annotated[str, one_of(LOG_LEVELS)]
    reproducibility: bool
    data_path: TextName
    checkpoint_dir: TextName
    show_progress: bool
    save_dataset: bool
    dataset_save_path: TextName | None
    save_dataloaders: bool
    dataloaders_save_path: TextName | None
    log_wandb: bool
    wandb_project: Name
    shuffle: bool


@dataclass(frozen=True, kw_only=True)
class Optimisation(Section):
    """RecBole's training settings."""

    epochs: Count
    train_batch_size: Positive
    learner: Annotated[str, one_of(LEARNERS)]
    learning_rate: AboveZero
    train_neg_sample_args: NegativeSampling | None
    eval_step: Count
    stopping_step: Count
    clip_grad_norm: AboveZero | Clipping | None
    weight_decay: NonNegative
    loss_decimal_place: Count
    require_pow: bool
    enable_amp: bool
    enable_scaler: bool
    transform: Literal["mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq"] | None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Section):
    """RecBole's evaluation settings."""

    eval_args: EvalArgs
    repeatable: Annotated[Literal[True], Note("mask_history decides whether items are recommended again")]
    metrics: Metric | Annotated[list[Metric], Rule(bool, "a list of names")]
    topk: Positive | Annotated[list[Positive], Rule(bool, "a list of such numbers")]
    valid_metric: Name
    valid_metric_bigger: bool
    eval_batch_size: Positive
    metric_decimal_place: Annotated[int, Bounds(ge=0, le=20)]


@dataclass(frozen=True, kw_only=True)
class AtomicFiles(Section):
    """Format, columns and filters of the data files."""

    field_separator: Annotated[Text, Rule(lambda value: len(value) > 0, "a character")]
    seq_separator: Annotated[Text, Rule(lambda value: len(value) > 0, "a character")]
    USER_ID_FIELD: Name
    ITEM_ID_FIELD: Name
    RATING_FIELD: Name
    TIME_FIELD: Name
    LABEL_FIELD: Name
    NEG_PREFIX: Name
    ITEM_LIST_LENGTH_FIELD: Name
    LIST_SUFFIX: Name
    POSITION_FIELD: Name
    HEAD_ENTITY_ID_FIELD: Name
    TAIL_ENTITY_ID_FIELD: Name
    RELATION_ID_FIELD: Name
    ENTITY_ID_FIELD: Name
    MAX_ITEM_LIST_LENGTH: Positive
    seq_len: dict[str, Positive] | None
    threshold: dict[str, float] | None
    numerical_features: list[Name]
    load_col: Columns | None
    unload_col: Columns | None
    unused_col: Columns | None
    additional_feat_suffix: Name | list[Name] | None
    rm_dup_inter: Literal["first", "last"] | None
    val_interval: dict[str, Interval | list[Name]] | None
    filter_inter_by_user_or_item: bool
    user_inter_num_interval: Interval | None
    item_inter_num_interval: Interval | None
    alias_of_user_id: list[Name] | None
    alias_of_item_id: list[Name] | None
    alias_of_entity_id: list[Name] | None
    alias_of_relation_id: list[Name] | None
    preload_weight: dict[str, str] | None
    normalize_field: list[Name] | None
    normalize_all: bool | None
    discretization: dict[str, Any] | None
    kg_reverse_r: bool
    entity_kg_num_interval: Interval | None
    relation_kg_num_interval: Interval | None
    benchmark_filename: list[Name] | None


RECBOLE: tuple[type[Section], ...] = (Environment, Optimisation, Evaluation, AtomicFiles)

Features = Name | Annotated[list[Name], Rule(bool, "a list of such names")]
# Settings of RecBole's sequential models whose range their default does not show.
STOCK_MODELS: dict[str, Any] = {
    **dict.fromkeys(("n_layers", "n_heads", "num_layers", "hidden_size", "inner_size", "embedding_size"), Positive),
    **dict.fromkeys(("kg_embedding_size", "prototype_size", "interest_size", "kernel_size", "block_num"), Positive),
    **dict.fromkeys(("k_interests", "high_order", "order_len", "short_item_length", "nv", "nh", "step"), Positive),
    **dict.fromkeys(("n_facet", "n_facet_all", "save_step", "topk_factor"), Positive),
    **dict.fromkeys(
        ("n_facet_context", "n_facet_emb", "n_facet_reranker", "n_facet_hidden", "pretrain_epochs"), Count
    ),
    **dict.fromkeys(("n_facet_window", "n_facet_MLP"), int),
    **dict.fromkeys(("context_norm", "use_proj_bias", "post_remove_context"), Literal[0, 1] | bool),
    **dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "dropout_prob"), Dropout),
    **dict.fromkeys(("item_dropout", "sess_dropout"), Dropout),
    "dropout_probs": Annotated[list[Dropout], Rule(lambda rates: len(rates) == 2, "two dropout rates")],
    **dict.fromkeys(("mask_ratio", "ft_ratio", "weight", "global_ratio", "spatial_ratio", "eta", "beta"), Share),
    **dict.fromkeys(("layer_norm_eps", "temperature", "tau_ratio"), AboveZero),
    **dict.fromkeys(("initializer_range", "reg_loss_ratio", "lmd", "lmd_sem"), NonNegative),
    **dict.fromkeys(("aap_weight", "mip_weight", "map_weight", "sp_weight"), NonNegative),
    "reg_weight": NonNegative | list[NonNegative],
    "mlp_hidden_size": list[Positive],
    "dilations": list[Positive],
    "hidden_act": Activation,
    "loss_type": LossType,
    "train_stage": Literal["pretrain", "finetune"],
    "pre_model_path": Text | None,
    "item_attribute": Features,
    "selected_features": Features,
    "pooling_mode": Literal["mean", "max", "sum"],
    "pooling_type": Literal["average", "max"],
    **dict.fromkeys(("pooling_type_layer_1", "pooling_type_layer_2"), Literal["average", "max"]),
    "dnn_type": Literal["trm", "ave"],
    "gru_type": Literal["AUGRU", "AGRU", "AIGRU", "GRU"],
    "fredom_type": Literal["un", "su", "us", "us_x"] | None,
    "partition_merging_mode": Literal["replace", "add", "half"],
    "reranker_merging_mode": Literal["replace", "add"],
    "weight_mode": Literal["", "static", "dynamic", "max_logits"],
    "reranker_CAN_NUM": Positive | str,
}


# Where one of them takes less than the others do.
STOCK_EXCEPTIONS: dict[tuple[str, str], Any] = {
    ("FPMC", "loss_type"): Literal["BPR"],
    ("GRU4RecCPR", "loss_type"): Literal["CE"],
    ("SASRecCPR", "loss_type"): Literal["CE"],
}


def derived_types(defaults: Mapping[str, Any], stock_model: str | None = None) -> dict[str, Any]:
    """Infer the types of settings that no section declares from their defaults.

    Parameters
    ----------
    defaults : dict
        A setting without a default may be anything. Whole numbers are wanted where the default is one.
    stock_model : str, optional
        Name of the RecBole model whose settings these are; :data:`STOCK_MODELS` has their ranges. Ranges of other
        classes are their own affair, and blank may mean something to them.
    """
    if stock_model is not None:
        types = {key: STOCK_MODELS.get(key, _type_of(value)) for key, value in defaults.items()}
        return {key: STOCK_EXCEPTIONS.get((stock_model, key), kind) for key, kind in types.items()}
    return {key: _type_of(value) | None if value is not None else Any for key, value in defaults.items()}


def _type_of(default: Any) -> Any:
    if default is None:
        return Any
    for kind in (bool, int, float, str):
        if isinstance(default, kind):
            return kind
    if isinstance(default, (list, tuple)):
        return list[Any]
    return dict[str, Any] if isinstance(default, Mapping) else Any
