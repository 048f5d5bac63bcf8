"""Values as an atomic file can hold them: text, ids, numbers and times.

RecBole reads an atomic file with ``pd.read_csv(delimiter="\\t", engine="python")`` and default quoting. That reader

* ends a row at ``\\n`` and at a lone ``\\r``, and stops at a NUL;
* takes a field that *starts* with ``"`` for a quoted one and swallows tabs and line ends up to the next quote;
* turns a field that is exactly ``NA``, ``None``, ``null`` ... into a missing value, also in an id column;
* refuses a field longer than 131,072 characters (the limit of Python's ``csv``).

The functions here make every one of these impossible in text fields. An id stays the text of the input, character by
character, as long as it fits on one line. recbole-llm reads such ids as they are; for stock RecBole
``convert(..., ids="recbole")`` renames those that its reader would take for something else.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from recbole_llm.data.times import parse_number
from recbole_llm.errors import ConfigError
from recbole_llm.text.titles import CONTROL, fronted_article, unescape

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

# Lone surrogates (JSON's "\ud800" alone), which UTF-8 cannot encode.
_SURROGATE = re.compile("[\ud800-\udfff]")


def join_surrogates(text: str) -> str:
    """Join surrogate pairs to the character they stand for; a lone one becomes U+FFFD."""
    if _SURROGATE.search(text):
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


_TAG = re.compile(r"</?[A-Za-z!][^<>]{0,300}>")

_YEAR = re.compile(r"\s*\(([0-9]{4})\)\s*$")
_LAST_GROUP = re.compile(r"\s*\((?:[^()]|\([^()]*\))*\)\s*$")


def clean_text(text: str) -> str:
    """Return ``text`` on one line: entities resolved, control characters gone, runs of white space made one blank.

    Text longer than :data:`MAX_FIELD_CHARS` is cut at a blank.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = CONTROL.sub("", join_surrogates(unescape(text)))
    text = " ".join(text.split())
    if len(text) > MAX_FIELD_CHARS:
        cut = text.rfind(" ", 0, MAX_FIELD_CHARS + 1)
        text = text[: cut if cut > 0 else MAX_FIELD_CHARS]
    return text


def strip_tags(text: str) -> str:
    """Replace HTML tags by blanks (product descriptions hold ``<br>``, ``<b>``, ``<li>``)."""
    return _TAG.sub(" ", text) if "<" in text else text


def guard_sequence(text: str) -> str:
    """Make a cleaned ``token_seq`` field safe: one leading blank before ``"`` or a missing-value word.

    RecBole splits such a field at blanks and drops empty words, so the blank leaves no trace and nothing of the
    text is lost (the usual alternative, ``'`` for ``"``, changes it).
    """
    if text and (text[0] == '"' or text in MISSING_WORDS):
        return " " + text
    return text


def guard_token(text: str) -> str:
    """Make a cleaned ``token`` field safe: a leading ``"`` becomes ``'``, a missing-value word gets a ``_`` behind.

    A token is compared as a whole, so the leading blank of :func:`guard_sequence` would be part of its value.
    """
    if text and text[0] == '"':
        text = "'" + text[1:]
    return text + "_" if text in MISSING_WORDS else text


def clean_token(text: str) -> str:
    """Return a ``token`` value (a brand, a zip code) as it may stand in an atomic file."""
    return guard_token(clean_text(text))


def clean_id(text: str) -> str:
    """Return a raw id as it may stand in an atomic file; one that can be printed stays as it is."""
    if text.isprintable():
        return text
    return re.sub(r"[\t\n\r\x0b\x0c\x1c-\x1f\x85\u2028\u2029]", " ", CONTROL.sub("", join_surrogates(text)))


def misread_by_recbole(text: str) -> bool:
    """Whether stock RecBole's reader takes an id for something else."""
    return text[:1] == '"' or text in MISSING_WORDS


