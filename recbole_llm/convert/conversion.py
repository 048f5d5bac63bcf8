"""One conversion from the input to the report: atomic, and the same bytes for the same input."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from recbole_llm.convert import amazon, generic, movielens, steam
from recbole_llm.convert.interactions import ROWS, Filters, Interactions, Selection
from recbole_llm.convert.output import Output, check_target, hidden_folder
from recbole_llm.convert.reading import Reading, Request
from recbole_llm.convert.report import Recipe, Report, get_recipe, recipes_for
from recbole_llm.convert.sources import Bundle, Skips, fingerprints
from recbole_llm.convert.values import Catalogue, misread_by_recbole, renamed_ids
from recbole_llm.errors import ConfigError, DataError

PathLike = str | Path


def source_names() -> list[str]:
    """Return every name that :func:`convert` accepts, Amazon's as patterns."""
    return [*movielens.FOLDERS, "amazon-<category>-<2014|2018|2023>", "steam", "steam-au", "sessions", "generic"]


def source_options(name: str) -> frozenset[str]:
    """Return the names of the options specific to this source.

    Raises
    ------
    ConfigError
        There is no such source.
    """
    return _reader(name)[2]


def _reader(name: str) -> tuple[Callable[[Request], Reading], bool, frozenset[str]]:
    """Return the reader of a source, whether it lists unrated items by default, and its options."""
    if name in movielens.FOLDERS:
        return movielens.read, True, frozenset({"movie_tags"})
    if amazon.NAME.fullmatch(name):
        return amazon.read, False, frozenset({"columns", "workers", "no_metadata"})
    if name == "steam":
        return steam.read, False, frozenset({"user_key", "complete_games", "workers", "no_metadata"})
    if name == "steam-au":
        return steam.read, False, frozenset({"complete_games", "workers", "no_metadata"})
    if name in ("sessions", "generic"):
        return generic.read, True, generic.OPTIONS
    raise ConfigError(f"there is no converter {name!r}; choose from {', '.join(source_names())}.")


