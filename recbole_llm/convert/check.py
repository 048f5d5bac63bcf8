"""Check atomic files for common problems, for a run or for stock RecBole."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm.config.given import check_value
from recbole_llm.config.registry import recbole_root
from recbole_llm.config.schema import types_of
from recbole_llm.convert.atomic_file import AtomicFile, are_numbers
from recbole_llm.convert.interactions import interner
from recbole_llm.convert.report import CheckReport, Finding, Findings
from recbole_llm.convert.values import Catalogue
from recbole_llm.data.times import are_ranks, examine_times, history_order
from recbole_llm.errors import DataError

#: Settings of a run that say how its files are written, with RecBole's defaults.
SETTINGS: dict[str, Any] = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "TIME_FIELD": "timestamp",
    "field_separator": "\t",
    "seq_separator": " ",
    "encoding": "utf-8",
    "MAX_ITEM_LIST_LENGTH": 50,
}
# fmt: off
_TITLES = (
    "title", "movie_title", "item_title", "product_title", "name", "item_name", "product_name", "app_name",
)
# fmt: on

Array = npt.NDArray[Any]
_Rows = tuple[Sequence[str], Sequence[str], Sequence[str]]  # users, items, times


def check(
    dataset: str | Path,
    data_path: str | Path = "dataset",
    settings: Mapping[str, Any] | None = None,
    *,
    progress: bool = False,
) -> CheckReport:
    """Check the atomic files of a dataset for common problems.

    Parameters
    ----------
    dataset : str or path
        The folder, or the name of a folder in ``data_path``.
    data_path : str or path
    settings : mapping, optional
        Settings of a run, of which those in :data:`SETTINGS` are used.
    progress : bool
        Show progress bars (on a terminal).

    Returns
    -------
    CheckReport
        Its counts are those of a run with these settings and no filter.

    Raises
    ------
    DataError
        The ``.inter`` file is missing, its header is not an atomic header, it has no user or item column, or it has
        no usable interaction.
    ConfigError
        A setting has an invalid value.

    Examples
    --------
    >>> from recbole_llm.convert import check
    >>> report = check("ml-100k")  # the copy inside RecBole, unless dataset/ml-100k exists
    >>> report.sizes["users"], report["final_ties"].severity
    (943, 'warning')
    """
    chosen = SETTINGS | {
        key: value for key, value in (settings or {}).items() if key in SETTINGS and value is not None
    }
    for key, value in chosen.items():
        check_value(key, value, types_of(None))
    folder = _folder(dataset, data_path)
    name = folder.name
    findings = Findings()
    inter = AtomicFile(folder / f"{name}.inter", chosen, findings, progress)
    items, user, item, time = _interactions(inter, findings)
    catalogue = None
    if (folder / f"{name}.item").is_file():
        catalogue = _catalogue(AtomicFile(folder / f"{name}.item", chosen, findings, progress), findings)
    sizes = _sizes(user, item)
    files = [folder / f"{name}{ending}" for ending in (".inter", ".item", ".user")]
    sizes["bytes"] = sum(path.stat().st_size for path in files if path.is_file())
    _check_lengths(user, sizes, chosen["MAX_ITEM_LIST_LENGTH"], findings)
    _check_items(items, item, catalogue, name, findings)
    pairs = user.astype(np.int64) * len(items) + item
    repeated = len(pairs) - len(np.unique(pairs))
    text = f"{repeated:,} interactions repeat a (user, item) pair ({repeated / len(pairs):.2%})"
    findings.add("duplicates", "warning", text, repeated, {"rm_dup_inter": "first"})
    if time is not None:
        _check_order(user, item, time, chosen["TIME_FIELD"], findings)
    text = "stock RecBole reads its bundled copy for the name ml-100k, whatever data_path says"
    findings.add("bundled_name", "note", text, name == "ml-100k")
    return CheckReport(folder, sizes, findings)


def _folder(dataset: str | Path, data_path: str | Path) -> Path:
    folder = Path(dataset) if Path(dataset).is_dir() else Path(data_path).expanduser() / dataset
    if not folder.exists():
        bundled = recbole_root() / "dataset_example" / str(dataset)  # as a run does
        folder = bundled if bundled.is_dir() else folder
    folder = folder.resolve() if not folder.name else folder
    if not (folder / f"{folder.name}.inter").is_file():
        raise DataError(
            f"{folder}: there is no {folder.name}.inter; pass the folder, or the dataset's name and --data_path."
        )
    return folder


def _interactions(file: AtomicFile, findings: Findings) -> tuple[dict[str, int], Array, Array, Array | None]:
    """Return the item ids, and the user, the item and the time of each interaction that a run keeps."""
    users, items = interner(), interner()
    user_place, item_place = file.place("USER_ID_FIELD"), file.place("ITEM_ID_FIELD")
    time_field = file.settings["TIME_FIELD"]
    time_place = list(file.fields).index(time_field) if time_field in file.fields else None
    for key, kind in (("USER_ID_FIELD", "token"), ("ITEM_ID_FIELD", "token"), ("TIME_FIELD", "float")):
        name = file.settings[key]
        if file.fields.get(name, kind) != kind:
            text = f"{name} has the type {file.fields[name]}; it must be {kind}."
            findings.add("time_type" if kind == "float" else "id_type", "error", text)
    codes = (array("i"), array("i"))
    times = array("d")
    for numbers, columns in file.batches():
        time_texts = columns[time_place] if time_place is not None else ("0",) * len(numbers)
        rows: _Rows = (columns[user_place], columns[item_place], time_texts)
        if any("" in column for column in rows) or not are_numbers(time_texts):
            rows = _usable(file, numbers, rows, time_field)
        codes[0].extend(map(users.__getitem__, rows[0]))
        codes[1].extend(map(items.__getitem__, rows[1]))
        times.extend(map(float, rows[2]))
    if not codes[0]:
        errors = "; ".join(finding.text for finding in findings if finding.severity == "error")
        raise DataError(f"{file.path}: no usable interaction{': ' + errors if errors else ''}.")
    if time_place is None:
        text = f"{file.path.name} has no field {time_field!r}: a sequential model needs one (TIME_FIELD can name it)."
        findings.add("no_time", "error", text)
    user, item = (np.frombuffer(column, dtype=np.int32) for column in codes)
    return items, user, item, np.frombuffer(times) if time_place is not None else None


def _usable(file: AtomicFile, numbers: Sequence[int], rows: _Rows, name: str) -> _Rows:
    """Drop and count what a run skips or rejects."""
    kept: list[tuple[str, str, str]] = []
    for number, (user, item, time) in zip(numbers, zip(*rows, strict=True), strict=True):
        if not user or not item:
            file.note("no_id", "lines have no user or no item; a run skips them", number, severity="warning")
        elif not time:
            file.note("no_time_value", f"interactions have no {name}", number)
        elif are_numbers([time]):  # else counted already
            kept.append((user, item, time))
    users, items, times = zip(*kept, strict=True) if kept else ((), (), ())
    return users, items, times


def _catalogue(file: AtomicFile, findings: Findings) -> Catalogue:
    place, id_field = file.place("ITEM_ID_FIELD"), file.settings["ITEM_ID_FIELD"]
    title = next((name for name in file.fields if name.lower() in _TITLES), "")
    catalogue = Catalogue([f"{name}:{kind}" for name, kind in file.fields.items() if name != id_field], title=title)
    for numbers, columns in file.batches():
        for number, row in zip(numbers, zip(*columns, strict=True), strict=True):
            if not row[place]:
                file.note("no_item_id", "lines have no item; a run skips them", number, severity="warning")
            elif row[place] in catalogue:
                file.note("duplicate_items", "lines repeat an item id", number)
            else:
                catalogue.rows[row[place]] = row[:place] + row[place + 1 :]
    if title and file.fields[title] != "token_seq":
        text = f"{title} has the type {file.fields[title]}; RecBole splits text into words only as token_seq"
        findings.add("title_type", "note", text)
    return catalogue


def _sizes(user: Array, item: Array) -> dict[str, float]:
    lengths, counts = np.bincount(user), np.bincount(item)
    core, before = np.ones(len(user), dtype=bool), -1
    while core.sum() != before:
        before = core.sum()
        core &= (np.bincount(user[core], minlength=len(lengths)) >= 5)[user]
        core &= (np.bincount(item[core], minlength=len(counts)) >= 5)[item]
    return {
        "users": len(lengths),
        "items": len(counts),
        "interactions": len(user),
        "density": len(user) / (len(lengths) * len(counts)),
        "mean_length": float(lengths.mean()),
        "median_length": float(np.median(lengths)),
        "min_length": int(lengths.min()),
        "max_length": int(lengths.max()),
        "median_count": float(np.median(counts)),
        "max_count": int(counts.max()),
        "train_rows": int(np.maximum(lengths - 3, 0).sum()),
        "users_5core": len(np.unique(user[core])),
        "items_5core": len(np.unique(item[core])),
        "interactions_5core": int(core.sum()),
    }


def _check_lengths(user: Array, sizes: dict[str, float], longest: int, findings: Findings) -> None:
    lengths = np.bincount(user)
    short = int((lengths < 3).sum())
    text = f"{short:,} users have fewer than 3 interactions: one each for training, validation and test"
    findings.add("short_users", "warning", text, short, {"user_inter_num_interval": '"[3,inf)"'})
    long = float((lengths > longest).mean())
    if long > 0.05:
        text = f"{long:.1%} of the users have more than {longest} interactions (MAX_ITEM_LIST_LENGTH)"
        better = next((size for size in (20, 50, 100, 200) if np.quantile(lengths, 0.9) <= size), 200)
        keys = {"MAX_ITEM_LIST_LENGTH": str(better)} if better > longest else {}
        findings.add("long_users", "note", text, long, keys)
    top = sizes["max_count"] / sizes["users"]
    if top > 0.2:
        text = f"one item is in the history of up to {top:.1%} of the users: compare every model with popularity"
        findings.add("popular_item", "warning", text, top)


def _check_items(
    rated: Mapping[str, int], item: Array, items: Catalogue | None, name: str, findings: Findings
) -> None:
    if items is None:
        findings.add("no_items", "warning", f"there is no {name}.item: models that read item text cannot run.")
        return
    unlisted = np.array([raw not in items for raw in rated])
    text = f"{unlisted.sum():,} items with interactions are not in {name}.item: they have no text, and a run that "
    text += f"loads columns of it drops their {unlisted[item].sum():,} interactions"
    findings.add("unlisted_items", "warning", text, unlisted.sum())
    unrated = sum(raw not in rated for raw in items.rows)
    text = f"{unrated:,} items of {name}.item have no interactions; stock RecBole ranks them anyway"
    findings.add("unrated_items", "note", text, unrated, {"item_inter_num_interval": '"[1,inf)"'})
    text_places = [place for place, kind in enumerate(items.kinds) if kind == "token_seq"]
    if not text_places:
        text = f"{name}.item has no token_seq field: there is no text to read."
        findings.add("no_text_field", "warning", text)
        return
    place = items.names.index(items.title) if items.title in items.names else text_places[0]
    title, rows = items.names[place], [row for raw, row in items.rows.items() if raw in rated]
    untitled = sum(not row[place].strip() for row in rows)
    text = f"{untitled:,} items have an empty {title} (recbole-llm convert --untitled drop removes them)"
    findings.add("untitled_items", "warning", text, untitled)
    empty = sum(not any(row[place].strip() for place in text_places) for row in rows)
    findings.add("items_without_text", "warning", f"{empty:,} items have no text at all", empty)
    titles = Counter(row[place].strip() for row in rows if row[place].strip())
    if not titles:
        return
    surplus, (top, often) = titles.total() - len(titles), titles.most_common(1)[0]
    text = f"{surplus:,} items share their {title} with another item ({often} x {top[:50]!r}): a model that sees only "
    text += "this text cannot tell them apart"
    findings.add("repeated_titles", "warning", text, surplus, _template(items.names, title))
    words = [len(text.split()) for text in titles]
    text = f"{title}: {np.mean(words):.1f} words on average, {max(words)} at most"
    findings.add("title_words", "note", text, max(words))


def _template(names: Sequence[str], title: str) -> dict[str, str]:
    """Return an item_text that distinguishes more items than the title alone."""
    year = next((f" ({{{name}}})" for name in names if name in ("release_year", "year")), "")
    usual = ("genre", "genres", "class", "categories", "brand", "tags")
    more = [f", {{{name}}}" for name in names if name in usual]
    return {"item_text": '"{' + title + "}" + year + "".join(more) + '"'} if year or more else {}


def _check_order(user: Array, item: Array, time: Array, name: str, findings: Findings) -> None:
    order = history_order(user, time)
    by_user, by_time, by_item = user[order], time[order], item[order]
    starts = np.flatnonzero(np.r_[True, by_user[1:] != by_user[:-1]])
    ends = np.r_[starts[1:], len(order)] - 1
    users = len(starts)

    beyond = int((np.abs(time) > np.finfo(np.float32).max).sum())
    text = f"{beyond:,} values of {name} are beyond 3.4e38, which 32 bits cannot hold: scale them"
    findings.add("time_range", "error", text, beyond)
    text = "the times of every user are 0, 1, 2 ...: right for leave-one-out, meaningless across users "
    text += "(no temporal split, no time-aware model)"
    findings.add("rank_times", "warning", text, are_ranks(by_time, starts))
    report = examine_times(by_user, by_time)
    for key, applies in (("equal_times", report.all_equal), ("mixed_units", report.mixed)):
        if applies:
            findings.add(key, "warning", report.notices(name)[0].rstrip("."), report.below or len(time))
    same_user = by_user[1:] == by_user[:-1]
    tied = same_user & (by_time[1:] == by_time[:-1])
    if tied.any():
        final = report.tied_last / users
        text = f"tied times: {tied.sum() / same_user.sum():.1%} of adjacent interactions; for {report.tied_last:,} of "
        text += f"{users:,} users ({final:.1%}) the last item (the test target) is arbitrary: ties "
        text += f"keep the order of the file.{report.rounding}".rstrip(".")
        findings.append(Finding("final_ties", "warning" if final > 0.01 else "note", text, final))
    with np.errstate(over="ignore"):
        rounded = item[history_order(user, time.astype(np.float32))]
    changed = float((rounded[ends] != by_item[ends]).mean())
    text = f"stock RecBole rounds times to float32 before sorting: a different last item for {changed:.1%} of users "
    text += "(a file sorted by time is not affected)"
    findings.add("float32_time", "warning", text, changed, {"time_order": "exact"})
    again = by_item == np.repeat(by_item[ends], ends - starts + 1)
    again[ends] = False
    seen = len(np.unique(by_user[again]))
    text = f"the last item of {seen:,} users ({seen / users:.1%}) is in their history already: with mask_history it "
    text += "cannot be recommended and counts as a miss"
    keys = {"rm_dup_inter": "first", "mask_history": "False   # instead of rm_dup_inter, if repeats are wanted"}
    findings.add("target_in_history", "warning", text, seen, keys)
    grouped = users > 1 and (np.diff(user) != 0).sum() == users - 1 and (np.diff(order) == 1).all()
    text = "the file is sorted by user and time, so RecBole's internal item ids follow the sequences (they leak the "
    text += "next item to anything that reads ids, such as generative indices)"
    findings.add("leaky_ids", "warning", text, grouped)
