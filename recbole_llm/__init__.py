"""LLM-based sequential recommenders inside RecBole.

>>> from recbole_llm import run
>>> result = run("MostPopular", "ml-100k", config_dict={"smoke": True, "show_progress": False}, saved=False)
>>> sorted(result["test_result"])[:2]
['mrr@10', 'mrr@20']
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recbole_llm.version import __version__ as __version__

if TYPE_CHECKING:
    from recbole_llm.compare.api import compare
    from recbole_llm.recbole_compat import compat
    from recbole_llm.recommend import Recommender
    from recbole_llm.run.experiment import run
    from recbole_llm.run.load import load_run
    from recbole_llm.tune import objective_function, tune

__all__ = ["Recommender", "compare", "compat", "load_run", "objective_function", "run", "tune"]

# Where the names above are; `run`, `compare` and `tune` are packages that can be called.
_HOMES = {
    "Recommender": "recbole_llm.recommend",
    "compat": "recbole_llm.recbole_compat",
    "load_run": "recbole_llm.run.load",
    "objective_function": "recbole_llm.tune",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import recbole_llm` is fast."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _WithoutRecBole(MetaPathFinder):
    """Import hook, last on the path, that explains how to install RecBole, which pip cannot install for us."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "recbole":
            from recbole_llm.errors import MissingExtraError

            raise MissingExtraError(
                "RecBole is not installed. Run `pip install --no-deps recbole==1.2.1`: without --no-deps pip looks "
                "for the old ray that RecBole pins, which is not needed."
            )
        return None


if PathFinder.find_spec("recbole") is None:
    sys.meta_path.append(_WithoutRecBole())
