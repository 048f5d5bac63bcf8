"""Data preparation, RecBole's ``SequentialDataset`` against ``HistoryDataset``: seconds and memory, in one run.

    python benchmarks/data.py --data_path=FOLDER [--dataset=ml-1m] [--max_length=200] [--repeat=5]

Each side is measured in a fresh process, after its imports: reading, filtering, ids, sorting, rows, splitting. Memory
is the growth of the highest resident size; CPU seconds show how much other work disturbed the clock. RecBole's side
needs about 5 GB for ml-1m.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

BARS = {"seconds": 30, "MB": 10}


def peak_mb() -> float:
    """Highest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measure(side: str, data_path: str, dataset: str, max_length: int) -> dict[str, float]:
    """Prepare the data once, in this process."""
    import warnings

    from recbole.data.dataset import SequentialDataset

    from recbole_llm.config import Config
    from recbole_llm.data.dataset import HistoryDataset

    warnings.simplefilter("ignore")  # RecBole's chained assignments
    config = Config(
        "SASRec",
        dataset,
        config_dict={
            "data_path": data_path,
            "MAX_ITEM_LIST_LENGTH": max_length,
            "time_order": "recbole",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        },
    )
    before, start, start_cpu = peak_mb(), time.perf_counter(), time.process_time()
    parts = (SequentialDataset if side == "RecBole" else HistoryDataset)(config).build()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {"seconds": seconds, "CPU s": cpu, "MB": peak_mb() - before, "rows": sum(map(len, parts))}


def in_fresh_process(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """:func:`measure` in a process of its own, on one thread."""
    command = [sys.executable, __file__, f"--side={side}"]
    command += [f"--{key}={getattr(arguments, key)}" for key in ("data_path", "dataset", "max_length")]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ).stdout
    return json.loads(output.splitlines()[-1])


def machine() -> str:
    """Processor, cores and memory."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores" + (f", {memory[0]:.0f} GB" if memory else "")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    """Measure both sides and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True, help="folder that holds <dataset>/<dataset>.inter")
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--max_length", type=int, default=200, help="MAX_ITEM_LIST_LENGTH")
    parser.add_argument("--repeat", type=int, default=5, help="runs of HistoryDataset; the median counts")
    parser.add_argument("--side", choices=["RecBole", "HistoryDataset"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.data_path, arguments.dataset, arguments.max_length)))
        return
    runs = [in_fresh_process("HistoryDataset", arguments) for _ in range(arguments.repeat)]
    ours = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    stock = in_fresh_process("RecBole", arguments)
    if ours["rows"] != stock["rows"]:
        raise SystemExit(f"RecBole has {stock['rows']:.0f} rows, HistoryDataset {ours['rows']:.0f}.")

    packages = ", ".join(f"{name} {version(name)}" for name in ("recbole", "torch", "numpy", "pandas"))
    print(f"\nPreparing {arguments.dataset}, MAX_ITEM_LIST_LENGTH={arguments.max_length}, {stock['rows']:,.0f} rows")
    print(f"{datetime.date.today()}; {machine()}, one thread; Python {platform.python_version()}, {packages}\n")
    print(f"{'':16}{'seconds':>10}{'CPU s':>10}{'added MB':>10}")
    for name, run in (("RecBole", stock), ("HistoryDataset", ours)):
        print(f"{name:16}{run['seconds']:10.2f}{run['CPU s']:10.2f}{run['MB']:10.0f}")
    ratios = {key: stock[key] / ours[key] for key in ("seconds", "CPU s", "MB")}
    print(f"{'ratio':16}{ratios['seconds']:10.1f}{ratios['CPU s']:10.1f}{ratios['MB']:10.1f}")
    print(f"{'wanted':16}{BARS['seconds']:10}{'':10}{BARS['MB']:10}")
    spread = [run["seconds"] for run in runs]
    print(
        f"\nHistoryDataset: median of {len(runs)} runs ({min(spread):.2f} to {max(spread):.2f} s); RecBole: one run."
    )
    if any(ratios[key] < bar for key, bar in BARS.items()):
        raise SystemExit("Below the bar.")


if __name__ == "__main__":
    main()
