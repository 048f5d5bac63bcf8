"""Item fields + a template -> one text per internal item id.

The atomic ``.item`` file is read here and not through RecBole: its reader swallows lines whose field starts with a
quotation mark, turns the titles ``NA``, ``None`` and ``null`` into missing values and collapses blanks. Here a line is
split at the field separator and nothing else is interpreted.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from recbole_llm.data.controls import control_of, exchanged, mark_applied
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.lines import read_header, read_rows
from recbole_llm.errors import DataError
from recbole_llm.text.template import compile_template, nearest_name
from recbole_llm.typing import Settings


@dataclass(frozen=True)
class ItemText:
    """The text of every item of a dataset.

    Attributes
    ----------
    texts : list of str
        One text per internal item id, length ``item_num``; index 0 (PAD) is ``""``, so is an item without text.
    template : str
        The template that made them, resolved: what ``None`` or a list of fields turned into.
    n_missing : int
        Number of real items (PAD not counted) whose text is empty.
    missing_tokens : list of str
        The first ten raw ids among those.
    fields : tuple of str
        The fields the template uses, in its order.
    header : dict of str
        Every field of the file and its type.
    """

    texts: list[str]
    template: str
    n_missing: int
    missing_tokens: list[str]
    fields: tuple[str, ...]
    header: dict[str, str]
    _render: Callable[[list[str], str], str] = field(repr=False, compare=False)
    _seq_separator: str = field(default=" ", repr=False)

    def names(self, tokens: Sequence[str]) -> list[str]:
        """Return what prompts call the items with these raw ids: their texts, or their ids; ``""`` for PAD."""
        return ["", *(text or f"Item {token}" for text, token in zip(self.texts[1:], tokens[1:], strict=True))]

    def of(self, item: Mapping[str, Any], name: str) -> str:
        """Return the text of an item that is not in the file; ``""`` if the template's fields are empty.

        Parameters
        ----------
        item : mapping
            Field -> value: text, a number, a list of words for a token_seq, or None. A field left out is empty.
        name : str
            What an error calls the item.

        Raises
        ------
        DataError
            A field that the file does not have, or a value that does not suit its field.
        """
        cells = dict.fromkeys(self.header, "")
        for key, value in item.items():
            if key not in cells:
                raise DataError(
                    f"{name} has a field {key!r}, which the .item file does not have. It has {', '.join(cells)}."
                    f"{nearest_name(key, list(cells))}"
                )
            if isinstance(value, (list, tuple)):
                value = self._seq_separator.join(map(str, value))
            cells[key] = "" if value is None else str(value)
        return self._render(list(cells.values()), name)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the template and all texts in order: equal texts, equal fingerprint."""
        digest = hashlib.sha256(self.template.encode("utf-8", "surrogatepass"))
        for text in self.texts:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(raw))  # the length keeps ["ab", "c"] and ["a", "bc"] apart
            digest.update(raw)
        return digest.hexdigest()

    def describe(self, k: int = 3) -> str:
        """Return one line for the log: how many items, the template, `k` example texts, how many have none."""
        examples = [text for text in self.texts if text][:k]
        shown = "; ".join(repr(text if len(text) <= 120 else text[:117] + "...") for text in examples)
        return (
            f"text of {len(self.texts) - 1} items by template {self.template!r}, "
            f"{self.n_missing} without text, e.g. {shown}"
        )


