"""Settings of our models: one section per model, named after it.

Defaults and comments: ``props/model/<Model>.yaml`` and, for shared blocks, ``props/common/``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from recbole_llm.config.schema.blocks import (
    Adaptor,
    AtLeastTwo,
    Initial,
    ItemLoss,
    ItemText,
    LoRA,
    Radius,
    RecLLM,
    Reduced,
    SomeTexts,
    Untrained,
)
from recbole_llm.config.schema.recbole import Activation
from recbole_llm.config.schema.section import InnerSettings, Section
from recbole_llm.config.schema.untrained import (
    VSKNN,
    EmbeddingEnsemble,
    LLMSeqSim,
    LLMSeqSimPopularity,
    LLMSeqSimSequential,
    MaxIdRule,
    ScoreEnsemble,
)
from recbole_llm.config.types import (
    AboveZero,
    Bounds,
    Count,
    Dropout,
    Name,
    NonNegative,
    Positive,
    Rule,
    Seed,
    Share,
    TextName,
)

# ---- sequential models on text vectors


@dataclass(frozen=True, kw_only=True)
class TextTable(Reduced, Adaptor, ItemLoss):
    """A sequential model whose item table starts from text vectors."""

    llm_init: bool
    whiten: bool
    init_scale: Literal["none", "match_base"]
    freeze_item_embedding: bool
    backbone: Literal["recbole", "paper"]
    paper_unmasked_padding: bool
    output_head: bool | None
    output_bias: Literal["none", "item"]
    hidden_size: Positive
    hidden_act: Activation

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Report the authors' padding in RecBole's network."""
        if settings["paper_unmasked_padding"] and settings["backbone"] != "paper":
            return "paper_unmasked_padding=True needs the authors' network: set backbone=paper"
        return super().contradiction(settings)


@dataclass(frozen=True, kw_only=True)
class LLM2SASRec(TextTable):
    """SASRec on text vectors."""

    n_layers: Positive
    n_heads: Positive
    inner_size: Positive
    hidden_dropout_prob: Dropout
    attn_dropout_prob: Dropout
    layer_norm_eps: AboveZero
    initializer_range: NonNegative

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Report a width that the number of heads does not divide."""
        width, heads = settings["hidden_size"], settings["n_heads"]
        if width % heads:
            return f"hidden_size={width} is not a multiple of n_heads={heads}: change one of them"
        return super().contradiction(settings)


@dataclass(frozen=True, kw_only=True)
class LLM2BERT4Rec(LLM2SASRec):
    """BERT4Rec on text vectors."""

    mask_ratio: Annotated[float, Bounds(gt=0, le=1)]
    n_mask_copies: Count
    n_last_copies: Count

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Report settings that leave no training sequence."""
        if settings["n_mask_copies"] == settings["n_last_copies"] == 0:
            return "n_mask_copies=0 and n_last_copies=0 leave nothing to train on"
        return super().contradiction(settings)


@dataclass(frozen=True, kw_only=True)
class LLM2GRU4Rec(TextTable):
    """GRU4Rec on text vectors."""

    embedding_size: Positive
    num_layers: Positive
    dropout_prob: Dropout