def convert(
    name: str,
    input: PathLike | Sequence[PathLike],
    output: PathLike | None = None,
    *,
    metadata: PathLike | Sequence[PathLike] | None = None,
    recipe: str | None = None,
    min_rating: float | None = None,
    untitled: str | None = None,
    dedup: str | None = None,
    k_core: int | None = None,
    order: str = "time",
    items: str = "auto",
    ids: str = "exact",
    text_fields: Sequence[str] | None = None,
    on_error: str = "stop",
    overwrite: bool = False,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Convert an official download, or your own logs, to RecBole's atomic files.

    Parameters
    ----------
    name : str
        Source: ``ml-1m``, ``amazon-beauty-2014``, ``steam``, ``sessions``, ``generic`` ... (:func:`source_names`).
    input : path or sequence of paths
        The archive, the folder or the file(s); nothing is unpacked.
    output : path, optional
        Folder to write; its name becomes the dataset name. Default ``dataset/<name>``.
    metadata : path or sequence of paths, optional
        Files with the item text, if not next to the input.
    recipe : str, optional
        A paper's preparation (``props/dataset/recipes.yaml``); the arguments below override its settings.
    min_rating, untitled, dedup, k_core, order
        See :class:`~recbole_llm.convert.interactions.Filters`.
    items : {'auto', 'all', 'rated'}
        Which items the ``.item`` file lists. ``auto``: only those with interactions where a filter drops some, and for
        Amazon and Steam, whose metadata describes the whole shop. RecBole counts every listed item as a candidate.
    ids : {'exact', 'recbole'}
        ``exact``: the text of the input; only an id that does not fit on one line is written in another form.
        ``recbole``: also those that stock RecBole's reader would misread (``NA``, ``null``, a leading quotation mark).
    text_fields : sequence of str, optional
        Item fields to keep, in this order; default all.
    on_error : {'stop', 'skip'}
        What to do with an unusable line.
    overwrite, progress : bool
        Whether to replace an earlier conversion, and to show progress bars (on a terminal).
    **options
        Options of the source; see its module.

    Raises
    ------
    DataError
        Bad input, with file and line. No output is left behind.
    ConfigError
        An argument is invalid.

    Examples
    --------
    >>> from recbole_llm.convert import convert
    >>> report = convert("ml-1m", "ml-1m.zip", k_core=5)  # doctest: +SKIP
    >>> report.counts.users, report.output  # doctest: +SKIP
    (6040, PosixPath('dataset/ml-1m'))
    """
    started = time.perf_counter()
    read, lists_all, known = _reader(str(name))
    inputs = _paths("input", input)
    text_files = _paths("metadata", metadata) if metadata is not None else None
    if not isinstance(recipe, str | None) or not (output is None or _is_path(output)):
        raise ConfigError(f"recipe is {recipe!r} and output {output!r}; they must be a name and a path.")
    chosen = get_recipe(recipe, name) if recipe else None
    filters = _filters(chosen, order, min_rating=min_rating, untitled=untitled, dedup=dedup, k_core=k_core)
    options = _options(name, known, chosen, options)
    if text_fields is not None:
        _check_option("text_fields", text_fields)
    _check_choice("items", items, ("auto", "all", "rated"))
    _check_choice("ids", ids, ("exact", "recbole"))
    listed = items if items != "auto" else "all" if lists_all and not filters.drops else "rated"
    target = _target(output, name)
    check_target(target, overwrite)
    skips = Skips(on_error)
    with ExitStack() as stack:
        folder = stack.enter_context(hidden_folder(target))
        request = Request(
            name=name,
            bundle=Bundle(inputs),
            metadata=Bundle(text_files) if text_files is not None else None,
            skips=skips,
            progress=progress,
            all_items=listed == "all",
            options=options,
            folder=folder,
            stack=stack,
        )
        reading = read(request)
        table = reading.interactions
        if not len(table):
            raise DataError(f"{request.bundle}: no usable interaction was found.")
        titled = _titled(table, reading.items)
        if text_fields is not None and reading.items is not None:
            reading.items = reading.items.only(text_fields)
        selection = _select(table, filters, titled)
        report = Report(
            name=name,
            output=target,
            counts=selection.counts,
            steps=selection.steps,
            skipped=skips.counts,
            first_skipped=skips.first,
            settings={
                "recipe": recipe,
                **filters.as_dict(),
                "items": listed,
                **({"ids": ids} if ids != "exact" else {}),
                "text_fields": list(text_fields) if text_fields is not None else None,
                "on_error": on_error,
                # The number of workers does not change the output; of a file the name counts, not where it is.
                **{
                    key: Path(options[key]).name if key == "users" else options[key]
                    for key in sorted(options)
                    if key != "workers"
                },
            },
            notes=reading.notes + table.time_notes(),
        )
        out = Output(folder / "files", target.name)
        _write(out, report, reading, selection, progress)
        report.sources, report.hashes = fingerprints(reading.sources), out.hashes
        out.write_json(".conversion.json", report.as_dict())
        report.published = [
            (entry, table.choose(entry.filters, titled).counts if _fits(entry, options, titled) else None)
            for entry in recipes_for(name)
        ]
        out.move_to(target)
    report.seconds = time.perf_counter() - started
    return report


def _write(out: Output, report: Report, reading: Reading, selection: Selection, progress: bool) -> None:
    table, items, users = reading.interactions, reading.items, reading.users
    stock = report.settings.get("ids") == "recbole"
    every = [(table.users, users), (table.items, items)]
    renamed = [renamed_ids(_distinct(ids, catalogue), stock) for ids, catalogue in every]
    report.renamed_ids = sum(map(len, renamed))
    misread = 0 if stock else sum(misread_by_recbole(raw) for pair in every for raw in _distinct(*pair))
    if misread:
        report.notes.append(
            f"ids that stock RecBole's reader would misread (NA, null, a leading quotation mark): {misread:,}; "
            "recbole-llm reads them as they are, --ids recbole renames them."
        )
    header = ["user_id:token", "item_id:token", *(f"{name}:float" for name in table.value_fields), "timestamp:float"]
    out.write(".inter", header, _interaction_lines(out.name, table, selection, renamed, progress))
    report.listed_items = report.counts.items
    if items is not None:
        kept = _in_use(table.items, selection.items)
        ids = [raw for raw in items.rows if raw in kept or report.settings["items"] == "all"]
        # Items without metadata come last, with empty text: RecBole may drop interactions with unlisted items.
        ids += [raw for raw in kept if raw not in items]
        report.listed_items = len(ids)
        report.untitled_items = sum(not items.titled(raw) for raw in ids)
        out.write(".item", ["item_id:token", *items.header], items.lines(ids, renamed[1]))
    if users is not None:
        kept = _in_use(table.users, selection.users)
        ids = [raw for raw in users.rows if raw in kept]
        out.write(".user", ["user_id:token", *users.header], users.lines(ids, renamed[0]))


def _interaction_lines(
    title: str, table: Interactions, chosen: Selection, renamed: Sequence[dict[str, str]], progress: bool
) -> Iterator[str]:
    users, items = (
        [new.get(raw, raw) for raw in ids] for new, ids in zip(renamed, (table.users, table.items), strict=True)
    )
    total = chosen.counts.interactions
    with tqdm(total=total, desc=f"{title}.inter", disable=None if progress else True, leave=False) as bar:
        for block in chosen.blocks():
            columns: list[Iterable[str]] = [
                map(users.__getitem__, block.pop("user").tolist()),
                map(items.__getitem__, block.pop("item").tolist()),
            ]
            times = _time_texts(block.pop("time"), block.pop("micro"))
            columns += [*map(_float_texts, block.values()), times]
            yield "\n".join(map("\t".join, zip(*columns, strict=True))) + "\n"
            bar.update(ROWS)


def _float_texts(values: npt.NDArray[np.float64]) -> list[str]:
    distinct, places = np.unique(values, return_inverse=True)
    texts = [
        str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value) for value in distinct.tolist()
    ]
    return [texts[place] for place in places.tolist()]


def _time_texts(times: npt.NDArray[np.int64], micros: npt.NDArray[np.int32]) -> Iterable[str]:
    if not micros.any():
        return map(str, times.tolist())
    return map(decimal_time, times.tolist(), micros.tolist())


def decimal_time(whole: int, micro: int) -> str:
    """Write ``whole + micro / 1,000,000`` exactly, without trailing zeros."""
    if micro == 0:
        return str(whole)
    total = whole * 1_000_000 + micro
    text = f"{abs(total) // 1_000_000}.{abs(total) % 1_000_000:06d}".rstrip("0")
    return "-" + text if total < 0 else text


def _distinct(ids: dict[str, int], catalogue: Catalogue | None) -> Iterable[str]:
    return chain(ids, (raw for raw in catalogue.rows if raw not in ids) if catalogue else ())


def _in_use(ids: dict[str, int], occur: npt.NDArray[np.bool_]) -> dict[str, None]:
    """Return the raw ids whose codes occur, in order of first appearance in the input."""
    return dict.fromkeys(compress(ids, occur.tolist()))


def _paths(key: str, given: PathLike | Sequence[PathLike]) -> list[PathLike]:
    paths = [given] if isinstance(given, str | Path) else given
    if not isinstance(paths, list | tuple) or not paths or not all(map(_is_path, paths)):
        raise ConfigError(f"{key} is {given!r}; it must be a path, or a list of paths.")
    return list(paths)


def _is_path(value: object) -> bool:
    return isinstance(value, str | Path) and bool(str(value)) and "\0" not in str(value)


def _check_option(key: str, value: Any) -> None:
    """Raise :class:`ConfigError` for an invalid value of an option of an individual source."""
    texts = isinstance(value, list | tuple) and all(isinstance(part, str) and part for part in value) and bool(value)
    for keys, wanted, right in (
        ({"movie_tags", "workers"}, "a positive integer", type(value) is int and value > 0),
        ({"no_metadata", "complete_games"}, "True or False", isinstance(value, bool)),
        (
            {"columns", "inter_fields", "item_fields", "user_fields", "text_fields"},
            "names, comma-separated or in a list",
            texts or (isinstance(value, str) and key != "text_fields"),
        ),
        ({"users"}, "a path", _is_path(value)),
        ({key}, "a text", isinstance(value, str)),
    ):
        if key in keys:
            if not right:
                raise ConfigError(f"{key} is {value!r}; it must be {wanted}.")
            return


def _check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        shown = ", ".join(map(repr, choices[:-1])) + f" and {choices[-1]!r}"
        raise ConfigError(f"{key} is {value!r}; allowed are {shown}.")


def _options(name: str, known: frozenset[str], recipe: Recipe | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a source, checked: those of the recipe, overridden by those given."""
    options = dict(recipe.options) if recipe else {}
    options.update({key: value for key, value in given.items() if value is not None})
    for key in options:
        if key not in known:
            raise ConfigError(f"{name} has no option {key!r}; it has {', '.join(sorted(known)) or 'none'}.")
    for key, value in options.items():
        _check_option(key, value)
    return options


def _target(output: PathLike | None, name: str) -> Path:
    target = Path(output) if output is not None else Path("dataset") / name
    if not re.fullmatch(r"[^\s:]+", target.name):
        raise ConfigError(
            f"output {str(target)!r}: the last part names the dataset and must not contain spaces or colons."
        )
    return target


def _filters(recipe: Recipe | None, order: str, **given: Any) -> Filters:
    settings = recipe.filters.as_dict() if recipe else {}
    settings.update({key: value for key, value in given.items() if value is not None})
    return Filters(**{**settings, "order": order})


def _titled(table: Interactions, items: Catalogue | None) -> npt.NDArray[np.bool_] | None:
    if items is None:
        return None
    return np.fromiter(map(items.titled, table.items), dtype=bool, count=len(table.items))


def _select(table: Interactions, filters: Filters, titled: npt.NDArray[np.bool_] | None) -> Selection:
    """Apply the filters; raise an error if they need titles that are not there, or leave nothing."""
    if filters.untitled == "drop" and titled is None:
        raise ConfigError("untitled=drop needs item titles, and none were given; name the metadata file (--metadata).")
    selection = table.choose(filters, titled)
    if not selection.counts.interactions:
        raise DataError(f"no interaction is left after the filters ({filters.text()}).")
    return selection


def _fits(recipe: Recipe, options: dict[str, Any], titled: npt.NDArray[np.bool_] | None) -> bool:
    """Whether a recipe's filters apply to what was read."""
    if recipe.filters.untitled == "drop" and titled is None:
        return False
    return all(options.get(key) == value for key, value in recipe.options.items())
