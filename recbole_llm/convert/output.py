"""The folder of a conversion: written aside, moved in place when it is whole."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

from recbole_llm.errors import ConfigError, DataError
from recbole_llm.files import file_sha256, work_folder

#: Endings of the files that make up a converted dataset.
ENDINGS = (".inter", ".item", ".user", ".conversion.json")


def check_target(target: Path, overwrite: bool) -> None:
    """Raise :class:`DataError` if the output already exists; called before anything is read."""
    if target.exists() and not target.is_dir():
        raise DataError(f"{target} is a file; the output must be a folder.")
    there = [target.name + ending for ending in ENDINGS if (target / (target.name + ending)).exists()]
    if there and not overwrite:
        raise DataError(
            f"{target}: holds {', '.join(there)} already; pass --overwrite (overwrite=True) to replace them."
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}.") from error


@contextmanager
def hidden_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder on the disk of the output, in a folder that exists: a conversion that fails makes none."""
    parent = next(folder for folder in target.absolute().parents if folder.is_dir())
    with ExitStack() as stack:
        with _writing(parent):
            folder = stack.enter_context(work_folder(parent / target.name))
        yield folder


class Output:
    """Files under construction.

    Attributes
    ----------
    hashes : dict of str to str
        SHA-256 of each file written, by file name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.hashes: dict[str, str] = {}
        folder.mkdir()

    def write(self, ending: str, header: Sequence[str], chunks: Iterable[str]) -> None:
        """Write an atomic file from its header fields and chunks of complete lines."""
        names = [field.rpartition(":")[0] for field in header]
        for name in names:
            if not name or names.count(name) > 1:
                raise ConfigError(
                    f"{ending}: two fields would be named {name!r}; rename one (item_fields, user_fields: "
                    "column=name:type) or leave it out (text_fields)."
                    if name
                    else f"{ending}: a field has no name; name the columns, or leave it out."
                )
        path = self.folder / f"{self.name}{ending}"
        with _writing(path), path.open("wb") as file:
            for text in chain(("\t".join(header) + "\n",), chunks):
                file.write(text.encode())
        self.hashes[path.name] = file_sha256(path)

    def write_json(self, ending: str, content: dict[str, object]) -> None:
        """Write the sidecar; the order of ``content`` is deterministic already."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path = self.folder / f"{self.name}{ending}"
        with _writing(path):
            path.write_text(text, encoding="utf-8", newline="\n")

    def move_to(self, target: Path) -> None:
        """Make the files the output; other files in ``target`` are never touched."""
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_dir():
                self.folder.rename(target)
                return
            # The sidecar goes first and comes last: while it is missing, the folder does not claim to be a conversion.
            (target / f"{target.name}.conversion.json").unlink(missing_ok=True)
            for ending in ENDINGS:
                new, old = self.folder / (target.name + ending), target / (target.name + ending)
                if new.exists():
                    new.replace(old)
                else:
                    old.unlink(missing_ok=True)
