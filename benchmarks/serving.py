"""Latency of one request and throughput of many, from finished runs.

    python benchmarks/serving.py RUN_DIR [RUN_DIR ...]
    python benchmarks/serving.py --items=1000000

A request is a history of raw item ids in, ten raw item ids with scores out, history masked: everything but loading the
run. LRURec also goes on from a state (`step`): one more item of a user whose state is at hand. ``--items`` measures
lists from made-up vectors of a large catalogue instead: seconds per batch of users, and memory.
"""

import argparse
import logging
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from recbole_llm.evaluator.topk import top_k, top_k_of_products
from recbole_llm.recommend import Recommender
from recbole_llm.run.provenance import environment

clock = time.perf_counter


def timed(call, synchronize) -> float:
    """Milliseconds of a call."""
    start = clock()
    call()
    synchronize()
    return 1000 * (clock() - start)


def histories_of(recommender: Recommender, count: int) -> list[list[str]]:
    """Histories of users of the dataset, all of each."""
    dataset = recommender.run.dataset
    tokens = dataset.field2id_token[dataset.iid_field]
    users = np.random.default_rng(0).permutation(np.arange(1, dataset.user_num))[:count]
    items = dataset.flat[dataset.iid_field].numpy()
    return [tokens[items[dataset.offsets[user] : dataset.offsets[user + 1]]].tolist() for user in users]


def measure_run(run_dir: str, options: argparse.Namespace) -> list[list]:
    """Return a row of the table, and another for LRURec's steps."""
    recommender = Recommender.load(run_dir, **({"use_gpu": False} if options.cpu else {}))
    synchronize = torch.cuda.synchronize if recommender.device.type == "cuda" else lambda: None
    histories = histories_of(recommender, options.requests)
    for history in histories[:20]:
        recommender.recommend([history])
    single = [timed(lambda h=history: recommender.recommend([h]), synchronize) for history in histories]
    many = (histories * (1 + options.batch // len(histories)))[: options.batch]
    batch = min(timed(lambda: recommender.recommend(many), synchronize) for _ in range(5))
    name = recommender.config["model"]
    length = recommender.config["MAX_ITEM_LIST_LENGTH"]
    rows = [[name, length, len(recommender.items), *quantiles(single), 1000 * options.batch / batch]]
    if hasattr(recommender.model, "step"):
        rows.append([f"{name}, one step", length, len(recommender.items), *steps(recommender, histories, synchronize)])
    return rows


@torch.inference_mode()
def steps(recommender: Recommender, histories: list[list[str]], synchronize) -> list:
    """One more item for a user whose state is at hand, top 10 of all items; one user, then a batch."""
    model, device = recommender.model, recommender.device
    ids = [[recommender._catalogue.ids[item] for item in history] for history in histories]
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(device)
    length = torch.tensor([len(row) for row in ids], device=device)
    state = model.state_of(rows[:, :-1], (length - 1).clamp(min=0))
    last = rows.gather(1, (length - 1)[:, None])[:, 0]

    def step(part: slice) -> None:
        scores, _ = model.step(last[part], state[part])
        top_k(scores, 10)

    for number in range(20):
        step(slice(number, number + 1))
    single = [timed(lambda n=number: step(slice(n, n + 1)), synchronize) for number in range(len(ids))]
    batch = min(timed(lambda: step(slice(None)), synchronize) for _ in range(5))
    return [*quantiles(single), 1000 * len(ids) / batch]


def quantiles(milliseconds: list[float]) -> list[float]:
    """Median and 95th percentile."""
    return [statistics.median(milliseconds), float(np.quantile(milliseconds, 0.95))]


def measure_catalogue(options: argparse.Namespace) -> None:
    """Top 10 of a large catalogue for a batch of users, by blocks."""
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(options.items, 64, generator=generator).to(device)
    users = torch.randn(options.batch, 64, generator=generator).to(device)
    top_k_of_products(users[:8], items[:1000], 10)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = min(timed(lambda: top_k_of_products(users, items, 10), synchronize) for _ in range(2)) / 1000
    if device.type == "cuda":
        added = torch.cuda.max_memory_allocated() - before
    else:
        added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(
        f"{options.items:,} items of width 64, {options.batch} users: {seconds:.2f} s, "
        f"{options.batch / seconds:,.0f} users/s, {added / 2**20:,.0f} MB added "
        f"(the table of scores: {4 * options.items * options.batch / 2**20:,.0f} MB)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="*", type=Path, metavar="RUN_DIR")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--items", type=int, help="size of a made-up catalogue")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--cpu_time", action="store_true", help="CPU time of the process: for a machine that is busy")
    options = parser.parse_args()
    if options.cpu_time:
        global clock
        clock = time.process_time
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    machine = environment(torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu"))
    print(
        f"{machine['gpu'] or machine['processor']}, {options.threads} threads, torch {torch.__version__}, float32"
        + (", CPU time" if options.cpu_time else "")
    )
    if options.items:
        measure_catalogue(options)
    rows = [row for run_dir in options.run_dirs for row in measure_run(str(run_dir), options)]
    if rows:
        heads = ["model", "length", "items", "median ms", "p95 ms", f"users/s, {options.batch} at once"]
        print(tabulate(rows, heads, floatfmt=".1f"))


if __name__ == "__main__":
    main()
