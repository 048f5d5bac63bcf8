"""Distributed runs: ranks, work of the main process only, and gradients averaged over processes.

In a single process everything here does the obvious thing without ``torch.distributed``.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from recbole_llm.errors import DistributedError, RecBoleLLMError

T = TypeVar("T")
PORT = 5678  # RecBole's, where the processes of several machines must agree on one
LAUNCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_rendezvous: Any = None
_groups = _turns = 0


@dataclass(frozen=True)
class World:
    """Place of this process in a run; ``local_rank`` and ``local_size`` count those of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Return this process's slice of the rows; the slices cover every row once, and sizes differ by at most 1."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)


def launched() -> World | None:
    """Read the ranks and sizes that ``torchrun`` or :func:`spawn` sets; None for a single process."""
    values = [os.environ.get(name, "") for name in LAUNCH]
    if not all(values) or values[1] == "1":
        return None
    rank, size = int(values[0]), int(values[1])
    return World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def world() -> World:
    """Return the group that this process has joined, or a group of one."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    rank, size = dist.get_rank(), dist.get_world_size()
    here = launched()
    return World(rank, size, here.local_rank, here.local_size) if here else World(rank, size, rank, size)


@contextmanager
def group(timeout: float) -> Iterator[World]:
    """Join the processes of a run into one group: nccl between GPUs, gloo between CPUs.

    Parameters
    ----------
    timeout : float
        Seconds that a process waits for another one.

    Raises
    ------
    DistributedError
        If the others do not come, or one of them goes while this one waits for it.
    """
    global _groups
    here, limit = launched(), timedelta(seconds=timeout)
    own = here is not None and not dist.is_initialized()
    try:
        if here is not None and own:
            _groups += 1
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=dist.PrefixStore(str(_groups), _store(limit)),  # type: ignore[attr-defined]
                rank=here.rank,
                world_size=here.size,
                timeout=limit,
            )
        yield world()
        if own:
            barrier()
            dist.destroy_process_group()
    except RuntimeError as error:
        if (world().size == 1 and not own) or not _is_about_the_others(error):
            raise
        raise DistributedError(
            f"Process {here.rank if here else world().rank} waited for the others in vain: one of them has ended (see "
            f"its own message or the launcher's), or they cannot reach each other "
            f"({str(error).splitlines()[0][:200]}). "
            f"A process waits for distributed_timeout={timeout:g} seconds."
        ) from error


def _store(timeout: timedelta) -> Any:
    global _rendezvous
    if _rendezvous is None:
        _rendezvous, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
    return _rendezvous


def _is_about_the_others(error: RuntimeError) -> bool:
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Connection refused", "Socket Timeout")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def first_to_fail() -> bool:
    """Whether no other process has failed before: one message is enough. True where that cannot be told."""
    if launched() is None:
        return True
    try:
        return _store(timedelta(seconds=10)).add("failed", 1) == 1
    except (RuntimeError, ValueError):
        return True


# ---- one for all


def from_main(make: Callable[[], T]) -> T:
    """Call ``make`` on the main process and return its value, or raise its error, on all processes."""
    here = world()
    if here.size == 1:
        return make()
    outcome: list[Any] = [None, None]
    error: BaseException | None = None
    if here.is_main:
        try:
            outcome[0] = make()
        except Exception as caught:
            error = caught
            sent = isinstance(caught, RecBoleLLMError)
            outcome[1] = caught if sent else DistributedError(f"The main process failed: {caught!r}.")
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def gather(value: T) -> list[T] | None:
    """Gather the values of all processes, in rank order, on the main process; None on the others."""
    here = world()
    if here.size == 1:
        return [value]
    values: list[Any] | None = [None] * here.size if here.is_main else None
    dist.gather_object(value, values, dst=0)
    return values


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, element by element."""
    if world().size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Wait until all processes have arrived."""
    if world().size > 1:
        dist.all_reduce(torch.zeros(1))


@contextmanager
def main_of_machine_first() -> Iterator[None]:
    """Let the first process of each machine go first; the others of that machine then find its files.

    The work may take long, such as encoding a catalogue: if it fails, the launcher ends the waiting processes.
    """
    global _turns
    here = world()
    if here.size == 1 or _rendezvous is None:
        yield
        return
    _turns += 1
    done = f"turn {_groups}.{_turns} of {here.rank - here.local_rank}"
    while here.local_rank > 0 and not _rendezvous.check([done]):
        time.sleep(0.02)
    yield
    if here.local_rank == 0:
        _rendezvous.set(done, "")


def broadcast_state(model: nn.Module, parameters: bool = True) -> None:
    """Broadcast all parameters and buffers of the main process, or the buffers only."""
    if world().size == 1:
        return
    tensors = [*(model.parameters() if parameters else ()), *model.buffers()]
    for tensor in tensors:
        if tensor.numel() > 0:
            values = tensor.detach().contiguous()
            dist.broadcast(values.view(-1).view(torch.uint8), src=0)  # bytes: not every type can be sent
            if values.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(values)
