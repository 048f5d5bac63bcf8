"""Read atomic files as RecBole would and report what would hurt."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm.convert.catalogue import Catalogue
from recbole_llm.convert.filters import k_core
from recbole_llm.convert.lines import LineError
from recbole_llm.convert.reading import decode
from recbole_llm.convert.sources import Source
from recbole_llm.convert.table import IntArray, Interactions
from recbole_llm.convert.text import MISSING_WORDS
from recbole_llm.convert.times import parse_times
from recbole_llm.data.times import are_ranks
from recbole_llm.errors import DataError

_TYPES = ("token", "token_seq", "float", "float_seq")
_TITLES = ("title", "movie_title", "item_title", "product_title", "name", "item_name", "product_name", "app_name")
_TEXT_LIMIT = 131_072


@dataclass(frozen=True)
class Finding:
    """One thing that would hurt, or is good to know.

    Attributes
    ----------
    name : str
        Short and stable, for programs: ``final_ties``.
    severity : {'error', 'warning', 'note'}
        ``error``: RecBole misreads or refuses the file.
    text : str
    value : float
        The number in the text: a count or a share.
    keys : dict of str to str
        Settings that help.
    """

    name: str
    severity: str
    text: str
    value: float = 0.0
    keys: dict[str, str] = field(default_factory=dict)


@dataclass
class CheckReport:
    """Result of :func:`check`.

    Attributes
    ----------
    folder : Path
    sizes : dict of str to float
        Users, items, interactions, lengths, density, bytes.
    findings : list of Finding
    """

    folder: Path
    sizes: dict[str, float]
    findings: list[Finding]

    def __getitem__(self, name: str) -> Finding:
        """Return the finding of that name, or raise ``KeyError``."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        return any(finding.name == name for finding in self.findings)

    @property
    def keys(self) -> dict[str, str]:
        """All suggested settings."""
        return {key: value for finding in self.findings for key, value in finding.keys.items()}

    def text(self) -> str:
        """Return what the command line prints."""
        sizes = self.sizes
        lines = [
            f"{self.folder}",
            f"  users {sizes['users']:,.0f}   items {sizes['items']:,.0f}   "
            f"interactions {sizes['interactions']:,.0f}   "
            f"density {sizes['density']:.6f}",
            f"  interactions per user: mean {sizes['mean_length']:.2f}, median {sizes['median_length']:g}, "
            f"min {sizes['min_length']:.0f}, max {sizes['max_length']:.0f};  "
            f"per item: median {sizes['median_count']:g}, max {sizes['max_count']:.0f}",
            f"  leave-one-out: {sizes['train_rows']:,.0f} training rows of RecBole's prefix augmentation;  "
            f"5-core: {sizes['users_5core']:,.0f} / {sizes['items_5core']:,.0f} / {sizes['interactions_5core']:,.0f}",
        ]
        for severity in ("error", "warning", "note"):
            for finding in self.findings:
                if finding.severity == severity:
                    lines.append(f"  {severity.upper():<8}{finding.text}")
        if self.keys:
            lines.append("  keys to consider:")
            lines += [f"    {key}: {value}" for key, value in self.keys.items()]
        if not any(finding.severity != "note" for finding in self.findings):
            lines.append("  nothing that would hurt was found.")
        return "\n".join(lines)


