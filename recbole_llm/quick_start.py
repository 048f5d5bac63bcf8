"""RecBole's name for where experiments start: ``from recbole_llm.quick_start import run, load_run``."""

from recbole_llm.run.experiment import OutOfMemoryError, Run, experiment, load_run, run

__all__ = ["OutOfMemoryError", "Run", "experiment", "load_run", "run"]
