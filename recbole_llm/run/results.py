"""``results.json``, its entry about cold items, and ``test_ranks.npz`` of a finished run."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.checksums import recorded, write_json
from recbole_llm.config import Config
from recbole_llm.config.values import SECRETS
from recbole_llm.data.cold import ColdItems
from recbole_llm.data.controls import control_of, label
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import CheckpointError
from recbole_llm.evaluator.metrics import of_ranks
from recbole_llm.evaluator.ranks import Ranks
from recbole_llm.files import file_sha256
from recbole_llm.run.folder import RESULTS, TRAINED, remove_unfinished, settings_of
from recbole_llm.run.identity import plain
from recbole_llm.run.protocol import FILTERS, evaluation_text, protocol_text
from recbole_llm.run.provenance import command_line, environment, files_read
from recbole_llm.trainer import checkpoint
from recbole_llm.trainer.meter import Meter
from recbole_llm.trainer.trainer import RunTrainer


def training_record(config: Config, trainer: RunTrainer, meter: Meter) -> dict[str, Any]:
    """Return the training part of ``results.json``, which ``trained.json`` keeps until there are results.

    ``meter`` measured what came before the trainer.
    """
    return plain(
        {
            "best_valid_score": trainer.best_valid_score if np.isfinite(trainer.best_valid_score) else None,
            "best_valid_result": trainer.best_valid_result,
            "chosen_from": trainer.chosen_from or None,
            "stages": trainer.stage_results,
            "epochs": len(trainer.curve),
            "updates": sum(stage["updates"] for stage in trainer.stage_results),
            "batch": {
                "rows_per_update": config["train_batch_size"] * trainer.stage.accumulate,
                "processes": trainer.world.size,
                "rows_per_process": -(-config["train_batch_size"] // trainer.world.size),
            },
            "sparse_item_gradients": bool(trainer.model.row_sparse_parameters()),
            "train_rows": trainer.train_rows,
            "parameters": {
                "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
                "all": sum(p.numel() for p in trainer.model.parameters()),
            },
            "language_models": trainer.model.provenance(),
            "auto": config.auto_models,
            "seconds": {**meter.seconds, "train": 0.0, "valid": 0.0, **trainer.meter.seconds},
            "cpu_seconds": {**meter.cpu_seconds, "train": 0.0, "valid": 0.0, **trainer.meter.cpu_seconds},
            "phase_peak_memory_mb": {**meter.peak_memory_mb, **trainer.meter.peak_memory_mb},
            "notices": config.notices,
            "command": command_line(sys.argv),
        }
    )


def results_of(
    config: Config,
    dataset: HistoryDataset,
    trainer: RunTrainer,
    training: Mapping[str, Any],
    test_result: Mapping[str, float] | None,
    members: list[dict[str, Any]] | None = None,
    inference: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the content of ``results.json``: metrics with protocol and provenance.

    Parameters
    ----------
    config, dataset, trainer : of the run
    training : mapping
        :func:`training_record`, of this process or an earlier one.
    test_result : mapping, optional
    members : list, optional
        Results of a hybrid's members on the same data.
    inference : mapping, optional
        What :func:`recbole_llm.evaluator.timing.inference_times` found.
    """
    model = trainer.model
    seconds = {**training["seconds"], **_of_evaluation(trainer.meter.seconds)}
    cpu_seconds = {**training.get("cpu_seconds", {}), **_of_evaluation(trainer.meter.cpu_seconds)}
    peaks = {**training["phase_peak_memory_mb"], **_of_evaluation(trainer.meter.peak_memory_mb)}
    return plain(
        {
            "model": config["model"],
            "label": label(config),
            "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
            "smoke": bool(config["smoke"]),
            "final_fit": config["final_fit"],
            "protocol": {
                "text": protocol_text(config),
                "evaluation": evaluation_text(config),
                "name": config["protocol"],
                "control": control_of(config),
                "mask_history": config["mask_history"],
                "eval_args": config["eval_args"],
                "time_order": config["time_order"],
                "max_item_list_length": config["MAX_ITEM_LIST_LENGTH"],
                "ties": "equal scores by smaller internal id",
                "valid_metric": config["valid_metric"],
                "seed": config["seed"],
            },
            "best_valid_score": training["best_valid_score"],
            "best_valid_result": training["best_valid_result"],
            **test_figures(trainer, test_result, members),
            **{key: training[key] for key in ("chosen_from", "stages", "epochs", "updates", "batch")},
            "dataset": {
                "name": config["dataset"],
                "users": dataset.user_num - 1,
                "items": dataset.item_num - 1,
                "interactions": len(dataset.flat),
                "train_rows": training["train_rows"],
                "temporal_session": dataset.sessions.counts if dataset.sessions else None,
                "filters": {key: config[key] for key in FILTERS if config[key] is not None},
                "files": {path.name: file_sha256(path) for path in files_read(dataset, model)},
            },
            "language_models": training["language_models"],
            "auto": training.get("auto", []),
            "parameters": training["parameters"],
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "cpu_seconds": {name: round(value, 3) for name, value in cpu_seconds.items()},
            "inference": inference,
            "peak_memory_mb": round(max(peaks.values())),
            "phase_peak_memory_mb": {name: round(value) for name, value in peaks.items()},
            "environment": environment(config["device"]),
            "notices": list(dict.fromkeys([*training["notices"], *config.notices])),
            "command": training["command"],
            "settings": {key: value for key, value in config.merged.items() if key not in SECRETS},
        }
    )