@dataclass(frozen=True, kw_only=True)
class LRURec(ItemLoss):
    """Linear recurrent units."""

    hidden_size: Positive
    state_size: Positive
    inner_size: Positive
    n_layers: Positive
    dropout: Dropout
    r_min: Radius
    r_max: Radius
    initializer_range: AboveZero
    first_item_target: bool

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Report r_min that is not below r_max."""
        if not settings["r_min"] < settings["r_max"]:
            return f"r_min={settings['r_min']} must be below r_max={settings['r_max']}"
        return super().contradiction(settings)


@dataclass(frozen=True, kw_only=True)
class LiteLLM4Rec(ItemText, Adaptor, RecLLM, ItemLoss):
    """Item LLM, Recommendation LLM and a head over the catalogue."""

    item_llm_mode: Literal["two_stage", "frozen", "table", "joint", "joint_then_two_stage"]
    item_learning_rate: AboveZero | None
    share_llm: bool
    scratch_shape: dict[str, Any] | None
    rec_llm_attention: Literal["bidirectional", "causal"]
    rec_llm_layers: Positive | None
    rec_llm_tuning: Literal["full", "lora"]
    lora_r: Positive
    lora_alpha: AboveZero
    lora_dropout: Dropout
    lora_target_modules: Name | Annotated[list[Name], Rule(bool, "names of layers")]
    head: Literal["projection", "tied"]
    seq_pool: Literal["mean", "last"]
    input_scale: Literal["none", "rms", "learned"]
    fix_rec_llm: bool
    head_init: Literal["default", "items"]
    fix_head: bool
    train_strategy: Literal["sampling", "all"]
    dropout: Dropout
    dropout_place: Literal["t5", "vectors", "pooled", "vectors+pooled"]
    stage2_learning_rate: AboveZero | None
    stage2_epochs: Count | None
    task: Literal["sequential", "topn"]
    topn_negatives: Positive
    topn_input: Literal["history_candidates", "candidates"]

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Report a learning rate of item vectors where none is trained itself."""
        mode = settings["item_llm_mode"]
        if settings["item_learning_rate"] and mode in ("frozen", "joint") and not settings["residual_id"]:
            return (
                f"item_learning_rate has no effect: with item_llm_mode={mode!r} no item vector is trained itself. Use "
                "item_llm_mode=table or two_stage, or residual_id=True"
            )
        return super().contradiction(settings)


# ---- language models that read prompts


def _not_full(settings: Mapping[str, Any], what: str) -> str | None:
    mode = settings["eval_args"]["mode"]
    if set(mode.values()) == {"full"}:
        return None
    return f"eval_args.mode={mode!r}: {what} the whole catalogue. Use mode: full"


@dataclass(frozen=True, kw_only=True)
class LlamaRec(LoRA):
    """A retriever, then a causal language model that ranks."""

    retriever: TextName
    retriever_settings: Annotated[dict[str, Any], InnerSettings("LRURec", named_by="retriever")]
    retriever_learning_rate: AboveZero | None
    retriever_epochs: Count | None
    n_candidates: AtLeastTwo
    llm_init: Initial
    prompt: TextName
    max_history: Positive
    max_title_tokens: Positive | None
    max_prompt_length: Positive
    label_words: list[Name] | None
    verbalizer: Literal["in_context", "original"]
    ranker_loss: Literal["letter_eos", "letter", "candidates"]
    loss_type: Literal["CE"]
    train_negatives: Literal["random", "retriever", "retrieved"]
    negative_pool: Positive
    length_bucketing: bool
    rank_batch_size: Positive
    shuffle_candidates: bool
    permutations: Positive
    calibration: Literal["none", "content_free", "shuffled"]
    calibration_prompts: Positive
    retriever_weight: Share
    skip_users_without_target: Literal["never", "valid", "always"]

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Report a pool smaller than the candidates, and sampled evaluation."""
        pool, candidates = settings["negative_pool"], settings["n_candidates"]
        if settings["train_negatives"] == "retriever" and pool < candidates:
            return f"negative_pool={pool} must be at least n_candidates={candidates}"
        return _not_full(settings, "LlamaRec ranks what it retrieves from") or super().contradiction(settings)


@dataclass(frozen=True, kw_only=True)
class LLMSeqPrompt(LoRA, RecLLM, ItemText):
    """A causal language model that generates titles."""

    variant: Literal["genitem", "genlist", "classify", "rank"]
    list_length: Positive
    prompt_style: Literal["chat", "completion"]
    prompt: TextName | None
    clusters: AtLeastTwo
    classify_expand: bool
    seqsim_settings: Annotated[dict[str, Any], InnerSettings("LLMSeqSim")]
    max_history: Positive
    max_title_tokens: Positive | None
    max_prompt_tokens: Positive | None
    length_bucketing: bool
    loss_type: Literal["CE"]
    decoding: Literal["sample", "beam", "trie"]
    temperature: NonNegative
    top_p: Annotated[float, Bounds(gt=0, le=1)]
    n_samples: Positive
    max_new_tokens: Positive | None
    generate_batch_size: Positive
    unknown_names: Literal["nearest", "drop"]
    fill: Literal["seqsim", "random"]

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Report options that only GenItem supports, and titles that no encoder could compare."""
        variant, style, decoding = (settings[key] for key in ("variant", "prompt_style", "decoding"))
        if variant != "genitem" and style == "completion":
            return f"prompt_style=completion is GenItem's of 2023; variant={variant} has chat only"
        if variant != "genitem" and decoding != "sample":
            return (
                f"decoding={decoding!r} finds single names; variant={variant} writes lists. Use decoding=sample "
                "(temperature=0: greedy)"
            )
        if settings["item_vectors"] and settings["unknown_names"] == "nearest" and variant in ("genitem", "genlist"):
            return (
                "item_vectors: names that no item has are compared with titles by the encoder in llm, and vectors "
                "from a file come without one. Set unknown_names=drop, or leave item_vectors out"
            )
        return _not_full(settings, "LLMSeqPrompt writes items of") or super().contradiction(settings)


