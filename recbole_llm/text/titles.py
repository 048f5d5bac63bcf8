"""Titles as people write them: an article that a catalogue files behind a comma stands in front again.

MovieLens and library catalogues write ``Matrix, The (1999)``; people and language models write ``The Matrix (1999)``.
"""

from __future__ import annotations

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
_ENGLISH = ("the ", "a ", "an ")
# The article, and what may follow it in a title: groups in parentheses, such as the year.
_FILED = re.compile(r".*\S,\s+[^\W\d_]{1,5}'?(?P<rest>(?:\s*\((?:[^()]|\([^()]*\))*\))*)\s*", re.DOTALL)
_GROUP = re.compile(r"\(([^()]*)\)")
_FOLDED = frozenset(article.casefold() for article in ARTICLES)


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
