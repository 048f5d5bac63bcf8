"""Seconds and peak memory of the phases of a run."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from recbole_llm import distributed


class Meter:
    """Meter of the seconds and peak memory of each phase.

    Memory is that of the GPU if there is one, else of the process. Linux forgets a process's peak when told to; where
    the system cannot, a phase shows the highest use since the process started.

    Attributes
    ----------
    seconds, peak_memory_mb : dict
        By phase, in the order of their first use.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.peak_memory_mb: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

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
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
            self.peak_memory_mb[name] = max(self.peak_memory_mb.get(name, 0.0), _peak_memory_mb(self.device))
        _forget_peak(self.device)
        self._since = now

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
