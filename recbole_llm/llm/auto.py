"""Resolution of ``auto``: the language models that a run got where it left the choice open.

It depends on the machine and the day: the same settings are another experiment where the answer is another one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from recbole_llm.llm.spec import LLMSpec, ResolvedLLM

_chosen: ContextVar[list[dict[str, Any]] | None] = ContextVar("chosen", default=None)


@contextmanager
def recording() -> Iterator[list[dict[str, Any]]]:
    """Collect the resolutions of ``auto`` while the body runs.

    Each entry has ``preferred``, ``asked_revision``, ``causal`` and ``weights``, which were asked for, and what was
    found, ``name`` and ``revision``.
    """
    found: list[dict[str, Any]] = []
    token = _chosen.set(found)
    try:
        yield found
    finally:
        _chosen.reset(token)


def note(spec: LLMSpec, resolved: ResolvedLLM, causal: bool, weights: bool) -> ResolvedLLM:
    """Record what a request for ``auto`` got; returns it."""
    entry = {
        "preferred": spec.preferred,
        "asked_revision": spec.revision,
        "causal": causal,
        "weights": weights,
        "name": resolved.name,
        "revision": resolved.revision,
    }
    found = _chosen.get()
    if found is not None and entry not in found:
        found.append(entry)
    return resolved
