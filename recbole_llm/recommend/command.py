"""``recbole-llm recommend`` and ``recbole-llm export``."""

import argparse
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_llm.config.arguments import CommandParser
from recbole_llm.errors import ConfigError
from recbole_llm.files import write_json
from recbole_llm.progress import Progress
from recbole_llm.recommend import files, index, reading, tower
from recbole_llm.recommend.catalogue import UNKNOWN
from recbole_llm.recommend.recommender import HISTORIES, Recommender
from recbole_llm.run.identity import SERVING
from recbole_llm.run.logging import log_to_console
from recbole_llm.run.protocol import protocol_text

SETTINGS = sorted(SERVING)

_RECOMMEND_HELP = """\
Recommend items to users from a finished run, with raw ids and scores.

examples:
  recbole-llm recommend saved/LRURec-ml-100k-... --out=top.parquet          every user, from all interactions
  recbole-llm recommend saved/LRURec-ml-100k-... --users=196,186 --k=5      to the terminal, as CSV
  recbole-llm recommend saved/LRURec-ml-100k-... --users=users.txt --allow=in_stock.txt --out=top.jsonl
  recbole-llm recommend saved/LRURec-ml-100k-... --history=test --out=test.csv    what the evaluator ranked
  recbole-llm recommend saved/LRURec-ml-100k-... --histories=new.jsonl --out=new.csv
"""
_EXPORT_HELP = """\
Export item and user vectors of a finished run as .npy with raw ids, for models that score by their products.

DIR/item_vectors.npy and items.txt, user_vectors.npy and users.txt (row i belongs to line i), export.json and, with
--faiss, items.faiss: score of an item = inner product with the user's vector. How many of the exact ten best of up to
1,000 users the index finds is said and stands in export.json. With --onnx, user_tower.onnx gives the vector of any
history of line numbers of items.txt; it is checked against the model, and runs without torch.

examples:
  recbole-llm export saved/LRURec-ml-100k-... --out=vectors
  recbole-llm export saved/LRURec-ml-100k-... --out=vectors --users=none --faiss
  recbole-llm export saved/LRURec-ml-100k-... --out=vectors --faiss=IVF1024,Flat --faiss_search=nprobe=32
  recbole-llm export saved/LRURec-ml-100k-... --out=served --users=none --onnx
"""


def recommend_main(argv: Sequence[str]) -> int:
    """Run ``recbole-llm recommend`` with the arguments that follow the command; return the exit status."""
    parser = _parser("recommend", _RECOMMEND_HELP)
    add = parser.add_argument
    add(
        "--users",
        default="all",
        metavar="WHO",
        help="all, ids separated by commas, or a file (default: all); a user who is called all: 'all,'",
    )
    add(
        "--histories",
        metavar="FILE",
        help="new users instead: JSON lines with a user and a list of item ids, or a table",
    )
    add("--k", type=int, default=10, help="items per list (default: 10)")
    add("--out", metavar="FILE", help=f"{', '.join(files.FORMATS)}; default: CSV on the terminal")
    add("--mask_history", choices=["True", "False"], help="exclude items of the history (default: as in the run)")
    add("--allow", metavar="ITEMS", help="recommend only these: ids separated by commas, or a file")
    add("--deny", metavar="ITEMS", help="never recommend these")
    add("--new_items", metavar="FILE", help="new items known by text only: an atomic .item file or JSON lines")
    given, settings = parse_with_settings(parser, argv)
    if given.k < 1:
        raise ConfigError(f"k={given.k} must be at least 1.")
    if given.histories and (given.users != "all" or given.history != "all"):
        raise ConfigError("--histories contains users and histories: drop --users and --history.")
    out = None if given.out is None else Path(given.out)
    if out is not None:
        files.check_format(out)
    recommender = _load(given.run_dir, settings)
    item_field, user_field = recommender.dataset.iid_field, recommender.dataset.uid_field
    encoding = recommender.config["encoding"] or "utf-8"
    if given.new_items:
        recommender.add_items(
            reading.read_items(given.new_items, item_field, recommender.config["field_separator"], encoding)
        )
    options = {
        "k": given.k,
        "mask_history": None if given.mask_history is None else given.mask_history == "True",
        "allow": None if given.allow is None else reading.read_ids(given.allow, item_field, encoding),
        "deny": None if given.deny is None else reading.read_ids(given.deny, item_field, encoding),
        "unknown": given.unknown,
    }
    start = time.perf_counter()
    total = None
    if given.histories:
        frames = _of_histories(recommender, given.histories, options)
    else:
        users = None if given.users == "all" else reading.read_ids(given.users, user_field, encoding)
        total = recommender.count_users(users, given.history, given.unknown)
        frames = recommender.recommend_users(users, history=given.history, **options)
    with Progress(total, "Recommend", "users") as bar:
        lists = files.write_lists(frames, out, bar.update)
    masked = recommender.config["mask_history"] if options["mask_history"] is None else options["mask_history"]
    logging.getLogger().info(
        f"{lists} lists of up to {given.k} items in {time.perf_counter() - start:.1f} s, history "
        f"{given.histories or given.history} {'masked' if masked else 'not masked'}"
        + (f", written to {out}" if out is not None else "")
    )
    if total is not None and lists < total:
        logging.getLogger().warning(f"{total - lists} users have no item left to recommend.")
    return 0


