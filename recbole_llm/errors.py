"""Errors that a user can act on.

Each message names the thing (key, file, line, item), its value, what is allowed and the remedy. The command line
prints these without a traceback and exits with status 2; library users can catch :class:`RecBoleLLMError`.
"""


class RecBoleLLMError(Exception):
    """Base class of every error that recbole-llm raises on purpose."""


class ConfigError(RecBoleLLMError, ValueError):
    """A parameter has an unknown name, a wrong type or a value that is not allowed."""


class DataError(RecBoleLLMError, ValueError):
    """A data file is missing, damaged or lacks required content."""


class ModelNotFoundError(RecBoleLLMError, OSError):
    """A pretrained model cannot be loaded from the given source."""


class CheckpointError(RecBoleLLMError, ValueError):
    """A run directory is incomplete, damaged or was made with another configuration."""


class MissingExtraError(RecBoleLLMError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it."""


class UnsupportedError(RecBoleLLMError, NotImplementedError):
    """A model does not support the requested operation."""


class ModelError(RecBoleLLMError, RuntimeError):
    """A model class breaks the contract of :mod:`recbole_llm.model.base`, or a user's own class fails."""


class DistributedError(RecBoleLLMError, ConnectionError):
    """The processes of a run cannot reach each other, or one of them has ended."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, which torch says in several ways."""
    said = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate", "alloc_failed")
    ran_out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return ran_out or any(words in str(error).lower() for words in said)