def _of_evaluation(phases: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in phases.items() if name.startswith(("test", "retrieve"))}


def test_figures(
    trainer: RunTrainer, test_result: Mapping[str, float] | None, members: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Return the results of the last evaluation, that of the test set; all None if there was none."""
    found = trainer.evaluation if test_result is not None else None
    ranks = found.ranks if found else None
    cold = found.dataset.cold if found else None
    return {
        "test_result": test_result,
        "test_masked": found.masked if found else None,
        "test_unmasked": found.unmasked if found else None,
        "model_report": found.report if found else None,
        "retrieval": found.retrieval if found else None,
        "members": members,
        "cold_items": cold_report(trainer.config, ranks, cold) if ranks and cold else None,
        "tied_targets": ranks.tied if ranks else None,
        "targets_in_history": ranks.targets_in_history if ranks else None,
    }


def write_training_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write ``trained.json``, from which results can later be computed without training."""
    write_json(run_dir / TRAINED, {**record, "weights": _weights_of(run_dir)})


def read_training_record(run_dir: Path) -> dict[str, Any]:
    """:func:`training_record` of a run whose training has ended, finished or not.

    Raises
    ------
    CheckpointError
        If training has not ended, or the file is damaged.
    """
    settings_of(run_dir)
    if (run_dir / RESULTS).is_file():
        results = read_results(run_dir)
        return {**results, "train_rows": results["dataset"]["train_rows"]}
    if not (run_dir / TRAINED).is_file():
        raise CheckpointError(
            f"{run_dir} is not finished: its training has not ended. Continue it with `recbole-llm "
            f"--resume={run_dir}`."
        )
    return read_json(run_dir / TRAINED)


def _weights_of(run_dir: Path) -> dict[str, str]:
    return {"file": checkpoint.WEIGHTS, "sha256": file_sha256(run_dir / checkpoint.WEIGHTS)}


def save_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write an ``.npz`` file atomically, with its checksum."""
    with recorded(file) as temporary, temporary.open("wb") as out:
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]


class _Record(dict[str, Any]):
    """An object of a JSON file that was written whole: reading a key that is missing is a CheckpointError."""

    file = ""

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self.file} is damaged or of another version: {key!r} is missing.")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a run directory; CheckpointError if it is damaged, also when a missing key is read."""

    def record(content: dict[str, Any]) -> _Record:
        found = _Record(content)
        found.file = str(file)
        return found

    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_hook=record)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}).") from error
    if not isinstance(content, _Record):
        raise CheckpointError(f"{file} is damaged (it holds no JSON object).")
    return content


