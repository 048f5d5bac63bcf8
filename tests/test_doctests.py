"""Examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

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


def examples(module):
    """Lines of a module that are examples."""
    return [line for line in Path(module.__file__).read_text(encoding="utf-8").splitlines() if ">>> " in line]
