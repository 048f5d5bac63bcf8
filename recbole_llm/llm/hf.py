"""Small helpers around transformers that both finding and loading a model need."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from recbole_llm.errors import ModelNotFoundError
from recbole_llm.typing import ModelConfig


def family_of(config: ModelConfig) -> str:
    """Return "t5", "bert", "decoder" or "other": see :class:`recbole_llm.llm.spec.ResolvedLLM`."""
    from transformers.models.auto import modeling_auto as auto

    # by class and not by is_encoder_decoder, which is false in the folder of an encoder saved without its decoder
    if auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type, "").endswith("EncoderModel"):
        return "t5"
    if getattr(config, "is_encoder_decoder", False):
        return "other"
    if config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "bert"
    return "decoder" if config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "other"


def read_config(folder: Path, trust_remote_code: bool = False) -> ModelConfig:
    """Return the configuration in a model folder; raise ModelNotFoundError where it is missing or damaged."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelNotFoundError(
            f"llm: {folder / 'config.json'} cannot be read ({first_line(error)}). Fetch the model again, or update "
            "transformers if the model is newer than it."
        ) from error


def has_tokenizer(folder: Path) -> bool:
    """Return whether a model folder has tokenizer files: without them transformers makes one that knows no word."""
    patterns = ("tokenizer*", "vocab*", "spiece.model", "sentencepiece*", "*.spm", "*/tokenizer*", "*/vocab*")
    return any(any(folder.glob(pattern)) for pattern in patterns)


def needs_sentencepiece(folder: Path) -> bool:
    """Return whether a model folder's tokenizer can only be read by SentencePiece, which is not installed."""
    files = [*folder.glob("*.model"), *folder.glob("*.spm")]
    return bool(files) and not (folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None


def first_line(error: Exception) -> str:
    """Return type and first line of another library's error, for use in our message."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' log lines and progress bars while a model loads; its settings are put back."""
    from transformers.utils import logging as hf

    verbosity, has_bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(verbosity)
        if has_bars:
            hf.enable_progress_bar()
