"""How costs grow: preparation against interactions, a training step and lists against items; with peers, in one run.

    python benchmarks/scale.py --interactions=5e6,2e7 --items=1e4,1e5,5e5
    python benchmarks/scale.py --baseline=../older-checkout    # the same stages of another tree beside this one's
    python benchmarks/scale.py --interactions=2e3,4e3 --items=200,400 --users=32 --steps=2    # a try, in half a minute

Stages, each in a process of its own, on one thread:

prepare  read an atomic file, number users and items, sort histories, split: ``HistoryDataset(config).build()``. Beside
         it the same again, from the cache that a first process has filled; and pyarrow, which reads the same file with
         dictionary-encoded ids and sorts it by user and time.
step     a training step of LRURec (width 64, 128 users, sampled softmax), mean over ``--steps``.
lists    the 10 best of the catalogue for ``--users`` users at once from vectors of width 64, 50 items of each masked.
         Beside it the matrix product alone (numpy), and implicit's ``topk``, which masks, too.

Figures are CPU seconds of that process, so that other work on the machine counts little, and how much its highest
resident size grew. The growth exponent is the slope of log seconds over log size: 1 is linear. Data is made up from a
seed: items by Zipf's law, every one at least once, users and times evenly. A peer that is not installed is left out,
with the reason.
"""

import argparse
import datetime
import importlib.util
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from data import machine, peak_mb
from tabulate import tabulate

HERE = Path(__file__).resolve().parent.parent
PEERS = {"prepare": ["pyarrow"], "step": [], "lists": ["numpy", "implicit"]}
UNITS = {"prepare": "CPU s", "step": "CPU ms a step", "lists": "CPU s"}
WIDTH, BEST, MASKED = 64, 10, 50


