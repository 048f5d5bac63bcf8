"""What resuming needs beside weights, optimizer and random numbers."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any


def values_of(trainer: Any, next_epoch: int, next_batch: int = 0, sums: Sequence[float] = ()) -> dict[str, Any]:
    """Everything that a trainer counts and keeps, as JSON takes it.

    Parameters
    ----------
    trainer : RunTrainer
    next_epoch, next_batch : int
        Where training goes on.
    sums : sequence of float
        Loss of the epoch so far, see :class:`recbole_llm.trainer.accumulation.LossMean`.
    """
    early = trainer.early_stopping
    return {
        "stage": trainer.stage.number,
        "next_epoch": next_epoch,
        "next_batch": next_batch,
        "loss_sums": list(sums),
        "updates": trainer.updates,
        "misses": early.misses,
        "best_valid_score": early.score,
        "best_valid_result": early.result,
        "best_epoch": early.epoch,
        "stage_results": trainer.stage_results,
        "curve": trainer.curve,
        "seconds": trainer.meter.seconds,
        "peak_memory_mb": trainer.meter.peak_memory_mb,
        "scaler": trainer.steps.scaler.state_dict(),
    }


def restore(trainer: Any, values: Mapping[str, Any]) -> None:
    """Put :func:`values_of` back into a trainer that has entered the stage."""
    early = trainer.early_stopping
    early.score, early.epoch, early.misses = values["best_valid_score"], values["best_epoch"], values["misses"]
    if values["best_valid_result"] is not None:
        early.result = OrderedDict(values["best_valid_result"])
    trainer.start_epoch = trainer.stage.epochs if early.stopped else values["next_epoch"]
    trainer.start_batch, trainer.start_sums = values["next_batch"], values["loss_sums"]
    trainer.steps.count = values["updates"]
    trainer.stage_results, trainer.curve = values["stage_results"], values["curve"]
    trainer.meter.seconds, trainer.meter.peak_memory_mb = values["seconds"], values["peak_memory_mb"]
    trainer.steps.scaler.load_state_dict(values["scaler"])
