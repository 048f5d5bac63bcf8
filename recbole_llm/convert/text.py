"""Text as an atomic file can hold it, and titles as people write them.

RecBole reads an atomic file with ``pd.read_csv(delimiter="\\t", engine="python")`` and default quoting. That reader

* ends a row at ``\\n`` and at a lone ``\\r``, and stops at a NUL;
* takes a field that *starts* with ``"`` for a quoted one and swallows tabs and line ends up to the next quote;
* turns a field that is exactly ``NA``, ``None``, ``null`` ... into a missing value, also in an id column;
* refuses a field longer than 131,072 characters (the limit of Python's ``csv``).

The functions here make every one of these impossible in text fields. An id stays the text of the input, character by
character, as long as it fits on one line. recbole-llm reads such ids as they are; for stock RecBole
``convert(..., ids="recbole")`` renames those that its reader would take for something else.
"""

import html
import re
from collections.abc import Iterable

from recbole_llm.text.titles import fronted_article

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

# What str.split() does not count as white space yet may not stand in a line of text: C0 and C1 controls, the byte
# order mark, and lone surrogates (JSON's "\ud800" alone), which UTF-8 cannot encode.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def join_surrogates(text: str) -> str:
    """Join surrogate pairs to the character they stand for; a lone one becomes U+FFFD."""
    if _SURROGATE.search(text):
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# Only entities that end in ";": html.unescape also replaces prefixes ("R&regular" -> "R®ular").
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_TAG = re.compile(r"</?[A-Za-z!][^<>]{0,300}>")

_YEAR = re.compile(r"\s*\(([0-9]{4})\)\s*$")
_LAST_GROUP = re.compile(r"\s*\((?:[^()]|\([^()]*\))*\)\s*$")


def unescape(text: str) -> str:
    """Resolve HTML entities, also those that were escaped twice (``&amp;quot;``).

    Parameters
    ----------
    text : str

    Returns
    -------
    str
        At most three rounds are made; an entity without its final ``;`` stays as it is.
    """
    for _ in range(3):
        if "&" not in text:
            break
        plain = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
        if plain == text:
            break
        text = plain
    return text


def clean_text(text: str) -> str:
    """Return ``text`` on one line: entities resolved, control characters gone, runs of white space made one blank.

    Text longer than :data:`MAX_FIELD_CHARS` is cut at a blank.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = _CONTROL.sub("", join_surrogates(unescape(text)))
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
    return re.sub(r"[\t\n\r\x0b\x0c\x1c-\x1f\x85\u2028\u2029]", " ", _CONTROL.sub("", join_surrogates(text)))


def misread_by_recbole(text: str) -> bool:
    """Whether stock RecBole's reader takes an id for something else."""
    return text[:1] == '"' or text in MISSING_WORDS


def renamed_ids(raw: Iterable[str], recbole: bool = False) -> dict[str, str]:
    """Return ``{raw id: written id}`` for those ids that cannot be written as they are.

    Parameters
    ----------
    raw : iterable of str
        Distinct raw ids.
    recbole : bool
        Whether to rename as well what stock RecBole's reader would misread.

    Returns
    -------
    dict of str to str
        Usually empty. Distinct ids stay distinct: one that would meet another gets ``_`` appended until it is alone.
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
    """Turn a MovieLens title into the one people write, and its year.

    The year and every alternative title in parentheses behind the title are removed, then an article behind the last
    comma moves to the front, as in LlamaRec's preparation (whose substring test on the last five characters misfires;
    here the article is compared as a whole word, in the languages that MovieLens has).

    Parameters
    ----------
    raw : str
        ``"Matrix, The (1999)"``, ``"City of Lost Children, The (Cité des enfants perdus, La) (1995)"``.

    Returns
    -------
    title : str
        ``"The Matrix"``, ``"The City of Lost Children"``. ``"(500) Days of Summer"`` keeps its parentheses, because
        only groups at the end are removed.
    year : str
        ``"1999"``, or ``""`` where the title does not end in four parenthesised digits.
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
