"""Templates of item texts: which fields, in which order, and how empty fields are handled."""

import difflib
import math
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path

from recbole_llm.errors import ConfigError, DataError
from recbole_llm.text.titles import clean_title

TEXT_TYPES = ("token", "token_seq", "float")

# Which fields the default template takes, in this order (names compared without case).
TITLE_FIELDS = (
    *("title", "movie_title", "item_title", "product_title", "book_title", "name", "item_name", "product_name"),
    *("game_name", "app_name", "track_name", "song_name", "business_name", "artist_name"),
)
YEAR_FIELDS = ("release_year", "year", "year_of_publication", "publication_year")
OTHER_FIELDS = (
    *("genre", "genres", "class", "category", "categories", "tag", "tags", "brand", "store", "artist", "author"),
    *("book_author", "developer", "publisher", "features", "description"),
)

_OPENERS, _CLOSERS, _SEPARATORS = "([{<\"'“‘", ")]}>\"'”’", r"\s,;:|/&\-–—"
_PAIRS = re.compile(r"\s*(?:\(\s*\)|\[\s*\]|\{\s*\}|<\s*>|\"\s*\"|'\s*'|“\s*”|‘\s*’)")
_VALUE = "\0"  # stands for a non-empty value while a template is tidied, so that no value is ever touched


def nearest_name(name: str, names: list[str]) -> str:
    """Return ' Did you mean ...?' or nothing."""
    lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""


def default_template(header: dict[str, str], item_field: str, path: Path, title_only: bool) -> str:
    """Return the template that fields of well-known names give: title, year, then the others unless `title_only`."""
    by_name = {name.lower(): name for name, kind in header.items() if kind in TEXT_TYPES and name != item_field}
    title = next((by_name[name] for name in TITLE_FIELDS if name in by_name), None)
    year = next((by_name[name] for name in YEAR_FIELDS if name in by_name), None)
    if title_only and title is None:
        raise ConfigError(
            f"item_title: {path} has no field that looks like a title (it has {', '.join(header)}). Name the fields "
            'to use, e.g. item_title: "{my_field}".'
        )
    others = [by_name[name] for name in OTHER_FIELDS if name in by_name and not title_only]
    if title is None and not others:
        others = [name for name, kind in header.items() if kind == "token_seq"]
    if title is None and not others:
        raise ConfigError(
            f"item_text: {path} has no field that looks like text (it has {', '.join(header)}). Name the "
            'fields to use, e.g. item_text: "{my_field}, {another_field}".'
        )
    parts = [f"{{{name}}}" for name in ([title] if title else []) + others]
    if year is not None:
        parts[0] += f" ({{{year}}})"
    return ", ".join(parts)


def compile_template(
    template: str | Sequence[str] | None,
    header: dict[str, str],
    path: Path,
    item_field: str,
    seq_separator: str,
    title_only: bool = False,
    for_prompt: bool = False,
) -> tuple[Callable[[list[str], str], str], str, tuple[str, ...]]:
    """Return a function (cells, where they stand) -> text, the resolved template and the fields it uses.

    With `title_only` or `for_prompt` titles are cleaned: an article behind a comma (``Matrix, The``) moves to the
    front, HTML entities are resolved.
    """
    key = "item_title" if title_only else "item_text"
    if template is None:
        template = default_template(header, item_field, path, title_only)
    elif not isinstance(template, str):
        template = ", ".join(f"{{{name}}}" for name in template)
    literals, slots = _parse(template, key)
    if not slots:
        raise ConfigError(
            f"{key}: {template!r} names no field, so every item would have the same text. Fields of "
            f"{path}: {', '.join(header)}; write them in braces, e.g. '{{title}}'."
        )
    for name, spec in slots:
        _check_slot(name, spec, template, header, path, key)
    # A title may have any name where the template says that it is one.
    titles = {name for name, _ in slots if title_only or (for_prompt and name.lower() in TITLE_FIELDS)}
    fields = tuple(dict.fromkeys(name for name, _ in slots))
    return _Renderer(literals, slots, header, titles, seq_separator), template, fields


