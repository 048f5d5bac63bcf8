"""What the processes of tests/test_distributed.py do: importable by name, without pytest."""

import atexit
import os
import signal
from pathlib import Path
from typing import Any

import torch

from recbole_llm import distributed
from recbole_llm.errors import ConfigError

SMALL = {"hidden_size": 8, "inner_size": 8, "n_heads": 1, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 8}
NO_DROPOUT = {"dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout": 0.0}


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "llm": "tiny-random-t5",
        "data_path": str(folder / "data"),
        "checkpoint_dir": str(folder / "saved"),
        "embedding_cache_dir": str(folder / "cache"),
        "train_batch_size": 64,
        "show_progress": False,
        "use_gpu": False,
        "epochs": 2,
        **more,
    }


def prepare(folder: Path, model: str, **more: Any):
    from recbole_llm.config import Config
    from recbole_llm.data.dataset import HistoryDataset
    from recbole_llm.data.loader import prepare_data

    config = Config(model, "cycle", config_dict=settings(folder, **SMALL, **NO_DROPOUT, **more))
    loaders = prepare_data(config, HistoryDataset(config))
    torch.manual_seed(0)
    return config, config.model_class(config, loaders[0].dataset), *loaders


def rows(folder: Path) -> dict[str, list[tuple]]:
    """Targets and histories that this process trains on in one epoch of each view."""
    found = {}
    for view in ("prefix", "segment", "sequence"):
        _, _, train, *_ = prepare(folder, "SASRec", train_view=view, train_batch_size=50)
        found[view] = []
        for number, batch in enumerate(train):
            if train.share(number):
                for user, item, items in zip(batch["user_id"], batch["item_id"], batch["item_id_list"], strict=True):
                    found[view].append((number, int(user), int(item), tuple(items.tolist())))
    return found


TRAINED = {
    # Of 309 rows, the last batch has one: the other process has none.
    "SASRec": {"train_batch_size": 77},
    # Its loss is a mean over targets, of which the rows have different numbers.
    "LRURec": {"train_batch_size": 7, "first_item_target": True, "clip_grad_norm": 0.5, "accumulate_grad_batches": 2},
}
# The same by rows of the item table. All items are negatives: processes would draw different ones.
TRAINED["LRURec by rows"] = {
    **TRAINED["LRURec"],
    **{"loss": "sampled_softmax", "num_negatives": 100, "learner": "adam", "sparse_item_gradients": True},
}


def train(folder: Path, model: str) -> dict[str, Any]:
    """Weights after an epoch of plain gradient descent, and its loss."""
    from recbole_llm.trainer.trainer import RunTrainer

    given = {"learner": "sgd", "weight_decay": 0.0, **TRAINED[model]}
    config, network, loader, *_ = prepare(folder, model.split()[0], learning_rate=0.5, **given)
    trainer = RunTrainer(config, network)
    trainer.steps.optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    loss = trainer._train_epoch(loader, 0)
    # Not tensors: theirs is memory that ends with the process.
    weights = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    of_all = distributed.gather(weights)
    return {"loss": loss, "rows": loader.sample_size, "weights": weights, "of_all": of_all}


def average() -> list[Any]:
    """Gradients averaged by rows: of both processes, of one, of none."""
    from recbole_llm.layer.gathering import gather_rows
    from recbole_llm.trainer.gradients import average_rows

    found: list[Any] = []
    for rows in ([[1, 2, 2], [2, 5]], [[], [4]], [None, [3]], [None, None]):
        table = torch.nn.Parameter(torch.zeros(7, 2))
        own = rows[distributed.world().rank]
        if own is not None:
            gather_rows(table, torch.tensor(own, dtype=torch.long), sparse=True).sum().backward()
        average_rows(table)
        found.append(None if table.grad is None else table.grad.to_dense()[:, 0].tolist())
    return found


EVALUATED = {
    "full": {"eval_batch_size": 5, "metrics": ["NDCG", "Recall", "ItemCoverage", "Novelty", "Serendipity"]},
    "one batch": {"eval_batch_size": 500},
    "sampled": {"eval_batch_size": 60, "eval_args": {"mode": "uni9"}},
}


