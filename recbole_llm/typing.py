"""Types of what many modules are handed; transformers is imported for type checkers only."""

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ModelConfig: TypeAlias = "PretrainedConfig"
Tokenizer: TypeAlias = "PreTrainedTokenizerBase"
LanguageModel: TypeAlias = "PreTrainedModel"  # or PEFT's wrapper of one


class Settings(Protocol):
    """A :class:`recbole_llm.config.Config`, or a mapping with the keys that the reader needs."""

    def __getitem__(self, key: str, /) -> Any: ...
