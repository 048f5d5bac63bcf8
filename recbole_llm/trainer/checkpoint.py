"""Weights and training state on disk without pickle: safetensors for tensors, JSON for the rest.

Every safetensors file carries the SHA-256 of its tensors (names, types, shapes and bytes), which reading verifies.
"""

import hashlib
import itertools
import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from recbole_llm import distributed
from recbole_llm.contract import LLMRecommender
from recbole_llm.errors import CheckpointError

WEIGHTS = "model.safetensors"
STATE = "training_state"
CHECKSUM = "sha256"


def learned_tensors(model: LLMRecommender) -> dict[str, torch.Tensor]:
    """Trainable parameters and persistent buffers by name; of tensors that share memory, the first name only.

    Frozen parameters are excluded: they come from the base model, which a run records by name and revision. The model
    lists parameters that an earlier stage learned and a later one keeps frozen in ``learned_earlier``, as prefixes of
    names.
    """
    earlier = tuple(model.learned_earlier)
    frozen = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad and not name.startswith(earlier)
    }
    tensors: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        # A quantised weight comes with additional tensors, named <weight>.absmax and the like.
        parts = itertools.accumulate(name.split("."), "{}.{}".format)
        if frozen.isdisjoint(parts) and (tensor.numel() == 0 or key not in seen):
            seen.add(key)
            tensors[name] = tensor.detach().contiguous().cpu()
    return tensors


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) of all parameters and persistent buffers, names included."""
    return checksum(model.state_dict())


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of tensors: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={CHECKSUM: checksum(tensors)})


def save_weights(model: LLMRecommender, file: Path) -> None:
    """Write :func:`learned_tensors` atomically."""
    temporary = file.with_suffix(".tmp")
    try:
        _write(learned_tensors(model), temporary)
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"The weights cannot be written to {file}: {error}. Free some space, or set checkpoint_dir to a folder "
            "that can be written."
        ) from error


def load_weights(model: LLMRecommender, file: Path) -> None:
    """Read weights that :func:`save_weights` wrote into a model of the same configuration.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or tensors are missing, unknown or of another shape.
    """
    _apply_weights(model, _read(file), file)


def _apply_weights(model: LLMRecommender, tensors: dict[str, torch.Tensor], file: Path) -> None:
    expected = learned_tensors(model)
    missing = sorted(set(expected) - set(tensors))
    unknown = sorted(set(tensors) - set(expected))
    shapes = [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(expected[name].shape)} in the model"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    if missing or unknown or shapes:
        parts = [f"missing {missing[:3]}"] * bool(missing) + [f"unknown {unknown[:3]}"] * bool(unknown) + shapes[:3]
        raise CheckpointError(
            f"{file} does not fit the model ({'; '.join(parts)}). It was written with other settings or other data: "
            "load it with the config.yaml beside it, and the same dataset files."
        )
    model.load_state_dict(tensors, strict=False)


def _read(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise CheckpointError(f"There is no file {file}: the run was stopped before it had saved anything.")
    remedy = "Restore the file from a copy, or train again."
    try:
        with safe_open(file, framework="pt") as opened:
            expected = (opened.metadata() or {}).get(CHECKSUM)
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged ({error}). {remedy}") from error
    if expected is None:
        raise CheckpointError(f"{file} carries no checksum: it is not as recbole-llm wrote it. {remedy}")
    if checksum(tensors) != expected:
        raise CheckpointError(f"{file} is damaged: its tensors do not have the SHA-256 {expected}. {remedy}")
    return tensors


# ---- training state


RandomState = tuple[dict[str, torch.Tensor], dict[str, Any]]


@dataclass
class State:
    """A training state as it was read.

    Attributes
    ----------
    folder : where from.
    weights, optimizer : tensors by name.
    random : what :func:`random_state` gave, one entry a process.
    values : the trainer's own, and the optimizer's that are no tensors.
    """

    folder: Path
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    random: list[RandomState]
    values: dict[str, Any]


def save_state(
    folder: Path,
    model: LLMRecommender,
    optimizer: torch.optim.Optimizer,
    values: dict[str, Any],
    random_states: Sequence[RandomState] | None = None,
) -> None:
    """Write everything needed to resume: weights, optimizer, random states and the trainer's own values.

    ``random_states`` are those of all processes, by default this one's on the CPU. Written beside the old state and
    then put in its place, so that a crash leaves one of the two whole.
    """
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        _write(learned_tensors(model), fresh / WEIGHTS)
        tensors, scalars = _flatten_optimizer(optimizer)
        _write(tensors, fresh / "optimizer.safetensors")
        random_states = random_states or [random_state()]
        for rank, (random_tensors, _) in enumerate(random_states):
            _write(random_tensors, fresh / _random_file(rank))
        random_values = [values_of_one for _, values_of_one in random_states]
        text = json.dumps({"optimizer": scalars, "random": random_values, **values})
        digest = hashlib.sha256(text.encode()).hexdigest()
        (fresh / "state.json").write_text(json.dumps({CHECKSUM: digest, "state": text}), encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The training state cannot be written to {folder}: {error}. Free some space, or run with "
            "--save_state=False (the run cannot be resumed then)."
        ) from error


def state_folder(run_dir: Path) -> Path | None:
    """Return the state to resume from, or None; after a crash between two renames, the one put aside."""
    for name in (STATE, STATE + ".new", STATE + ".old"):
        if (run_dir / name / "state.json").is_file():
            return run_dir / name
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """Return the trainer's own values of a saved state."""
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        text = content["state"]
        if hashlib.sha256(text.encode()).hexdigest() != content[CHECKSUM]:
            raise ValueError("it does not have the SHA-256 that it names")
        return json.loads(text)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'state.json'} is damaged ({error}); the run cannot be resumed.") from error


