"""Logging of a run: on the terminal and in the log file of its directory."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_llm import distributed

# For what is said elsewhere, or asked again without anybody reading the answer.
SILENT = logging.Logger("silent", logging.CRITICAL)


class _Plain(logging.Formatter):
    """Formatter that strips RecBole's colour codes for files and pipes."""

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", super().format(record))


class Console(logging.StreamHandler):  # type: ignore[type-arg]  # not subscriptable before Python 3.11
    """Our own handler, to distinguish it from those of the calling program."""


class LogFile(logging.FileHandler):
    """The log of a run or a study."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Report once that the log cannot be written, without a traceback; the run continues."""
        if not self._failed:
            self._failed = True
            sys.stderr.write(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}.\n")


def log_to_console(level: str = "INFO") -> None:
    """Show RecBole's log lines on the terminal, unless the calling program has set up logging.

    With several processes, only the main one logs; the others report errors.
    """
    here = distributed.launched()
    if here is not None and not here.is_main:
        level = "ERROR"
    root = logging.getLogger()
    if not root.handlers:
        handler = Console()
        coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        kind = logging.Formatter if coloured else _Plain
        handler.setFormatter(kind("%(asctime)-15s %(levelname)s  %(message)s", "%d %b %H:%M"))
        root.addHandler(handler)
        for noisy in ("httpx", "httpcore", "urllib3", "filelock", "sentence_transformers", "transformers"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
    if any(isinstance(handler, Console) for handler in root.handlers):
        root.setLevel(level.upper())


@contextmanager
def only_errors() -> Iterator[None]:
    """Log nothing below errors while the body runs."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


@contextmanager
def logging_into(run_dir: Path | None, name: str = "run.log") -> Iterator[None]:
    """Copy every log line into ``run.log`` of the run directory."""
    if run_dir is None:
        yield
        return
    handler = LogFile(run_dir / name, encoding="utf-8")
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s  %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
