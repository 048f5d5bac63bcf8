"""What happens to a line that cannot be used: it stops the conversion, or it is counted with its reason."""

from dataclasses import dataclass, field

from recbole_llm.errors import ConfigError, DataError


class LineError(ValueError):
    """A line cannot be used; the message says why, the caller knows where."""


class KnownGap(LineError):
    """A line that the official download is known to contain and that carries no data; it is always skipped."""


@dataclass
class Skips:
    """Counts of skipped lines by reason, with the first place of each.

    Parameters
    ----------
    on_error : {'stop', 'skip'}
        Whether an unexpected line raises :class:`~recbole_llm.errors.DataError` or is counted. Damaged compression,
        missing files and lines without end always stop.
    """

    on_error: str = "stop"
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error is {self.on_error!r}; allowed are 'stop' and 'skip'.")

    def count(self, reason: str, where: str, times: int = 1) -> None:
        """Count a line that is always skipped."""
        self.counts[reason] = self.counts.get(reason, 0) + times
        self.first.setdefault(reason, where)

    def handle(self, error: LineError, where: str, line: int) -> None:
        """Count ``error``, or raise it with its place when it is not a known one and ``on_error`` is ``stop``."""
        place = f"{where}, line {line}"
        if not isinstance(error, KnownGap) and self.on_error == "stop":
            raise DataError(f"{place}: {error} (on_error=skip, --on_error skip, counts such lines instead).") from None
        self.count(str(error), place)


def shown(value: object, limit: int = 60) -> str:
    """Return ``repr(value)`` cut to ``limit`` characters, for messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
