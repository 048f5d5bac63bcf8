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
    csv_batches,
    decode,
    each_row,
    line_batches,
    split_lines,
    take_all,
    transposed,
)
from recbole_llm.convert.sources import Source
from recbole_llm.convert.values import (
    Catalogue,
    LineError,
    as_floats,
    as_times,
    check_ids,
    clean_text,
    movie_title,
    shown,
)
from recbole_llm.errors import DataError

#: Folder of the archive by name of the source.
FOLDERS = {
    "ml-100k": "ml-100k",
    "ml-1m": "ml-1m",
    "ml-10m": "ml-10M100K",
    "ml-20m": "ml-20m",
    "ml-25m": "ml-25m",
    "ml-32m": "ml-32m",
    "ml-latest": "ml-latest",
    "ml-latest-small": "ml-latest-small",
}
# fmt: off
_GENRES_100K = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]
# fmt: on
_NO_GENRE = "(no genres listed)"


def read(request: Request) -> Reading:
    """Read a MovieLens download.

    ``movie_title`` is the title as people write it, ``movie_title_raw`` the one of the file. The field of the genres
    is called ``class`` for ml-100k, as in RecBole's bundled copy, and ``genre`` elsewhere.
    """
    if request.name == "ml-100k":
        return _read_100k(request)
    if request.name in ("ml-1m", "ml-10m"):
        return _read_dat(request)
    return _read_csv(request)


def _ratings(source: Source, separator: str, request: Request, first: int = 1) -> Interactions:
    table = request.interactions("rating")

    def take(columns: Columns) -> None:
        users, items, ratings, times = columns
        check_ids(users, items)
        table.extend(users, items, as_times(times), [as_floats(ratings, "rating")])

    batches = line_batches(source, split_lines(separator, 4), request.progress, first)
    take_all(source, batches, take, request.skips)
    return table


def _movies(genre_field: str, tags: bool = False) -> Catalogue:
    fields = [
        ("movie_title", "token_seq"),
        ("release_year", "token"),
        (genre_field, "token_seq"),
        ("movie_title_raw", "token_seq"),
    ]
    return Catalogue(fields + ([("tags", "token_seq")] if tags else []), title="movie_title")


def _latin(parse: Callable[[Sequence[bytes]], Columns]) -> Callable[[Sequence[bytes]], Columns]:
    """Let a parser read the older files: latin-1, or UTF-8 where somebody has re-encoded the file.

    Accented latin-1 text is practically never valid UTF-8, so the two are told apart line by line.
    """

    def recoded(line: bytes) -> bytes:
        try:
            line.decode()
            return line
        except UnicodeDecodeError:
            return line.decode("latin-1").encode()

    return lambda lines: parse(list(map(recoded, lines)))


def _users(request: Request, separator: str, fields: Sequence[str], found: list[Source]) -> Catalogue | None:
    if not found:
        return None
    users = Catalogue([(name, "token") for name in fields])
    batches = line_batches(found[0], _latin(split_lines(separator, 1 + len(fields))))
    for number, (raw_id, *values) in each_row(found[0], batches, request.skips):
        with request.skips.line(found[0].name, number):
            users.add_once(raw_id, values)
    return users


