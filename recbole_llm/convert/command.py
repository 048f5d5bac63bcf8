"""``recbole-llm convert`` and ``recbole-llm check``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from recbole_llm.config.arguments import CommandParser, split_arguments
from recbole_llm.config.registry import listed_files
from recbole_llm.config.types import Positive
from recbole_llm.config.values import load_yaml, refuse_others
from recbole_llm.convert.check import SETTINGS, check
from recbole_llm.convert.conversion import convert, source_names, source_options
from recbole_llm.convert.options import OPTIONS, OWN_FILES, Names
from recbole_llm.convert.reading import default_workers
from recbole_llm.convert.report import all_recipes
from recbole_llm.errors import ConfigError

_CONVERT_HELP = """\
Convert an official download, or your own logs, to RecBole's atomic files. Zip archives, gzip files and folders need
not be unpacked. Rows are ordered by time; ties keep the order of the input. The same input gives the same bytes, as
recorded in NAME.conversion.json. A conversion that fails leaves no files behind.

examples:
  recbole-llm convert ml-1m --input ml-1m.zip
  recbole-llm convert ml-latest-small --input ml-latest-small.zip --recipe ml-latest-small-llamarec
  recbole-llm convert amazon-beauty-2014 --input reviews_Beauty_5.json.gz --metadata meta_Beauty.json.gz
  recbole-llm convert amazon-video-games-2023 --input downloads/ --k_core 5
  recbole-llm convert steam --input steam_reviews.json.gz --metadata steam_games.json.gz --recipe steam-dh-r
  recbole-llm convert sessions --input sessions.csv --metadata products.csv --output dataset/shop
  recbole-llm convert generic --input log.parquet --user_col customer --item_col sku --time_col at \\
      --metadata items.jsonl --item_fields name=title:token_seq,price:float --output dataset/shop
  recbole-llm convert --list
"""
_CHECK_HELP = """\
usage: recbole-llm check DATASET [--data_path=FOLDER] [--KEY=VALUE ...]

Check a dataset for common problems: read its atomic files as a run does, report what is wrong or surprising, and
suggest settings. The exit status is 1 if there is an ERROR: a run rejects such a file.

Accepts the settings of a run that describe the file format, also from --config_files:
  {settings}

examples:
  recbole-llm check ml-1m --data_path dataset
  recbole-llm check path/to/ml-1m
  recbole-llm check shop --USER_ID_FIELD=session_id --TIME_FIELD=at --encoding=latin-1
  recbole-llm check shop --config_files="mine.yaml more.yaml"
"""


def convert_main(argv: Sequence[str]) -> int:
    """Run ``recbole-llm convert`` with the arguments that follow the command; return the exit status."""
    parser = _convert_parser()
    arguments = vars(parser.parse_args(list(argv)))
    if arguments.pop("list"):
        _show(_listing())
        return 0
    name, inputs = arguments.pop("name"), arguments.pop("input")
    if not name or not inputs:
        parser.error("NAME and --input are required (--list shows the names)")
    if arguments["workers"] is None and "workers" in source_options(name):
        arguments["workers"] = default_workers()
    arguments = {key: value for key, value in arguments.items() if value is not None and value is not False}
    _show_progress()
    report = convert(name, inputs, progress=True, **arguments)
    _show(report.text())
    output = report.output
    _show(f"  next: recbole-llm check {output}; to train: --dataset={output.name} --data_path={output.parent}")
    return 0


def check_main(argv: Sequence[str]) -> int:
    """Run ``recbole-llm check`` with the arguments that follow the command; return 1 if the report has an error."""
    if {"-h", "--help"} & set(argv):
        _show(_CHECK_HELP.replace("{settings}", ", ".join(SETTINGS)))
        return 0
    given, names = split_arguments(argv)
    files = listed_files(given.pop("config_files", None))
    remedy = "`recbole-llm check --help` lists the settings that describe the files."
    refuse_others(given, [*SETTINGS, "dataset", "data_path"], "is not a setting of the check", remedy)
    settings = {key: value for content in (*map(load_yaml, files), given) for key, value in content.items()}
    dataset = names[0] if names else settings.get("dataset")
    data_path = settings.get("data_path") or "dataset"
    if not dataset or len(names) > 1:
        raise ConfigError(
            "`recbole-llm check DATASET` takes one dataset, a name or a folder"
            + (f", but got {', '.join(names)}." if names else "; `recbole-llm check --help` has examples.")
        )
    _show_progress()
    report = check(dataset, data_path, settings, progress=True)
    _show(report.text())
    return int(report.failed)


def _convert_parser() -> argparse.ArgumentParser:
    parser = CommandParser("convert", _CONVERT_HELP)
    add = parser.add_argument
    add("name", metavar="NAME", nargs="?", help="; ".join(source_names()))
    add("--list", action="store_true", help="list names and recipes, and exit")
    add("--input", nargs="+", metavar="PATH", help="archive, folder or file(s)")
    add("--output", metavar="FOLDER", help="default: dataset/NAME; its last part names the dataset")
    add("--metadata", nargs="+", metavar="PATH", help="item text, if not next to the input")
    add("--overwrite", action="store_true", help="replace the files of an earlier conversion")
    add("--on_error", choices=["stop", "skip"], help="stop at an unusable line (default), or skip and count it")

    add = parser.add_argument_group("filters, applied in this order").add_argument
    add("--recipe", metavar="RECIPE", help="preset of the options below from a paper (see --list)")
    add("--min_rating", type=float, metavar="R", help="drop interactions with a lower rating")
    add("--untitled", choices=["keep", "drop"], help="keep (default) or drop untitled items and their interactions")
    text = "which of repeated (user, item) pairs to keep, by time (default: none, keep all)"
    add("--dedup", choices=["none", "first", "last"], help=text)
    add("--k_core", type=int, metavar="K", help="keep users and items with at least K interactions, iteratively")
    add("--order", choices=["time", "input"], help="order of the rows (default: time, ties in input order)")
    add("--items", choices=["auto", "all", "rated"], help="which items the .item file lists")
    add("--ids", choices=["exact", "recbole"], help="recbole: rename ids that stock RecBole misreads (default: exact)")
    add("--text_fields", metavar="A,B", help="item fields to keep, in this order (default: all)")

    sources = parser.add_argument_group("options of individual sources")
    own = parser.add_argument_group("sessions and generic: columns of your own files")
    for key, (kind, text) in OPTIONS.items():
        group = own if key in OWN_FILES and key != "columns" else sources
        if kind is bool:
            group.add_argument(f"--{key}", action="store_true", help=text)
        elif kind is Positive:
            group.add_argument(f"--{key}", type=int, metavar="N", help=text)
        elif get_origin(kind) is Literal:
            group.add_argument(f"--{key}", choices=get_args(kind), help=text)
        else:
            group.add_argument(f"--{key}", metavar="A,B" if kind is Names else "X", help=text)
    return parser


def _listing() -> str:
    lines = ["names:", *(f"  {name}" for name in source_names())]
    lines.append("  (papers' short names: amazon-beauty-..., amazon-toys-..., amazon-games-..., amazon-movies-...)")
    lines.append("recipes:")
    for recipe in all_recipes().values():
        counts = ", ".join(f"{key} {value:,}" for key, value in recipe.published.items())
        lines.append(f"  {recipe.name:<34} {recipe.source:<22} {recipe.filters.text()}")
        lines.append(f"      {recipe.paper}: {counts}")
    return "\n".join(lines)


def _show_progress() -> None:
    """Let the lines of progress appear where there is no terminal for a bar; run.logging would import RecBole."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")
