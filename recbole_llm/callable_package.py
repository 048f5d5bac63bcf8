"""Packages that are also the function they are named after.

``recbole_llm.compare`` is a package of modules, and ``from recbole_llm import compare`` is what a user types to
compare models. Python lets a module's class be replaced, so the package can be called as well.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that forwards calls to a function inside it."""

    entry_point: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; its module is imported by the first call."""
        module, name = self.entry_point
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


def make_callable(package: str, module: str, name: str) -> None:
    """Let a package be called as the function ``name`` of one of its modules.

    Parameters
    ----------
    package : str
        ``__name__`` of the package.
    module : str
        Full name of the module that defines the function.
    name : str
    """
    loaded = sys.modules[package]
    loaded.__class__ = CallablePackage
    assert isinstance(loaded, CallablePackage)
    loaded.entry_point = (module, name)
