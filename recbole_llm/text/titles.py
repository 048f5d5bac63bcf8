"""Titles as people write them: no HTML entities, and an article after a comma moved back to the front.

MovieLens and library catalogues write ``Matrix, The (1999)``; people and language models write ``The Matrix (1999)``.
"""

import html
import re

# Articles that are filed behind a comma. Case matters: "domani" and "Texas" are not articles.
# fmt: off
ARTICLES = frozenset(
    [
        "The", "A", "An", "Le", "La", "Les", "L'", "Un", "Une", "Des", "Il", "Lo", "I", "Gli", "Una", "Uno", "El",
        "Los", "Las", "Der", "Die", "Das", "Ein", "Eine", "De", "Het", "Een", "Den", "Det", "En", "Ett", "O", "Os",
        "As", "Um", "Uma", "Da",
    ]
)
# fmt: on
# Only entities that end in ";": html.unescape also replaces prefixes ("R&regular" -> "R®ular").
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# What str.split() does not count as white space yet may not stand in a line of text: C0 and C1 controls, and the byte
# order mark.
CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
# Characters that end a line or separate words, but for spaces.
BREAK = re.compile("[\t\n\r\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")
_ENGLISH = ("the ", "a ", "an ")
# The article, and what may follow it in a title: groups in parentheses, such as the year.
_FILED = re.compile(r".*\S,\s+[^\W\d_]{1,5}'?(?P<rest>(?:\s*\((?:[^()]|\([^()]*\))*\))*)\s*", re.DOTALL)
_GROUP = re.compile(r"\(([^()]*)\)")
_FOLDED = frozenset(article.casefold() for article in ARTICLES)


def unescape(text: str) -> str:
    """Resolve HTML entities, also those that were escaped twice (``&amp;quot;``) or three times.

    An entity without its final ``;`` stays as it is.
    """
    for _ in range(3):
        if "&" not in text:
            break
        plain = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
        if plain == text:
            break
        text = plain
    return text


def plain_text(text: str) -> str:
    """Return a text on one line: entities resolved, control characters gone, runs of white space made one space."""
    return " ".join(CONTROL.sub("", unescape(text)).split())


def clean_title(title: str) -> str:
    """Return a title as a person would write it, on one line; spaces inside stay as they are.

    Examples
    --------
    >>> clean_title("Boys &amp; the Mask, The (1994)")
    'The Boys & the Mask (1994)'
    """
    return fronted_article(CONTROL.sub("", BREAK.sub(" ", unescape(title))).strip())


def fronted_article(title: str, any_case: bool = False) -> str:
    """Move an article that is filed behind a comma to the front; other titles are returned as they are.

    The comma may be followed by groups in parentheses (year, original title), whose own articles move as well.

    Parameters
    ----------
    title : str
    any_case : bool
        Also take ``the`` and ``THE`` for the article; it keeps its case.

    Examples
    --------
    >>> fronted_article("Mask, The (1994)")
    'The Mask (1994)'
    >>> fronted_article("City of Lost Children, The (Cité des enfants perdus, La) (1995)")
    'The City of Lost Children (La Cité des enfants perdus) (1995)'
    >>> fronted_article("Paris, Texas (1984)")
    'Paris, Texas (1984)'
    """
    if "," not in title:
        return title
    title = _GROUP.sub(lambda group: f"({_fronted(group.group(1), any_case)})", title)
    found = _FILED.fullmatch(title)
    if found is None:
        return title
    return _fronted(title[: found.start("rest")], any_case) + title[found.start("rest") :]


def _fronted(title: str, any_case: bool) -> str:
    head, comma, article = title.rpartition(",")
    article = article.strip()
    known = article in ARTICLES or (any_case and article.casefold() in _FOLDED)
    if not comma or not head.strip() or not known:
        return title
    return article + head.strip() if article.endswith("'") else f"{article} {head.strip()}"


def without_article(title: str) -> str:
    """Return a lower-case English title without the article in front of it."""
    return next((title[len(word) :] for word in _ENGLISH if title.startswith(word) and len(title) > len(word)), title)
