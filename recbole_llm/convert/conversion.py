"""One conversion from the input to the report: atomic, and the same bytes for the same input."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from decimal import Decimal
from functools import lru_cache
from itertools import chain, compress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from recbole_llm.config.given import check_value
from recbole_llm.config.types import Name, Rule
from recbole_llm.convert import amazon, generic, movielens, steam
from recbole_llm.convert.interactions import Filters, Interactions, Selection
from recbole_llm.convert.options import OPTIONS, OWN_FILES, FilePath, Names, names
from recbole_llm.convert.output import Output, check_target, hidden_folder
from recbole_llm.convert.reading import Reading, Request
from recbole_llm.convert.report import Recipe, Report, get_recipe, recipes_for
from recbole_llm.convert.sources import Bundle, Skips
from recbole_llm.convert.values import Catalogue, misread_by_recbole, renamed_ids
from recbole_llm.errors import ConfigError, DataError
from recbole_llm.files import file_sha256
from recbole_llm.progress import Progress

PathLike = str | Path
_Paths = FilePath | Annotated[list[FilePath], Rule(bool, "a list of paths")]
# Types of the arguments of `convert` that neither filters nor sources have.
_ARGUMENTS = {
    "input": _Paths,
    "metadata": _Paths,
    "output": FilePath | None,
    "recipe": Name | None,
    "text_fields": Names | None,
    "items": Literal["auto", "all", "rated"],
    "ids": Literal["exact", "recbole"],
}


def source_names() -> list[str]:
    """Return every name that :func:`convert` accepts, Amazon's as patterns.

    >>> "ml-1m" in source_names()
    True
    """
    return [*movielens.NAMES, "amazon-<category>-<2014|2018|2023>", "steam", "steam-au", "sessions", "generic"]


def source_options(name: str) -> frozenset[str]:
    """Return the names of the options of a source; ConfigError if there is no such source."""
    return _reader(name)[2]


def _reader(name: str) -> tuple[Callable[[Request], Reading], bool, frozenset[str]]:
    """Return the reader of a source, whether it lists unrated items by default, and its options."""
    if name in movielens.NAMES:
        return movielens.read, True, frozenset({"movie_tags"})
    if amazon.NAME.fullmatch(name):
        return amazon.read, False, frozenset({"columns", "workers", "no_metadata"})
    if name in ("steam", "steam-au"):
        user_key = ["user_key"] if name == "steam" else []
        return steam.read, False, frozenset({*user_key, "complete_games", "workers", "no_metadata"})
    if name in ("sessions", "generic"):
        return generic.read, True, OWN_FILES
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
    text_fields: str | Sequence[str] | None = None,
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
        Which items the ``.item`` file lists. ``auto``: only those with interactions if there is a filter, and for
        Amazon and Steam, whose metadata describes the whole shop. RecBole ranks every listed item.
    ids : {'exact', 'recbole'}
        Which ids are renamed. ``exact``: only those that do not fit on one line. ``recbole``: also those that stock
        RecBole's reader would misread (``NA``, ``null``, a leading quotation mark).
    text_fields : str or sequence of str, optional
        Item fields to keep, in this order; default all.
    on_error : {'stop', 'skip'}
        What to do at an unusable line.
    overwrite, progress : bool
        Whether to replace an earlier conversion, and to show progress bars (on a terminal).
    **options
        Options of the source (:data:`recbole_llm.convert.options.OPTIONS`).

    Raises
    ------
    DataError
        Bad input, with file and line. No output is left behind.
    ConfigError
        An argument is invalid.

    Examples
    --------
    >>> from recbole_llm.convert import convert
    >>> with open("log.csv", "w") as file:
    ...     _ = file.write("user_id,item_id,timestamp\\nann,01,10\\nann,1,20\\n")
    >>> columns = {"user_col": "user_id", "item_col": "item_id", "time_col": "timestamp"}
    >>> report = convert("generic", "log.csv", "dataset/log", **columns)
    >>> report.counts.users, report.counts.items
    (1, 2)
    """
    started = time.perf_counter()
    read, lists_all, known = _reader(str(name))
    inputs = _paths("input", input)
    text_files = _paths("metadata", metadata) if metadata is not None else None
    check_value("recipe", recipe, _ARGUMENTS)
    check_value("output", output, _ARGUMENTS)
    chosen = get_recipe(recipe, name) if recipe else None
    filters = _filters(chosen, order, min_rating=min_rating, untitled=untitled, dedup=dedup, k_core=k_core)
    options = _options(name, known, chosen, options)
    check_value("text_fields", text_fields, _ARGUMENTS)
    kept_fields = names(text_fields)
    check_value("items", items, _ARGUMENTS)
    check_value("ids", ids, _ARGUMENTS)
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
        if kept_fields is not None and reading.items is not None:
            reading.items = reading.items.only(kept_fields)
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
                **vars(filters),
                "items": listed,
                **({"ids": ids} if ids != "exact" else {}),
                "text_fields": kept_fields,
                "on_error": on_error,
                # The number of workers does not change the output, nor does the folder of a file.
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
        report.hashes = out.hashes
        for path in dict.fromkeys(source.path for source in reading.sources):
            report.sources.append({"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)})
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
    known = [(table.users, users.rows if users else {}), (table.items, items.rows if items else {})]
    renamed = [renamed_ids(*ids, recbole=stock) for ids in known]
    report.renamed_ids = sum(map(len, renamed))
    misread = 0 if stock else sum(len({raw for raw in chain(*ids) if misread_by_recbole(raw)}) for ids in known)
    if misread:
        report.notes.append(
            f"ids that stock RecBole's reader would misread (NA, null, a leading quotation mark): {misread:,}; "
            "recbole-llm reads them as they are, --ids recbole renames them."
        )
    header = ["user_id:token", "item_id:token", *(f"{name}:float" for name in table.value_fields), "timestamp:float"]
    out.write(".inter", header, _interaction_lines(table, selection, renamed, out.name, progress))
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
    table: Interactions, chosen: Selection, renamed: Sequence[dict[str, str]], title: str, progress: bool
) -> Iterator[str]:
    users, items = (
        [new.get(raw, raw) for raw in ids] for new, ids in zip(renamed, (table.users, table.items), strict=True)
    )
    total = chosen.counts.interactions
    with Progress(total, f"{title}.inter", "lines", progress) as bar:
        for block in chosen.blocks():
            user, item, times, micros, *values = (column.tolist() for column in block.values())
            columns: list[Iterable[str]] = [map(users.__getitem__, user), map(items.__getitem__, item)]
            columns += [map(_number_text, column) for column in values]
            columns.append(map(_time_text, times, micros) if any(micros) else map(str, times))
            yield "\n".join(map("\t".join, zip(*columns, strict=True))) + "\n"
            bar.update(len(user))


@lru_cache(maxsize=1 << 12)
def _number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _time_text(whole: int, micro: int) -> str:
    """Write ``whole + micro / 1,000,000`` exactly, without trailing zeros."""
    exact = Decimal(whole * 1_000_000 + micro).scaleb(-6)
    return format(exact.normalize(), "f") if micro else str(whole)


def _in_use(ids: dict[str, int], occur: npt.NDArray[np.bool_]) -> dict[str, None]:
    """Return the raw ids whose codes occur, in order of first appearance in the input."""
    return dict.fromkeys(compress(ids, occur.tolist()))


def _paths(key: str, given: PathLike | Sequence[PathLike]) -> list[PathLike]:
    check_value(key, given, _ARGUMENTS)
    return [given] if isinstance(given, str | Path) else list(given)


def _options(name: str, known: frozenset[str], recipe: Recipe | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a source, checked: those of the recipe, overridden by those given."""
    options = dict(recipe.options) if recipe else {}
    options.update({key: value for key, value in given.items() if value is not None})
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"{name} has no option {key!r}; it has {', '.join(sorted(known)) or 'none'}.")
        check_value(key, value, {key: OPTIONS[key][0]})
    return options


def _target(output: PathLike | None, name: str) -> Path:
    target = Path(output) if output is not None else Path("dataset") / name
    if not re.fullmatch(r"[^\s:]+", target.name):
        raise ConfigError(
            f"output {str(target)!r}: the last part names the dataset and must not contain spaces or colons."
        )
    return target


def _filters(recipe: Recipe | None, order: str, **given: Any) -> Filters:
    settings = {key: value for key, value in given.items() if value is not None}
    return Filters(**{**(vars(recipe.filters) if recipe else {}), **settings, "order": order})


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
