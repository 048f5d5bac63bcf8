"""Times of a user's own logs: whole or decimal numbers, ISO dates, or a given pattern; exact to the microsecond."""

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

from recbole_llm.convert.lines import LineError, shown
from recbole_llm.convert.table import Interactions, as_times

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICRO = timedelta(microseconds=1)
_LIMIT = 2**63 - 1


def parse_times(values: Sequence[Any], pattern: str | None, table: Interactions) -> list[int]:
    """Return the times of a batch in the unit of ``table``, which changes to microseconds with the first fraction.

    Parameters
    ----------
    values : sequence
        Whole numbers stay as they are, in whatever unit; dates become seconds since 1970 (UTC where no zone is given).
    pattern : str or None
        A :meth:`datetime.datetime.strptime` pattern; ``None`` recognises numbers and ISO 8601.
    table : Interactions

    Raises
    ------
    LineError
        A value is none of these, or does not fit.
    """
    if pattern is None:
        try:
            times = as_times(values)
        except LineError:
            pass
        else:
            return times if table.time_scale == 1 else _checked([time * table.time_scale for time in times])
    micros = [_micros(value, pattern) for value in values]
    if table.time_scale == 1:
        if all(micro % 1_000_000 == 0 for micro in micros):
            return _checked([micro // 1_000_000 for micro in micros])
        _checked(micros)
        try:
            table.to_fractions()
        except OverflowError as error:
            raise LineError("a time with a fraction, after times too large to carry one") from error
    return _checked(micros)


def _checked(times: list[int]) -> list[int]:
    if times and (max(times) > _LIMIT or min(times) < -_LIMIT):
        raise LineError("a time does not fit into 64 bits (fractions are kept to the microsecond)")
    return times


def _micros(value: Any, pattern: str | None) -> int:
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, date):
            moment = datetime(value.year, value.month, value.day)
        elif pattern is not None:
            moment = datetime.strptime(str(value), pattern)
        else:
            if isinstance(value, int | float):
                return _exact(Decimal(repr(value)))
            text = str(value).strip()
            try:
                # Python also takes 1_000 and the digits of other scripts for numbers; nobody else does.
                return _exact(Decimal(text if text.isascii() and "_" not in text else ""))
            except InvalidOperation:
                moment = _iso(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return (moment - _EPOCH) // _MICRO
    except (ValueError, TypeError, OverflowError, InvalidOperation) as error:
        wanted = (
            f"of the form {pattern!r}" if pattern else "a number or an ISO date (--time_format names another form)"
        )
        raise LineError(f"the time {shown(value)} is not {wanted}") from error


def _iso(text: str) -> datetime:
    # Python 3.10 knows neither the Z of ISO 8601 nor fractions of other than 3 or 6 digits.
    text = re.sub(r"[Zz]$", "+00:00", text)
    return datetime.fromisoformat(
        re.sub(r"\.(\d+)", lambda found: "." + found.group(1)[:6].ljust(6, "0"), text, count=1)
    )


def _exact(number: Decimal) -> int:
    if not number.is_finite() or abs(number) > _LIMIT:
        raise ValueError("not finite")
    return int((number * 1_000_000).to_integral_value())