def write_results(run_dir: Path, results: Mapping[str, Any], trainer: RunTrainer) -> None:
    """Write ``test_ranks.npz`` and then ``results.json``, whose presence marks a finished run."""
    write_ranks(run_dir, results, trainer)
    trainer.model.save_adapter(run_dir / "adapter")
    write_json(run_dir / RESULTS, {**results, "weights": _weights_of(run_dir)})
    remove_unfinished(run_dir)


def write_evaluation(folder: Path, results: Mapping[str, Any], trainer: RunTrainer) -> None:
    """Write ``test_ranks.npz`` and ``results.json`` of an evaluation beside those of the run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_ranks(folder, results, trainer)
        write_json(folder / RESULTS, results)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}. Name another folder with --out.") from error


def write_ranks(folder: Path, results: Mapping[str, Any], trainer: RunTrainer) -> None:
    """Ranks of all targets of the test set, in raw ids."""
    if results["test_result"] is not None:
        evaluation, counts = trainer.evaluation, trainer.evaluator.train_counts
        assert evaluation is not None and evaluation.ranks is not None and counts is not None
        ranks, dataset = evaluation.ranks, evaluation.dataset
        save_arrays(
            folder / "test_ranks.npz",
            user=dataset.id2token(dataset.uid_field, ranks.user).astype(str),
            target=dataset.id2token(dataset.iid_field, ranks.target).astype(str),
            rank_masked=ranks.masked,
            rank_unmasked=ranks.unmasked,
            history_length=ranks.history_length,
            target_popularity=counts[ranks.target],
            **({} if dataset.cold is None else {"target_cold": dataset.cold.mask[ranks.target]}),
            target_popularity_rank=popularity_rank(counts)[ranks.target],
        )


def read_results(run_dir: Path) -> dict[str, Any]:
    """``results.json`` of a finished run."""
    settings_of(run_dir)
    file = run_dir / RESULTS
    if not file.is_file():
        raise CheckpointError(
            f"{run_dir} is not finished: it has no results.json. Continue it with `recbole-llm --resume={run_dir}`."
        )
    return read_json(file)


def check_weights_file(run_dir: Path) -> None:
    """Raise CheckpointError if the weights are not those that training saved."""
    recorded, file = read_training_record(run_dir).get("weights"), run_dir / checkpoint.WEIGHTS
    if recorded and file.is_file() and (found := file_sha256(file)) != recorded["sha256"]:
        raise CheckpointError(
            f"{file} is damaged or was replaced: its SHA-256 is {found}, but the run recorded "
            f"{recorded['sha256']}. Restore the file from a copy, or train again."
        )


def popularity_rank(counts: np.ndarray) -> np.ndarray:
    """1 + the number of items with more training interactions; shape (item_num,), item 0 is padding."""
    ascending = np.sort(counts[1:])
    return 1 + len(ascending) - np.searchsorted(ascending, counts, side="right")


def cold_report(config: Config, ranks: Ranks, cold: ColdItems) -> dict[str, Any]:
    """Return the entry of ``results.json`` about cold items.

    Parameters
    ----------
    config : Config
        ``metrics`` (those of a target's rank) and ``topk``.
    ranks : Ranks
        Of the test.
    cold : ColdItems

    Returns
    -------
    dict
        Settings and counts; ``cold`` and ``warm``, each with the number of its targets and its metrics, masked and not
        masked. ``cold`` also has ``among_cold``: its targets ranked among the cold items alone, history masked, which
        tells items apart where warm ones stand above all of them. Chance is k / ``items`` there.
    """
    is_cold = cold.mask[ranks.target]
    report: dict[str, Any] = {
        "share": cold.share,
        "seed": cold.seed,
        "in_history": cold.in_history,
        "items": int(cold.mask.sum()),
        **cold.counts,
    }
    for name, rows in (("cold", is_cold), ("warm", ~is_cold)):
        kinds = {"masked": ranks.masked, "unmasked": ranks.unmasked}
        if name == "cold" and ranks.among is not None:
            kinds["among_cold"] = ranks.among
        report[name] = {"targets": int(rows.sum())}
        if rows.any():
            report[name] |= {kind: of_ranks(config, rank[rows]) for kind, rank in kinds.items()}
    return report
