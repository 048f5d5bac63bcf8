"""recbole-llm: LLM-based sequential recommenders inside RecBole."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__version__ = "0.2.0"


class _WithoutRecBole(MetaPathFinder):
    """Last on the path: says how RecBole is installed, which no dependency of this package can bring."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "recbole":
            from recbole_llm.errors import MissingExtraError

            raise MissingExtraError(
                "RecBole is not installed. Run `pip install --no-deps recbole==1.2.1`: without --no-deps pip looks "
                "for the old ray that RecBole pins, which nothing here needs."
            )
        return None


if PathFinder.find_spec("recbole") is None:
    sys.meta_path.append(_WithoutRecBole())
