"""Steam: the reviews of Kang & McAuley (2018), and the Australian users' reviews of Pathak et al. (2017).

Files are gzipped Python literals, one a line (https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data); copies that
somebody has re-encoded as JSON, with NaN for what is missing, are read as well.
"""

import re
from datetime import date
from functools import lru_cache

from recbole_llm.convert.interactions import Interactions
from recbole_llm.convert.reading import Columns, Reading, Request, Row, take_all, take_rows
from recbole_llm.convert.records import record_batches
from recbole_llm.convert.sources import Source
from recbole_llm.convert.values import Catalogue, KnownGap, LineError, as_text, shown
from recbole_llm.errors import DataError

_GAMES = "steam_games.json*"
_HEADER = (
    *("title:token_seq", "genres:token_seq", "tags:token_seq", "developer:token_seq", "publisher:token_seq"),
    *("release_year:token", "price:token", "specs:token_seq"),
)
_GAME_FIELDS = (
    *("id", "title", "app_name", "genres", "tags", "developer", "publisher", "release_date", "price", "specs"),
)
_EPOCH = date(1970, 1, 1).toordinal()
_POSTED = re.compile(r"Posted ([A-Z][a-z]+) (\d{1,2}), (\d{4})\.?")
_UNDATED = re.compile(r"Posted [A-Z][a-z]+ \d{1,2}\.?")
# Not calendar.month_name, which follows the locale.
# fmt: off
_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]
# fmt: on


def read(request: Request) -> Reading:
    """Read the Steam reviews (``steam``) or those of the Australian users (``steam-au``), then the games."""
    # Before the reviews are read, which takes minutes: a missing file should be reported at once.
    games = _games(request)
    if request.name == "steam":
        source = _one(request, "steam_reviews*.json*")
        table = _read_reviews(source, request)
    else:
        source = _one(request, "australian_user_reviews*.json*")
        table = _read_australian(source, request)
    reading = Reading(table, sources=[source])
    if games is not None:
        reading.items = _read_games(games, table, request)
        reading.sources.append(games)
    reading.notes.append("times are days: reviews of one user on one day keep the order of the file.")
    return reading


def _one(request: Request, pattern: str) -> Source:
    named = [source for source in request.bundle.named if not source.basename.startswith("steam_games")]
    return named[0] if len(named) == 1 else request.bundle.one(pattern)


def _games(request: Request) -> Source | None:
    if request.options.get("no_metadata"):
        return None
    if request.metadata is not None:
        return request.metadata.named[0] if len(request.metadata.named) == 1 else request.metadata.one(_GAMES)
    found = request.bundle.find(_GAMES) or request.bundle.folders().find(_GAMES)
    if not found:
        raise DataError(
            f"{request.bundle}: there is no steam_games.json.gz beside the reviews; pass it with --metadata "
            "(metadata=), or pass --no_metadata (no_metadata=True) to convert without item text."
        )
    return found[0]


@lru_cache(maxsize=10_000)
def _day(text: str) -> int:
    try:
        return (date.fromisoformat(text).toordinal() - _EPOCH) * 86_400
    except (ValueError, TypeError) as error:
        raise LineError(f"the date {shown(text)} is not YYYY-MM-DD") from error


def _read_reviews(source: Source, request: Request) -> Interactions:
    key = request.options.get("user_key") or "username"
    table = request.interactions()

    def take(columns: Columns) -> None:
        users, items, dates = columns
        if key == "user_id" and not all(users):
            raise KnownGap("a review without user_id")  # an optional field of the download
        if set(map(type, dates)) != {str}:
            raise LineError("a date that is not text")
        table.extend(users, items, list(map(_day, dates)))

    fields, optional = (key, "product_id", "date"), key == "user_id"
    batches = record_batches(source, fields, optional=optional, progress=request.progress)
    take_all(source, batches, take, request.skips, request.options.get("workers") or 1)
    return table


def _read_australian(source: Source, request: Request) -> Interactions:
    table = request.interactions("recommend")
    batches = record_batches(source, ("user_id", "reviews"), optional=True, progress=request.progress)

    def take(values: Row) -> None:
        user, reviews = values
        for review in reviews or ():
            with request.skips.line():
                if not isinstance(review, dict):
                    raise LineError(f"a review that is not a dictionary: {shown(review)}")
                recommended = float(bool(review.get("recommend")))
                table.extend([user], [review.get("item_id", "")], [_posted(review.get("posted"))], [[recommended]])

    take_rows(source, batches, take, request.skips)
    return table


def _posted(text: object) -> int:
    found = _POSTED.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or found[1] not in _MONTHS:
        if isinstance(text, str) and _UNDATED.fullmatch(text.strip()):
            raise KnownGap("a review of the year of the crawl, which Steam shows without a year")
        raise LineError(f"the date {shown(text)} is not 'Posted Month day, year.'")
    return _day(f"{found[3]}-{_MONTHS.index(found[1]) + 1:02d}-{int(found[2]):02d}")


def _read_games(source: Source, table: Interactions, request: Request) -> Catalogue:
    items = Catalogue(_HEADER, title="title")
    is_strict = request.options.get("complete_games")

    def take(values: Row) -> None:
        game = dict(zip(_GAME_FIELDS, values, strict=True))
        if not game["id"]:
            raise KnownGap("a game without id")
        if not request.all_items and game["id"] not in table.items:
            return
        if game["id"] in items:
            raise KnownGap("a game that is there already (the first one is kept)")
        texts = {key: _joined(value) for key, value in game.items()}
        is_complete = not is_strict or (texts["genres"] and texts["tags"])
        year = re.search(r"\b(?:19|20)\d\d\b", texts["release_date"])
        texts["release_year"] = year.group() if year else ""
        texts["title"] = (texts["title"] or texts["app_name"]) if is_complete else ""
        items.add(game["id"], [texts[name] for name in items.names])

    batches = record_batches(source, _GAME_FIELDS, ids=1, optional=True, progress=request.progress)
    take_rows(source, batches, take, request.skips)
    if not any(raw in table.items for raw in items.rows):
        raise DataError(f"{source.name}: describes none of the {len(table.items):,} reviewed games.")
    return items


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else as_text(value)
