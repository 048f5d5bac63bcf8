"""Processes of a run on this machine, as RecBole's ``nproc`` asks; ``torchrun`` starts them by itself."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from recbole_llm.errors import DistributedError, RecBoleLLMError

T = TypeVar("T")
INTERRUPTED = 130  # exit status, as a shell gives it
PORT = 5678  # RecBole's, where the processes of several machines must agree on one


def spawn(work: Callable[..., T], keywords: Mapping[str, Any], settings: Mapping[str, Any]) -> T:
    """Call ``work(**keywords)`` in new processes on this machine, as RecBole's ``nproc`` asks.

    Parameters
    ----------
    work : function
        Importable by name.
    keywords : dict
        What can be pickled; classes by the name they are imported by.
    settings : dict
        ``nproc``, ``world_size``, ``ip``, ``port`` and ``group_offset``.

    Returns
    -------
    object
        What the first of them returned.

    Raises
    ------
    RecBoleLLMError
        What one of them raised; DistributedError where one ended otherwise. The others are ended.
    """
    count, port = settings["nproc"], settings["port"]
    if port is None:
        port = _free_port() if settings["world_size"] == count else PORT
    environment = {
        "WORLD_SIZE": settings["world_size"],
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": settings["ip"],
        "MASTER_PORT": port,
    }
    answers = mp.get_context("spawn").SimpleQueue()
    context = start_processes(
        _process,
        (settings["group_offset"], environment, work, dict(keywords), answers),
        nprocs=count,
        join=False,
        start_method="spawn",
    )
    received: list[tuple[str, Any]] = []
    try:
        while not context.join(timeout=0.5, grace_period=5):
            _receive(answers, received)  # a process waits until its answer is taken
    except KeyboardInterrupt:
        _end(context.processes)
        raise
    except (ProcessRaisedException, ProcessExitedException) as error:
        # What a process said counts: the first seen to end may be one that lost its connection to the one that was
        # interrupted, and that one's connections may abort it while it exits.
        _receive(answers, received)
        if any(kind == "interrupt" for kind, _ in received):
            raise KeyboardInterrupt from error
        raise _reason(error, received) from error
    _receive(answers, received)
    return received[0][1]


def _receive(answers: Any, received: list[tuple[str, Any]]) -> None:
    while not answers.empty():
        received.append(answers.get())


def _process(
    local_rank: int, offset: int, environment: Mapping[str, Any], work: Any, keywords: dict[str, Any], answers: Any
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.update({"LOCAL_RANK": str(local_rank), "RANK": str(local_rank + offset)})
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(environment["LOCAL_WORLD_SIZE"])))
    try:
        result = work(**keywords)
    except KeyboardInterrupt:
        answers.put(("interrupt", None))
        sys.exit(INTERRUPTED)
    except RecBoleLLMError as error:
        answers.put(("error", error))
        sys.exit(2)
    except Exception:
        answers.put(("crash", f"Process {os.environ['RANK']} failed.\n{traceback.format_exc()}"))
        sys.exit(1)
    if local_rank == 0:
        answers.put(("result", result))


def _reason(error: Exception, received: list[tuple[str, Any]]) -> RecBoleLLMError:
    """Choose the error to show: one raised by a process itself rather than one about others that have ended."""
    found: list[RecBoleLLMError] = []
    for kind, value in received:
        if kind == "crash":
            return DistributedError(value)
        if kind == "error":
            found.append(value)
    own = [value for value in found if not isinstance(value, DistributedError)]
    if not own and getattr(error, "signal_name", None):
        return DistributedError(
            f"In this run, {error}; the others were terminated. The system sends SIGKILL when memory runs out."
        )
    return (own or found or [DistributedError(f"A process of the run failed: {str(error).strip()}.")])[0]


def _end(processes: list[Any]) -> None:
    """Interrupt the running processes, then kill them: the terminal has usually interrupted them already."""
    for seconds, signal_number in ((3, signal.SIGINT), (10, signal.SIGTERM), (5, signal.SIGKILL)):
        for process in processes:
            process.join(seconds)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal_number)
    for process in processes:
        process.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
