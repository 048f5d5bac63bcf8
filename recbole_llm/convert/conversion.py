"""One conversion from the input to the report."""

import re
import time
from collections.abc import Callable, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm.convert import amazon, generic, movielens, steam
from recbole_llm.convert.atomic import (
    OutputFolder,
    Renamed,
    check_target,
    output_folder,
    write_catalogue,
    write_interactions,
)
from recbole_llm.convert.catalogue import Catalogue
from recbole_llm.convert.filters import Filters, Selection, choose
from recbole_llm.convert.fingerprints import Fingerprints
from recbole_llm.convert.lines import Skips
from recbole_llm.convert.recipes import Recipe, get_recipe, recipes_for
from recbole_llm.convert.report import Report
from recbole_llm.convert.source_kinds import Reading, Request
from recbole_llm.convert.sources import Bundle
from recbole_llm.convert.spill import Spill
from recbole_llm.convert.table import Interactions
from recbole_llm.convert.text import misread_by_recbole, renamed_ids
from recbole_llm.errors import ConfigError, DataError

PathLike = str | Path


def source_names() -> list[str]:
    """Return every name that :func:`convert` takes, Amazon's as patterns."""
    return [*movielens.FOLDERS, "amazon-<category>-<2014|2018|2023>", "steam", "steam-au", "sessions", "generic"]


def source_options(name: str) -> frozenset[str]:
    """Return the names of the options that only this source has.

    Raises
    ------
    ConfigError
        There is no such source.
    """
    return _reader(name)[2]


