"""Amazon reviews: the releases of 2014, 2018 and 2023, any category.

Sources: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html (2014, McAuley et al. 2015),
https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/ (2018, Ni et al. 2019) and https://amazon-reviews-2023.github.io
(Hou et al. 2024). Times stay as published: seconds at midnight UTC in 2014 and 2018, milliseconds in 2023.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from recbole_llm.convert.interactions import Interactions
from recbole_llm.convert.reading import (
    Columns,
    Reading,
    Request,
    each_row,
    line_batches,
    parquet_batches,
    split_lines,
    take_all,
)
from recbole_llm.convert.records import mentions, record_batches
from recbole_llm.convert.sources import Bundle, Skips, Source
from recbole_llm.convert.values import (
    Catalogue,
    as_floats,
    as_times,
    check_ids,
    clean_text,
    path_text,
    plain_text,
    strip_tags,
    words_text,
)
from recbole_llm.errors import ConfigError, DataError
from recbole_llm.text.titles import unescape

NAME = re.compile(r"amazon-(?P<category>[a-z0-9-]+)-(?P<year>2014|2018|2023)")

# The papers' short names, and the file names' spelling where it is not the same word.
_CATEGORIES = {"toys": "toys-and-games", "games": "video-games", "movies": "movies-and-tv", "cds": "cds-and-vinyl"}
_BEAUTY = {"2014": "beauty", "2018": "all-beauty", "2023": "all-beauty"}

FIELDS = (
    ("title", "token_seq"),
    ("categories", "token_seq"),
    ("brand", "token"),
    ("price", "token"),
    ("description", "token_seq"),
    ("category_tokens", "token_seq"),
)
# Of the metadata; 2014: categories and brand, 2018: category and brand, 2023: categories and store.
_TEXT_FIELDS = ("title", "categories", "category", "brand", "store", "price", "description")
_ASIN = re.compile(rb"""["']asin["']\s*:\s*u?["']([^"'\\]+)["']""")
_PARENT_ASIN = re.compile(rb"""["']parent_asin["']\s*:\s*u?["']([^"'\\]+)["']""")


@dataclass(frozen=True)
class _Release:
    """File names and fields of a release."""

    reviews: tuple[tuple[str, str], ...]
    metadata: tuple[str, ...]
    json_fields: tuple[str, str, str, str]
    csv_order: tuple[str, ...] | None
    id_field: str
    id_pattern: re.Pattern[bytes]


_OLD_FIELDS = ("reviewerID", "asin", "overall", "unixReviewTime")
_RELEASES = {
    "2014": _Release(
        (
            ("5-core reviews", r"reviews_(.+)_5\.json"),
            ("reviews", r"reviews_((?:.(?!_5\.json))+.)\.json"),
            ("ratings", r"ratings_(.+)\.csv"),
        ),
        (r"meta_(.+)\.json",),
        _OLD_FIELDS,
        ("user", "item", "rating", "time"),
        "asin",
        _ASIN,
    ),
    "2018": _Release(
        (
            ("5-core reviews", r"(?!meta_)(.+)_5\.json"),
            ("reviews", r"(?!meta_)((?:.(?!_5\.json))+.)\.json"),
            ("ratings", r"(.+)\.csv"),
        ),
        (r"meta_(.+)\.json",),
        _OLD_FIELDS,
        ("item", "user", "rating", "time"),
        "asin",
        _ASIN,
    ),
    "2023": _Release(
        (
            ("reviews", r"(?!meta_)(.+)\.jsonl"),
            ("parquet reviews", r"raw_review_(.+)/[^/]+\.parquet"),
            ("split ratings", r"(.+)\.(?:train|valid|test)\.csv"),
            ("ratings", r"((?:.(?!\.(?:train|valid|test)\.csv))+.)\.csv"),
        ),
        (r"meta_(.+)\.jsonl", r"raw_meta_(.+)/[^/]+\.parquet"),
        ("user_id", "parent_asin", "rating", "timestamp"),
        None,
        "parent_asin",
        _PARENT_ASIN,
    ),
}
_CSV_2023 = ["user_id", "parent_asin", "rating", "timestamp"]


def read(request: Request) -> Reading:
    """Read the reviews or ratings of one category, then the metadata of the items in them.

    Options
    -------
    columns : str
        Order of the columns of a headerless ratings file, ``user,item,rating,time`` (2014) or
        ``item,user,rating,time`` (2018).
    workers : int
        Processes for reviews that are Python literals.
    """
    found = NAME.fullmatch(request.name)
    assert found is not None
    release = _RELEASES[found["year"]]
    category = _BEAUTY[found["year"]] if found["category"] == "beauty" else found["category"]
    category = _CATEGORIES.get(category, category)
    # Both before the reviews are read, which takes minutes: a missing file should be known at once.
    sources = _reviews(request, release, category)
    metadata = _metadata(request, release, category)
    table = request.interactions("rating")
    for source in sources:
        _read_reviews(source, table, release, request)
    reading = Reading(table, sources=sources)
    if metadata:
        reading.items = _read_metadata(metadata, table, release, request)
        reading.sources = sources + metadata
    if found["year"] != "2023":
        reading.notes.append("times are days: reviews of one user on one day keep the order of the file.")
    return reading


def _category_of(source: Source, pattern: str) -> str | None:
    name = f"{source.path.parent.name}/{source.basename}" if "/" in pattern else source.stem
    found = re.fullmatch(pattern, name)
    return re.sub("[_ ]+", "-", found.group(1).lower()) if found else None


def _reviews(request: Request, release: _Release, category: str) -> list[Source]:
    metadata = set(release.metadata)
    if request.bundle.named:
        # Files that were named are taken whatever their category is called.
        return [
            source for source in request.bundle.named if not any(_category_of(source, pattern) for pattern in metadata)
        ] or request.bundle.nothing("no review file")
    kinds = {}
    for kind, pattern in release.reviews:
        found = [source for source in request.bundle.sources if _category_of(source, pattern) == category]
        if found:
            kinds[kind] = found
    if not kinds:
        request.bundle.nothing(f"no reviews or ratings of the category {category!r}")
    if len(kinds) > 1:
        listed = ", ".join(f"{found[0].basename} ({kind})" for kind, found in kinds.items())
        raise DataError(f"{request.bundle}: several files match: {listed}; pass the one to read as --input.")
    (found,) = kinds.values()
    order = {"train": 0, "valid": 1, "test": 2}
    return sorted(found, key=lambda source: (order.get(source.basename.split(".")[-2], 0), source.name))


def _metadata(request: Request, release: _Release, category: str) -> list[Source]:
    if request.options.get("no_metadata"):
        return []
    if request.metadata is not None:
        if request.metadata.sources:
            named = request.metadata.named
            return named or _of_category(request.metadata, release, category) or request.bundle.nothing("no metadata")
        raise DataError(f"{request.metadata}: the folder is empty.")
    bundle = request.bundle
    if bundle.named and not _of_category(bundle, release, category):
        bundle = bundle.folders()
    found = _of_category(bundle, release, category)
    if not found:
        raise DataError(
            f"{request.bundle}: no metadata file (meta_...) of the category {category!r} found; pass it with "
            "--metadata (metadata=), or pass --no_metadata (no_metadata=True) to convert without item text."
        )
    return found


def _of_category(bundle: Bundle, release: _Release, category: str) -> list[Source]:
    for pattern in release.metadata:
        found = [source for source in bundle.sources if _category_of(source, pattern) == category]
        if found:
            return sorted(found, key=lambda source: source.name)
    return []


# ---- interactions


def _read_reviews(source: Source, table: Interactions, release: _Release, request: Request) -> None:
    def take(columns: Columns) -> None:
        users, items, ratings, times = columns
        check_ids(users, items)
        table.extend(users, items, as_times(times), [as_floats(ratings, "rating")])

    workers = 1
    if source.stem.endswith(".parquet"):
        batches = parquet_batches(source, release.json_fields, progress=request.progress)
    elif source.stem.endswith(".csv"):
        order, first = _csv_columns(source, release, request)
        places = [order.index(name) for name in ("user", "item", "rating", "time")]
        parse = partial(_pick_fields, parse=split_lines(",", len(order)), places=places)
        batches = line_batches(source, parse, request.progress, first)
    else:
        batches = record_batches(source, release.json_fields, progress=request.progress)
        if not (source.first_line() or b'{"').lstrip().startswith(b'{"'):
            workers = int(request.options.get("workers") or 1)
    take_all(source, batches, take, request.skips, workers)


def _pick_fields(lines: Sequence[bytes], parse: Callable[[Sequence[bytes]], Columns], places: list[int]) -> Columns:
    columns = parse(lines)
    return [columns[place] for place in places] if columns else [()] * len(places)


def _csv_columns(source: Source, release: _Release, request: Request) -> tuple[list[str], int]:
    """Return the columns, and the first line after the header."""
    given = request.options.get("columns")
    if given:
        order = [name.strip() for name in str(given).split(",")]
        if not {"user", "item", "rating", "time"} <= set(order):
            raise ConfigError(f"columns is {given!r}; it must name user, item, rating and time, separated by commas.")
        return order, 1
    if release.csv_order is not None:
        return list(release.csv_order), 1
    cells = (source.first_line() or b"").decode("utf-8", "replace").strip().split(",")
    if cells[:4] != _CSV_2023:
        raise DataError(
            f"{source.name}, line 1: the header is {','.join(cells)!r}; expected is {','.join(_CSV_2023)!r}."
        )
    return ["user", "item", "rating", "time", *cells[4:]], 2


# ---- metadata


def _read_metadata(sources: Sequence[Source], table: Interactions, release: _Release, request: Request) -> Catalogue:
    items, ids, skips = Catalogue(FIELDS, title="title"), table.items, request.skips
    fields = [release.id_field, *_TEXT_FIELDS]
    for source in sources:
        if source.stem.endswith(".parquet"):
            fields, place = [name for name in fields if name not in ("brand", "category")], "row"
            batches = parquet_batches(source, fields, progress=request.progress)
        else:
            wanted = None if request.all_items else mentions(ids, release.id_pattern)
            batches = record_batches(source, fields, optional=True, wanted=wanted, progress=request.progress)
            place = "line"
        for number, (raw_id, *values) in each_row(source, batches, skips):
            where = f"{source.name}, {place} {number}"
            if not isinstance(raw_id, str) or not raw_id:
                skips.count(f"metadata without {release.id_field}", where)
            elif raw_id in items and (request.all_items or raw_id in ids):
                skips.count("repeated metadata of an item (the first is kept)", where)
            elif request.all_items or raw_id in ids:
                items.add(raw_id, _texts(dict(zip(fields[1:], values, strict=True)), skips, where))
    if not any(raw in ids for raw in items.rows):
        raise DataError(
            f"{', '.join(source.name for source in sources)}: describes none of the {len(ids):,} reviewed items. "
            "Is it the same category and year, and are user and item columns in the right order (--columns)?"
        )
    return items


def _texts(record: dict[str, Any], skips: Skips, place: str) -> tuple[str, ...]:
    title = plain_text(record.get("title"))
    if "getTime" in title or re.search(r"</?[a-z]+[ >]", title):
        skips.count("a page script in place of the title (the item is kept as untitled)", place)
        title = ""
    # 2014: a list of paths, of which the first is taken; 2018: one path under "category"; 2023: one path.
    levels = record.get("categories") or record.get("category") or []
    if isinstance(levels, list) and levels and isinstance(levels[0], list):
        levels = levels[0]
    names = [clean_text(level) for level in levels if isinstance(level, str) and "<" not in level]
    description = record.get("description") or ""
    if isinstance(description, list):
        description = " ".join(part for part in description if isinstance(part, str))
    price = plain_text(record.get("price")).replace("$", "")
    brand = plain_text(record.get("brand") or record.get("store"))
    return (
        title,
        path_text(names),
        brand,
        "" if price == "None" or "{" in price or len(price) > 40 else price,
        strip_tags(unescape(plain_text(description))),
        words_text(names),
    )
