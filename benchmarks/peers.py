"""SASRec of RecTools and of RePlay beside our all-position SASRec and LRURec: same data, size and stopping rule.

    pip install "rectools[torch]" replay-rec lightning "pytorch-optimizer<4"      # in an environment with pandas 2
    python benchmarks/peers.py --dataset=ml-100k --batch=32 --seeds=1,2,3
    python benchmarks/peers.py --dataset=amazon-beauty-2014 --data_path=FOLDER --batch=128

Every library reads the same histories without their last two items, cut to the newest ``--length`` items as it does
by itself (ours trains on older windows, too), with its own network, initial weights, optimizer and training loop, at
the width, depth, dropout, learning rate and batch that are given. After every ``--eval_step`` epochs the validation
item is ranked among all items by our :class:`~recbole_llm.evaluator.ranks.RankCollector`, history masked; training
stops after ``--patience`` rankings without a better NDCG@10, and the best weights are tested. CPU seconds are those of
training alone, up to the best epoch and in all. Every run is a process of its own, so that peak memory is its own. A
library that is not installed is skipped, and the table says so.
"""

import argparse
import copy
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import machine

from recbole_llm import __version__
from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.evaluator.metrics import RANK_METRICS
from recbole_llm.evaluator.ranks import RankCollector
from recbole_llm.run.experiment import experiment

ROWS = {"RePlay SasRec": "replay-rec", "RecTools SASRec": "rectools", "ours, all positions": None, "LRURec": None}
USERS_AT_ONCE = 512
Scores = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Split:
    """Leave-one-out split: items 1 to ``n_items``, 0 is padding.

    Attributes
    ----------
    histories : arrays of int
        Every user's items in the order of time; the last is the test item, the one before for validation.
    """

    histories: list[np.ndarray]
    n_items: int

    def train(self) -> list[np.ndarray]:
        """Histories to train on."""
        return [items[:-2] for items in self.histories]


