"""Training time on ml-100k: RecBole's SASRec as RecBole trains it, and LLM2SASRec on every position of a history.

    python benchmarks/training.py                        # seconds per epoch, some ten minutes
    python benchmarks/training.py --stock_curve=FILE     # and the time to stock's best validation score
    python benchmarks/training.py --to_best --write_curve=FILE    # the same after training stock here: hours on a CPU

Stock is RecBole's Config, dataset, loaders, model and Trainer with its defaults for SASRec and cross-entropy: one row
for every prefix, 2,048 rows a batch. Its import of ``sine.py`` turns autograd's anomaly detection on for the whole
process, so an epoch is timed with it, which is what a user of RecBole 1.2.1 has, and without. Ours is the preset
``llm2sasrec_ml-100k`` in this package's trainer. Both sides have the same validation users and targets, which is
checked, and rank all 1,682 items, nothing masked. The epochs of both alternate in one process.

FILE has one line an epoch, ``{"wall": s, "cpu": s, "valid": {"recall@10": .., "ndcg@10": ..}}``, seconds since the
start of training with validation and checkpoints. Our seconds hold the encoding of the item texts as well.
"""

import argparse
import datetime
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import machine

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.trainer.trainer import RunTrainer

METRIC = "ndcg@10"
BAR = 30
PROTOCOL = {
    "topk": [10, 20],
    "metrics": ["Recall", "NDCG", "MRR"],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 6,
    "seed": 2020,
    "use_gpu": False,
    "show_progress": False,
    "normalize_all": True,  # RecBole's ml-100k file has it; it decides the order of almost equal times
}
# What RecBole's Config looks up in numpy, which numpy 2 does not have.
NUMPY_1 = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "float": float, "int": int}
NUMPY_1 |= {"bool": bool, "object": object, "str": str, "long": int, "complex": complex, "unicode": str}


class Clock:
    """Seconds of wall clock and of this process since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Both."""
        return {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}


def stock(arguments: argparse.Namespace, folder: str) -> tuple[Any, Any, Any]:
    """Trainer and loaders of RecBole's SASRec, as its quick start makes them."""
    for name, value in NUMPY_1.items():
        if name not in np.__dict__:
            setattr(np, name, value)
    from recbole.config import Config as RecBoleConfig
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    settings = {"train_neg_sample_args": None, "eval_batch_size": 4096, "checkpoint_dir": folder, "loss_type": "CE"}
    settings |= {"epochs": arguments.max_epochs, "stopping_step": arguments.patience, **PROTOCOL}
    config = RecBoleConfig(model="SASRec", dataset="ml-100k", config_dict=settings)
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    init_seed(config["seed"], True)
    model = get_model("SASRec")(config, train._dataset).to(config["device"])
    return get_trainer(config["MODEL_TYPE"], "SASRec")(config, model), train, valid


def ours(arguments: argparse.Namespace, folder: str) -> tuple[RunTrainer, Any, Any, dict[str, float]]:
    """Trainer and loaders of LLM2SASRec, and the seconds that encoding the item texts took."""
    settings = {"config_files": "llm2sasrec_ml-100k", **PROTOCOL, "mask_history": False, "time_order": "recbole"}
    settings |= {"embedding_cache_dir": folder, "eval_step": 1}
    config = Config("LLM2SASRec", "ml-100k", config_dict=settings, arguments=json.loads(arguments.ours))
    dataset = HistoryDataset(config)
    train, valid, _ = prepare_data(config, dataset)
    from recbole.utils import init_seed

    init_seed(config["seed"], True)
    clock = Clock()
    model = config.model_class(config, train.dataset)
    return RunTrainer(config, model), train, valid, clock.read()