def make_data(folder: Path, interactions: int, items: int) -> Path:
    """Write ``folder/<name>/<name>.inter`` unless it is there; return its path."""
    import pyarrow as pa
    import pyarrow.csv

    name = f"scale-{interactions}-{items}"
    path = folder / name / f"{name}.inter"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    share = np.cumsum(1 / np.arange(10, items + 10))
    item = np.searchsorted(share / share[-1], rng.random(interactions)).clip(max=items - 1)
    item[:items] = np.arange(items)
    item = rng.permutation(items)[rng.permutation(item)]
    columns = {
        "user_id:token": pa.array(rng.integers(0, max(1, interactions // 25), interactions)).cast(pa.string()),
        "item_id:token": pa.array(item).cast(pa.string()),
        "timestamp:float": pa.array(rng.integers(1_500_000_000, 1_700_000_000, interactions)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write("\t".join(columns).encode() + b"\n")
        options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
        pyarrow.csv.write_csv(pa.table(columns), file, options)
    temporary.rename(path)
    return path


class Clock:
    """CPU seconds and added memory since it was made."""

    def __init__(self) -> None:
        self.memory, self.cpu = peak_mb(), time.process_time()

    def read(self, times: int = 1) -> dict[str, float]:
        """Both; seconds a time."""
        return {"seconds": (time.process_time() - self.cpu) / times, "MB": peak_mb() - self.memory}


# ---- stages of this package, or of an older tree of it


def config_of(path: Path, **more: Any) -> Any:
    """Return the settings of a run on made-up data."""
    from recbole_llm.config import Config

    settings = {"data_path": str(path.parent.parent), "use_gpu": False, "show_progress": False, "worker": 0, **more}
    settings["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
    return Config("LRURec", path.stem, config_dict=settings)


def prepare(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Read, number, sort and split."""
    from recbole_llm.data.dataset import HistoryDataset

    config = config_of(path)
    clock = Clock()
    HistoryDataset(config).build()
    return clock.read()


def prepare_again(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Do the same once more, after another process."""
    from recbole_llm.data.dataset import HistoryDataset

    config = config_of(path)
    first = multiprocessing.get_context("fork").Process(target=lambda: HistoryDataset(config).build())
    first.start()
    first.join()
    clock = Clock()
    HistoryDataset(config).build()
    return clock.read()


class Batches(list):
    """Batches that were made before the clock started, as a loader."""

    def __init__(self, loader: Any, batches: list[Any]) -> None:
        super().__init__(batches)
        self.step, self.dataset = loader.step, loader.dataset

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Nothing to draw."""


def step(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Forward and backward pass, and the optimizer."""
    from recbole_llm.data.dataset import HistoryDataset
    from recbole_llm.data.loader import prepare_data
    from recbole_llm.trainer.trainer import RunTrainer

    more = {"loss": "sampled_softmax", "hidden_size": WIDTH, "train_batch_size": 128, "epochs": 1}
    config = config_of(path, **more)
    train, *_ = prepare_data(config, HistoryDataset(config))
    batches = list(islice(iter(train), options.steps + 3))
    trainer = RunTrainer(config, config.model_class(config, train.dataset))
    if hasattr(trainer, "steps"):
        trainer.steps.total = len(batches)
    trainer._train_epoch(Batches(train, batches[:3]), 0)
    clock = Clock()
    trainer._train_epoch(Batches(train, batches[3:]), 0)
    return clock.read(len(batches) - 3)


def vectors(items: int, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of users and items, and the user and item of every masked pair."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((items, WIDTH), dtype=np.float32)
    masked = min(MASKED, items // 4)
    pairs = np.concatenate([rng.choice(items, masked, replace=False) for _ in range(users)])
    return rng.standard_normal((users, WIDTH), dtype=np.float32), table, np.repeat(np.arange(users), masked), pairs


def lists(items: int, options: argparse.Namespace) -> dict[str, float]:
    """Top 10 with exact ties."""
    import torch

    from recbole_llm.evaluator.topk import top_k_of_products

    users, table, row, column = map(torch.from_numpy, vectors(items, options.users))
    top_k_of_products(users[:4], table[:100], BEST)
    clock = Clock()
    top_k_of_products(users, table, BEST, (row, column))
    return clock.read()


# ---- peers


def prepare_pyarrow(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Read with dictionary-encoded ids and sort; no split, no checks."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.csv

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    clock = Clock()
    text = pa.dictionary(pa.int32(), pa.string())
    types = {"user_id:token": text, "item_id:token": text, "timestamp:float": pa.float64()}
    table = pyarrow.csv.read_csv(
        path,
        pyarrow.csv.ReadOptions(use_threads=False),
        pyarrow.csv.ParseOptions(delimiter="\t"),
        pyarrow.csv.ConvertOptions(column_types=types),
    ).unify_dictionaries()
    codes = [pa.chunked_array([chunk.indices for chunk in table.column(place).chunks]) for place in (0, 1)]
    table = pa.table({"user": codes[0], "item": codes[1], "time": table.column(2)})
    table.take(pyarrow.compute.sort_indices(table, [("user", "ascending"), ("time", "ascending")]))
    return clock.read()


def lists_numpy(items: int, options: argparse.Namespace) -> dict[str, float]:
    """Multiply alone, block by block."""
    users, table, *_ = vectors(items, options.users)
    users[:4] @ table[:100].T
    clock = Clock()
    for start in range(0, items, 512):
        users @ table[start : start + 512].T
    return clock.read()


def lists_implicit(items: int, options: argparse.Namespace) -> dict[str, float]:
    """Top 10 of implicit, history masked."""
    from implicit.cpu.topk import topk
    from scipy.sparse import csr_matrix

    users, table, row, column = vectors(items, options.users)
    masked = csr_matrix((np.ones(len(row), dtype=np.float32), (row, column)), shape=(options.users, items))
    topk(table[:100], users[:4], BEST, num_threads=1)
    clock = Clock()
    topk(table, users, BEST, filter_query_items=masked, num_threads=1)
    return clock.read()


# ---- table


def in_fresh_process(work: str, size: Path | int, tree: Path, options: argparse.Namespace) -> dict[str, float] | str:
    """Measure in a process of its own, on one thread, with the package of a tree; a text where that failed."""
    command = [sys.executable, __file__, f"--work={work}", f"--size={size}"]
    command += [f"--{key}={getattr(options, key)}" for key in ("users", "steps")]
    paths = [str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as folder:
        environment["XDG_CACHE_HOME"] = folder  # nothing is there from before
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
    return json.loads(done.stdout.splitlines()[-1])


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]) if len(set(sizes)) > 1 else math.nan


def measure(stage: str, options: argparse.Namespace, folder: Path) -> list[list[Any]]:
    """Return the rows of a stage: size, side, seconds, memory."""
    sides = {"recbole-llm": (stage, HERE)}
    if options.baseline:
        sides["baseline"] = (stage, options.baseline.resolve())
    if stage == "prepare":
        sides["recbole-llm, again"] = ("prepare_again", HERE)
    for peer in PEERS[stage]:
        if importlib.util.find_spec(peer) is None:
            print(f"{stage}: {peer} is left out: it is not installed.")
        else:
            sides[peer] = (f"{stage}_{peer}", HERE)
    sizes = options.interactions if stage == "prepare" else options.items
    rows: list[list[Any]] = []
    for side, (work, tree) in sides.items():
        of_side: list[tuple[int, float]] = []
        for size in sizes:
            given: Path | int = size
            if stage == "prepare":
                given = make_data(folder, size, min(options.items[0], size))
            elif stage == "step":
                given = make_data(folder, max(options.least, 2 * size), size)
            found = in_fresh_process(work, given, tree, options)
            if isinstance(found, str):
                print(f"{stage}, {side}, {size:,}: failed: {found}")
                continue
            of_side.append((size, found["seconds"]))
            seconds = found["seconds"] * (1000 if stage == "step" else 1)
            rows.append([f"{size:,}", side, seconds, found["MB"], ""])
        if len(of_side) > 1:
            rows[-1][-1] = f"{exponent(*map(list, zip(*of_side, strict=True))):.2f}"
    return rows


def numbers(text: str) -> list[int]:
    """Read whole numbers such as 5e6."""
    return [int(float(part)) for part in text.split(",")]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=numbers, default=numbers("1e6,5e6"), help="sizes, such as 5e6,2e7")
    parser.add_argument("--items", type=numbers, default=numbers("1e4,1e5"), help="sizes, such as 1e5,5e5,1e6")
    parser.add_argument(
        "--least", type=lambda text: int(float(text)), default=1_000_000, help="interactions of a step"
    )
    parser.add_argument("--stages", default="prepare,step,lists")
    parser.add_argument("--baseline", type=Path, help="another checkout to measure beside this one")
    parser.add_argument("--folder", type=Path, help="keep the made-up data here; default: a temporary folder")
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print one table a stage."""
    options = arguments()
    if options.work:
        works = {
            work.__name__: work
            for work in (prepare, prepare_again, step, lists, prepare_pyarrow, lists_numpy, lists_implicit)
        }
        size = int(options.size) if options.work.startswith("lists") else Path(options.size)
        print(json.dumps(works[options.work](size, options)))
        return
    print(f"{datetime.date.today()}; {machine()}, one thread")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        for stage in options.stages.split(","):
            rows = measure(stage, options, folder)
            heads = ["interactions" if stage == "prepare" else "items", stage, UNITS[stage], "added MB", "exponent"]
            print("\n" + tabulate(rows, heads, floatfmt=("", "", ".3g", ".0f", "")), flush=True)


if __name__ == "__main__":
    main()
