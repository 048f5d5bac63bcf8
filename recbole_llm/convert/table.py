"""Interactions as compact columns (24 bytes each, not their text), beyond a limit in a temporary file."""

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm.convert.lines import LineError, shown
from recbole_llm.convert.spill import RecordFile, Records, Spill, record_type, value_name

IntArray = npt.NDArray[np.int64]
_MAX_TIME = 2**63 - 1
_PART = 1 << 16


def interner() -> defaultdict[str, int]:
    """Return a dictionary that numbers its keys 0, 1, 2 ... as they are first looked up."""
    codes: defaultdict[str, int] = defaultdict()
    codes.default_factory = codes.__len__
    return codes


class Interactions:
    """Columns of a conversion, in input order.

    Attributes
    ----------
    users, items : dict of str to int
        Raw id -> code, in order of first appearance; kept in memory once per distinct id.
    value_fields : tuple of str
        Names of the float columns beside the time, for instance ``('rating',)``.
    time_scale : int
        1: the times are the source's own integers; 1,000,000: it has fractions, kept to the microsecond.

    Parameters
    ----------
    value_fields : sequence of str
    spill : Spill, optional
        Where more than :data:`~recbole_llm.convert.spill.ROWS` interactions go; without it all stay in memory.
    """

    def __init__(self, value_fields: Sequence[str] = (), spill: Spill | None = None) -> None:
        self.users, self.items = interner(), interner()
        self.value_fields = tuple(value_fields)
        self._clear()
        self._spill = spill
        self._spilled: RecordFile | None = None
        self.time_scale = 1

    def _clear(self) -> None:
        self._user, self._item, self._time = array("i"), array("i"), array("q")
        self._values = [array("d") for _ in self.value_fields]

    def __len__(self) -> int:
        return len(self._time) + (len(self._spilled) if self._spilled is not None else 0)

    def extend(
        self, users: Sequence[str], items: Sequence[str], times: Sequence[int], values: Sequence[Sequence[float]] = ()
    ) -> None:
        """Append a batch whose columns are checked already (see :func:`number_columns`)."""
        if not len(users) == len(items) == len(times) or any(len(column) != len(times) for column in values):
            raise ValueError("the columns of a batch differ in length")
        # An array made of a list is filled in one go; extending one by an iterator is not.
        self._time.extend(array("q", times))
        self._user.extend(array("i", list(map(self.users.__getitem__, users))))
        self._item.extend(array("i", list(map(self.items.__getitem__, items))))
        for column, new in zip(self._values, values, strict=True):
            column.extend(array("d", new))
        if self._spill is not None and self._spill.due(len(self._time)):
            self._to_disk(self._spill)

    def _to_disk(self, place: Spill) -> None:
        if self._spilled is None:
            self._spilled = self.new_file()
        for start in range(0, len(self._time), _PART):
            records = self.records(np.arange(start, min(start + _PART, len(self._time))))
            records["number"] += len(self._spilled) - start
            self._spilled.append(records)
        self._clear()

    def to_fractions(self) -> None:
        """Change the time unit to a millionth of the source's, once the first fraction is met.

        Raises
        ------
        OverflowError
            A time is too large for that; nothing is changed then.
        """
        if self.time_scale == 1:
            scale = 1_000_000
            times = array("q", (value * scale for value in self._time))
            if self._spilled is not None:
                scaled = self.new_file()
                for block in self._spilled.blocks():
                    if np.abs(block["time"]).max() > _MAX_TIME // scale:
                        raise OverflowError("a time does not fit into 64 bits")
                    block["time"] *= scale
                    scaled.append(block)
                self._spilled.close()
                self._spilled = scaled
            self._time, self.time_scale = times, scale

    def new_file(self) -> RecordFile:
        """Return a temporary file for records of this table."""
        assert self._spill is not None
        return self._spill.file(record_type(self.value_fields))

    def on_disk(self) -> RecordFile | None:
        """Return the file that holds all interactions, or None if all are in memory."""
        if self._spilled is not None and len(self._time):
            assert self._spill is not None
            self._to_disk(self._spill)
        return self._spilled

    def records(self, rows: IntArray) -> Records:
        """Return rows of a table in memory, as a temporary file would give them."""
        records = np.empty(len(rows), dtype=record_type(self.value_fields))
        records["time"], records["number"] = self.time[rows], rows
        records["user"], records["item"] = self.user[rows], self.item[rows]
        for place, name in enumerate(self.value_fields):
            records[value_name(place)] = self.values(name)[rows]
        return records

    @property
    def user(self) -> npt.NDArray[np.int32]:
        """Codes of the users, one per interaction (a view, no copy); as the other columns, of a table in memory."""
        return np.frombuffer(self._user, dtype=np.int32)

    @property
    def item(self) -> npt.NDArray[np.int32]:
        """Codes of the items, one per interaction (a view, no copy)."""
        return np.frombuffer(self._item, dtype=np.int32)

    @property
    def time(self) -> IntArray:
        """Times in units of ``1 / time_scale``, one per interaction (a view, no copy)."""
        return np.frombuffer(self._time, dtype=np.int64)

    def values(self, name: str) -> npt.NDArray[np.float64]:
        """Return a float column (a view, no copy)."""
        return np.frombuffer(self._values[self.value_fields.index(name)], dtype=np.float64)