def check_same_targets(theirs: Any, mine: HistoryDataset) -> None:
    """Stop unless both validate on the same items of the same users."""
    pairs = [
        {
            (side.field2id_token["user_id"][user], side.field2id_token["item_id"][item])
            for user, item in zip(side.inter_feat["user_id"], side.inter_feat["item_id"], strict=True)
        }
        for side in (theirs, mine)
    ]
    if pairs[0] != pairs[1] or theirs.item_num != mine.item_num:
        raise SystemExit(f"{len(pairs[0] ^ pairs[1])} validation targets differ between RecBole and this package.")


def epoch_seconds(trainer: Any, train: Any, number: int) -> dict[str, float]:
    """One epoch of training, without validation."""
    clock = Clock()
    trainer._train_epoch(train, number)
    return clock.read()


def stock_curve(arguments: argparse.Namespace, trainer: Any, train: Any, valid: Any) -> list[dict[str, Any]]:
    """RecBole's training to its early stopping; every epoch is printed and, where asked for, written."""
    curve: list[dict[str, Any]] = []
    clock, validate = Clock(), trainer._valid_epoch

    def validate_and_log(*args: Any, **kwargs: Any) -> Any:
        result = validate(*args, **kwargs)
        curve.append({**clock.read(), "valid": dict(result[1])})
        print(f"stock, epoch {len(curve)}: {json.dumps(curve[-1])}", flush=True)
        if arguments.write_curve:
            with Path(arguments.write_curve).open("a", encoding="utf-8") as file:
                file.write(json.dumps(curve[-1]) + "\n")
        return result

    trainer._valid_epoch = validate_and_log
    trainer.fit(train, valid, saved=True, show_progress=False)
    return curve


def our_curve(trainer: RunTrainer, train: Any, valid: Any, before: dict[str, float]) -> list[dict[str, Any]]:
    """Our training to its early stopping, the seconds of ``before`` included."""
    curve: list[dict[str, Any]] = []
    clock = Clock()

    def log(epoch: int, score: float) -> None:
        seconds = {key: value + before[key] for key, value in clock.read().items()}
        curve.append({**seconds, "valid": {METRIC: score}})

    trainer.fit(train, valid, verbose=False, saved=False, callback_fn=log)
    return curve


