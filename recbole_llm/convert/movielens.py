"""MovieLens: 100K, 1M, 10M, 20M, 25M, 32M, latest and latest-small.

Layouts as in the READMEs of the archives: https://grouplens.org/datasets/movielens/ (Harper & Konstan 2015).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from recbole_llm.convert.catalogue import Catalogue
from recbole_llm.convert.lines import LineError, Skips, shown
from recbole_llm.convert.reading import csv_batches, decode, decode_latin, read_lines, split_fields
from recbole_llm.convert.source_kinds import Reading, Request
from recbole_llm.convert.sources import Source
from recbole_llm.convert.table import Interactions, as_floats, as_times, check_ids
from recbole_llm.convert.text import clean_text, movie_title
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


def _ratings(source: Source, separator: str, request: Request, header: bool = False) -> Interactions:
    table = Interactions(("rating",), request.spill)

    def take(lines: list[bytes]) -> None:
        users, items, ratings, times = split_fields(lines, separator, 4)
        check_ids(users, items)
        table.extend(users, items, as_times(times), [as_floats(ratings, "rating")])

    read_lines(source, take, request.skips, request.progress, skip_first=header)
    return table


def _movies(genre_field: str, tags: bool = False) -> Catalogue:
    fields = [
        ("movie_title", "token_seq"),
        ("release_year", "token"),
        (genre_field, "token_seq"),
        ("movie_title_raw", "token_seq"),
    ]
    return Catalogue(fields + ([("tags", "token_seq")] if tags else []), title="movie_title")


def _each_line(source: Source, skips: Skips, decoder: Callable[[bytes], str], take: Callable[[str], None]) -> None:
    for block in source.blocks():
        for number, line in enumerate(block.lines, block.first_line):
            if line.strip():
                try:
                    take(decoder(line))
                except LineError as error:
                    skips.handle(error, source.name, number)


def _utf8(line: bytes) -> str:
    return decode([line])[0]


def _fields(line: str, separator: str, count: int) -> list[str]:
    return [column[0] for column in split_fields([line.encode()], separator, count)]


def _add(catalogue: Catalogue, raw_id: str, values: Sequence[str]) -> None:
    if not raw_id:
        raise LineError("an empty id")
    if raw_id in catalogue:
        raise LineError(f"the id {shown(raw_id)} is there twice")
    catalogue.add(raw_id, values)


def _read_100k(request: Request) -> Reading:
    ratings, movies = request.bundle.one("u.data"), request.bundle.one("u.item")
    table = _ratings(ratings, "\t", request)
    items = _movies("class")

    def movie(line: str) -> None:
        cells = _fields(line, "|", 5 + len(_GENRES_100K))
        title, year = movie_title(cells[1])
        genres = [name for name, flag in zip(_GENRES_100K, cells[5:], strict=True) if flag == "1"]
        _add(items, cells[0], (title, year, " ".join(genres), cells[1]))

    _each_line(movies, request.skips, decode_latin, movie)
    users = Catalogue([("age", "token"), ("gender", "token"), ("occupation", "token"), ("zip_code", "token")])
    reading = Reading(table, items, users, [ratings, movies])
    people = request.bundle.find("u.user")
    if people:
        _each_line(
            people[0],
            request.skips,
            decode_latin,
            lambda line: _add(users, (cells := _fields(line, "|", 5))[0], cells[1:]),
        )
        reading.sources.append(people[0])
    else:
        reading.users = None
    reading.notes.append(
        "RecBole reads its own bundled copy whenever the dataset is called ml-100k, whatever data_path says; "
        "give this one another name (--output dataset/ml-100k-text) to train on it."
    )
    return reading


def _read_dat(request: Request) -> Reading:
    bundle = request.bundle
    ratings, movies = bundle.one("ratings.dat"), bundle.one("movies.dat")
    table = _ratings(ratings, "::", request)
    tags, tag_source = _tags(request, "tags.dat")
    items = _movies("genre", bool(tag_source))

    def movie(line: str) -> None:
        # Titles hold single colons, and "::" only if somebody put it there: id in front, genres behind.
        cells = line.split("::")
        if len(cells) < 3:
            raise LineError(f"{len(cells)} fields where 3 are expected (separated by '::')")
        _add_movie(items, cells[0], "::".join(cells[1:-1]), cells[-1], tags)

    _each_line(movies, request.skips, decode_latin if request.name == "ml-1m" else _utf8, movie)
    reading = Reading(table, items, None, [ratings, movies, *tag_source])
    people = bundle.find("users.dat") if request.name == "ml-1m" else []
    if people:
        users = Catalogue([("gender", "token"), ("age", "token"), ("occupation", "token"), ("zip_code", "token")])
        _each_line(
            people[0],
            request.skips,
            decode_latin,
            lambda line: _add(users, (cells := _fields(line, "::", 5))[0], cells[1:]),
        )
        reading.users = users
        reading.sources.append(people[0])
    return reading


def _read_csv(request: Request) -> Reading:
    bundle = request.bundle
    ratings, movies = bundle.one("ratings.csv"), bundle.one("movies.csv")
    _check_header(ratings, ["userId", "movieId", "rating", "timestamp"])
    _check_header(movies, ["movieId", "title", "genres"])
    table = _ratings(ratings, ",", request, header=True)
    tags, tag_source = _tags(request, "tags.csv")
    items = _movies("genre", bool(tag_source))
    for numbers, rows in csv_batches(movies, ","):
        for number, row in zip(numbers, rows, strict=True):
            if number == 1 or row == [""]:
                continue
            try:
                if len(row) != 3:
                    raise LineError(f"{len(row)} fields where 3 are expected (separated by ',')")
                _add_movie(items, row[0], row[1], row[2], tags)
            except LineError as error:
                request.skips.handle(error, movies.name, number)
    return Reading(table, items, None, [ratings, movies, *tag_source])


def _add_movie(items: Catalogue, raw_id: str, raw_title: str, genres: str, tags: dict[str, str]) -> None:
    title, year = movie_title(raw_title)
    genres = "" if genres == _NO_GENRE else genres.replace("|", " ")
    values = [title, year, genres, raw_title]
    if len(items.fields) > len(values):
        values.append(tags.get(raw_id, ""))
    _add(items, raw_id, values)


def _check_header(source: Source, expected: list[str]) -> None:
    for block in source.blocks(size=4096):
        header = block.lines[0].decode("utf-8", "replace")
        if header.split(",") != expected:
            raise DataError(
                f"{source.name}, line 1: the header is {shown(header)}; expected is {','.join(expected)!r}."
            )
        return
    raise DataError(f"{source.name}: the file is empty.")


def _tags(request: Request, name: str) -> tuple[dict[str, str], list[Source]]:
    """Return the most frequent tags per movie, if they were asked for: ``{movie id: 'dark_comedy pixar'}``."""
    most = int(request.options.get("movie_tags") or 0)
    if not most:
        return {}, []
    source = request.bundle.one(name)
    counts: dict[str, Counter[str]] = {}

    def take(movie: str, tag: str) -> None:
        words = re.sub(r"\s+", "_", clean_text(tag).lower().strip('"'))
        if words:
            counts.setdefault(movie, Counter())[words] += 1

    if name.endswith(".dat"):
        # user::movie::tag::time, and a tag may hold anything but "::".
        _each_line(source, request.skips, _utf8, lambda line: take((cells := _fields(line, "::", 4))[1], cells[2]))
    else:
        _check_header(source, ["userId", "movieId", "tag", "timestamp"])
        for numbers, rows in csv_batches(source, ",", request.progress):
            for number, row in zip(numbers, rows, strict=True):
                if number == 1 or row == [""]:
                    continue
                if len(row) == 4:
                    take(row[1], row[2])
                else:
                    request.skips.handle(LineError(f"{len(row)} fields where 4 are expected"), source.name, number)
    # Counter.most_common keeps first appearance among equals, so the result does not depend on hashing.
    return {movie: " ".join(tag for tag, _ in tag_counts.most_common(most)) for movie, tag_counts in counts.items()}, [
        source
    ]