@dataclass(frozen=True, kw_only=True)
class Generative(Section):
    """A T5 that generates item codes: P5, POD and LightLM."""

    valid_figures = ("loss",)

    rec_llm_init: Initial
    scratch_shape: dict[str, Any] | None
    feed_forward_size: Positive | None
    digit_embedding_range: AboveZero | None
    dropout: Dropout | None
    item_index: Literal["random", "sequential_train", "sequential_full", "collaborative", "sci", "gci", "title"]
    item_index_seed: Seed
    item_index_clusters: AtLeastTwo | None
    item_index_cluster_size: AtLeastTwo | None
    item_index_factors: Positive | None
    item_index_subspaces: Positive | None
    item_index_codewords: AtLeastTwo | None
    item_repr: Literal["index", "title"]
    item_prefix: str | None
    target_prefix: str | None
    templates: SomeTexts
    test_template: Count | Name
    separators: Annotated[list[str], Rule(bool, "a non-empty list of texts")]
    topn_templates: SomeTexts
    topn_test_template: Count | Name
    soft_prompts: Count
    whole_word: Literal["entity", "word", "none"]
    whole_word_size: Positive
    whole_word_std: NonNegative
    whole_word_at_test: bool
    max_prompt_tokens: Positive
    prompt_cut: Literal["oldest", "right"]
    head: Literal["decoder", "projection"]
    decoding: Literal["unconstrained", "trie", "exact"]
    beams: Positive
    length_penalty: Annotated[float, Bounds()]
    early_stopping: bool
    max_new_tokens: Positive | None
    task: Literal["sequential", "topn"]
    topn_negatives: Positive
    loss_type: Literal["CE"]
    loss_reduction: Literal["token", "sample"]
    pad_in_loss: bool
    unmasked_cross_attention: bool

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Report lists longer than the beams can fill."""
        beams, longest = settings["beams"], max(settings["topk"])
        if settings["head"] == "decoder" and settings["decoding"] != "exact" and beams < longest:
            return f"beams={beams} cannot fill a list of topk={longest} items; set beams={longest} or more"
        return super().contradiction(settings)


@dataclass(frozen=True, kw_only=True)
class P5(Generative):
    """P5, with its kinds of prompts."""

    unseen_template: Name
    prompt_weights: dict[str, NonNegative]
    choice_templates: SomeTexts
    yes_no_templates: SomeTexts
    choice_candidates: AtLeastTwo


@dataclass(frozen=True, kw_only=True)
class POD(Generative):
    """POD, with its tasks."""

    train_tasks: Annotated[list[Literal["sequential", "topn"]], Rule(bool, "a non-empty list")] | None


@dataclass(frozen=True, kw_only=True)
class LightLM(Generative):
    """LightLM, with or without the history."""

    with_history: bool
    history_templates: SomeTexts
    history_test_template: Count | Name


MODELS: dict[str, type[Section]] = {
    **{
        section.__name__: section
        for section in (
            *(LLM2SASRec, LLM2BERT4Rec, LLM2GRU4Rec, LRURec, LiteLLM4Rec, LlamaRec, LLMSeqPrompt, P5, POD, LightLM),
            *(LLMSeqSim, VSKNN, MaxIdRule, EmbeddingEnsemble, LLMSeqSimPopularity, LLMSeqSimSequential, ScoreEnsemble),
        )
    },
    "MostPopular": Untrained,
}
