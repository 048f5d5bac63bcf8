"""Settings: which there are, what they may be, and in which order files, dictionaries and the command line apply."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_llm.config.config import Config

__all__ = ["Config"]


def __getattr__(name: str) -> Any:
    """Import :class:`Config` when it is first used: it needs torch and RecBole, the other modules here do not."""
    if name == "Config":
        from recbole_llm.config.config import Config

        return Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