def renamed_ids(raw: Iterable[str], recbole: bool = False) -> dict[str, str]:
    """Return ``{raw id: written id}`` for those of the distinct ``raw`` ids that cannot be written as they are.

    With ``recbole``, also for those that stock RecBole's reader would misread. Distinct ids stay distinct: one that
    would meet another gets ``_`` appended until it is alone.
    """
    changed: dict[str, str] = {}
    taken: set[str] = set()
    for text in raw:
        new = guard_token(clean_id(text)) if recbole else clean_id(text)
        if new != text or not new:
            changed[text] = new
        elif new[-1] == "_" or new[0] == "'" or "\ufffd" in new or not new.isascii() or " " in new:
            # Only such ids can be met by a changed one; remembering all would double the memory.
            taken.add(new)
    for text, new in changed.items():
        while new in taken or not new.strip():
            new += "_"
        taken.add(new)
        changed[text] = new
    return changed


def movie_title(raw: str) -> tuple[str, str]:
    """Turn a MovieLens title into the one people write, and its year (``""`` where there is none).

    The year and every alternative title in parentheses behind the title are removed, then an article behind the last
    comma moves to the front, as in LlamaRec's preparation (whose substring test on the last five characters misfires;
    here the article is compared as a whole word, in the languages that MovieLens has).

    >>> movie_title("City of Lost Children, The (Cité des enfants perdus, La) (1995)")
    ('The City of Lost Children', '1995')
    """
    title = clean_text(raw)
    year = ""
    found = _YEAR.search(title)
    if found:
        year = found.group(1)
        title = title[: found.start()]
    while True:
        shorter = _LAST_GROUP.sub("", title)
        if shorter == title or not shorter:
            break
        title = shorter
    return fronted_article(title.strip()), year


def path_text(levels: Sequence[object]) -> str:
    """Join category levels as the shipped Amazon files do: ``Toys & Games > Games``."""
    return " > ".join(str(level).strip() for level in levels if str(level).strip())


def words_text(values: Sequence[object]) -> str:
    """Join names whose blanks are part of them, one token each: ``Board_Games Toys_&_Games``."""
    return " ".join("_".join(str(value).split()) for value in values if str(value).strip())


def plain_text(value: object) -> str:
    """Return text or a number as text, and nothing for anything else (missing, ``nan``, a list)."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and value == value:
        return str(value)
    return ""


def field_name(text: str) -> str:
    """Return a column's name as the header of an atomic file can hold it."""
    return "_".join(text.replace(":", " ").split())


# ---- rows of a .item or .user file


class Catalogue:
    """Cleaned fields by raw id, in memory.

    ``fields`` are name and RecBole type (``token``, ``token_seq``, ``float``) of each field behind the id; without the
    field ``title`` an item counts as untitled.
    """

    def __init__(self, fields: Sequence[tuple[str, str]], title: str = "") -> None:
        self.fields = tuple(fields)
        self.title = title
        self.rows: dict[str, tuple[str, ...]] = {}
        self._clean = [_CLEAN[kind] for _, kind in self.fields]
        self._title = next((place for place, (name, _) in enumerate(self.fields) if name == title), None)

    def __contains__(self, raw_id: str) -> bool:
        return raw_id in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, raw_id: str, values: Sequence[str]) -> None:
        """Add a row; ``values`` are raw text, one per field."""
        self.rows[raw_id] = tuple(
            [clean(value) if value else "" for clean, value in zip(self._clean, values, strict=True)]
        )

    def add_once(self, raw_id: str, values: Sequence[str]) -> None:
        """Add a row, or raise :class:`LineError` if its id is empty or there already."""
        if not raw_id:
            raise LineError("an empty id")
        if raw_id in self.rows:
            raise LineError(f"the id {shown(raw_id)} is there twice")
        self.add(raw_id, values)

    def titled(self, raw_id: str) -> bool:
        """Whether the id is known and has a title."""
        row = self.rows.get(raw_id)
        return row is not None and (self._title is None or bool(row[self._title]))

    @property
    def header(self) -> list[str]:
        """The fields as line 1 of an atomic file names them."""
        return [f"{name}:{kind}" for name, kind in self.fields]

    def lines(self, ids: Iterable[str], renamed: dict[str, str]) -> Iterator[str]:
        """Yield a line for each raw id; one without a row gets empty fields."""
        empty = ("",) * len(self.fields)
        return ("\t".join((renamed.get(raw, raw), *self.rows.get(raw, empty))) + "\n" for raw in ids)

    def only(self, names: Sequence[str]) -> "Catalogue":
        """Return a catalogue with these fields alone, in this order; ConfigError if it has not got one."""
        there = [name for name, _ in self.fields]
        for name in names:
            if name not in there:
                raise ConfigError(f"text_fields: there is no field {name!r}; there are {', '.join(there)}.")
        places = [there.index(name) for name in names]
        smaller = Catalogue([self.fields[place] for place in places], self.title)
        smaller.rows = {raw: tuple([row[place] for place in places]) for raw, row in self.rows.items()}
        return smaller