def _reader(name: str) -> tuple[Callable[[Request], Reading], bool, frozenset[str]]:
    """Return the reader of a source, whether it lists unrated items by default, and the options that it knows."""
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
    raise ConfigError(f"there is no converter {name!r}; there are {', '.join(source_names())}.")


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
        Folder to write; its name becomes the name of the dataset. Default ``dataset/<name>``.
    metadata : path or sequence of paths, optional
        Where the item text is, if it is not beside the input.
    recipe : str, optional
        A paper's preparation (``props/dataset/recipes.yaml``); the arguments below override single settings of it.
    min_rating, untitled, dedup, k_core, order
        See :class:`~recbole_llm.convert.filters.Filters`.
    items : {'auto', 'all', 'rated'}
        Which items the ``.item`` file lists. ``auto``: all of them for MovieLens, sessions and generic logs, unless
        a filter drops interactions; only those with interactions for Amazon and Steam, whose metadata describes the
        whole shop. RecBole counts every listed item as a candidate.
    ids : {'exact', 'recbole'}
        ``exact``: the text of the input; only an id that does not fit on one line is written in another form.
        ``recbole``: also those that stock RecBole's reader would misread (``NA``, ``null``, a leading quotation mark).
    text_fields : sequence of str, optional
        Item fields to keep, in this order; default all.
    on_error : {'stop', 'skip'}
        What to do with a line that cannot be used.
    overwrite : bool
        Whether an earlier conversion at ``output`` may be replaced.
    progress : bool
        Show progress bars (on a terminal).
    **options
        Settings of the source, see its module.

    Returns
    -------
    Report

    Raises
    ------
    DataError
        With file and line. No output is left behind then.
    ConfigError
        An argument is not allowed.
    MissingExtraError
        The input is parquet and pyarrow is not installed.
    """
    started = time.perf_counter()
    read, lists_all, known = _reader(name)
    chosen = get_recipe(recipe, name) if recipe else None
    filters = _filters(chosen, order, min_rating=min_rating, untitled=untitled, dedup=dedup, k_core=k_core)
    options = {
        **(chosen.options if chosen else {}),
        **{key: value for key, value in options.items() if value is not None},
    }
    for key in options:
        if key not in known:
            raise ConfigError(f"{name} has no option {key!r}; it has {', '.join(sorted(known)) or 'none'}.")
    if items not in ("auto", "all", "rated"):
        raise ConfigError(f"items is {items!r}; allowed are 'auto', 'all' and 'rated'.")
    if ids not in ("exact", "recbole"):
        raise ConfigError(f"ids is {ids!r}; allowed are 'exact' and 'recbole'.")
    listed = items if items != "auto" else "all" if lists_all and not filters.drops else "rated"

    target = Path(output) if output is not None else Path("dataset") / name
    if not re.fullmatch(r"[^\s:]+", target.name):
        raise ConfigError(
            f"output {str(target)!r}: the last part names the dataset and may not hold blanks or colons."
        )
    check_target(target, overwrite)
    skips = Skips(on_error)
    with Fingerprints() as fingerprints, Spill(target) as spill:
        request = Request(
            name=name,
            bundle=Bundle(_paths(input), fingerprints.start),
            metadata=Bundle(_paths(metadata), fingerprints.start) if metadata is not None else None,
            skips=skips,
            progress=progress,
            all_items=listed == "all",
            options=options,
            spill=spill,
        )
        reading = read(request)
        table = reading.interactions
        if not len(table):
            raise DataError(f"{request.bundle}: not one usable interaction was found.")
        titled = _titled(table, reading.items)
        if text_fields is not None and reading.items is not None:
            reading.items = _only(reading.items, text_fields)
        if filters.untitled == "drop" and titled is None:
            raise ConfigError(
                "untitled=drop needs item titles, and none were given; name the metadata file (--metadata)."
            )
        selection = choose(table, filters, titled)
        if not selection.counts.interactions:
            raise DataError(f"no interaction is left after the filters ({filters.text()}).")
        report = Report(
            name=name,
            output=target,
            counts=selection.counts,
            listed_items=0,
            untitled_items=0,
            steps=selection.steps,
            skipped=skips.counts,
            first_skipped=skips.first,
            renamed_ids=0,
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
            notes=reading.notes,
        )
        with output_folder(target, overwrite) as out:
            _write(out, report, reading, selection, progress)
            report.sources = fingerprints.of(reading.sources)
            out.write_json(".conversion.json", report.as_dict())
            report.hashes = out.hashes
        report.published = [
            (entry, choose(table, entry.filters, titled).counts if _fits(entry, options, titled) else None)
            for entry in recipes_for(name)
        ]
    report.seconds = time.perf_counter() - started
    return report


def _write(out: OutputFolder, report: Report, reading: Reading, selection: Selection, progress: bool) -> None:
    table, items, users = reading.interactions, reading.items, reading.users
    every = [
        dict.fromkeys(chain(table.users, users.rows if users else ())),
        dict.fromkeys(chain(table.items, items.rows if items else ())),
    ]
    renamed = Renamed(*(renamed_ids(raw, report.settings.get("ids") == "recbole") for raw in every))
    report.renamed_ids = len(renamed.users) + len(renamed.items)
    misread = sum(map(misread_by_recbole, chain(*every))) if report.settings.get("ids") != "recbole" else 0
    if misread:
        report.notes.append(
            f"ids that stock RecBole's reader would misread (NA, null, a quotation mark in front): {misread:,}; "
            "recbole-llm reads them as they are, --ids recbole renames them."
        )
    write_interactions(out, table, selection, renamed, progress)
    if items is not None:
        kept = _in_use(table.items, selection.items)
        ids = [raw for raw in items.rows if raw in kept or report.settings["items"] == "all"]
        # Items without metadata come last, with empty text: RecBole may drop interactions with unlisted items.
        ids += [raw for raw in kept if raw not in items]
        report.listed_items = len(ids)
        report.untitled_items = sum(not items.titled(raw) for raw in ids)
        write_catalogue(out, ".item", ids, items, renamed.items)
    else:
        report.listed_items = report.counts.items
    if users is not None:
        kept = _in_use(table.users, selection.users)
        write_catalogue(out, ".user", [raw for raw in users.rows if raw in kept], users, renamed.users)
    report.hashes = out.hashes


def _in_use(ids: dict[str, int], occur: npt.NDArray[np.bool_]) -> dict[str, None]:
    """Return the raw ids whose codes occur, in order of first appearance in the input."""
    return dict.fromkeys(compress(ids, occur.tolist()))


def _paths(given: PathLike | Sequence[PathLike]) -> list[PathLike]:
    return [given] if isinstance(given, str | Path) else list(given)


def _filters(recipe: Recipe | None, order: str, **given: Any) -> Filters:
    settings = recipe.filters.as_dict() if recipe else {}
    settings.update({key: value for key, value in given.items() if value is not None})
    return Filters(**{**settings, "order": order})


def _only(items: Catalogue, names: Sequence[str]) -> Catalogue:
    there = [name for name, _ in items.fields]
    for name in names:
        if name not in there:
            raise ConfigError(f"text_fields: there is no field {name!r}; there are {', '.join(there)}.")
    return items.only(names)


def _titled(table: Interactions, items: Catalogue | None) -> npt.NDArray[np.bool_] | None:
    if items is None:
        return None
    return np.fromiter(map(items.titled, table.items), dtype=bool, count=len(table.items))


def _fits(recipe: Recipe, options: dict[str, Any], titled: npt.NDArray[np.bool_] | None) -> bool:
    """Whether a recipe's filters can be tried on what was read."""
    if recipe.filters.untitled == "drop" and titled is None:
        return False
    return all(options.get(key) == value for key, value in recipe.options.items())
