"""Progress of a pass over batches: a bar on a terminal, occasional lines in a log."""

import time
from collections.abc import Callable, Iterator
from logging import getLogger
from typing import Any

from recbole.utils import set_color
from tqdm import tqdm

from recbole_llm import distributed

# Seconds: a pass that takes longer is forecast after its first batch, and then reported this often.
SLOW, EVERY = 60.0, 60.0


def progress(data: Any, label: str, show: bool, done: int = 0, tokens: Callable[[], int] | None = None) -> Any:
    """Return a loader's batches, behind a bar where wanted, else with lines in the log where they take long.

    Parameters
    ----------
    data : loader
        Its length is the number of batches, including those ``done``.
    label : str
        Label of the pass.
    show : bool
        Whether to show a bar.
    done : int
        Batches before the first of ``data``.
    tokens : callable, optional
        Tokens that a language model has read so far, for their number a second.
    """
    if show:
        return tqdm(data, total=len(data), initial=done, ncols=100, desc=set_color(label, "pink"), leave=False)
    return _with_lines(data, " ".join(label.split()), done, tokens)


def _with_lines(data: Any, label: str, done: int, tokens: Callable[[], int] | None) -> Iterator[Any]:
    start = last = time.monotonic()
    read = tokens() if tokens else 0
    total, is_main = len(data), distributed.world().is_main
    for number, batch in enumerate(data, done + 1):
        yield batch
        now = time.monotonic()
        left = (total - number) * (now - start) / (number - done)
        forecast = number == done + 1 and left > SLOW
        if is_main and number < total and (forecast or now - last >= EVERY):
            last = now
            rate = (tokens() - read) / max(now - start, 1e-9) if tokens else 0
            speed = f", {rate:,.0f} tokens a second" if rate else ""
            getLogger().info(f"{label}: {number} of {total} batches{speed}, about {_duration(left)} left")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
