"""Answers of a language model, as tests write them."""

from collections.abc import Sequence

from recbole_llm.prompt.chat import BEGIN, END, INTRODUCTION


def list_lines(titles: Sequence[str]) -> str:
    """Write an answer that is a list as text."""
    lines = [f"{number}. {title}" for number, title in enumerate(titles, start=1)]
    return "\n".join([INTRODUCTION, BEGIN, *lines, END])
