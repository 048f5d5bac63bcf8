"""Finished runs on the Hugging Face hub."""

import re
from pathlib import Path

from recbole_llm.errors import CheckpointError

DATA = "dataset"  # folder of the data files beside the weights, where they were published with them
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def run_folder(name: str | Path) -> Path:
    """Return the folder of a run: a path as it is, a repository of the hub (``org/name[@revision]``) downloaded.

    A name whose first part is a folder here is a path.

    Raises
    ------
    CheckpointError
        If the repository cannot be downloaded.
    """
    path = Path(name)
    if path.exists() or not isinstance(name, str) or not _REPOSITORY.fullmatch(name) or path.parent.exists():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"{name!r} is neither a folder here nor a repository that can be read from the Hugging Face hub "
            f"({str(error).strip().splitlines()[0]}). For a private one, run `hf auth login`."
        ) from error
