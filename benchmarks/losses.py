"""Loss and gradients of a batch against catalogues of growing size: seconds and added memory, in one run.

    python benchmarks/losses.py [--items 12101 100000 1000000] [--targets 2048] [--width 64] [--negatives 256]

Forward and backward pass of ``ItemLoss`` in float32 on random states and vectors, and of ``torch``'s cross-entropy on
the whole table of scores. Every cell is measured in a process of its own: on a CPU the seconds that its one thread
computed (other work on the machine does not count), on a GPU those on the clock. Added memory is the growth of the
highest resident size (on a GPU, of allocated memory) over states and vectors, so gradients are in it. A cell whose
table of scores would need more than half of the free memory is not run.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time

import psutil
import torch
from data import machine, peak_mb
from torch.nn import functional

from recbole_llm.layer.item_loss import ItemLoss

ROWS = {
    "cross-entropy, whole table": None,
    "ce": {"loss": "ce"},
    "sampled_softmax, shared": {"loss": "sampled_softmax", "negatives": "shared"},
    "sampled_softmax, per target": {"loss": "sampled_softmax", "negatives": "per_target"},
    "gbce, per target": {"loss": "gbce"},
}


def free_mb(device: torch.device) -> float:
    """Memory that can be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    return psutil.virtual_memory().available / 2**20


def whole_table(hidden: torch.Tensor, table: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the loss in the straightforward way."""
    return functional.cross_entropy(hidden @ table.T, target)


def measure(row: str, n_items: int, options: argparse.Namespace) -> dict[str, float | None]:
    """One cell of the table, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    # Scores, their logarithms of the softmax, and the gradient of the scores.
    if ROWS[row] is None and 3 * 4 * options.targets * n_items / 2**20 > free_mb(device) / 2:
        return {"seconds": None, "MB": None}
    settings = {**(ROWS[row] or {}), "num_negatives": options.negatives}
    loss = whole_table if ROWS[row] is None else ItemLoss(n_items, **settings).to(device)
    torch.manual_seed(0)
    # In place: the peak before must be what is held.
    hidden = torch.empty(options.targets, options.width, device=device).normal_().requires_grad_()
    table = torch.empty(n_items, options.width, device=device).normal_(std=0.02).requires_grad_()
    target = torch.randint(1, n_items, (options.targets,), device=device)
    seconds = []
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else peak_mb()
    for _ in range(options.repeat + 1):
        hidden.grad = table.grad = None
        start = clock()
        loss(hidden, table, target).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    after = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak_mb()
    return {"seconds": statistics.median(seconds[1:]), "MB": after - before}


def in_fresh_process(row: str, n_items: int, options: argparse.Namespace) -> dict[str, float | None]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, f"--row={row}", f"--items={n_items}"]
    command += [f"--{key}={getattr(options, key)}" for key in ("targets", "width", "negatives", "repeat")]
    command += ["--cpu"] if options.cpu else []
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Measure every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[12101, 100_000, 1_000_000])
    parser.add_argument("--targets", type=int, default=2048, help="of a batch, all positions together")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=2, help="the median counts; one more runs before")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options.items[0], options)))
        return
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() and not options.cpu else None
    print(f"{options.targets} targets, width {options.width}, {options.negatives} negatives, float32")
    print(f"{datetime.date.today()}; {gpu or machine() + ', one thread'}; torch {torch.__version__}\n")
    print(f"{'':30}" + "".join(f"{f'{items:,} items':>26}" for items in options.items))
    print(f"{'':30}" + f"{'seconds':>14}{'added MB':>12}" * len(options.items))
    for row in ROWS:
        cells = [in_fresh_process(row, items, options) for items in options.items]
        texts = [
            f"{'not run':>14}{'':12}" if cell["seconds"] is None else f"{cell['seconds']:14.3f}{cell['MB']:12.0f}"
            for cell in cells
        ]
        print(f"{row:30}" + "".join(texts), flush=True)


if __name__ == "__main__":
    main()