@dataclass
class Course:
    """Validations of a training run, its stopping rule and its best weights."""

    split: Split
    options: argparse.Namespace
    best: float = -1.0
    misses: int = 0
    epochs: int = 0
    best_epoch: int = 0
    cpu_to_best: float = 0.0
    weights: dict[str, Any] = field(default_factory=dict)
    _spent: float = 0.0
    _since: float = 0.0

    def begin(self) -> None:
        """Start the clock."""
        self._since = time.process_time()

    def epoch_ended(self, model: torch.nn.Module, scores: Scores) -> bool:
        """Validate where it is time to; return whether training ends. What validation takes is not counted."""
        self._spent += time.process_time() - self._since
        self.epochs += 1
        if self.epochs % self.options.eval_step == 0:
            model.eval()
            found = evaluate(self.split, scores, self.options.length, part=-2)["ndcg@10"]
            model.train()
            self.misses += 1
            if found > self.best:
                self.best, self.misses, self.best_epoch, self.cpu_to_best = found, 0, self.epochs, self._spent
                self.weights = copy.deepcopy(model.state_dict())
        self._since = time.process_time()
        return self.misses >= self.options.patience

    def result(self, model: torch.nn.Module, scores: Scores) -> dict[str, float]:
        """Test the best weights."""
        model.load_state_dict(self.weights)
        model.eval()
        tested = evaluate(self.split, scores, self.options.length, part=-1)
        return {
            **tested,
            "valid": self.best,
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "cpu_to_best": self.cpu_to_best,
            "cpu": self._spent,
        }


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that our rows have in common."""
    return {
        "MAX_ITEM_LIST_LENGTH": options.length,
        "hidden_size": options.width,
        "train_batch_size": options.batch,
        "learning_rate": options.learning_rate,
        "epochs": options.epochs,
        "eval_step": options.eval_step,
        "stopping_step": options.patience,
        "seed": options.seed,
        "use_gpu": False,
        "show_progress": False,
        "topk": [10],
        "metrics": ["Recall", "NDCG"],
        "valid_metric": "NDCG@10",
        **({"data_path": options.data_path} if options.data_path else {}),
    }


def read(options: argparse.Namespace) -> Split:
    """Read the data as a run does."""
    dataset = HistoryDataset(Config("LRURec", options.dataset, config_dict=settings_of(options)))
    dataset.build()
    items = dataset.flat[dataset.iid_field].numpy()
    bounds = dataset.offsets
    histories = [items[start:end] for start, end in zip(bounds[1:-1], bounds[2:], strict=True)]
    short = sum(len(each) < 4 for each in histories)
    if short:
        raise SystemExit(f"{short} users have fewer than four interactions: filter them, for all libraries alike.")
    return Split(histories, dataset.item_num - 1)


def padded(histories: list[np.ndarray], length: int) -> torch.Tensor:
    """Return the newest items of every history, padded on the left; shape (histories, length)."""
    rows = np.zeros((len(histories), length), dtype=np.int64)
    for row, items in zip(rows, histories, strict=True):
        newest = items[-length:]
        row[length - len(newest) :] = newest
    return torch.from_numpy(rows)


@torch.no_grad()
def evaluate(split: Split, scores: Scores, length: int, part: int) -> dict[str, float]:
    """Rank the item at place ``part`` of every history among all that the user did not have before.

    Parameters
    ----------
    scores : callable
        From (B, length) items to (B, n_items + 1) scores.
    """
    collector = RankCollector()
    for start in range(0, len(split.histories), USERS_AT_ONCE):
        users = split.histories[start : start + USERS_AT_ONCE]
        before = [items[:part] for items in users]
        had = [np.unique(items) for items in before]
        rows = np.repeat(np.arange(len(users)), [len(items) for items in had])
        collector.collect(
            scores(padded(before, length)),
            torch.arange(start, start + len(users)),
            torch.tensor([int(items[part]) for items in users]),
            (torch.from_numpy(rows), torch.from_numpy(np.concatenate(had))),
        )
    ranks = collector.finish()
    return {f"{name}@10": float(RANK_METRICS[name](ranks.masked, 10).mean()) for name in ("recall", "ndcg")}


# ---- RePlay


def replay(split: Split, options: argparse.Namespace) -> dict[str, float]:
    """RePlay's SasRec and LightningModule with their defaults where nothing is given."""
    import lightning
    from replay.data import FeatureHint, FeatureSource, FeatureType
    from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
    from replay.nn.lightning import LightningModule
    from replay.nn.lightning.optimizer import OptimizerFactory
    from replay.nn.sequential import SasRec

    lightning.seed_everything(options.seed, verbose=False)
    padding = split.n_items  # RePlay counts items from 0
    source = TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")
    info = TensorFeatureInfo(
        "item_id",
        FeatureType.CATEGORICAL,
        is_seq=True,
        embedding_dim=options.width,
        padding_value=padding,
        cardinality=split.n_items,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[source],
    )
    model = SasRec.from_params(
        TensorSchema([info]),
        embedding_dim=options.width,
        num_heads=options.heads,
        num_blocks=options.layers,
        max_sequence_length=options.length,
        dropout=options.dropout,
        hidden_dim=4 * options.width,
    )

    def batch_of(items: torch.Tensor) -> dict[str, Any]:
        mask = items > 0
        return {"feature_tensors": {"item_id": torch.where(mask, items - 1, padding)}, "padding_mask": mask}

    def collate(histories: list[np.ndarray]) -> dict[str, Any]:
        items = padded(histories, options.length + 1)
        labels = items[:, 1:, None]
        wanted = (labels > 0) & (items[:, :-1, None] > 0)
        return {
            **batch_of(items[:, :-1]),
            "positive_labels": torch.where(wanted, labels - 1, padding),
            "target_padding_mask": wanted,
        }

    def scores(items: torch.Tensor) -> torch.Tensor:
        logits = model(**batch_of(items))["logits"]
        return torch.cat([torch.full((len(items), 1), -torch.inf), logits[:, : split.n_items]], dim=1)

    course = Course(split, options)
    loader = torch.utils.data.DataLoader(
        [items for items in split.train() if len(items) > 1],  # type: ignore[arg-type]
        batch_size=options.batch,
        shuffle=True,
        collate_fn=collate,
    )
    module = LightningModule(model, optimizer_factory=OptimizerFactory(learning_rate=options.learning_rate))
    lightning_trainer(lightning, course, model, scores).fit(module, loader)
    return course.result(model, scores)


