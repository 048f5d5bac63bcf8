"""RecBole's name for where experiments start: ``from recbole_llm.quick_start import run, load_run``."""

from recbole_llm.run.experiment import OutOfMemoryError, experiment, run
from recbole_llm.run.load import Run, load_run
from recbole_llm.run.refit import refit

__all__ = ["OutOfMemoryError", "Run", "experiment", "load_run", "refit", "run"]
