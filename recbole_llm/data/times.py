"""The rule for times, shared by a run, ``recbole-llm check`` and ``recbole-llm convert``.

A time must be a finite number. Anything that makes the order, and so the test items, doubtful is only counted.
"""

import re
from dataclasses import dataclass

import numpy as np

# ASCII digits only, and none of the other forms that float() takes: 1_000, nan, infinity.
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
#: Numbers from here on may be dates: seconds since 1970 are above it from 1973 on.
DATES_FROM = 1e8
#: Seconds and milliseconds of our century are at least this far apart; dates in one unit are not.
UNIT_GAP = 50
#: Whole numbers up to here are exact in 64-bit floats; nanoseconds since 1970 are above it.
EXACT_UP_TO = 2.0**53


def parse_number(text: str) -> float:
    """Return a finite number that is written in digits, such as ``-1.5e3``; ValueError for anything else.

    >>> parse_number("1e3")
    1000.0
    """
    value = float(text) if _NUMBER.fullmatch(text) else float("nan")
    if not np.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def stable_order(values: np.ndarray) -> np.ndarray:
    """Return a stable argsort; integers by radix sort, several times faster (NumPy has it for 16 bits only)."""
    if len(values) == 0:
        return np.array([], dtype=np.int64)
    if np.all(values[1:] >= values[:-1]):
        return np.arange(len(values))
    with np.errstate(invalid="ignore"):
        codes = values.astype(np.int64)
    low, high = int(codes.min()), int(codes.max())
    if high - low >= 2**48 or not np.array_equal(codes, values):
        return np.argsort(values, kind="stable")
    codes -= low
    order = np.argsort(codes.astype(np.uint16), kind="stable")
    for bits in range(16, (high - low).bit_length(), 16):
        order = order[np.argsort((codes >> bits).astype(np.uint16)[order], kind="stable")]
    return order


def history_order(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Positions in order of user, then time; equal times keep their order."""
    by_time = stable_order(times)
    return by_time[stable_order(users[by_time])]


def are_ranks(times: np.ndarray, starts: np.ndarray) -> bool:
    """Whether every user's times are 0, 1, 2, ... or 1, 2, 3, ...: an order within users, not across them.

    Parameters
    ----------
    times : numpy.ndarray, shape (interactions,)
        Sorted within each user, users one after the other.
    starts : numpy.ndarray of int, shape (users,)
        Where each user begins.
    """
    if len(times) < 2 or times[0] not in (0, 1):
        return False
    lengths = np.diff(np.append(starts, len(times)))
    return bool(np.array_equal(times, np.arange(len(times)) - np.repeat(starts, lengths) + times[0]))


@dataclass(frozen=True)
class TimeReport:
    """Problems with the times of a dataset.

    Attributes
    ----------
    interactions, users : int
        ``users`` have two interactions or more.
    low, high : float
        The first and the last time.
    tied_last : int
        Users whose last two interactions have equal times: which one is tested depends on the file order.
    below : int
        Interactions whose time is in a different unit than the others, or 0: times come in two groups, this many
        in the lower one.
    below_high, above_low : float
        Largest time of the lower group and smallest of the upper one, by absolute value.
    """

    interactions: int
    users: int
    low: float
    high: float
    tied_last: int
    below: int = 0
    below_high: float = 0.0
    above_low: float = 0.0

    @property
    def all_equal(self) -> bool:
        """Whether all times are equal."""
        return self.interactions > 1 and self.low == self.high

    @property
    def mixed(self) -> bool:
        """Whether times seem to be in more than one unit."""
        return self.below > 0

    @property
    def rounding(self) -> str:
        """A sentence on times that 64-bit floats round, such as nanoseconds since 1970; empty if there are none."""
        size = max(abs(self.low), abs(self.high))
        if size <= EXACT_UP_TO:
            return ""
        return (
            f" Times beyond 2^53 are read as 64-bit floats: of this size, those less than {np.spacing(size):g} apart "
            "are equal. Subtract a constant, or write a larger unit."
        )

    def notices(self, field: str) -> list[str]:
        """Return warnings about the time ``field``, with counts; empty if there are no problems."""
        if self.all_equal:
            return [
                f"All {self.interactions:,} interactions have the same {field} ({self.low:g}): the order of the file "
                "decides every history and every test item."
            ]
        texts = []
        if self.mixed:
            texts.append(
                f"{field} seems to mix units, such as seconds and milliseconds: {self.below:,} of "
                f"{self.interactions:,} times go up to {self.below_high:.10g}, the others start at "
                f"{self.above_low:.10g}. Which item is tested depends on it; convert all of them to one unit."
            )
        if self.tied_last:
            texts.append(
                f"Equal values of {field}: for {self.tied_last:,} of {self.users:,} users "
                f"({self.tied_last / self.users:.1%}) the order of the file decides which item is the last, the one "
                f"that is tested.{self.rounding}"
            )
        return texts


def examine_times(users: np.ndarray, times: np.ndarray) -> TimeReport:
    """Count problems with the times of interactions.

    Parameters
    ----------
    users : numpy.ndarray of int, shape (interactions,)
    times : numpy.ndarray, shape (interactions,)
        Finite. Both in the order of :func:`history_order`.
    """
    if len(times) == 0:
        return TimeReport(0, 0, 0.0, 0.0, 0)
    same_user = users[1:] == users[:-1]
    tied = same_user & (times[1:] == times[:-1])
    ends = np.flatnonzero(np.r_[users[1:] != users[:-1], True])
    lengths = np.diff(np.r_[-1, ends])
    last = ends[lengths > 1]
    size = np.array([], dtype=np.float64)
    first, newest = float(times.min()), float(times.max())
    if first <= 0 or newest >= max(DATES_FROM, UNIT_GAP * first):  # otherwise no two times are that far apart
        size = np.sort(np.abs(times.astype(np.float64)))
    gaps = np.flatnonzero((size[1:] >= DATES_FROM) & (size[1:] >= UNIT_GAP * size[:-1]))
    low = int(gaps[0]) if len(gaps) else -1
    return TimeReport(
        interactions=len(times),
        users=len(last),
        low=first,
        high=newest,
        tied_last=int(tied[last - 1].sum()),
        below=low + 1,
        below_high=float(size[low]) if len(gaps) else 0.0,
        above_low=float(size[low + 1]) if len(gaps) else 0.0,
    )
