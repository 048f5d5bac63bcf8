"""Values as an atomic file can hold them: text, ids, numbers and times.

RecBole reads an atomic file with ``pd.read_csv(delimiter="\\t", engine="python")`` and default quoting. That reader

* ends a row at ``\\n`` and at a lone ``\\r``, and stops at a NUL;
* takes a field that *starts* with ``"`` for a quoted one and swallows tabs and line breaks up to the next quote;
* turns a field that is exactly ``NA``, ``None``, ``null`` ... into a missing value, also in an id column;
* refuses a field longer than 131,072 characters (the limit of Python's ``csv``).

No text field written here can meet any of these. An id stays the text of the input, character by character, as long
as it fits on one line; with ``convert(..., ids="recbole")`` those that stock RecBole would misread are renamed.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import chain
from typing import Any

from recbole_llm.data.times import parse_number
from recbole_llm.errors import ConfigError
from recbole_llm.text.titles import BREAK, CONTROL, plain_text

#: Words that pandas reads as "missing" by default (pandas 2 and 3), if a field holds nothing else.
# fmt: off
MISSING_WORDS = frozenset(
    [
        "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
        "NULL", "NaN", "None", "n/a", "nan", "null",
    ]
)
# fmt: on

#: Longest text field that is written; far below the 131,072 at which Python's csv reader stops.
MAX_FIELD_CHARS = 10_000


def clean_text(text: str) -> str:
    """Return ``text`` on one line: entities resolved, control characters removed, runs of white space made one space.

    Text longer than :data:`MAX_FIELD_CHARS` is cut at a space.
    """
    is_plain = text.isascii() and text.isprintable() and "&" not in text
    text = " ".join(text.split()) if is_plain else plain_text(_join_surrogates(text))
    if len(text) > MAX_FIELD_CHARS:
        cut = text.rfind(" ", 0, MAX_FIELD_CHARS + 1)
        text = text[: cut if cut > 0 else MAX_FIELD_CHARS]
    return text


def _join_surrogates(text: str) -> str:
    """Join surrogate pairs to the character they stand for; a lone one becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_sequence(text: str) -> str:
    """Return ``text`` as a ``token_seq`` field: one leading space before ``"`` or a missing-value word.

    RecBole splits such a field at spaces and drops empty words, so that the space leaves no trace.
    """
    text = clean_text(text)
    return " " + text if misread_by_recbole(text) else text


def clean_token(text: str) -> str:
    """Return ``text`` as a ``token`` field: a leading ``"`` becomes ``'``, a missing-value word gets a ``_`` appended.

    A token is compared as a whole, so a leading space would be part of its value.
    """
    return _guard_token(clean_text(text))


def _guard_token(text: str) -> str:
    if text[:1] == '"':
        text = "'" + text[1:]
    return text + "_" if text in MISSING_WORDS else text


def misread_by_recbole(text: str) -> bool:
    """Whether stock RecBole's reader takes a field for something else."""
    return text[:1] == '"' or text in MISSING_WORDS


def _clean_id(text: str) -> str:
    return text if text.isprintable() else CONTROL.sub("", BREAK.sub(" ", _join_surrogates(text)))


def renamed_ids(*ids: Collection[str], recbole: bool = False) -> dict[str, str]:
    """Return ``{raw id: written id}`` for those ids that cannot be written as they are.

    With ``recbole``, also for those that stock RecBole's reader would misread. Distinct ids stay distinct: one that
    would meet another gets ``_`` appended until it is alone.
    """
    changed: dict[str, str] = {}
    for raw in chain(*ids):
        new = _guard_token(_clean_id(raw)) if recbole else _clean_id(raw)
        if new != raw or not raw:
            changed[raw] = new
    taken: set[str] = set()
    for raw, new in changed.items():
        while not new.strip() or new in taken or any(new in known for known in ids):
            new += "_"
        taken.add(new)
        changed[raw] = new
    return changed


def as_text(value: object) -> str:
    """Return text or a number as text, and ``""`` for anything else (missing, ``nan``, a list)."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool) and value == value
    return str(value) if is_number else ""


def field_name(text: str) -> str:
    """Return a column's name as the header of an atomic file can hold it."""
    return "_".join(text.replace(":", " ").split())


# ---- rows of a .item or .user file


class Catalogue:
    """Cleaned fields by raw id, in memory.

    ``header`` is that of an atomic file, without the id: ``name:type``, where the type is ``token``, ``token_seq`` or
    ``float``. An item is titled unless its field ``title`` is empty.
    """

    def __init__(self, header: Sequence[str], title: str = "") -> None:
        self.header, self.title = header, title
        self.names = [field.rpartition(":")[0] for field in header]
        self.kinds = [field.rpartition(":")[2] for field in header]
        self.rows: dict[str, tuple[str, ...]] = {}
        self._title = self.names.index(title) if title in self.names else None

    def __contains__(self, raw_id: str) -> bool:
        return raw_id in self.rows

    def add(self, raw_id: str, values: Sequence[str]) -> None:
        """Add a row of raw texts, one per field; :class:`LineError` if its id is empty or there already."""
        if not raw_id:
            raise LineError("an empty id")
        if raw_id in self.rows:
            raise LineError(f"the id {shown(raw_id)} occurs twice")
        cleaned = [_CLEAN[kind](value) if value else "" for kind, value in zip(self.kinds, values, strict=True)]
        self.rows[raw_id] = tuple(cleaned)

    def titled(self, raw_id: str) -> bool:
        """Whether the id is known and has a title."""
        row = self.rows.get(raw_id)
        return row is not None and (self._title is None or bool(row[self._title]))

    def lines(self, ids: Iterable[str], renamed: dict[str, str]) -> Iterator[str]:
        """Yield a line for each raw id; one without a row gets empty fields."""
        empty = ("",) * len(self.header)
        return ("\t".join((renamed.get(raw, raw), *self.rows.get(raw, empty))) + "\n" for raw in ids)

    def only(self, names: Sequence[str]) -> "Catalogue":
        """Return a catalogue of these fields, in this order; ConfigError if there is no such field."""
        for name in names:
            if name not in self.names:
                raise ConfigError(f"text_fields: there is no field {name!r}; there are {', '.join(self.names)}.")
        places = [self.names.index(name) for name in names]
        smaller = Catalogue([self.header[place] for place in places], self.title)
        smaller.rows = {raw: tuple([row[place] for place in places]) for raw, row in self.rows.items()}
        return smaller