def lightning_trainer(library: Any, course: Course, model: torch.nn.Module, scores: Scores) -> Any:
    """Return a quiet Lightning trainer that follows the course's stopping rule."""

    class Stops(library.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, module: Any) -> None:
            course.begin()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.should_stop = course.epoch_ended(model, scores)

    return library.Trainer(
        max_epochs=course.options.epochs,
        min_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[Stops()],
    )


# ---- RecTools


def rectools(split: Split, options: argparse.Namespace) -> dict[str, float]:
    """RecTools' SASRecModel with its defaults where nothing is given."""
    import pandas as pd
    import pytorch_lightning
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel
    from rectools.models.nn.transformers.lightning import TransformerLightningModule

    pytorch_lightning.seed_everything(options.seed, verbose=False)
    train = split.train()
    place = np.concatenate([np.arange(len(items)) for items in train])
    table = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(train)), [len(items) for items in train]),
            Columns.Item: np.concatenate(train),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(place, unit="s"),
        }
    )
    course = Course(split, options)
    peer: dict[str, torch.nn.Module] = {}

    class Module(TransformerLightningModule):  # type: ignore[misc]
        """Theirs; says where the network is before training starts."""

        def on_train_start(self) -> None:
            peer["model"] = self.torch_model
            super().on_train_start()

    def scores(items: torch.Tensor) -> torch.Tensor:
        known = torch.from_numpy(inner)
        embeddings = peer["model"].item_model.get_all_embeddings()
        session = peer["model"].encode_sessions({"x": known[items]}, embeddings)[:, -1]
        logits = session @ embeddings.T
        return torch.where(known > 0, logits[:, known], -torch.inf)

    def trainer() -> Any:
        return lightning_trainer(pytorch_lightning, course, _Later(peer), scores)

    model = SASRecModel(
        n_blocks=options.layers,
        n_heads=options.heads,
        n_factors=options.width,
        dropout_rate=options.dropout,
        session_max_len=options.length,
        loss="softmax",
        lr=options.learning_rate,
        batch_size=options.batch,
        lightning_module_type=Module,
        get_trainer_func=trainer,
    )
    # Items that nobody has in training are not in its table; they get no score.
    inner = np.zeros(split.n_items + 1, dtype=np.int64)
    dataset = Dataset.construct(table)
    model._build_model_from_dataset(dataset)  # the mapping of items, which fit makes in the same way
    for place_there, item in enumerate(model.data_preparator.item_id_map.external_ids):
        if not isinstance(item, str):  # padding
            inner[int(item)] = place_there
    pytorch_lightning.seed_everything(options.seed, verbose=False)
    model.fit(dataset)
    return course.result(peer["model"], scores)


class _Later(torch.nn.Module):
    """Stands for a network that the library builds later."""

    def __init__(self, peer: dict[str, torch.nn.Module]) -> None:
        super().__init__()
        self.__dict__["peer"] = peer

    def train(self, mode: bool = True) -> "torch.nn.Module":
        return self.peer["model"].train(mode)

    def eval(self) -> "torch.nn.Module":
        return self.train(False)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return self.peer["model"].state_dict(*arguments, **options)


# ---- ours