def check(dataset: str | Path, data_path: str | Path = "dataset", *, progress: bool = False) -> CheckReport:
    """Read the atomic files of a dataset and report what would hurt.

    Parameters
    ----------
    dataset : str or path
        The folder, or the name of a folder in ``data_path``.
    data_path : str or path
    progress : bool
        Show progress bars (on a terminal).

    Returns
    -------
    CheckReport

    Raises
    ------
    DataError
        There is no ``.inter`` file, its header is no atomic header, or it has no user, item or time column.
    """
    folder = Path(dataset) if Path(dataset).is_dir() else Path(data_path) / dataset
    name = folder.name
    if not (folder / f"{name}.inter").is_file():
        raise DataError(f"{folder}: there is no {name}.inter; give the folder, or the dataset's name and --data_path.")
    findings: list[Finding] = []
    inter = _AtomicFile(folder / f"{name}.inter", findings, progress)
    table, rated_twice = _interactions(inter, findings)
    catalogue = None
    if (folder / f"{name}.item").is_file():
        catalogue = _catalogue(_AtomicFile(folder / f"{name}.item", findings, progress), findings)
    sizes = _sizes(table)
    sizes["bytes"] = sum(
        (folder / f"{name}{ending}").stat().st_size
        for ending in (".inter", ".item", ".user")
        if (folder / f"{name}{ending}").is_file()
    )
    _check_lengths(table, sizes, findings)
    _check_items(table, catalogue, name, findings)
    if rated_twice:
        findings.append(rated_twice)
    if "timestamp" in inter.fields:
        _check_order(table, findings)
    else:
        findings.append(
            Finding(
                "no_time",
                "error",
                f"{name}.inter has no field 'timestamp': a sequential model needs one (TIME_FIELD can name it).",
            )
        )
    if name == "ml-100k":
        findings.append(
            Finding(
                "bundled_name",
                "warning",
                "stock RecBole reads its bundled copy for the name ml-100k, not this folder.",
            )
        )
    return CheckReport(folder, sizes, findings)


class _AtomicFile:
    """Rows of an atomic file; on the way it counts what RecBole's reader would misread."""

    def __init__(self, path: Path, findings: list[Finding], progress: bool) -> None:
        self.path, self.findings, self.progress = path, findings, progress
        self.source = Source(path, size=path.stat().st_size)
        self.fields: dict[str, str] = {}
        self._bad: dict[str, list[Any]] = {}
        head = next(self.source.blocks(size=1 << 16), None)
        if head is None:
            raise DataError(f"{path}: the file is empty.")
        for cell in head.lines[0].decode("utf-8", "replace").split("\t"):
            name, _, kind = cell.rpartition(":")
            if kind not in _TYPES or not name:
                raise DataError(
                    f"{path}, line 1: {cell!r} is not 'name:type' with a type of {', '.join(_TYPES)}; fields are "
                    "separated by tabs."
                )
            if name in self.fields:
                raise DataError(f"{path}, line 1: the field {name!r} is there twice.")
            self.fields[name] = kind

    def batches(self) -> Iterator[tuple[Sequence[int], list[tuple[str, ...]]]]:
        """Yield ``(line numbers, columns)``; lines with another number of fields are counted and left out."""
        width = len(self.fields)
        for block in self.source.blocks(self.progress):
            lines = block.lines
            numbers: Sequence[int] = range(block.first_line, block.first_line + len(lines))
            try:
                texts = decode(lines)
            except LineError:
                texts = [line.decode("utf-8", "replace") for line in lines]
                bad = next(n for n, line in zip(numbers, texts, strict=True) if "\ufffd" in line)
                self._note("not_utf8", "lines hold bytes that are not UTF-8", bad)
            if block.first_line == 1:
                texts, numbers = texts[1:], numbers[1:]
            rows = [text.split("\t") for text in texts]
            if set(map(len, rows)) - {width}:
                for number, row in zip(numbers, rows, strict=True):
                    if len(row) != width:
                        self._note(
                            "field_count", f"lines have another number of fields than the header ({width})", number
                        )
                numbers = [number for number, row in zip(numbers, rows, strict=True) if len(row) == width]
                rows = [row for row in rows if len(row) == width]
            if not rows:
                continue
            columns = list(zip(*rows, strict=True))
            for place, (name, kind) in enumerate(self.fields.items()):
                self._look(name, kind, columns[place], numbers)
            yield numbers, columns
        for key, (text, count, line) in self._bad.items():
            self.findings.append(
                Finding(key, "error", f"{self.path.name}: {count:,} {text} (first: line {line})", count)
            )

    def _note(self, key: str, text: str, line: int, times: int = 1) -> None:
        entry = self._bad.setdefault(key, [text, 0, line])
        entry[1] += times

    def _look(self, name: str, kind: str, values: Sequence[str], numbers: Sequence[int]) -> None:
        if kind.startswith("float"):
            if kind == "float":
                try:
                    list(map(float, values))
                except ValueError:
                    for number, value in zip(numbers, values, strict=True):
                        try:
                            float(value or "nan")
                        except ValueError:
                            self._note(f"not_a_number:{name}", f"values of {name}:float are not numbers", number)
            return
        distinct = set(values)
        words = distinct & MISSING_WORDS
        quoted = {value for value in distinct if value[:1] == '"'}
        broken = {value for value in distinct if "\r" in value or "\0" in value}
        long = {value for value in distinct if len(value) > _TEXT_LIMIT}
        for key, text, found in (
            ("missing_words", f"values of {name} are words that pandas reads as missing (NA, None, null ...)", words),
            (
                "leading_quotes",
                f'values of {name} start with ", which swallows what follows up to the next one',
                quoted,
            ),
            ("line_breaks", f"values of {name} hold a carriage return or NUL, which ends the row early", broken),
            ("too_long", f"values of {name} are longer than {_TEXT_LIMIT:,} characters", long),
        ):
            if found:
                places = [number for number, value in zip(numbers, values, strict=True) if value in found]
                self._note(f"{key}:{name}", text, places[0], len(places))


