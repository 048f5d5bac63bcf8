"""What a user imports from the package."""

import subprocess
import sys

import pytest

import recbole_llm


def test_the_names_of_the_package():
    from recbole_llm import Recommender, compare, load_run, objective_function, run, tune
    from recbole_llm.compare import compare as compare_function
    from recbole_llm.run.experiment import run as run_function

    assert all(callable(name) for name in (Recommender, compare, load_run, objective_function, run, tune))
    assert compare.entry_point[1] == compare_function.__name__
    assert run.entry_point[1] == run_function.__name__
    with pytest.raises(AttributeError, match="nosuch"):
        _ = recbole_llm.nosuch


def test_a_package_called_as_its_function(monkeypatch):
    import recbole_llm.run.experiment

    monkeypatch.setattr(recbole_llm.run.experiment, "run", lambda *args, **kwargs: (args, kwargs))
    assert recbole_llm.run("SASRec", "ml-100k", saved=False) == (("SASRec", "ml-100k"), {"saved": False})


def test_models_by_name():
    from recbole_llm.model import LLM2SASRec, LRURec

    assert LLM2SASRec.__module__ == "recbole_llm.model.llm2sasrec"
    assert LRURec.__name__ == "LRURec"
    with pytest.raises(ImportError, match="SASRec"):
        from recbole_llm.model import SASRec  # noqa: F401  (RecBole's)


def test_importing_the_package_imports_nothing_large():
    code = "import recbole_llm, sys; assert not {'torch', 'recbole', 'pandas'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
