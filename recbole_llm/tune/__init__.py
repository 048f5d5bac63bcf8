"""Hyper-parameter search on the validation score.

    from recbole_llm.tune import tune
    result = tune("LRURec", "ml-100k", params_file="props/hyper/LRURec.test", algo="random", max_evals=20)

does what ``recbole-llm tune --model=LRURec --dataset=ml-100k --algo=random --max_evals=20`` does.
"""

from typing import TYPE_CHECKING

from recbole_llm.callable_package import lazy, make_callable

if TYPE_CHECKING:
    from recbole_llm.tune.search import resume_study, tune
    from recbole_llm.tune.study import StudyError
    from recbole_llm.tune.trial import objective_function

__all__ = ["StudyError", "objective_function", "resume_study", "tune"]

# ``recbole-llm tune --help`` needs neither torch nor Optuna.
_HOMES = {"StudyError": "study", "objective_function": "trial", "resume_study": "search", "tune": "search"}
__getattr__ = lazy(__name__, {name: f"{__name__}.{module}" for name, module in _HOMES.items()})
make_callable(__name__, "recbole_llm.tune.search", "tune")
