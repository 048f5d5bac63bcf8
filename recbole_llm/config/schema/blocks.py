"""Types and blocks of settings that several models share; defaults of the blocks: ``props/common/``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from recbole_llm.config.schema.general import Attention, DType
from recbole_llm.config.schema.section import InnerSettings, Section
from recbole_llm.config.types import (
    AboveZero,
    Bounds,
    Dropout,
    Name,
    Note,
    Positive,
    Rule,
    Share,
    TextName,
)

Radius = Annotated[float, Bounds(gt=0, lt=1)]
AtLeastTwo = Annotated[int, Bounds(ge=2)]
SomeTexts = Annotated[list[Name], Rule(bool, "a non-empty list of texts")]
Initial = Literal["pretrained", "scratch"]
Pooling = Literal["auto", "mean", "mean_no_eos", "mean_padded", "cls", "pooler", "last", "sentence"]
Reduction = Literal["none", "pca", "random_projection", "lda", "autoencoder"]
Decay = Literal[
    "none",
    "constant_linear",
    "scaling_linear",
    "scaling_quadratic",
    "scaling_cubic",
    "log",
    "harmonic",
    "harmonic_squared",
]
Loss = Literal["ce", "sampled_softmax", "gbce"]
NegativeDistribution = Literal["uniform", "popularity", "in_batch"]
InnerModel = TextName | Annotated[dict[str, Any], InnerSettings("LLMSeqSim")]
Grid = Share | Annotated[list[Share], Rule(bool, "a non-empty list of numbers from 0 to 1")] | None
# What trains nothing.
NoNegatives = Annotated[None, Note("there is nothing to train")]


@dataclass(frozen=True, kw_only=True)
class ItemLoss(Section):
    """Loss of hidden states against the catalogue."""

    loss: Loss
    loss_type: Annotated[Literal["CE"], Note("this key is RecBole's; the loss of this model is set by `loss`")]
    num_negatives: Positive
    negatives: Literal["auto", "shared", "per_target"]
    negative_distribution: NegativeDistribution
    negative_alpha: Annotated[float, Bounds()]
    logq: bool
    gbce_t: Share
    sparse_item_gradients: bool | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class ItemText(Section):
    """How an item's text becomes a vector."""

    item_pooling: Pooling
    item_max_tokens: Positive


@dataclass(frozen=True, kw_only=True)
class Reduced(ItemText):
    """Dimension reduction of text vectors."""

    dim_reduction: Reduction
    reduced_dim: Positive | None
    reduction_fit: Literal["catalogue", "train"]
    lda_class_field: Name | None
    normalize: bool


@dataclass(frozen=True, kw_only=True)
class Adaptor(Section):
    """Adaptor from text vectors to the model's width."""

    adaptor: Literal["none", "linear", "mlp", "moe"] | None
    adaptor_hidden_size: Positive | None
    adaptor_experts: Positive
    adaptor_dropout: Dropout
    residual_id: bool


@dataclass(frozen=True, kw_only=True)
class RecLLM(Section):
    """A second language model; missing settings default to those of ``llm``."""

    rec_llm: TextName | None
    rec_llm_init: Initial
    rec_llm_revision: TextName | None
    rec_llm_cache_dir: TextName | None
    rec_llm_local_files_only: bool | None
    rec_llm_token: TextName | None
    rec_llm_dtype: DType | None
    rec_llm_trust_remote_code: bool | None
    rec_llm_attn_implementation: Attention | None


@dataclass(frozen=True, kw_only=True)
class LoRA(Section):
    """How a causal language model is fine-tuned."""

    load_in_4bit: bool
    tuning: Literal["lora", "full", "none"]
    lora_r: Positive
    lora_alpha: AboveZero
    lora_dropout: Dropout
    lora_target_modules: Name | Annotated[list[Name], Rule(bool, "names of layers")]
    lora_layers: Positive | None
    gradient_checkpointing: bool

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Report 4-bit weights with full fine-tuning."""
        if settings["tuning"] == "full" and settings["load_in_4bit"]:
            return "load_in_4bit=True: weights of 4 bits cannot be trained. Use tuning=lora"
        return super().contradiction(settings)

    micro_batch_tokens: Positive | None


@dataclass(frozen=True, kw_only=True)
class Untrained(Section):
    """Models without a parameter to train."""

    train_neg_sample_args: NoNegatives