class _Renderer:
    """A compiled template: (cells, where they stand) -> text."""

    def __init__(
        self,
        literals: list[str],
        slots: list[tuple[str, str]],
        header: dict[str, str],
        titles: set[str],
        seq_separator: str,
    ) -> None:
        self._literals, self._slots = literals, slots
        self._header, self._titles, self._seq_separator = header, titles, seq_separator
        self._columns = {name: i for i, name in enumerate(header)}
        self._skeletons: dict[tuple[bool, ...], list[str]] = {}

    def __call__(self, cells: list[str], where: str) -> str:
        values = [self._value(cells[self._columns[name]].strip(), name, spec, where) for name, spec in self._slots]
        present = tuple(bool(value) for value in values)
        if present not in self._skeletons:
            self._skeletons[present] = _skeleton(self._literals, present).split(_VALUE)
        kept = [value for value in values if value]
        pieces = zip(self._skeletons[present], [*kept, ""], strict=True)
        return "".join(piece + value for piece, value in pieces).strip()

    def _value(self, cell: str, name: str, spec: str, where: str) -> str:
        kind = self._header[name]
        if kind == "float":
            return _show_float(cell, spec, name, where)
        if kind == "token_seq" and not self._seq_separator.isspace():
            cell = ", ".join(part.strip() for part in cell.split(self._seq_separator) if part.strip())
        if name in self._titles:
            cell = clean_title(cell)
        return format(cell, spec) if cell else ""


def _parse(template: str, key: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Split a template into n + 1 literals and n (field, format) slots; nothing is evaluated."""
    literals, slots = [""], []
    try:
        for literal, name, spec, conversion in string.Formatter().parse(template):
            literals[-1] += literal
            if name is None:
                continue
            if conversion or "{" in (spec or ""):
                raise ValueError(f"{{{name}...}} may have a field name and a plain format only")
            slots.append((name, spec or ""))
            literals.append("")
    except ValueError as error:
        raise ConfigError(
            f"{key}: {template!r} is not a valid template ({error}). Write fields as {{name}} or "
            "{name:.2f}, and a brace that is meant as text as {{ or }}."
        ) from None
    return literals, slots


def _check_slot(name: str, spec: str, template: str, header: dict[str, str], path: Path, key: str) -> None:
    if name not in header:
        raise ConfigError(
            f"{key}: {template!r} uses the field {name!r}, which {path} does not have. It has "
            f"{', '.join(header)}.{nearest_name(name, list(header))}"
        )
    if header[name] not in TEXT_TYPES:
        raise ConfigError(f"{key}: {name!r} is of type {header[name]}; a text can be made of {', '.join(TEXT_TYPES)}.")
    try:
        format(1.0 if header[name] == "float" else "x", spec)
    except ValueError as error:
        raise ConfigError(
            f"{key}: the format {spec!r} does not suit {name!r} of type {header[name]} ({error})."
        ) from None


def _show_float(cell: str, spec: str, name: str, where: str) -> str:
    if not cell:
        return ""
    try:
        number = float(cell)
    except ValueError:
        raise DataError(f"{where}: {name}:float holds {cell!r}, which is not a number.") from None
    if math.isnan(number):
        return ""
    return format(number, spec) if spec else cell.removesuffix(".0")


def _skeleton(literals: list[str], present: tuple[bool, ...]) -> str:
    """Return the template with `_VALUE` where a value goes, tidied for the fields that are empty."""
    if not any(present):
        return ""
    if all(present):
        return _VALUE.join(literals)
    text = ""
    for i, (literal, there) in enumerate(zip(literals, present, strict=False)):
        if there:
            text += literal + _VALUE
            continue
        # The literal goes with its field, save for the marks that belong to the field before or enclose this one.
        closing = re.match(f"[{re.escape(_CLOSERS)}]*", literal)
        opening = re.search(f"[{re.escape(_OPENERS)}]*$", literal[closing.end() if closing and i else 0 :])
        text += (closing.group() if closing and i else "") + (" " + opening.group() if opening else "")
    text += literals[-1]
    while (tidier := _PAIRS.sub("", text)) != text:
        text = tidier
    text = re.sub(rf"(?<=[(\[{{<])[{_SEPARATORS}]+", "", text)
    text = re.sub(rf"[{_SEPARATORS}]+(?=[)\]}}>])", "", text)
    text = re.sub(rf"^[{_SEPARATORS}.]+|[{_SEPARATORS}]+$", "", text)
    return re.sub(" {2,}", " ", re.sub(r" +(?=[,;:.])", "", text))