def best(curve: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Return number (from 1) and line of the epoch with the best score."""
    number = max(range(len(curve)), key=lambda i: curve[i]["valid"][METRIC])
    return number + 1, curve[number]


def first_as_good(curve: list[dict[str, Any]], score: float) -> tuple[int, dict[str, Any]] | None:
    """Return number (from 1) and line of the first epoch that reaches a score."""
    return next(((i + 1, line) for i, line in enumerate(curve) if line["valid"][METRIC] >= score), None)


def row(label: str, seconds: dict[str, float], reference: dict[str, float], note: str = "") -> str:
    """Return a line of the table: seconds, and how many times less than the reference."""
    ratios = [reference[key] / seconds[key] for key in ("wall", "cpu")]
    return f"{label:58}{seconds['wall']:10.1f}{seconds['cpu']:10.1f}{ratios[0]:9.1f}{ratios[1]:9.1f}  {note}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="epochs of stock with and without anomaly detection")
    parser.add_argument("--our_epochs", type=int, default=3, help="of ours before, between and after those of stock")
    parser.add_argument("--stock_curve", help="file with stock's validation scores and seconds")
    parser.add_argument("--to_best", action="store_true", help="train stock until it stops improving")
    parser.add_argument("--write_curve", help="file that the epochs of --to_best are added to")
    parser.add_argument("--max_epochs", type=int, default=300, help="of stock; the preset says ours")
    parser.add_argument("--patience", type=int, default=10, help="epochs without improvement, on both sides")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ours", default="{}", help="settings of ours to change: '{\"llm_init\": false}'")
    arguments = parser.parse_args()
    for key in ("stock_curve", "write_curve"):  # the folder changes below
        if getattr(arguments, key):
            setattr(arguments, key, str(Path(getattr(arguments, key)).resolve()))
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    import sys

    sys.argv = sys.argv[:1]  # RecBole's Config reads it

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # RecBole writes its TensorBoard events into the current folder
        mine, my_train, my_valid, encoding = ours(arguments, folder)
        theirs, their_train, their_valid = stock(arguments, folder)
        check_same_targets(their_valid._dataset, my_valid.dataset)
        seconds: dict[str, list[dict[str, float]]] = {"on": [], "off": [], "ours": []}
        for number in range(arguments.rounds):
            for anomaly in ("on", "off"):
                for _ in range(arguments.our_epochs):
                    torch.autograd.set_detect_anomaly(False)
                    seconds["ours"].append(epoch_seconds(mine, my_train, len(seconds["ours"])))
                torch.autograd.set_detect_anomaly(anomaly == "on")
                seconds[anomaly].append(epoch_seconds(theirs, their_train, number))
                print(f"stock, one epoch, anomaly detection {anomaly}: {seconds[anomaly][-1]}", flush=True)
        torch.autograd.set_detect_anomaly(False)
        for _ in range(arguments.our_epochs):
            seconds["ours"].append(epoch_seconds(mine, my_train, len(seconds["ours"])))

        curves = None
        if arguments.stock_curve or arguments.to_best:
            if arguments.to_best:
                theirs, their_train, their_valid = stock(arguments, folder)
                torch.autograd.set_detect_anomaly(False)
                reference = stock_curve(arguments, theirs, their_train, their_valid)
            else:
                lines = Path(arguments.stock_curve).read_text(encoding="utf-8").splitlines()
                reference = [line for line in map(json.loads, lines) if "wall" in line]
            mine, my_train, my_valid, _ = ours(arguments, folder)
            torch.autograd.set_detect_anomaly(False)
            curves = reference, our_curve(mine, my_train, my_valid, encoding)

    packages = ", ".join(f"{name} {version(name)}" for name in ("recbole", "torch", "numpy"))
    print(f"\nTraining on ml-100k, {datetime.date.today()}; {machine()}, {arguments.threads} thread(s)")
    print(f"Python {platform.python_version()}, {packages}\n")
    print(f"{'':58}{'seconds':>10}{'CPU s':>10}{'ratios':>12}")
    medians = {
        side: {key: statistics.median(run[key] for run in runs) for key in ("wall", "cpu")}
        for side, runs in seconds.items()
    }
    mine_epoch = medians["ours"]
    print(row("SASRec, an epoch, anomaly detection on (as imported)", medians["on"], medians["on"]))
    print(row("SASRec, an epoch, anomaly detection off", medians["off"], medians["off"]))
    print(row("LLM2SASRec, an epoch; ratios to SASRec on", mine_epoch, medians["on"]))
    print(row("LLM2SASRec, an epoch; ratios to SASRec off", mine_epoch, medians["off"]))
    if curves is None:
        return
    (number, line), (my_number, my_line) = best(curves[0]), best(curves[1])
    target = line["valid"][METRIC]
    reached = first_as_good(curves[1], target)
    print(f"\nBest validation NDCG@10, nothing masked: SASRec {target:.4f}, LLM2SASRec {my_line['valid'][METRIC]:.4f}")
    print(row("SASRec to its best, anomaly detection off", line, line, f"{number} epochs"))
    if reached is None:
        print("LLM2SASRec did not reach it.")
        return
    print(row("LLM2SASRec to SASRec's best, encoding included", reached[1], line, f"{reached[0]} epochs"))
    print(row("LLM2SASRec to its own best", my_line, line, f"{my_number} epochs"))
    print(f"Encoding the item texts: {encoding['wall']:.1f} s (CPU {encoding['cpu']:.1f} s), once.")
    if my_line["valid"][METRIC] < target or line["cpu"] / reached[1]["cpu"] < BAR:
        raise SystemExit("Below the bar.")


if __name__ == "__main__":
    main()