def _read_100k(request: Request) -> Reading:
    ratings, movies = request.bundle.one("u.data"), request.bundle.one("u.item")
    table = _ratings(ratings, "\t", request)
    items = _movies("class")
    batches = line_batches(movies, _latin(split_lines("|", 5 + len(_GENRES_100K))))
    for number, (raw_id, raw_title, _, _, _, *flags) in each_row(movies, batches, request.skips):
        genres = [name for name, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1"]
        with request.skips.line(movies.name, number):
            items.add_once(raw_id, (*movie_title(raw_title), " ".join(genres), raw_title))
    people = request.bundle.find("u.user")[:1]
    users = _users(request, "|", ("age", "gender", "occupation", "zip_code"), people)
    note = (
        "RecBole reads its own bundled copy whenever the dataset is called ml-100k, whatever data_path says; "
        "give this one another name (--output dataset/ml-100k-text) to train on it."
    )
    return Reading(table, items, users, [ratings, movies, *people], [note])


def _read_dat(request: Request) -> Reading:
    bundle, old = request.bundle, request.name == "ml-1m"
    ratings, movies = bundle.one("ratings.dat"), bundle.one("movies.dat")
    table = _ratings(ratings, "::", request)
    # user::movie::tag::time, and a tag may hold anything but "::".
    tag_source = _tag_source(request, "tags.dat")
    tags = _tags(request, tag_source, lambda source: line_batches(source, split_lines("::", 4), request.progress))
    batches = line_batches(movies, _latin(_movie_lines) if old else _movie_lines)
    items = _read_movies(movies, batches, tags, bool(tag_source), request)
    people = bundle.find("users.dat")[:1] if old else []
    users = _users(request, "::", ("gender", "age", "occupation", "zip_code"), people)
    return Reading(table, items, users, [ratings, movies, *tag_source, *people])


def _movie_lines(lines: Sequence[bytes]) -> Columns:
    # Titles hold single colons, and "::" only if somebody put it there: id in front, genres behind.
    rows = [line.split("::") for line in decode(b"\n".join(lines)).split("\n")] if lines else []
    bad = next((row for row in rows if len(row) < 3), None)
    if bad is not None:
        raise LineError(f"{len(bad)} fields where 3 are expected (separated by '::')")
    return transposed([(row[0], "::".join(row[1:-1]), row[-1]) for row in rows]) if rows else [()] * 3


def _read_csv(request: Request) -> Reading:
    ratings, movies = request.bundle.one("ratings.csv"), request.bundle.one("movies.csv")
    _check_header(ratings, ["userId", "movieId", "rating", "timestamp"])
    columns = ["movieId", "title", "genres"]
    _check_header(movies, columns)
    table = _ratings(ratings, ",", request, first=2)
    tag_source = _tag_source(request, "tags.csv")
    wanted = ["userId", "movieId", "tag", "timestamp"]
    for source in tag_source:
        _check_header(source, wanted)
    tags = _tags(request, tag_source, lambda source: csv_batches(source, ",", wanted, progress=request.progress))
    items = _read_movies(movies, csv_batches(movies, ",", columns), tags, bool(tag_source), request)
    return Reading(table, items, None, [ratings, movies, *tag_source])


def _read_movies(
    source: Source, batches: Iterable[Batch], tags: dict[str, str], tagged: bool, request: Request
) -> Catalogue:
    items = _movies("genre", tagged)
    for number, (raw_id, raw_title, genres) in each_row(source, batches, request.skips):
        genres = "" if genres == _NO_GENRE else genres.replace("|", " ")
        values = [*movie_title(raw_title), genres, raw_title, *([tags.get(raw_id, "")] if tagged else [])]
        with request.skips.line(source.name, number):
            items.add_once(raw_id, values)
    return items


def _check_header(source: Source, expected: list[str]) -> None:
    line = source.first_line()
    if line is None:
        raise DataError(f"{source.name}: the file is empty.")
    header = line.decode("utf-8", "replace")
    if header.split(",") != expected:
        raise DataError(f"{source.name}, line 1: the header is {shown(header)}; expected is {','.join(expected)!r}.")


def _tag_source(request: Request, name: str) -> list[Source]:
    return [request.bundle.one(name)] if int(request.options.get("movie_tags") or 0) else []


def _tags(request: Request, sources: list[Source], batches: Callable[[Source], Iterable[Batch]]) -> dict[str, str]:
    """Return the most frequent tags per movie, if requested: ``{movie id: 'dark_comedy pixar'}``."""
    counts: dict[str, Counter[str]] = {}
    for source in sources:
        for _, (_, movie, tag, _) in each_row(source, batches(source), request.skips):
            words = re.sub(r"\s+", "_", clean_text(tag).lower().strip('"'))
            if words:
                counts.setdefault(movie, Counter())[words] += 1
    most = int(request.options.get("movie_tags") or 0)
    # Counter.most_common keeps first appearance among equals, so the result does not depend on hashing.
    return {movie: " ".join(tag for tag, _ in tags.most_common(most)) for movie, tags in counts.items()}