def read_whole_state(folder: Path) -> State:
    """Return a saved state with its tensors, without applying it."""
    values = read_state(folder)
    random_values = values.pop("random")
    tensors = [_read(folder / _random_file(rank)) for rank in range(len(random_values))]
    return State(
        folder,
        _read(folder / WEIGHTS),
        _read(folder / "optimizer.safetensors"),
        list(zip(tensors, random_values, strict=True)),
        values,
    )


def load_state(
    state: State,
    model: LLMRecommender,
    optimizer: torch.optim.Optimizer,
    rank: int = 0,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Put a saved state into model, optimizer and, where it has those of ``rank``, random generators.

    Returns the trainer's own values.
    """
    values = dict(state.values)
    _apply_weights(model, state.weights, state.folder / WEIGHTS)
    _restore_optimizer(optimizer, state.optimizer, values.pop("optimizer"))
    if rank < len(state.random):
        _set_random_state(*state.random[rank], device)
    return values


def _random_file(rank: int) -> str:
    return f"random-{rank}.safetensors" if rank else "random.safetensors"


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().contiguous().cpu().clone()
            else:
                scalars[f"{index}.{name}"] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    return tensors, {"scalars": scalars, "groups": groups}


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], values: dict[str, Any]
) -> None:
    state = optimizer.state_dict()
    entries: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values["scalars"]}.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value
    groups = [
        {**group, **saved, "params": group["params"]}
        for group, saved in zip(state["param_groups"], values["groups"], strict=True)
    ]
    for group in groups:  # JSON knows no tuples
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def random_state(device: torch.device | None = None) -> RandomState:
    """State of the random generators of this process, including that of a GPU."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - RecBole samples from it
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if device is not None and device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    version, internal, gauss = random.getstate()
    return tensors, {
        "numpy": [name, int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }


def _set_random_state(tensors: dict[str, torch.Tensor], values: dict[str, Any], device: torch.device | None) -> None:
    torch.set_rng_state(tensors["torch"])
    if device is not None and device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    name, position, has_gauss, cached = values["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))


class BestWeights:
    """What a model has learned at its best validation.

    Parameters
    ----------
    model : LLMRecommender
    run_dir : pathlib.Path, optional
        Folder of the file; without it, weights are kept in memory.
    """

    def __init__(self, model: LLMRecommender, run_dir: Path | None) -> None:
        self.model = model
        self.file = None if run_dir is None else run_dir / WEIGHTS
        self._in_memory: dict[str, torch.Tensor] | None = None

    def keep(self, to_file: bool) -> None:
        """Keep the model's present weights, in the file or in memory."""
        if not to_file or self.file is None:
            tensors = learned_tensors(self.model)
            self._in_memory = {name: tensor.clone() for name, tensor in tensors.items()}
        elif distributed.world().is_main:
            save_weights(self.model, self.file)

    def restore(self) -> None:
        """Give the model the weights that were kept last; none were kept in a run that is only evaluated."""
        if self._in_memory is not None:
            self.model.load_state_dict(self._in_memory, strict=False)
        elif self.file is not None:
            self.load(self.file)

    def load(self, file: Path) -> None:
        """Read a file of weights, on the main process, into the model of every process."""
        distributed.from_main(lambda: load_weights(self.model, file))
        distributed.broadcast_state(self.model)
