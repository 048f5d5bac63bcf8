"""Seconds, CPU seconds and peak memory of the phases of a run."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from recbole_llm import distributed


class Meter:
    """Meter of the seconds, CPU seconds and peak memory of each phase.

    Memory is that of the GPU if there is one, else of the process. Linux forgets a process's peak when told to; where
    the system cannot, a phase shows the highest use since the process started.

    Attributes
    ----------
    seconds, cpu_seconds, peak_memory_mb : dict
        By phase, in the order of their first use. CPU seconds are those of all threads of this process, which, unlike
        seconds, do not grow on a busy machine.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.peak_memory_mb: dict[str, float] = {}
        self._open: list[str] = []
        self._since = self._cpu_since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the body; what a phase inside it measures counts there only."""
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _book(self) -> None:
        """Add what was used since the last call to the innermost open phase."""
        now, cpu = time.perf_counter(), time.process_time()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
            self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + cpu - self._cpu_since
            self.peak_memory_mb[name] = max(self.peak_memory_mb.get(name, 0.0), _peak_memory_mb(self.device))
        _forget_peak(self.device)
        self._since, self._cpu_since = now, cpu

    def merge_peaks(self) -> None:
        """Set the peak memory of a phase, on the main process, to the maximum over all processes."""
        for peaks in distributed.gather(self.peak_memory_mb) or ():
            for name, peak in peaks.items():
                self.peak_memory_mb[name] = max(self.peak_memory_mb.get(name, 0.0), peak)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not Linux, or not allowed
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
