"""Amazon reviews: the releases of 2014, 2018 and 2023, any category.

Sources: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html (2014, McAuley et al. 2015),
https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/ (2018, Ni et al. 2019) and https://amazon-reviews-2023.github.io
(Hou et al. 2024). Times stay as published: seconds at midnight UTC in 2014 and 2018, milliseconds in 2023.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recbole_llm.config.values import as_list
from recbole_llm.convert.interactions import Interactions
from recbole_llm.convert.reading import (
    Reading,
    Request,
    Row,
    line_batches,
    parquet_batches,
    rated,
    split_lines,
    take_all,
    take_rows,
)
from recbole_llm.convert.records import mentions, record_batches
from recbole_llm.convert.sources import Bundle, Source
from recbole_llm.convert.values import Catalogue, KnownGap, as_text, clean_text
from recbole_llm.errors import ConfigError, DataError
from recbole_llm.text.titles import unescape

NAME = re.compile(r"amazon-(?P<category>[a-z0-9-]+)-(?P<year>2014|2018|2023)")

# The papers' short names, and the file names' spelling where it is not the same word.
_CATEGORIES = {"toys": "toys-and-games", "games": "video-games", "movies": "movies-and-tv", "cds": "cds-and-vinyl"}
_BEAUTY = {"2014": "beauty", "2018": "all-beauty", "2023": "all-beauty"}

_HEADER = (
    *("title:token_seq", "categories:token_seq", "brand:token", "price:token"),
    *("description:token_seq", "category_tokens:token_seq"),
)
# Of the metadata; 2014: categories and brand, 2018: category and brand, 2023: categories and store.
_TEXT_FIELDS = ("title", "categories", "category", "brand", "store", "price", "description")
TAG = re.compile(r"</?[A-Za-z!][^<>]{0,300}>")


@dataclass(frozen=True)
class _Release:
    """File names, of which the first pattern that matches counts, and fields of a release."""

    reviews: dict[str, str]
    metadata: tuple[str, ...]
    fields: tuple[str, str, str, str]
    csv_order: str

    @property
    def item_field(self) -> str:
        return self.fields[1]


_OLD_FIELDS = ("reviewerID", "asin", "overall", "unixReviewTime")
_RELEASES = {
    "2014": _Release(
        {
            r"reviews_(.+)_5\.json": "5-core reviews",
            r"reviews_(.+)\.json": "reviews",
            r"ratings_(.+)\.csv": "ratings",
        },
        (r"meta_(.+)\.json",),
        _OLD_FIELDS,
        "user,item,rating,time",
    ),
    "2018": _Release(
        {r"(?!meta_)(.+)_5\.json": "5-core reviews", r"(?!meta_)(.+)\.json": "reviews", r"(.+)\.csv": "ratings"},
        (r"meta_(.+)\.json",),
        _OLD_FIELDS,
        "item,user,rating,time",
    ),
    "2023": _Release(
        {
            r"(?!meta_)(.+)\.jsonl": "reviews",
            r"raw_review_(.+)/[^/]+\.parquet": "parquet reviews",
            r"(.+)\.(?:train|valid|test)\.csv": "split ratings",
            r"(.+)\.csv": "ratings",
        },
        (r"meta_(.+)\.jsonl", r"raw_meta_(.+)/[^/]+\.parquet"),
        ("user_id", "parent_asin", "rating", "timestamp"),
        "",  # these files have a header
    ),
}


def read(request: Request) -> Reading:
    """Read the reviews or ratings of one category, then the metadata of the items in them."""
    found = NAME.fullmatch(request.name)
    assert found is not None
    release = _RELEASES[found["year"]]
    category = _BEAUTY[found["year"]] if found["category"] == "beauty" else found["category"]
    category = _CATEGORIES.get(category, category)
    # Before the reviews are read, which takes minutes: a missing file should be reported at once.
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
    bundle = request.bundle
    if bundle.named:
        # Files that were named are read whatever their category is called.
        return [
            source for source in bundle.named if not any(_category_of(source, name) for name in release.metadata)
        ] or bundle.nothing("no review file")
    kinds: dict[str, list[Source]] = {kind: [] for kind in release.reviews.values()}
    for source in bundle.sources:
        known = ((kind, _category_of(source, pattern)) for pattern, kind in release.reviews.items())
        kind, its_category = next(((kind, found) for kind, found in known if found), ("", ""))
        if its_category == category:
            kinds[kind].append(source)
    kinds = {kind: found for kind, found in kinds.items() if found}
    if not kinds:
        bundle.nothing(f"no reviews or ratings of the category {category!r}")
    if len(kinds) > 1:
        listed = ", ".join(f"{found[0].basename} ({kind})" for kind, found in kinds.items())
        raise DataError(f"{bundle}: several files match: {listed}; pass the one to read as --input.")
    (found,) = kinds.values()
    order = {"train": 0, "valid": 1, "test": 2}
    return sorted(found, key=lambda source: (order.get(source.stem.split(".")[-2], 0), source.name))


def _metadata(request: Request, release: _Release, category: str) -> list[Source]:
    if request.options.get("no_metadata"):
        return []
    if request.metadata is not None:
        if not request.metadata.sources:
            raise DataError(f"{request.metadata}: the folder is empty.")
        return (
            request.metadata.named
            or _of_category(request.metadata, release, category)
            or request.metadata.nothing("no metadata")
        )
    found = _of_category(request.bundle, release, category)
    if not found and request.bundle.named:
        found = _of_category(request.bundle.folders(), release, category)
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
    workers = 1
    if source.stem.endswith(".parquet"):
        batches = parquet_batches(source, release.fields, progress=request.progress)
    elif source.stem.endswith(".csv"):
        order = _csv_columns(source, release, request)
        places = [order.index(name) for name in ("user", "item", "rating", "time")]
        has_header = not (release.csv_order or request.options.get("columns"))
        parse = split_lines(",", len(order), places)
        batches = line_batches(source, parse, request.progress, first=2 if has_header else 1)
    else:
        batches = record_batches(source, release.fields, progress=request.progress)
        if not (source.first_line() or b'{"').lstrip().startswith(b'{"'):
            workers = request.options.get("workers") or 1
    take_all(source, batches, rated(table), request.skips, workers)


def _csv_columns(source: Source, release: _Release, request: Request) -> list[str]:
    order = request.options.get("columns") or release.csv_order
    if order:
        columns = as_list(order)
        if not {"user", "item", "rating", "time"} <= set(columns):
            raise ConfigError(f"columns is {order!r}; it must name user, item, rating and time, separated by commas.")
        return columns
    cells = (source.first_line() or b"").decode("utf-8", "replace").strip().split(",")
    if tuple(cells[:4]) != release.fields:
        raise DataError(
            f"{source.name}, line 1: the header is {','.join(cells)!r}; expected {','.join(release.fields)!r}."
        )
    return ["user", "item", "rating", "time", *cells[4:]]


# ---- metadata


def _read_metadata(sources: Sequence[Source], table: Interactions, release: _Release, request: Request) -> Catalogue:
    items, rated_items, skips = Catalogue(_HEADER, title="title"), table.items, request.skips
    fields = [release.item_field, *_TEXT_FIELDS]

    def take(values: Row) -> None:
        record = dict(zip(fields, values, strict=True))
        raw_id = record[release.item_field]
        if not isinstance(raw_id, str) or not raw_id:
            raise KnownGap(f"metadata without {release.item_field}")
        if request.all_items or raw_id in rated_items:
            if raw_id in items:
                raise KnownGap("repeated metadata of an item (the first is kept)")
            if _is_script(as_text(record["title"])):
                skips.count("a page script in place of the title (the item is kept as untitled)")
                record["title"] = None
            items.add(raw_id, _texts(record))

    for source in sources:
        if source.stem.endswith(".parquet"):
            fields = [name for name in fields if name not in ("brand", "category")]
            batches = parquet_batches(source, fields, progress=request.progress)
        else:
            wanted = None if request.all_items else mentions(rated_items, release.item_field)
            batches = record_batches(source, fields, optional=True, wanted=wanted, progress=request.progress)
        take_rows(source, batches, take, skips)
    if not any(raw in rated_items for raw in items.rows):
        raise DataError(
            f"{', '.join(source.name for source in sources)}: describes none of the {len(rated_items):,} reviewed "
            "items. Is it the same category and year, and are user and item columns in the right order (--columns)?"
        )
    return items


def _is_script(title: str) -> bool:
    return "getTime" in title or re.search(r"</?[a-z]+[ >]", title) is not None


def _texts(record: dict[str, Any]) -> tuple[str, ...]:
    # 2014: a list of paths, of which the first is taken; 2018: one path under "category"; 2023: one path.
    levels = record.get("categories") or record.get("category") or []
    if isinstance(levels, list) and levels and isinstance(levels[0], list):
        levels = levels[0]
    names = [clean_text(level) for level in levels if isinstance(level, str) and "<" not in level]
    names = [name for name in names if name]
    description = record["description"] or ""
    if isinstance(description, list):
        description = " ".join(part for part in description if isinstance(part, str))
    price = as_text(record["price"]).replace("$", "")
    return (
        as_text(record["title"]),
        " > ".join(names),
        as_text(record.get("brand") or record.get("store")),
        "" if price == "None" or "{" in price or len(price) > 40 else price,
        TAG.sub(" ", unescape(as_text(description))),
        " ".join(name.replace(" ", "_") for name in names),  # one token per level
    )