def _interactions(file: _AtomicFile, findings: list[Finding]) -> tuple[Interactions, Finding | None]:
    table = Interactions()
    names = list(file.fields)
    for name in ("user_id", "item_id"):
        if name not in names:
            raise DataError(f"{file.path}, line 1: there is no field {name!r}; the fields are {', '.join(names)}.")
    user, item = names.index("user_id"), names.index("item_id")
    time = names.index("timestamp") if "timestamp" in names else None
    for numbers, columns in file.batches():
        if time is None:
            table.extend(columns[user], columns[item], [0] * len(numbers))
            continue
        try:
            times = parse_times(columns[time], None, table)
        except LineError:
            for number, value in zip(numbers, columns[time], strict=True):
                try:
                    parse_times([value], None, table)
                except LineError as error:
                    raise DataError(f"{file.path}, line {number}: {error}.") from None
            raise
        table.extend(columns[user], columns[item], times)
    if not len(table):
        raise DataError(f"{file.path}: there is no interaction.")
    if file.fields.get("timestamp") not in (None, "float"):
        findings.append(
            Finding("time_type", "error", f"timestamp has the type {file.fields['timestamp']}; it must be float.")
        )
    for name in ("user_id", "item_id"):
        if file.fields[name] != "token":
            findings.append(Finding("id_type", "error", f"{name} has the type {file.fields[name]}; it must be token."))
    pairs = table.user.astype(np.int64) * len(table.items) + table.item
    repeated = len(pairs) - len(np.unique(pairs))
    if not repeated:
        return table, None
    text = f"{repeated:,} interactions repeat a (user, item) pair ({repeated / len(pairs):.2%})"
    return table, Finding("duplicates", "warning", text, repeated, {"rm_dup_inter": "first"})


def _catalogue(file: _AtomicFile, findings: list[Finding]) -> Catalogue:
    names = list(file.fields)
    if "item_id" not in names:
        raise DataError(f"{file.path}, line 1: there is no field 'item_id'; the fields are {', '.join(names)}.")
    title = next((name for name in names if name.lower() in _TITLES), "")
    place = names.index("item_id")
    fields = [(name, kind) for name, kind in file.fields.items() if name != "item_id"]
    catalogue = Catalogue(fields, title=title)
    twice, first = 0, 0
    for numbers, columns in file.batches():
        for number, row in zip(numbers, zip(*columns, strict=True), strict=True):
            if row[place] in catalogue:
                twice, first = twice + 1, first or number
            else:
                catalogue.rows[row[place]] = row[:place] + row[place + 1 :]
    if twice:
        text = f"{file.path.name}: {twice:,} lines repeat an item id (first: line {first})"
        findings.append(Finding("duplicate_items", "error", text, twice))
    if title and file.fields[title] != "token_seq":
        text = f"{title} has the type {file.fields[title]}; RecBole splits text into words only as token_seq"
        findings.append(Finding("title_type", "note", text))
    return catalogue


