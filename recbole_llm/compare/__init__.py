"""Comparisons of several models under one protocol: plan, runs, significance tests and reports.

    from recbole_llm.compare import compare
    compare(["LLMSeqSim", "SASRec"], "ml-100k", config_dict={"seeds": [1, 2, 3]})

does what ``recbole-llm compare --model=LLMSeqSim,SASRec --dataset=ml-100k --seeds=1,2,3`` does.
"""

from typing import TYPE_CHECKING

from recbole_llm.callable_package import lazy, make_callable

if TYPE_CHECKING:
    from recbole_llm.compare.analysis import Comparison
    from recbole_llm.compare.api import NothingToCompareError, compare, compare_runs

__all__ = ["Comparison", "NothingToCompareError", "compare", "compare_runs"]


# The process of a single run (``worker``) needs neither plots nor tables.
_API = dict.fromkeys(("NothingToCompareError", "compare", "compare_runs"), "recbole_llm.compare.api")
__getattr__ = lazy(__name__, {"Comparison": "recbole_llm.compare.analysis", **_API})
make_callable(__name__, "recbole_llm.compare.api", "compare")
