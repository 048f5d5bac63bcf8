"""Examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

from recbole_llm.callable_package import CallablePackage

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "recbole_llm").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
# It changes the process that it is called in: tests/test_compat.py calls it in one of its own.
ELSEWHERE = {"recbole_llm.recbole_compat"}


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ELSEWHERE])
def test_examples(name, isolated):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0 or all("+SKIP" in line for line in examples(module))
    assert result.failed == 0


# What users call. Shown elsewhere: `compat` in tests/test_compat.py, `resume_study` in the example of `tune`.
CALLED = {
    "recbole_llm": ["Recommender", "compare", "load_run", "objective_function", "run", "tune"],
    "recbole_llm.quick_start": ["load_run", "refit", "run"],
    "recbole_llm.compare": ["compare", "compare_runs"],
    "recbole_llm.config": ["Config"],
    "recbole_llm.convert": ["check", "convert", "source_names"],
    "recbole_llm.model.base": ["LLMRecommender"],
    "recbole_llm.recommend": ["Recommender"],
    "recbole_llm.recommend.card": ["write_card"],
    "recbole_llm.recommend.explorer": ["Explorer"],
    "recbole_llm.testing": ["check_model", "write_dataset"],
    "recbole_llm.text.titles": ["clean_title"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in CALLED for name in CALLED[module]])
def test_what_users_call_has_an_example_that_runs(module, name):
    called = getattr(importlib.import_module(module), name)
    if isinstance(called, CallablePackage):
        home, name = called.entry_point
        called = getattr(importlib.import_module(home), name)
    lines = [line for line in (called.__doc__ or "").splitlines() if ">>> " in line]
    assert [line for line in lines if "+SKIP" not in line]
    assert called.__module__ in MODULES


def examples(module):
    """Lines of a module that are examples."""
    return [line for line in Path(module.__file__).read_text(encoding="utf-8").splitlines() if ">>> " in line]
