"""Saving and resuming training: the trainer's own values, besides weights, optimizer and random states."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_llm import distributed
from recbole_llm.trainer import checkpoint


def values_of(trainer: Any, epochs: int, batches: int = 0, sums: Sequence[float] = ()) -> dict[str, Any]:
    """Return the trainer's own values as JSON data.

    Parameters
    ----------
    trainer : RunTrainer
    epochs, batches : int
        Epochs of the stage that are finished, and batches of the next one.
    sums : sequence of float
        Loss of the epoch so far, see :class:`recbole_llm.trainer.accumulation.LossMean`.
    """
    early = trainer.early_stopping
    return {
        "stage": trainer.stage.number,
        "finished_epochs": epochs,
        "finished_batches": batches,
        "loss_sums": list(sums),
        "updates": trainer.updates,
        "misses": early.misses,
        "best_valid_score": early.score,
        "best_valid_result": early.result,
        "best_epoch": early.epoch,
        "stage_results": trainer.stage_results,
        "curve": trainer.curve,
        "seconds": trainer.meter.seconds,
        "cpu_seconds": trainer.meter.cpu_seconds,
        "peak_memory_mb": trainer.meter.peak_memory_mb,
        "scaler": trainer.steps.scaler.state_dict(),
    }


def result_of_stage(trainer: Any) -> dict[str, Any]:
    """Summarise a finished stage for ``results.json``."""
    early = trainer.early_stopping
    return {
        "stage": trainer.stage.name,
        "best_epoch": early.epoch,
        "best_updates": _best_updates(trainer),
        "updates": trainer.updates,
        "planned_updates": trainer.steps.total,
        "valid_metric": trainer.stage.settings["valid_metric"],
        "best_valid_score": None if early.epoch is None else trainer.best_valid_score,
        "best_valid_result": early.result,
    }


def _best_updates(trainer: Any) -> int:
    """Optimizer steps after which the kept weights stood; 0 where the stage did not improve on its start."""
    early, stage = trainer.early_stopping, trainer.stage.name
    rows = [row for row in trainer.curve if (row["stage"], row["epoch"]) == (stage, early.epoch)]
    best = [row["updates"] for row in rows if row.get("valid_score", early.score) == early.score]
    return best[0] if best else 0


def save(trainer: Any, run_dir: Path, epochs: int, batches: int = 0, sums: Sequence[float] = ()) -> None:
    """Write the training state of all processes; see :func:`values_of`."""
    values = values_of(trainer, epochs, batches, sums)
    random_states = distributed.gather(checkpoint.random_state(trainer.device))
    if random_states is not None:
        folder = run_dir / checkpoint.STATE
        checkpoint.save_state(folder, trainer.model, trainer.steps.optimizer, values, random_states)


def restore(trainer: Any, run_dir: Path) -> bool:
    """Restore the state of :func:`save` in a new trainer; return False if nothing was saved yet."""
    folder = distributed.from_main(lambda: checkpoint.state_folder(run_dir))
    if folder is None:
        return False
    trainer.save_to_files(True)
    saved = distributed.from_main(lambda: checkpoint.read_whole_state(folder))
    for number in range(1, saved.values["stage"] + 1):
        trainer.start_stage(number)
    world = trainer.world
    values = checkpoint.load_state(saved, trainer.model, trainer.steps.optimizer, world.rank, trainer.device)
    if len(saved.random) != world.size:
        trainer.logger.warning(
            f"{run_dir} was trained with {len(saved.random)} process(es) so far and goes on with {world.size}: "
            "batches are the same, but dropout and negatives are not those of an uninterrupted run."
        )
    early = trainer.early_stopping
    early.score, early.epoch, early.misses = values["best_valid_score"], values["best_epoch"], values["misses"]
    if values["best_valid_result"] is not None:
        early.result = OrderedDict(values["best_valid_result"])
    trainer.start_epoch = trainer.stage.epochs if early.stopped else values["finished_epochs"]
    trainer.start_batch, trainer.start_sums = values["finished_batches"], values["loss_sums"]
    trainer.steps.count = values["updates"]
    trainer.stage_results, trainer.curve = values["stage_results"], values["curve"]
    meter = trainer.meter
    meter.seconds, meter.cpu_seconds = values["seconds"], values["cpu_seconds"]
    meter.peak_memory_mb = values["peak_memory_mb"]
    trainer.steps.scaler.load_state_dict(values["scaler"])
    trainer.logger.info(
        f"Resuming {run_dir}: stage {trainer.stage.name!r}, epoch {values['finished_epochs'] + 1} comes next"
        + (f", after {trainer.start_batch} of its batches." if trainer.start_batch else ".")
    )
    return True
