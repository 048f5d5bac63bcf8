"""A run from settings to results, and the directory that it leaves behind."""

from recbole_llm.callable_package import make_callable

make_callable(__name__, "recbole_llm.run.experiment", "run")
