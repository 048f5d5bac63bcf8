"""MovieLens: 100K, 1M, 10M, 20M, 25M, 32M, latest and latest-small.

Layouts as in the READMEs of the archives: https://grouplens.org/datasets/movielens/ (Harper & Konstan 2015).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from recbole_llm.convert.interactions import Interactions
from recbole_llm.convert.reading import (
    Batch,
    Columns,
    Reading,
    Request,
    Row,
    csv_batches,
    decode,
    line_batches,
    rated,
    split_lines,
    take_all,
    take_rows,
    transposed,
)
from recbole_llm.convert.sources import Source
from recbole_llm.convert.values import Catalogue, LineError, clean_text, shown
from recbole_llm.errors import DataError
from recbole_llm.text.titles import fronted_article

NAMES = ("ml-100k", "ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m", "ml-latest", "ml-latest-small")
# fmt: off
_GENRES_100K = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]
# fmt: on
_RATINGS_HEADER = "userId,movieId,rating,timestamp"
_YEAR = re.compile(r"\s*\(([0-9]{4})\)\s*$")
_LAST_GROUP = re.compile(r"\s*\((?:[^()]|\([^()]*\))*\)\s*$")


def read(request: Request) -> Reading:
    """Read a MovieLens download.

    ``movie_title`` is the title as people write it, ``movie_title_raw`` that of the file. The field of the genres is
    called ``class`` for ml-100k, as in RecBole's bundled copy, and ``genre`` elsewhere.
    """
    if request.name == "ml-100k":
        return _read_100k(request)
    if request.name in ("ml-1m", "ml-10m"):
        return _read_dat(request)
    return _read_csv(request)


def movie_title(raw: str) -> tuple[str, str]:
    """Return a MovieLens title as people write it, and its year (``""`` if it has none).

    The year and all alternative titles in parentheses at the end are removed, then an article after the last comma
    moves to the front, as in LlamaRec's preparation (whose substring test on the last five characters misfires; here
    whole words are compared, in the languages that MovieLens has).

    >>> movie_title("City of Lost Children, The (Cité des enfants perdus, La) (1995)")
    ('The City of Lost Children', '1995')
    """
    title = clean_text(raw)
    found = _YEAR.search(title)
    if found:
        title = title[: found.start()]
    while (shorter := _LAST_GROUP.sub("", title)) not in ("", title):
        title = shorter
    return fronted_article(title.strip()), found.group(1) if found else ""


def _ratings(source: Source, separator: str, request: Request, first: int = 1) -> Interactions:
    table = request.interactions("rating")
    batches = line_batches(source, split_lines(separator, 4), request.progress, first)
    take_all(source, batches, rated(table), request.skips)
    return table


def _latin(parse: Callable[[Sequence[bytes]], Columns]) -> Callable[[Sequence[bytes]], Columns]:
    """Let a parser read the older files: latin-1, or UTF-8 where somebody has re-encoded the file.

    Accented latin-1 text is practically never valid UTF-8, so the two can be told apart line by line.
    """

    def recoded(line: bytes) -> bytes:
        try:
            line.decode()
            return line
        except UnicodeDecodeError:
            return line.decode("latin-1").encode()

    return lambda lines: parse(list(map(recoded, lines)))


def _read_100k(request: Request) -> Reading:
    ratings, movies = request.bundle.one("u.data"), request.bundle.one("u.item")
    table = _ratings(ratings, "\t", request)
    items = _movies("class")

    def take(values: Row) -> None:
        raw_id, title, _, _, _, *flags = values
        genres = [name for name, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1"]
        items.add(raw_id, (*movie_title(title), " ".join(genres), title))

    take_rows(movies, line_batches(movies, _latin(split_lines("|", 5 + len(_GENRES_100K)))), take, request.skips)
    people = request.bundle.find("u.user")[:1]
    users = _users(request, "|", ("age", "gender", "occupation", "zip_code"), people)
    note = (
        "RecBole reads its own bundled copy whenever the dataset is called ml-100k, whatever data_path says; "
        "give this one another name (--output dataset/ml-100k-text) to train on it."
    )
    return Reading(table, items, users, [ratings, movies, *people], [note])


def _read_dat(request: Request) -> Reading:
    bundle, is_1m = request.bundle, request.name == "ml-1m"
    ratings, movies = bundle.one("ratings.dat"), bundle.one("movies.dat")
    table = _ratings(ratings, "::", request)
    # user::movie::tag::time, and a tag may hold anything but "::".
    tags = _tags(request, "tags.dat", lambda file: line_batches(file, split_lines("::", 4), request.progress))
    batches = line_batches(movies, _latin(_movie_lines) if is_1m else _movie_lines)
    items = _read_movies(movies, batches, tags, request)
    people = bundle.find("users.dat")[:1] if is_1m else []
    users = _users(request, "::", ("gender", "age", "occupation", "zip_code"), people)
    return Reading(table, items, users, [ratings, movies, *_tag_source(request, "tags.dat"), *people])


def _movie_lines(lines: Sequence[bytes]) -> Columns:
    # The id is in front and the genres are at the end; a title may hold "::".
    rows = [line.split("::") for line in decode(b"\n".join(lines)).split("\n")]
    for row in rows:
        if len(row) < 3:
            raise LineError(f"{len(row)} fields where 3 are expected (separated by '::')")
    return transposed([(row[0], "::".join(row[1:-1]), row[-1]) for row in rows])


def _read_csv(request: Request) -> Reading:
    ratings, movies = request.bundle.one("ratings.csv"), request.bundle.one("movies.csv")
    line = (ratings.first_line() or b"").decode("utf-8", "replace")
    if line != _RATINGS_HEADER:
        raise DataError(f"{ratings.name}, line 1: the header is {shown(line)}; expected {_RATINGS_HEADER!r}.")
    table = _ratings(ratings, ",", request, first=2)
    wanted = ["userId", "movieId", "tag", "timestamp"]
    tags = _tags(request, "tags.csv", lambda file: csv_batches(file, ",", wanted, progress=request.progress))
    items = _read_movies(movies, csv_batches(movies, ",", ["movieId", "title", "genres"]), tags, request)
    return Reading(table, items, None, [ratings, movies, *_tag_source(request, "tags.csv")])


def _movies(genre_field: str, *more: str) -> Catalogue:
    names = ("movie_title", "release_year", genre_field, "movie_title_raw", *more)
    header = [f"{name}:{'token' if name == 'release_year' else 'token_seq'}" for name in names]
    return Catalogue(header, title="movie_title")


def _read_movies(source: Source, batches: Iterable[Batch], tags: dict[str, str] | None, request: Request) -> Catalogue:
    items = _movies("genre") if tags is None else _movies("genre", "tags")

    def take(values: Row) -> None:
        raw_id, title, genres = values
        genres = "" if genres == "(no genres listed)" else genres.replace("|", " ")
        texts = [*movie_title(title), genres, title]
        items.add(raw_id, texts if tags is None else [*texts, tags.get(raw_id, "")])

    take_rows(source, batches, take, request.skips)
    return items


def _users(request: Request, separator: str, fields: Sequence[str], found: list[Source]) -> Catalogue | None:
    if not found:
        return None
    users = Catalogue([f"{name}:token" for name in fields])
    batches = line_batches(found[0], _latin(split_lines(separator, 1 + len(fields))))
    take_rows(found[0], batches, lambda values: users.add(values[0], values[1:]), request.skips)
    return users


def _tag_source(request: Request, name: str) -> list[Source]:
    return [request.bundle.one(name)] if request.options.get("movie_tags") else []


def _tags(request: Request, name: str, batches: Callable[[Source], Iterable[Batch]]) -> dict[str, str] | None:
    """Return the most frequent tags of each movie, ``{movie id: 'dark_comedy pixar'}``, if they are asked for."""
    counts: dict[str, Counter[str]] = {}

    def take(values: Row) -> None:
        _, movie, tag, _ = values
        words = re.sub(r"\s+", "_", clean_text(tag).lower().strip('"'))
        if words:
            counts.setdefault(movie, Counter())[words] += 1

    sources = _tag_source(request, name)
    for source in sources:
        take_rows(source, batches(source), take, request.skips)
    most = request.options.get("movie_tags")
    # Counter.most_common keeps the order of first appearance among equals, so the result is deterministic.
    found = {movie: " ".join(tag for tag, _ in tags.most_common(most)) for movie, tags in counts.items()}
    return found if sources else None