def _sizes(table: Interactions) -> dict[str, float]:
    lengths, counts = np.bincount(table.user), np.bincount(table.item)
    core = k_core(table, np.arange(len(table)), 5)
    return {
        "users": len(lengths),
        "items": len(counts),
        "interactions": len(table),
        "density": len(table) / (len(lengths) * len(counts)),
        "mean_length": float(lengths.mean()),
        "median_length": float(np.median(lengths)),
        "min_length": int(lengths.min()),
        "max_length": int(lengths.max()),
        "median_count": float(np.median(counts)),
        "max_count": int(counts.max()),
        "train_rows": int(np.maximum(lengths - 3, 0).sum()),
        "users_5core": len(np.unique(table.user[core])),
        "items_5core": len(np.unique(table.item[core])),
        "interactions_5core": len(core),
    }


def _check_lengths(table: Interactions, sizes: dict[str, float], findings: list[Finding]) -> None:
    lengths = np.bincount(table.user)
    short = int((lengths < 3).sum())
    if short:
        text = f"{short:,} users have fewer than 3 interactions: one each for training, validation and test"
        findings.append(Finding("short_users", "warning", text, short, {"user_inter_num_interval": '"[3,inf)"'}))
    long = float((lengths > 50).mean())
    if long > 0.05:
        text = f"{long:.1%} of the users have more than 50 interactions, RecBole's default maximum"
        findings.append(
            Finding(
                "long_users", "note", text, long, {"MAX_ITEM_LIST_LENGTH": str(_round_up(np.quantile(lengths, 0.9)))}
            )
        )
    top = sizes["max_count"] / sizes["users"]
    if top > 0.2:
        text = f"one item is in the history of up to {top:.1%} of the users: compare every model with popularity"
        findings.append(Finding("popular_item", "warning", text, top))


def _round_up(length: float) -> int:
    return next((size for size in (20, 50, 100, 200) if length <= size), 200)


def _check_items(table: Interactions, items: Catalogue | None, name: str, findings: list[Finding]) -> None:
    if items is None:
        findings.append(
            Finding("no_items", "warning", f"there is no {name}.item: models that read item text cannot run.")
        )
        return
    rated = table.items
    unknown = sum(raw not in items for raw in rated)
    if unknown:
        text = f"{unknown:,} items with interactions are not in {name}.item: they have no text"
        findings.append(Finding("unlisted_items", "warning", text, unknown))
    unrated = sum(raw not in rated for raw in items.rows)
    if unrated:
        text = f"{unrated:,} items of {name}.item have no interaction; stock RecBole ranks them all the same"
        findings.append(Finding("unrated_items", "note", text, unrated, {"item_inter_num_interval": '"[1,inf)"'}))
    text_places = [place for place, (_, kind) in enumerate(items.fields) if kind == "token_seq"]
    if not text_places:
        findings.append(
            Finding("no_text_field", "warning", f"{name}.item has no token_seq field: there is no text to read.")
        )
        return
    title = next(
        (place for place, (field_name, _) in enumerate(items.fields) if field_name == items.title), text_places[0]
    )
    title_name = items.fields[title][0]
    rows = [row for raw, row in items.rows.items() if raw in rated]
    untitled = sum(not row[title].strip() for row in rows)
    if untitled:
        text = f"{untitled:,} items have an empty {title_name} (recbole-llm convert --untitled drop leaves them out)"
        findings.append(Finding("untitled_items", "warning", text, untitled))
    empty = sum(not any(row[place].strip() for place in text_places) for row in rows)
    if empty:
        findings.append(Finding("items_without_text", "warning", f"{empty:,} items have no text at all", empty))
    titles = Counter(row[title].strip() for row in rows if row[title].strip())
    surplus = sum(count - 1 for count in titles.values())
    if surplus:
        top, often = titles.most_common(1)[0]
        text = (
            f"{surplus:,} items share their {title_name} with another one ({often} x {top[:50]!r}): a model that sees "
        )
        text += "only this text cannot tell them apart"
        findings.append(Finding("repeated_titles", "warning", text, surplus, _template(items, title_name)))
    words = [len(title_text.split()) for title_text in titles]
    if words:
        mean, longest = float(np.mean(words)), max(words)
        findings.append(
            Finding("title_words", "note", f"{title_name}: {mean:.1f} words on average, {longest} at most", longest)
        )


