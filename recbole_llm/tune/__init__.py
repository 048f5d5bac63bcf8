"""Hyper-parameter search on the validation score.

    from recbole_llm.tune import tune
    result = tune("LRURec", "ml-100k", params_file="props/hyper/LRURec.test", algo="random", max_evals=20)

does what ``recbole-llm tune --model=LRURec --dataset=ml-100k --algo=random --max_evals=20`` does.
"""

from recbole_llm.callable_package import make_callable
from recbole_llm.tune.options import StudyOptions
from recbole_llm.tune.search import resume_study, tune
from recbole_llm.tune.study import StudyError
from recbole_llm.tune.trial import objective_function

__all__ = ["StudyError", "StudyOptions", "objective_function", "resume_study", "tune"]

make_callable(__name__, "recbole_llm.tune.search", "tune")
