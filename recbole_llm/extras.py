"""Optional dependencies."""

import importlib
from typing import Any

from recbole_llm.errors import MissingExtraError


def optional(module: str, extra: str, purpose: str) -> Any:
    """Return a module of an optional package.

    Parameters
    ----------
    module : str
        Its full name.
    extra : str
        The extra of this package (setup.cfg) that brings it.
    purpose : str
        What needs it, as the beginning of the message.

    Raises
    ------
    MissingExtraError
        It is not installed, or cannot be imported here: pyarrow 26, for one, needs numpy 2.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs {package}; install it with `pip install 'recbole-llm[{extra}]'`."
        ) from error
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {package}, which is installed but cannot be imported: {error}. "
            f"`pip install -U 'recbole-llm[{extra}]' numpy` installs compatible versions."
        ) from error
