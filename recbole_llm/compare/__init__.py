"""Comparisons of several models under one protocol: plan, runs, significance tests and reports.

    from recbole_llm.compare import compare
    compare(["LLMSeqSim", "SASRec"], "ml-100k", config_dict={"seeds": [1, 2, 3]})

does what ``recbole-llm compare --model=LLMSeqSim,SASRec --dataset=ml-100k --seeds=1,2,3`` does.
"""

from typing import TYPE_CHECKING, Any

from recbole_llm.callable_package import make_callable

if TYPE_CHECKING:
    from recbole_llm.compare.analysis import Comparison
    from recbole_llm.compare.api import NothingToCompareError, compare, compare_runs

__all__ = ["Comparison", "NothingToCompareError", "compare", "compare_runs"]


def __getattr__(name: str) -> Any:
    """Import the parts when they are used: the process of a single run (``worker``) needs neither plots nor tables."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recbole_llm.compare import analysis, api

    return getattr(analysis if name == "Comparison" else api, name)


make_callable(__name__, "recbole_llm.compare.api", "compare")