def evaluate(folder: Path, case: str) -> dict[str, Any]:
    """Metrics and ranks of one set of weights; the ranks on the main process only."""
    from recbole_llm.trainer.trainer import RunTrainer

    config, network, loader, _, test = prepare(folder, "SASRec", **EVALUATED[case])
    with torch.no_grad():
        network.item_embedding.weight.mul_(50)  # scores that differ
    trainer = RunTrainer(config, network, train_counts=loader.dataset.train_counts)
    masked = trainer.evaluate(test, load_best_model=False)
    return {
        "masked": masked,
        "unmasked": trainer.evaluation.unmasked,
        "ranks": trainer.evaluation.ranks,
        "batches": len(test),
    }


class Stop(Exception):
    """Stands for a killed process."""


def resume(folder: Path) -> dict[str, Any]:
    """A run of two stages, stopped in its second stage on all processes; then the rest of it."""
    from recbole_llm.quick_start import run
    from recbole_llm.trainer.trainer import RunTrainer

    more = {"checkpoint_dir": str(folder / "stopped"), "epochs": 2, "learning_rate": 0.01}
    original, calls = RunTrainer._train_epoch, []

    def stopping(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) == 4:
            raise Stop
        return original(self, *arguments, **keywords)

    RunTrainer._train_epoch = stopping
    try:
        run("LiteLLM4Rec", "cycle", config_dict=settings(folder, **more))
    except Stop:
        pass
    finally:
        RunTrainer._train_epoch = original
    if torch.distributed.is_initialized():  # where a run ends by an error, its processes usually end as well
        torch.distributed.destroy_process_group()
    torch.manual_seed(99)
    return run("LiteLLM4Rec", "cycle", config_dict=settings(folder, **more, resume=True))


def everything(folder: Path) -> dict[str, Any]:
    """All that two processes do together, in one start of them."""
    torch.set_num_threads(1)
    from recbole_llm.quick_start import run
    from recbole_llm.text import encoder

    answers: dict[str, Any] = {}
    with distributed.group(60) as here:
        answers["rows"] = distributed.gather(rows(folder))
        answers["trained"] = {model: train(folder, model) for model in TRAINED}
        answers["evaluated"] = {case: evaluate(folder, case) for case in EVALUATED}
        answers["averaged"] = distributed.gather(average())
        answers["draws"] = distributed.gather(torch.rand(3).tolist())

        def refuse() -> None:
            raise ConfigError("refused by the main process")

        try:
            distributed.from_main(refuse)
        except ConfigError as error:
            answers["refused"] = distributed.gather(str(error))

    encoded: list[int] = []
    original = encoder.TextEncoder.encode

    def counted(self, texts, *arguments, **keywords):
        encoded.append(len(texts))
        return original(self, texts, *arguments, **keywords)

    encoder.TextEncoder.encode = counted
    answers["whole"] = run("LiteLLM4Rec", "cycle", config_dict=settings(folder, learning_rate=0.01))
    answers["again"] = resume(folder)
    more = {**SMALL, "item_attribute": "title", "pretrain_epochs": 1, "epochs": 1}
    of_litellm4rec = sum(encoded)
    answers["S3Rec"] = run("S3Rec", "cycle", config_dict=settings(folder, **more))
    answers["LLMSeqSim"] = run("LLMSeqSim", "cycle", config_dict=settings(folder, epochs=0, reduced_dim=4))
    with distributed.group(60):
        answers["encoded"] = distributed.gather(of_litellm4rec)
    return answers if here.is_main else {}


def fail(how: str) -> None:
    """The second process ends while the first waits for it."""
    with distributed.group(60) as here:
        distributed.barrier()
        if here.rank == 1 and how == "error":
            raise ConfigError("the second process has an error")
        if here.rank == 1 and how.startswith("interrupt"):
            if "abort" in how:
                atexit.register(os.abort)
            # A shell's background jobs ignore the signal.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGINT)
        distributed.barrier()
