"""Settings: which there are, what they may be, and in which order files, dictionaries and the command line apply."""

from typing import TYPE_CHECKING

from recbole_llm.callable_package import lazy

if TYPE_CHECKING:
    from recbole_llm.config.config import Config

__all__ = ["Config"]

# It needs torch and RecBole, the other modules here do not.
__getattr__ = lazy(__name__, {"Config": "recbole_llm.config.config"})
