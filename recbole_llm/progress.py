"""Progress of what takes long: a bar on a terminal, a line in the log every half minute elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from logging import getLogger
from types import TracebackType
from typing import Any

from tqdm import tqdm

# Seconds between lines; a pass that takes longer is also forecast after its first step.
EVERY = 30.0
# The colour of RecBole's labels. Importing its function for it would load torch, which converters do without.
_PINK, _PLAIN = "\033[1;35m", "\033[0m"


class Progress:
    """Progress of one pass, as a context manager.

    Parameters
    ----------
    total : int, optional
        Steps of the pass, including those ``done``; None where nobody knows.
    label, units : str
        Name of the pass, and of its steps in the plural.
    show : bool
        Whether to draw a bar where standard error is a terminal. Without one there are lines instead.
    done : int
        Steps before this process began.
    tokens : callable, optional
        Tokens that a language model has read so far, for their number a second.

    Examples
    --------
    >>> with Progress(2, "Reading", "files") as progress:
    ...     for _ in range(2):
    ...         progress.update()
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        units: str = "batches",
        show: bool = True,
        done: int = 0,
        tokens: Callable[[], int] | None = None,
    ) -> None:
        self.total, self.label, self.units = total, label, units
        self._done, self._first, self._tokens = done, done, tokens
        self._start = self._last = time.monotonic()
        self._read = tokens() if tokens else 0
        self._bar: Any = None
        if not _reports():
            self._last = float("inf")
        elif show and sys.stderr.isatty():
            name, scale = f"{_PINK}{label}{_PLAIN}", units == "bytes"
            self._bar = tqdm(
                total=total, initial=done, ncols=100, desc=name, unit=f" {units}", unit_scale=scale, leave=False
            )

    def update(self, steps: int = 1) -> None:
        """Add steps that are done."""
        if self._bar is not None:
            self._bar.update(steps)
            return
        is_first = self._done == self._first
        self._done += steps
        now = time.monotonic()
        if now - self._last >= EVERY or (is_first and self._left(now) > EVERY and self._last < now):
            self._last = now
            self._report(now)

    def _left(self, now: float) -> float:
        """Seconds left, from the speed so far; 0 at the end, and where the total is unknown."""
        if self.total is None or self._done == self._first:
            return 0.0
        return (self.total - self._done) * (now - self._start) / (self._done - self._first)

    def _report(self, now: float) -> None:
        spent = max(now - self._start, 1e-9)
        rate = (self._tokens() - self._read) / spent if self._tokens else 0
        speed = f", {rate:,.0f} tokens a second" if rate else ""
        if self.total is None:
            getLogger().info(f"{self.label}: {self._done:,} {self.units}{speed}, {duration(spent)} so far")
        elif self._done < self.total:
            share = f"{self._done / self.total:.0%} of {self.total:,} {self.units}"
            getLogger().info(f"{self.label}: {share}{speed}, about {duration(self._left(now))} left")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _reports() -> bool:
    """Whether this process reports for all of a run; without torch it is alone."""
    if "torch" not in sys.modules:
        return True
    from recbole_llm import distributed

    return distributed.world().is_main


def progress(
    data: Any, label: str, show: bool, done: int = 0, tokens: Callable[[], int] | None = None
) -> Iterator[Any]:
    """Yield a loader's batches and show the progress.

    Parameters
    ----------
    data : loader
        Its length is the number of batches, including those ``done``.
    label, show, done, tokens
        As :class:`Progress`.
    """
    with Progress(len(data), label, show=show, done=done, tokens=tokens) as passed:
        for batch in data:
            yield batch
            passed.update()


def duration(seconds: float) -> str:
    """Return a length of time in seconds, minutes or hours, as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