def ours(model: str, own: dict[str, Any], split: Split, options: argparse.Namespace) -> dict[str, float]:
    """Run one of our rows in our trainer, with the same stopping rule."""
    course = Course(split, options)
    start: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = Config(model, options.dataset, config_dict={**settings_of(options), **own, "checkpoint_dir": folder})
        run_dir = Path(folder) / "run"
        run_dir.mkdir()

        def validated(trainer: Any) -> None:
            start.append(trainer.meter.cpu_seconds.get("train", 0.0))
            if trainer.best_valid_score > course.best:
                course.best, course.cpu_to_best = float(trainer.best_valid_score), start[-1]

        experiment(config, run_dir, on_validation=validated)
        results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    return {
        **{name: results["test_masked"][name] for name in ("recall@10", "ndcg@10")},
        "valid": results["best_valid_score"],
        "epochs": results["epochs"],
        "best_epoch": results["stages"][-1]["best_epoch"],
        "cpu_to_best": course.cpu_to_best,
        "cpu": results["cpu_seconds"]["train"],
    }


def row_of(name: str, options: argparse.Namespace) -> Callable[[Split, argparse.Namespace], dict[str, float]]:
    """Return what runs a row."""
    twin = {
        "llm_init": False,
        "n_layers": options.layers,
        "n_heads": options.heads,
        "inner_size": 4 * options.width,
        "hidden_dropout_prob": options.dropout,
        "attn_dropout_prob": options.dropout,
    }
    lru = {"n_layers": options.layers, "dropout": options.dropout}
    return {
        "RePlay SasRec": replay,
        "RecTools SASRec": rectools,
        "ours, all positions": partial(ours, "LLM2SASRec", twin),
        "LRURec": partial(ours, "LRURec", lru),
    }[name]


# ---- table


def one(options: argparse.Namespace) -> None:
    """Run one row with one seed; the last line of the output is its result as JSON."""
    torch.set_num_threads(1)
    result = row_of(options.one, options)(read(options), options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result["peak_mb"] = peak / (2**20 if sys.platform == "darwin" else 2**10)
    print(json.dumps(result), flush=True)


def missing(package: str | None) -> str | None:
    """Return why a row is skipped, if it is."""
    try:
        return None if package is None or version(package) else None
    except PackageNotFoundError:
        return f"{package} is not installed"


def runs(name: str, options: argparse.Namespace, arguments: list[str]) -> Iterator[dict[str, float]]:
    """Run a row with every seed, each in a process of its own."""
    for seed in options.seeds.split(","):
        command = [sys.executable, __file__, *arguments, f"--one={name}", f"--seed={seed}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield json.loads(done.stdout.splitlines()[-1])


def table(options: argparse.Namespace, arguments: list[str]) -> None:
    """Run and print everything."""
    print(f"{options.dataset}; {machine()}; Python {platform.python_version()}, torch {version('torch')}\n")
    heads = ["recall@10", "ndcg@10", "valid", "best_epoch", "cpu_to_best", "cpu", "peak_mb"]
    print("| | version | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 2) + "|", flush=True)
    for name, package in ROWS.items():
        reason = missing(package)
        if reason:
            print(f"| {name} | {reason} |" + " |" * len(heads), flush=True)
            continue
        found = list(runs(name, options, arguments))
        shown = [_mean(head, [each[head] for each in found]) for head in heads]
        print(f"| {name} | {version(package) if package else __version__} | " + " | ".join(shown) + " |", flush=True)


def _mean(head: str, values: list[float]) -> str:
    places = 4 if max(values) < 1 else 1
    spread = f" ± {np.std(values, ddof=1):.{places}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{places}f}{spread}"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--seeds", default="1", help="comma-separated")
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=list(ROWS), help="run one row and print its result as JSON")
    for name, default in (("batch", 32), ("length", 50), ("width", 64), ("layers", 2), ("heads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("epochs", 100), ("eval_step", 2), ("patience", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    options = parser.parse_args()
    if options.one:
        one(options)
    else:
        table(options, sys.argv[1:])


if __name__ == "__main__":
    main()