def _sequence(value: str) -> str:
    return guard_sequence(clean_text(value))


_CLEAN = {"token": clean_token, "token_seq": _sequence, "float": clean_text}


# ---- ids, numbers and times

_MAX_TIME = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class LineError(ValueError):
    """A line cannot be used; the message says why, the caller knows where."""


class KnownGap(LineError):
    """A line that the official download is known to contain and that carries no data; it is always skipped."""


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


# A batch that fails is tried again value by value, so a message is about the first value.


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
    # One sum shows any inf or nan; one that only overflows is found innocent when the lines are tried one by one.
    if not math.isfinite(sum(values)):
        raise LineError(f"a {name} is not a finite number")
    return values


def _ascii_digits(values: list[Any]) -> list[Any]:
    """Refuse what only Python takes for a number: ``1_000``, the digits of other scripts."""
    text = "".join([value for value in values if type(value) is str])
    if "_" in text or not text.isascii():
        raise ValueError
    return values


def as_exact_times(values: Sequence[Any], pattern: str | None) -> tuple[list[int], list[int] | None]:
    """Return whole times and, where there are fractions, the millionths above them.

    Numbers keep their unit, whatever it is; dates become seconds since 1970 (UTC where no zone is given). With a
    ``pattern`` of :meth:`datetime.datetime.strptime` nothing else is recognised, otherwise numbers and ISO 8601.
    A value that is none of these, or does not fit, raises :class:`LineError`.
    """
    if pattern is None:
        try:
            return as_times(values), None
        except LineError:
            pass
    moments = [_micros(value, pattern) for value in values]
    micros = [moment % 1_000_000 for moment in moments]
    return _within([moment // 1_000_000 for moment in moments]), micros if any(micros) else None


def _micros(value: Any, pattern: str | None) -> int:
    try:
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return _exact(Decimal(repr(value)) if isinstance(value, float) else Decimal(value))
        if isinstance(value, date):
            moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        elif pattern is not None:
            moment = datetime.strptime(str(value), pattern)
        elif (number := _decimal(str(value))) is not None:
            return _exact(number)
        else:
            # Python 3.10 knows neither the Z of ISO 8601 nor fractions of other than 3 or 6 digits.
            text = re.sub(r"[Zz]$", "+00:00", str(value).strip())
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


def _decimal(text: str) -> Decimal | None:
    try:
        parse_number(text)  # the rule of a run
    except ValueError:
        return None
    return Decimal(text.strip())


def _exact(number: Decimal) -> int:
    if not number.is_finite() or abs(number) > _MAX_TIME:
        raise ValueError("not within 64 bits")
    return int((number * 1_000_000).to_integral_value())


def _within(times: list[int]) -> list[int]:
    if times and (max(times) > _MAX_TIME or min(times) < -_MAX_TIME):
        raise LineError("a time does not fit into 64 bits")
    return times