def _template(items: Catalogue, title: str) -> dict[str, str]:
    """Return an item_text that tells more items apart than the title alone."""
    names = [name for name, _ in items.fields]
    year = next((f" ({{{name}}})" for name in names if name in ("release_year", "year")), "")
    usual = ("genre", "genres", "class", "categories", "brand", "tags")
    more = [f", {{{name}}}" for name in names if name in usual]
    return {"item_text": '"{' + title + "}" + year + "".join(more) + '"'} if year or more else {}


def _check_order(table: Interactions, findings: list[Finding]) -> None:
    user, item, time = table.user, table.item, table.time
    order = np.lexsort((np.arange(len(table)), time, user))
    by_user, by_time, by_item = user[order], time[order], item[order]
    starts = np.flatnonzero(np.r_[True, by_user[1:] != by_user[:-1]])
    ends = np.r_[starts[1:], len(order)] - 1
    lengths = ends - starts + 1
    users = len(starts)

    if table.time_scale == 1 and are_ranks(by_time, starts):
        text = "the times of every user are 0, 1, 2 ...: right for leave-one-out, meaningless across users "
        text += "(no temporal split, no time-aware model)"
        findings.append(Finding("rank_times", "warning", text))
    same_user = by_user[1:] == by_user[:-1]
    tied = same_user & (by_time[1:] == by_time[:-1])
    if tied.any():
        adjacent = tied.sum() / same_user.sum()
        long = ends[lengths > 1]
        final = float((by_time[long] == by_time[long - 1]).sum() / users)
        text = f"tied times: {adjacent:.1%} of adjacent interactions; for {final:.1%} of the users the last item "
        text += "(the test target) is an arbitrary one of several: ties keep the order of the file"
        findings.append(Finding("final_ties", "warning" if final > 0.01 else "note", text, final))
    changed = _float32_changes(user, time, item, by_item[ends], table.time_scale)
    if changed:
        text = f"stock RecBole rounds times to float32 before it sorts: another last item for {changed / users:.1%} "
        text += "of the users (a file in order of time is immune)"
        findings.append(Finding("float32_time", "warning", text, changed / users, {"time_order": "exact"}))
    seen = _targets_seen(by_user, by_item, ends)
    if seen:
        text = (
            f"the last item of {seen:,} users ({seen / users:.1%}) is in their history already: with mask_history it "
        )
        text += "cannot be recommended and counts as a miss"
        keys = {"rm_dup_inter": "first", "mask_history": "False   # instead of rm_dup_inter, if repeats are wanted"}
        findings.append(Finding("target_in_history", "warning", text, seen, keys))
    if users > 1 and (np.diff(user) != 0).sum() == users - 1 and (np.diff(order) == 1).all():
        text = (
            "the file is sorted by user and time, so RecBole's internal item ids follow the sequences (they leak the "
        )
        text += "next item to anything that reads ids, such as generative indices)"
        findings.append(Finding("leaky_ids", "warning", text))


def _float32_changes(
    user: npt.NDArray[np.int32], time: IntArray, item: npt.NDArray[np.int32], last: npt.NDArray[np.int32], scale: int
) -> int:
    """Count the users whose last item differs once times are rounded as RecBole does (ties in file order)."""
    rounded = (time / scale).astype(np.float32)
    order = np.lexsort((np.arange(len(time)), rounded, user))
    ends = np.flatnonzero(np.r_[user[order][1:] != user[order][:-1], True])
    return int((item[order][ends] != last).sum())


def _targets_seen(by_user: npt.NDArray[np.int32], by_item: npt.NDArray[np.int32], ends: IntArray) -> int:
    target = np.empty(len(ends), dtype=by_item.dtype)
    target[by_user[ends]] = by_item[ends]
    same = by_item == target[by_user]
    same[ends] = False
    return len(np.unique(by_user[same]))
