"""`_all` of LiteLLM4Rec: one causal pass over a sequence against a bidirectional pass over each of its prefixes.

    python benchmarks/causal.py                                   # ml-100k, bundled encoder, some three minutes
    python benchmarks/causal.py --dataset=amazon-beauty-2014 --settings='{"data_path": "DIR", "item_text": "{title}"}'

Both train on the same targets, every training interaction that has one before it, with the same encoder, loss,
optimizer and length of history. Optimizer steps of the two alternate in one process. Seconds are of CPU time; on a GPU
of the clock.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from data import machine
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import TrainLoader, prepare_data
from recbole_llm.trainer.trainer import RunTrainer

KINDS = {"bidirectional, a row per prefix": "bidirectional", "causal, a row per sequence": "causal"}


def prepare(arguments: argparse.Namespace, attention: str) -> tuple[RunTrainer, TrainLoader]:
    """Trainer and training batches under one kind of attention."""
    settings: dict[str, Any] = {
        **{"config_files": "litellm4rec_ml-100k", "rec_llm_attention": attention, "train_batch_size": arguments.rows},
        **{"MAX_ITEM_LIST_LENGTH": arguments.length, "seq_pool": "last", "train_strategy": "all"},
        **{"use_gpu": arguments.gpu, "show_progress": False, "shuffle_ties": False},
        **json.loads(arguments.settings),
    }
    config = Config("LiteLLM4Rec", arguments.dataset, config_dict=settings)
    train, *_ = prepare_data(config, HistoryDataset(config))
    init_seed(config["seed"], True)
    trainer = RunTrainer(config, config.model_class(config, train.dataset))
    trainer.steps.total = 10**6
    trainer.model.train()
    return trainer, train


def endless(loader: TrainLoader) -> Iterator[Interaction]:
    """Batches of epoch after epoch."""
    while True:
        yield from loader


def timed_step(trainer: RunTrainer, batch: Interaction) -> tuple[float, int]:
    """Seconds of an optimizer step, and its targets."""
    clock = time.perf_counter if trainer.gpu_available else time.process_time
    start = clock()
    batch = batch.to(trainer.device)
    with trainer.steps.autocast():
        loss = trainer.model.calculate_loss(batch)
    loss.backward()
    trainer.steps.step()
    if trainer.gpu_available:
        torch.cuda.synchronize()
    return clock() - start, int(trainer.model.loss_weight(batch))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch, on both sides")
    parser.add_argument("--length", type=int, default=50, help="items of history")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of each, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--settings", default="{}", help="other settings of both, as JSON")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole's Config reads it
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    sides = {kind: prepare(arguments, attention) for kind, attention in KINDS.items()}
    batches = {kind: endless(train) for kind, (_, train) in sides.items()}
    steps: dict[str, list[tuple[float, int]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.steps + 1):
        for kind, (trainer, _) in sides.items():
            steps[kind] += [timed_step(trainer, batch) for batch in islice(batches[kind], 1)]

    print(f"{arguments.dataset}, histories of {arguments.length}, {arguments.rows} rows a batch; {machine()}")
    print(f"{'':34}{'rows':>9}{'updates/s':>11}{'targets/s':>11}{'s per epoch':>13}")
    rates = {}
    for kind, (_, train) in sides.items():
        seconds, targets = zip(*steps[kind][1:], strict=True)
        rates[kind] = sum(targets) / sum(seconds)
        update = statistics.mean(seconds)
        print(f"{kind:34}{len(train.rows):9,}{1 / update:11.2f}{rates[kind]:11.1f}{update * len(train):13.0f}")
    first, second = rates
    print(f"Targets a second: {rates[second] / rates[first]:.1f} times as many.")


if __name__ == "__main__":
    main()