def _of_histories(recommender: Recommender, file: str, options: dict[str, Any]) -> Iterator[pd.DataFrame]:
    user_field, item_field = recommender.dataset.uid_field, recommender.dataset.iid_field
    encoding, time_field = recommender.config["encoding"] or "utf-8", recommender.dataset.time_field
    for users, histories in reading.read_histories(file, user_field, item_field, 1024, encoding, time_field):
        lists = recommender.recommend(histories, **options)
        rows = [
            (user, item, rank, score)
            for user, found in zip(users, lists, strict=True)
            for rank, (item, score) in enumerate(found, 1)
        ]
        frame = pd.DataFrame(rows, columns=[user_field, item_field, "rank", "score"])
        yield frame.astype({"rank": "int32", "score": "float32"})


def export_main(argv: Sequence[str]) -> int:
    """Run ``recbole-llm export`` with the arguments that follow the command; return the exit status."""
    parser = _parser("export", _EXPORT_HELP)
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder to write to")
    add(
        "--users",
        default="all",
        metavar="WHO",
        help="all, none, ids separated by commas, or a file (default: all); a user who is called all: 'all,'",
    )
    add(
        "--faiss",
        nargs="?",
        const="Flat",
        metavar="FACTORY",
        help="also a FAISS index: Flat (exact, the default), HNSW32, IVF1024,Flat or any other index_factory string",
    )
    add(
        "--faiss_search",
        default="",
        metavar="PARAMETERS",
        help="kept in the index, such as nprobe=32 (IVF) or efSearch=128 (HNSW); recall is measured with them",
    )
    add("--onnx", action="store_true", help="also the user tower: user_tower.onnx, which runs without torch")
    given, settings = parse_with_settings(parser, argv)
    if not given.out:
        raise ConfigError("--out is blank: name the folder to write to, or . for this one.")
    if given.faiss_search and not given.faiss:
        raise ConfigError(f"--faiss_search={given.faiss_search} is for an index: add --faiss=IVF1024,Flat or another.")
    if given.faiss:
        index.faiss_package()
    if given.onnx:
        tower.check_onnx()
        settings["use_gpu"] = False
    recommender = _load(given.run_dir, settings)
    vectors = recommender.item_vectors()
    out, items, width = Path(given.out), recommender.items, vectors.shape[1]
    files.write_ids(items, out / "items.txt")
    files.write_matrix([vectors], vectors.shape, out / "item_vectors.npy")
    count = 0
    if given.users != "none":
        encoding = recommender.config["encoding"] or "utf-8"
        users = (
            None if given.users == "all" else reading.read_ids(given.users, recommender.dataset.uid_field, encoding)
        )
        count = recommender.count_users(users, given.history, given.unknown)
        names: list[str] = []
        batches = recommender.vectors_of_users(users, given.history, given.unknown)
        with Progress(count, "Export", "users") as bar:
            files.write_matrix(_collected(batches, names, bar), (count, width), out / "user_vectors.npy")
        files.write_ids(names, out / "users.txt")
    made = None
    if given.faiss:
        made = index.write_index(recommender, given.faiss, given.faiss_search, given.history, out / "items.faiss")
    graph = tower.write_tower(recommender, out / "user_tower.onnx") if given.onnx else None
    description = {
        "run_dir": str(given.run_dir),
        "model": recommender.config["model"],
        "dataset": recommender.config["dataset"],
        "protocol": protocol_text(recommender.config),
        "score": "inner product of a row of user_vectors and a row of item_vectors",
        "dim": width,
        "last_column_is_item_bias": recommender.has_item_bias,
        "items": len(items),
        "users": count,
        "history": given.history if count else None,
        "faiss": made,
        "user_tower": graph,
    }
    write_json(out / "export.json", description)
    logging.getLogger().info(f"{len(items)} item vectors and {count} user vectors of width {width} written to {out}")
    return 0


def _collected(batches: Iterable[tuple[list[str], Any]], names: list[str], bar: Progress) -> Iterator[Any]:
    for users, vectors in batches:
        names += users
        bar.update(len(users))
        yield vectors


def _parser(command: str, text: str) -> CommandParser:
    parser = CommandParser(command, text, SETTINGS)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="directory of a finished run")
    parser.add_argument(
        "--history",
        choices=HISTORIES,
        default="all",
        help="history: all interactions (default), or those before the validation or test target",
    )
    parser.add_argument(
        "--unknown", choices=UNKNOWN, default="error", help="handling of unknown users or items of histories"
    )
    return parser


def parse_with_settings(parser: CommandParser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse options and the settings of a run that may be changed when it serves; ConfigError for any other."""
    remedy = f"A run keeps the settings it was trained with; {parser.prog} --help lists the options."
    return parser.parse_with_settings(argv, "is not an option here", remedy)


def _load(run_dir: str, settings: dict[str, Any]) -> Recommender:
    log_to_console()
    logging.getLogger("recbole").setLevel(logging.WARNING)
    return Recommender.load(run_dir, **settings)
