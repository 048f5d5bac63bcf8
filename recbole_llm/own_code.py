"""Exceptions in the code of a user's own model class: one message that names class, method, line, cause and remedy.

:func:`explain_own_code` stands where the package begins to call models: around a run, the loading of one, its
evaluation and its recommendations. Our own classes and RecBole's are left alone: a report of their exceptions needs
the traceback.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender

from recbole_llm.config.registry import is_users, is_users_module, reference_of
from recbole_llm.contract import LLMRecommender, Reranker
from recbole_llm.errors import ModelError, RecBoleLLMError


@contextmanager
def explain_own_code() -> Iterator[None]:
    """Turn an exception from the code of a user's own model class into a ModelError; all others pass.

    The original exception is the ``__cause__``.

    Raises
    ------
    ModelError
        ``MyModel.calculate_loss fails in mymodel.py, line 31 (KeyError: 'pos_item'). ...``
    """
    try:
        yield
    except RecBoleLLMError:
        raise
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        raise ModelError(message) from error


def try_the_class(cls: type) -> str:
    """Return the advice to check a user's own class; "" for one of ours or RecBole's."""
    if not is_users(cls):
        return ""
    return f" recbole_llm.testing.check_model({reference_of(cls)!r}) tries every method on a tiny dataset."


def require_constructor(cls: type) -> None:
    """Raise ModelError for a class whose constructor does not take ``(config, dataset)``."""
    signature = inspect.signature(cls)
    try:
        signature.bind("config", "dataset")
    except TypeError:
        raise ModelError(
            f"The constructor of {cls.__name__} takes {signature}: define it as __init__(self, config, dataset)."
        ) from None


def require_sound(model: LLMRecommender) -> None:
    """Check what every model has after its constructor.

    Raises
    ------
    ModelError
        If the base class was not initialised, or a parameter, buffer or submodule has the name of a hook.
    """
    name = type(model).__name__
    if "n_items" not in vars(model):
        raise ModelError(f"The constructor of {name} must call super().__init__(config, dataset) first.")
    own = {*model._parameters, *model._buffers, *model._modules}
    hooks = {hook for cls in (LLMRecommender, Reranker) for hook in vars(cls) if not hook.startswith("_")}
    if own & hooks:
        raise ModelError(
            f"{name} has a parameter, buffer or submodule called {', '.join(map(repr, sorted(own & hooks)))}: that is "
            "the name of a hook of recbole_llm.model.base, so call it something else."
        )


def _message(error: Exception) -> str | None:
    """Describe an exception by the first method of a user's own class that it passed through; None without one."""
    frames = list(_frames(error.__traceback__))
    for number, (frame, _) in enumerate(frames):
        model = _model_of(frame)
        if model is None:
            continue
        cls = model if isinstance(model, type) else type(model)
        file = frame.f_code.co_filename
        line = [line for inner, line in frames[number:] if inner.f_code.co_filename == file][-1]
        text = " ".join(str(error).split())[:300]
        return (
            f"{cls.__name__}.{frame.f_code.co_name} fails in {file}, line {line} ({type(error).__name__}: {text})."
            f"{_hint(error, model, [inner for inner, _ in frames[number:]])}{try_the_class(cls)}"
            " --debug shows the traceback."
        )
    return None


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _model_of(frame: FrameType) -> Any:
    """Return the model, or the class, whose method a frame runs, if the code is a user's; None otherwise."""
    code = frame.f_code
    if not code.co_argcount or not is_users_module(str(frame.f_globals.get("__name__"))):
        return None
    first = frame.f_locals.get(code.co_varnames[0])
    is_model = isinstance(first, SequentialRecommender)
    return first if is_model or (isinstance(first, type) and issubclass(first, SequentialRecommender)) else None


def _hint(error: Exception, model: LLMRecommender | type[LLMRecommender], frames: list[FrameType]) -> str:
    if not isinstance(model, type) and "n_items" not in vars(model):
        return " Its constructor must call super().__init__(config, dataset) first."
    if not isinstance(error, KeyError):
        return ""
    batches = (value for frame in frames for value in frame.f_locals.values() if isinstance(value, Interaction))
    batch = next((batch for batch in batches if error.args and error.args[0] not in batch), None)
    if batch is None:
        return ""
    negative = " Negatives come with input_type = InputType.PAIRWISE." * (error.args[0] == model.NEG_ITEM_ID)
    return f" The batch has the fields {', '.join(batch.columns)}.{negative}"