def check_ids(*columns: Sequence[object]) -> None:
    """Raise :class:`LineError` unless every value is a non-empty string."""
    for column in columns:
        if set(map(type, column)) - {str} or "" in column:
            bad = next(value for value in column if not isinstance(value, str) or not value)
            raise LineError("an empty user or item id" if bad == "" else f"an id that is not text: {shown(bad)}")


def as_times(column: Iterable[object]) -> list[int]:
    """Return whole-number times, exactly.

    Raises
    ------
    LineError
        A value is not a whole number or does not fit into 64 bits.
    """
    values: list[Any] = list(column)
    kinds = set(map(type, values))
    if str in kinds and not _digits(values):
        raise LineError(f"the time {shown(next(v for v in values if not _digits([v])))} is not a whole number")
    if not kinds <= {int, str}:
        bad = next((value for value in values if type(value) not in (int, str) and not _whole(value)), None)
        if bad is not None or type(None) in kinds:
            raise LineError(f"the time {shown(bad)} is not a whole number")
    try:
        times: list[int] = values if kinds == {int} else list(map(int, values))
    except (ValueError, OverflowError) as error:
        raise LineError(f"the time {_first_bad(values, int)} is not a whole number") from error
    if times and (max(times) > _MAX_TIME or min(times) < -_MAX_TIME):
        raise LineError("a time does not fit into 64 bits")
    return times


def as_floats(column: Iterable[object], name: str) -> list[float]:
    """Return finite floats.

    Raises
    ------
    LineError
        A value is missing, not a number, or not finite.
    """
    raw: list[Any] = list(column)
    kinds = set(map(type, raw))
    if bool in kinds or (str in kinds and any(type(v) is str and ("_" in v or not v.isascii()) for v in raw)):
        bad = next(v for v in raw if type(v) is bool or (type(v) is str and ("_" in v or not v.isascii())))
        raise LineError(f"the {name} {shown(bad)} is not a number")
    try:
        values: list[float] = raw if set(map(type, raw)) == {float} else list(map(float, raw))
    except (TypeError, ValueError, OverflowError) as error:
        raise LineError(f"the {name} {_first_bad(raw, float)} is not a number") from error
    # One sum shows any inf or nan; one that only overflows is found innocent when the lines are tried one by one.
    if not math.isfinite(sum(values)):
        raise LineError(f"a {name} is not a finite number")
    return values


def _digits(values: Sequence[object]) -> bool:
    """Whether no text is one of those that only Python takes for a number: ``1_000``, other scripts' digits."""
    return not any(isinstance(value, str) and ("_" in value or not value.isascii()) for value in values)


def _whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()


def _first_bad(column: Sequence[object], kind: Callable[[Any], Any]) -> str:
    for value in column:
        try:
            kind(value)
        except (TypeError, ValueError, OverflowError):
            return shown(value)
    return "?"
