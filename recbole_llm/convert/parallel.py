"""Work on blocks in several processes, in order and with a bounded number of blocks on the way."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from recbole_llm.errors import DataError

In = TypeVar("In")
Out = TypeVar("Out")


def default_workers() -> int:
    """Return how many processes the command line takes: one for each core that is not busy, at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(4, cores - round(busy)))


def ordered_map(function: Callable[[In], Out], items: Iterable[In], workers: int) -> Iterator[tuple[In, Out]]:
    """Yield ``(item, function(item))`` in order.

    Parameters
    ----------
    function : callable
        Must be importable by name, as its processes start fresh (``spawn``: a forked process could inherit a lock
        that a thread of torch or tqdm holds).
    items : iterable
        Drawn only as results are taken, ``2 * workers`` ahead.
    workers : int
        1 works in this process.
    """
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    executor = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_the_parent
    )
    waiting: deque[tuple[In, Future[Out]]] = deque()
    try:
        for item in items:
            waiting.append((item, executor.submit(function, item)))
            if len(waiting) >= 2 * workers:
                done, result = waiting.popleft()
                yield done, result.result()
        while waiting:
            done, result = waiting.popleft()
            yield done, result.result()
    except BrokenProcessPool as error:
        raise DataError("a worker process was killed, perhaps for want of memory; try --workers 1.") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
