"""Steam: the reviews of Kang & McAuley (2018), and the Australian users' reviews of Pathak et al. (2017).

Files are gzipped Python literals, one a line (https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data); copies that
somebody has re-encoded as JSON, with NaN for what is missing, are read as well.
"""

import re
from datetime import date
from functools import lru_cache

from recbole_llm.convert.interactions import Interactions
from recbole_llm.convert.reading import Columns, Reading, Request, each_row, take_all
from recbole_llm.convert.records import record_batches
from recbole_llm.convert.sources import Source
from recbole_llm.convert.values import Catalogue, KnownGap, LineError, check_ids, plain_text, shown
from recbole_llm.errors import ConfigError, DataError

_GAMES = ("steam_games.json*",)
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
    """Read the Steam reviews (``steam``) or those of the Australian users (``steam-au``), then the games.

    Options
    -------
    user_key : {'username', 'user_id'}
        What tells users of ``steam`` apart. Names are the usual key, although homonyms merge; ids are missing in
        part of the lines, which are skipped with a count.
    complete_games : bool
        Whether a game without genres or tags counts as untitled, as in dh-r's preparation.
    workers : int
        Processes that parse.
    """
    # Before the reviews, which take minutes: a missing file should be known at once.
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
        return request.metadata.named[0] if len(request.metadata.named) == 1 else request.metadata.one(*_GAMES)
    found = request.bundle.find(*_GAMES) or request.bundle.folders().find(*_GAMES)
    if not found:
        raise DataError(
            f"{request.bundle}: there is no steam_games.json.gz beside the reviews; name it with --metadata "
            "(metadata=), or pass --no_metadata (no_metadata=True) to go without item text."
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
    if key not in ("username", "user_id"):
        raise ConfigError(f"user_key is {key!r}; allowed are 'username' and 'user_id'.")
    table = request.interactions()

    def take(columns: Columns) -> None:
        users, items, dates = columns
        if key == "user_id" and not all(users):
            # The field is optional in the download: a line without it is a known gap.
            raise KnownGap("a review without user_id")
        check_ids(users, items)
        if set(map(type, dates)) != {str}:
            raise LineError("a date that is not text")
        table.extend(users, items, list(map(_day, dates)))

    fields, optional = (key, "product_id", "date"), key == "user_id"
    workers = int(request.options.get("workers") or 1)
    batches = record_batches(source, fields, optional=optional, progress=request.progress)
    take_all(source, batches, take, request.skips, workers)
    return table


def _read_australian(source: Source, request: Request) -> Interactions:
    table = request.interactions("recommend")
    batches = record_batches(source, ("user_id", "reviews"), optional=True, progress=request.progress)
    for number, (user, reviews) in each_row(source, batches, request.skips):
        for review in reviews or ():
            with request.skips.line(source.name, number):
                if not isinstance(review, dict):
                    raise LineError(f"a review that is no dictionary: {shown(review)}")
                check_ids([user], [review.get("item_id")])
                recommended = float(bool(review.get("recommend")))
                table.extend([user], [review["item_id"]], [_posted(review.get("posted"))], [[recommended]])
    return table


def _posted(text: object) -> int:
    found = _POSTED.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or found[1] not in _MONTHS:
        if isinstance(text, str) and _UNDATED.fullmatch(text.strip()):
            raise KnownGap("a review of the year of the crawl, which Steam shows without a year")
        raise LineError(f"the date {shown(text)} is not 'Posted Month day, year.'")
    return _day(f"{found[3]}-{_MONTHS.index(found[1]) + 1:02d}-{int(found[2]):02d}")


def _read_games(source: Source, table: Interactions, request: Request) -> Catalogue:
    items = Catalogue(
        [
            ("title", "token_seq"),
            ("genres", "token_seq"),
            ("tags", "token_seq"),
            ("developer", "token_seq"),
            ("publisher", "token_seq"),
            ("release_year", "token"),
            ("price", "token"),
            ("specs", "token_seq"),
        ],
        title="title",
    )
    complete = bool(request.options.get("complete_games"))
    batches = record_batches(source, _GAME_FIELDS, ids=1, optional=True, progress=request.progress)
    for number, values in each_row(source, batches, request.skips):
        game = dict(zip(_GAME_FIELDS, values, strict=True))
        place, raw_id = f"{source.name}, line {number}", game["id"]
        if not raw_id:
            request.skips.count("a game without id", place)
            continue
        if not request.all_items and raw_id not in table.items:
            continue
        if raw_id in items:
            request.skips.count("a game that is there already (the first one is kept)", place)
            continue
        title = plain_text(game["title"]) or plain_text(game["app_name"])
        genres, tags = _listed(game["genres"]), _listed(game["tags"])
        if complete and not (genres and tags):
            title = ""
        year = re.search(r"\b(?:19|20)\d\d\b", plain_text(game["release_date"]))
        items.add(
            raw_id,
            (
                title,
                genres,
                tags,
                plain_text(game["developer"]),
                plain_text(game["publisher"]),
                year.group() if year else "",
                plain_text(game["price"]),
                _listed(game["specs"]),
            ),
        )
    if not any(raw in table.items for raw in items.rows):
        raise DataError(f"{source.name}: none of the {len(table.items):,} reviewed games is described there.")
    return items


def _listed(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, list) else plain_text(value)
