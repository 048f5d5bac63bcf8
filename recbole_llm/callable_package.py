"""Packages that import their parts on first use, and those that are also the function they are named after.

``recbole_llm.compare`` is a package of modules, and ``from recbole_llm import compare`` is what a user types to
compare models. Python lets a module's class be replaced, so the package can be called as well.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return ``__getattr__`` of a package that imports what is asked for, by name and full name of its module."""

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return attribute


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