def load_item_text(
    item_file: str | Path,
    tokens: Sequence[str],
    item_field: str = "item_id",
    template: str | Sequence[str] | None = None,
    field_separator: str = "\t",
    seq_separator: str = " ",
    encoding: str = "utf-8",
    logger: logging.Logger | None = None,
    title_only: bool = False,
    for_prompt: bool = False,
) -> ItemText:
    """Read an atomic ``.item`` file and return one text per internal item id.

    Parameters
    ----------
    item_file : str or Path
        The ``.item`` file. Its first line names the fields as ``name:type``.
    tokens : sequence of str
        Raw item id of each internal id, ``dataset.field2id_token[item_field]``; ``tokens[0]`` is PAD.
    item_field : str
        Name of the item id column.
    template : str, list of str or None
        A format string over fields of type token, token_seq or float, such as ``"{movie_title}, {genre}"`` or
        ``"{title}, {price:.2f} $"``; or a list of field names, which are joined by ``", "``; or None, the default
        rule (the lists of names are in :mod:`recbole_llm.text.template`): the first of ``TITLE_FIELDS`` that the file
        has, then the first of ``YEAR_FIELDS`` in round brackets, then every field of ``OTHER_FIELDS``, joined by
        ``", "``: ``"Toy Story (1995), Animation Children's Comedy"``. A file with none of those names gives all its
        token_seq fields in file order.
    field_separator, seq_separator, encoding : str
        As RecBole's parameters of the same names. The parts of a token_seq value are joined by a blank where
        `seq_separator` is white space and by ``", "`` otherwise.
    logger : logging.Logger, optional
        Takes the warnings; this module's logger by default.
    title_only : bool
        The default rule takes the title and the year and nothing else: how a prompt names an item.
    for_prompt : bool
        A language model reads or writes the texts as they are. With this or `title_only` titles are cleaned:
        ``"Matrix, The (1999)"`` is read as ``"The Matrix (1999)"``, ``"Tom &amp; Jerry"`` as ``"Tom & Jerry"``.

    Returns
    -------
    ItemText
        Texts in the order of `tokens`.

    Raises
    ------
    DataError
        The file is missing, empty, malformed (the message names the line), not in `encoding`, or gives no item a text.
    ConfigError
        The template is malformed or names a field that the file does not have.

    Notes
    -----
    A field that is empty for an item takes the literal text before it along, back to the field before; brackets
    and quotation marks around nothing vanish, and no separator is left at either end. ``"{title} ({year}), {genre}"``
    without a year gives ``"Toy Story, Comedy"``; an item whose fields are all empty gives ``""``. A float is shown as
    written, less a trailing ``.0``, unless the template has a format for it. A duplicate id keeps its first row.
    """
    logger = logger or logging.getLogger(__name__)
    path = Path(item_file)
    if not path.exists():
        raise DataError(
            f"{path} does not exist, and this model needs the text of the items. Add the dataset's .item file (see "
            "`recbole-llm convert`), or set data_path to the folder that has it."
        )
    header = read_header(path, field_separator, encoding)
    if item_field not in header:
        raise DataError(
            f"{path}: no column {item_field!r} (ITEM_ID_FIELD); the file has {', '.join(header)}."
            f"{nearest_name(item_field, list(header))}"
        )
    render, resolved, fields = compile_template(
        template, header, path, item_field, seq_separator, title_only, for_prompt
    )

    wanted = {str(token): i for i, token in enumerate(tokens) if i > 0}
    texts = [""] * len(tokens)
    names = list(header)
    id_column = names.index(item_field)
    seen: set[str] = set()
    duplicates: list[str] = []
    for line_no, cells in read_rows(path, header, field_separator, encoding):
        token = cells[id_column]
        if token in seen:
            duplicates.append(token)
            continue
        seen.add(token)
        if token in wanted:
            texts[wanted[token]] = render(cells, f"{path}, line {line_no}")

    if duplicates:
        logger.warning(
            "%s: %d lines repeat an item id and were ignored (the first one counts), e.g. %s",
            *(path, len(duplicates), ", ".join(dict.fromkeys(duplicates[:10]))),
        )
    missing = [str(token) for i, token in enumerate(tokens) if i > 0 and not texts[i]]
    if missing and len(missing) == len(tokens) - 1:
        in_file = sum(token in seen for token in wanted)
        raise DataError(
            f"{path}: no item has a text. {in_file} of the dataset's {len(wanted)} items have a line in the file; the "
            f"template was {resolved!r}. "
            + (
                f"Check that {item_field} holds the same ids as the .inter file (here e.g. {missing[0]!r}, there e.g. "
                f"{next(iter(seen), '')!r})."
                if in_file == 0
                else "Its fields are empty; choose other fields with item_text."
            )
        )
    if missing:
        without_row = sum(token not in seen for token in missing)
        logger.warning(
            "%d of %d items have no text (%d have no line in %s, for %d the fields of the template are empty), e.g. "
            "%s. %s",
            *(len(missing), len(tokens) - 1, without_row, path, len(missing) - without_row, ", ".join(missing[:10])),
            "Prompts show their id or leave them out." if title_only or for_prompt else "They get a zero vector.",
        )
    return ItemText(texts, resolved, len(missing), missing[:10], fields, header, render, seq_separator)


class FileFormat(TypedDict):
    """How an ``.item`` file is written: arguments of :func:`load_item_text`."""

    item_field: str
    field_separator: str
    seq_separator: str
    encoding: str


def format_of(settings: Settings) -> FileFormat:
    """Return how the files of a run are written."""
    return {
        "item_field": settings["ITEM_ID_FIELD"],
        "field_separator": settings["field_separator"],
        "seq_separator": settings["seq_separator"],
        "encoding": settings["encoding"] or "utf-8",
    }


def item_text_of(
    dataset: HistoryDataset,
    config: Settings,
    title_only: bool = False,
    for_prompt: bool = False,
    logger: logging.Logger | None = None,
) -> ItemText:
    """Return the text of every item of a RecBole dataset, by internal id, as ``item_text`` says.

    Parameters
    ----------
    dataset : recbole Dataset
    config : Config or dict
        ``item_text`` or ``item_title``, ``field_separator``, ``seq_separator``, ``encoding``, ``control``. Under
        ``control: shuffled_text`` items have each other's text.
    title_only, for_prompt : bool
        As for :func:`load_item_text`; `title_only` takes the template ``item_title``.
    logger : logging.Logger, optional
        Takes the warnings; the dataset's by default.

    Raises
    ------
    DataError, ConfigError
        As :func:`load_item_text`.
    """
    text = load_item_text(
        Path(dataset.dataset_path) / f"{dataset.dataset_name}.item",
        dataset.field2id_token[dataset.iid_field],
        template=config["item_title"] if title_only else config["item_text"],
        **format_of(config),
        logger=logger or dataset.logger,
        title_only=title_only,
        for_prompt=for_prompt,
    )
    if control_of(config) != "shuffled_text":
        return text
    mark_applied(dataset, "shuffled_text")
    tokens, has = dataset.field2id_token[dataset.iid_field], np.array([bool(item) for item in text.texts])
    source = exchanged(tokens, has, int(config["control_seed"]))
    return replace(text, texts=[text.texts[i] for i in source])
