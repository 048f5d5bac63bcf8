"""Specification of a language model by the user, and its resolution to files on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recbole_llm.errors import ConfigError
from recbole_llm.llm.tiny import TINY_NAMES
from recbole_llm.typing import Settings

DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass(frozen=True)
class LLMSpec:
    """Specification of a language model.

    Attributes
    ----------
    name : str
        "auto", "bundled", "smollm2", a hub id, a folder, a GGUF file (path or ``hub-id:file.gguf``), or a name of
        :data:`recbole_llm.llm.tiny.TINY_NAMES`.
    preferred : str
        Hub id or folder that "auto" resolves to if available.
    revision : str, optional
        Branch, tag or commit on the hub.
    cache_dir : str, optional
        Hub cache; None is Hugging Face's own (``HF_HOME``).
    local_files_only : bool
        Never ask the hub. ``HF_HUB_OFFLINE=1`` in the environment has the same effect.
    token : str or bool, optional
        Access token for gated models; None uses the one stored by ``hf auth login``.
    dtype : {"float32", "bfloat16", "float16", "auto"}
        Type of the weights; "auto" is bfloat16 where the device multiplies it natively, else float32.
    trust_remote_code : bool
        Run Python code that comes with the model.
    attn_implementation : str, optional
        "eager", "sdpa" or "flash_attention_2"; None lets transformers choose.
    device : str
        Where the model will compute, which "auto" as dtype goes by.
    """

    name: str = "auto"
    preferred: str = "google-t5/t5-small"
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    token: str | bool | None = field(default=None, repr=False)
    dtype: str = "float32"
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check types and values; raise ConfigError."""
        for key in ("name", "preferred"):
            value = getattr(self, key)
            if not isinstance(value, str) or not value.strip():
                raise ConfigError(
                    f"llm: {value!r} is not a model name. Allowed: auto, bundled, smollm2, a Hugging Face id such "
                    f"as google-t5/t5-small, a folder, a GGUF file, {', '.join(TINY_NAMES)}."
                )
        if self.dtype not in DTYPES:
            raise ConfigError(f"invalid value for llm_dtype: {self.dtype!r} (choose from {', '.join(DTYPES)}).")
        for key in ("local_files_only", "trust_remote_code"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(f"invalid value for llm_{key}: {getattr(self, key)!r} (choose true or false).")

    @classmethod
    def from_config(cls, config: Settings, key: str = "llm", preferred: str = "google-t5/t5-small") -> "LLMSpec":
        """Read ``config[key]`` and ``config[f"{key}_revision"]``, ``_cache_dir``, ``_token``, ``_dtype``, ...

        Where `key` is not "llm", a parameter that is not given falls back to the one of "llm" (``rec_llm_dtype`` to
        ``llm_dtype``). Only the revision does so just where both name the same model, because a commit belongs to one
        model.

        Parameters
        ----------
        config : recbole Config or dict
            Missing keys may be absent or None.
        key : str
            "llm" or a key such as "rec_llm".
        preferred : str
            Model that "auto" prefers.

        Raises
        ------
        ConfigError
            A value has the wrong type or is not allowed.
        """

        def get(name: str) -> Any:
            if isinstance(config, Mapping):
                return config.get(name)
            return config[name]  # a RecBole Config gives None for a key it does not have

        def option(name: str) -> Any:
            value = get(f"{key}_{name}")
            if value is None and key != "llm" and (name != "revision" or chosen == get("llm")):
                value = get(f"llm_{name}")
            return value

        chosen = get(key)
        if chosen is None:
            chosen = get("llm")
        chosen = "auto" if chosen is None else chosen
        given: dict[str, Any] = {"name": chosen, "preferred": preferred}
        for name in (
            *("revision", "cache_dir", "local_files_only", "token", "dtype", "trust_remote_code"),
            "attn_implementation",
        ):
            value = option(name)
            if value is not None:
                given[name] = value if name in ("local_files_only", "trust_remote_code", "token") else str(value)
        if get("device") is not None:
            given["device"] = str(get("device"))
        return cls(**given)


@dataclass(frozen=True)
class ResolvedLLM:
    """The files that a :class:`LLMSpec` resolves to on this machine.

    Attributes
    ----------
    requested : str
        The requested name.
    name : str
        The model that was found.
    path : str
        Folder with its files; the name itself for a tiny random model.
    revision : str
        Names the content: commit of the hub, ``sha256:...`` for folders, GGUF files and packages, the seed of a tiny
        one.
    family : {"t5", "bert", "decoder", "other"}
        Encoder-decoder of the T5 kind (its encoder is used), bidirectional encoder, causal decoder, anything else.
    is_sentence_transformer : bool
        The folder has a ``modules.json``: a sentence-transformers pipeline with its own pooling.
    source : {"hub", "cache", "folder", "bundled", "package", "gguf", "random"}
        Where the files came from.
    spec : LLMSpec
        The request, with dtype and the like.
    package : str
        Name and version of the installed package that the files came from, if any.
    """

    requested: str
    name: str
    path: str
    revision: str
    family: str
    is_sentence_transformer: bool
    source: str
    spec: LLMSpec
    package: str = ""

    def label(self) -> str:
        """Return how results call the model: name, and in brackets where it came from or its commit."""
        if self.source in ("hub", "cache"):
            return f"{self.name}@{self.revision[:8]}"
        return f"{self.name} ({self.package or self.source})"