_CLEAN = {"token": clean_token, "token_seq": clean_sequence, "float": clean_text}


# ---- ids, numbers and times

_MAX_TIME = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class LineError(ValueError):
    """A line cannot be used; the message says why, and the caller adds where."""


class KnownGap(LineError):
    """A line without data that the official download is known to contain; it is always skipped."""


def shown(value: object, limit: int = 60) -> str:
    """Return ``repr(value)`` cut to ``limit`` characters, for messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_ids(*columns: Sequence[object]) -> None:
    """Raise :class:`LineError` unless every value is a non-empty string."""
    for column in columns:
        if set(map(type, column)) - {str} or "" in column:
            bad = next(value for value in column if not isinstance(value, str) or not value)
            empty = bad is None or bad == ""
            raise LineError("an empty user or item id" if empty else f"an id that is not text: {shown(bad)}")


# A batch that fails is tried again row by row, so messages are about the first value.


def as_times(column: Iterable[object]) -> list[int]:
    """Return whole-number times, exactly.

    Raises
    ------
    LineError
        A value is not a whole number or does not fit into 64 bits.
    """
    values: list[Any] = list(column)
    kinds = set(map(type, values))
    try:
        if kinds - {int, str, float} or not all(v.is_integer() for v in values if type(v) is float):
            raise ValueError
        times: list[int] = values if kinds == {int} else list(map(int, _ascii_digits(values)))
    except (ValueError, OverflowError) as error:
        raise LineError(f"the time {shown(values[0])} is not a whole number") from error
    return _within(times)


def as_floats(column: Iterable[object], name: str) -> list[float]:
    """Return finite floats.

    Raises
    ------
    LineError
        A value is missing, not a number, or not finite.
    """
    raw: list[Any] = list(column)
    kinds = set(map(type, raw))
    try:
        if bool in kinds:
            raise ValueError
        values: list[float] = raw if kinds == {float} else list(map(float, _ascii_digits(raw)))
    except (TypeError, ValueError, OverflowError) as error:
        raise LineError(f"the {name} {shown(raw[0])} is not a number") from error
    # A sum shows any inf or nan. One that only overflows is retried line by line.
    if not math.isfinite(sum(values)):
        raise LineError(f"a {name} is not a finite number")
    return values


def _ascii_digits(values: list[Any]) -> list[Any]:
    """Refuse what only Python takes for a number: ``1_000``, the digits of other scripts."""
    text = "".join([value for value in values if type(value) is str])
    if "_" in text or not text.isascii():
        raise ValueError
    return values


def as_exact_times(values: Sequence[object], pattern: str | None) -> tuple[list[int], list[int] | None]:
    """Return whole times and, if there are fractions, the millionths above them.

    Numbers keep their unit; dates become seconds since 1970 (in UTC unless they name a zone). With a ``pattern`` of
    :meth:`datetime.datetime.strptime` nothing else is accepted; without one, numbers and ISO 8601 are. Any other
    value, or one that does not fit into 64 bits, raises :class:`LineError`.
    """
    if pattern is None:
        try:
            return as_times(values), None
        except LineError:
            pass
    moments = [_micros(value, pattern) for value in values]
    micros = [moment % 1_000_000 for moment in moments]
    return _within([moment // 1_000_000 for moment in moments]), micros if any(micros) else None


def _micros(value: object, pattern: str | None) -> int:
    try:
        if isinstance(value, date):
            moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        elif pattern is not None:
            moment = datetime.strptime(str(value), pattern)
        else:
            text = str(value).strip()
            if _is_number(text):
                return _exact(Decimal(text))
            # Python 3.10 knows neither the Z of ISO 8601 nor fractions of other than 3 or 6 digits.
            text = re.sub(r"[Zz]$", "+00:00", text)
            text = re.sub(r"\.(\d+)", lambda found: "." + found.group(1)[:6].ljust(6, "0"), text, count=1)
            moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return (moment - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, TypeError, ArithmeticError) as error:
        wanted = (
            f"of the form {pattern!r}" if pattern else "a number or an ISO date (--time_format names another form)"
        )
        raise LineError(f"the time {shown(value)} is not {wanted}") from error


def _is_number(text: str) -> bool:
    try:
        parse_number(text)  # the rule of a run
    except ValueError:
        return False
    return True


def _exact(number: Decimal) -> int:
    if abs(number) > _MAX_TIME:
        raise ValueError("not within 64 bits")
    return int((number * 1_000_000).to_integral_value())


def _within(times: list[int]) -> list[int]:
    if times and (max(times) > _MAX_TIME or min(times) < -_MAX_TIME):
        raise LineError("a time does not fit into 64 bits")
    return times
