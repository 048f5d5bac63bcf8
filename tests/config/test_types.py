"""The checker of one value, on types small enough to know every answer."""

import doctest
import math
from typing import Annotated, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.config import types
from recbole_llm.config.types import (
    AboveZero,
    Bounds,
    Count,
    Dropout,
    Interval,
    Name,
    Note,
    Positive,
    Rule,
    Seed,
    describe,
    is_verbatim,
    problem,
    shown,
)
from recbole_llm.config.values import nearest
from tests.properties import examples


class Pair(TypedDict, total=False):
    left: Positive
    right: bool


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, Positive),
        (0, Count),
        (1, float),
        (1.5, float),
        (True, bool),
        ("a", str),
        ("a", Literal["a", "b"]),
        (None, Positive | None),
        (2, Positive | None),
        ([], list[int]),
        ((1, 2), list[int]),
        ({"a": 1}, dict[str, int]),
        ({"left": 1}, Pair),
        ({}, Pair),
        (math.inf, Annotated[float, Bounds(gt=0, infinite=True)]),
        ("[5,inf)", Interval),
        ("(0,1];[3,4)", Interval),
        (2**32 - 1, Seed),
    ],
)
def test_values_of_a_type(value, kind):
    assert problem(value, kind, "key") is None


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (0, Positive, "invalid value for key: 0 (give a whole number of at least 1)"),
        (True, Positive, "invalid value for key: True (give a whole number of at least 1)"),
        (1.0, Positive, "invalid value for key: 1.0 (give a whole number of at least 1)"),
        (None, Positive, "invalid value for key: null (give a whole number of at least 1)"),
        (1, bool, "invalid value for key: 1 (give True or False)"),
        (1, str, "invalid value for key: 1 (give text)"),
        (math.nan, float, "invalid value for key: nan (give a number)"),
        (math.inf, AboveZero, "invalid value for key: inf (give a number above 0)"),
        (1.0, Dropout, "invalid value for key: 1.0 (give a number of at least 0 and below 1)"),
        (" ", Name, "invalid value for key: ' ' (give non-empty text)"),
        ("aa", Literal["a", "b"], "invalid value for key: 'aa' (choose from 'a', 'b'). Did you mean 'a'?"),
        ("x", Positive | None, "invalid value for key: 'x' (give a whole number of at least 1 or ~ (null))"),
        ([1, 0], list[Positive], "invalid value for key[1]: 0 (give a whole number of at least 1)"),
        ([0], Positive | list[Positive], "invalid value for key[0]: 0 (give a whole number of at least 1)"),
        ({"a": 0}, dict[str, Positive], "invalid value for key.a: 0 (give a whole number of at least 1)"),
        ({1: 2}, dict[str, Positive], "invalid key in key: 1 (give a name)"),
        ({"lefd": 1}, Pair, "unknown key in key: 'lefd' (choose from left, right). Did you mean 'left'?"),
        ({"left": 0}, Pair | None, "invalid value for key.left: 0 (give a whole number of at least 1)"),
        (5, Pair, "invalid value for key: 5 (give a mapping with keys from left, right)"),
        ("5,inf", Interval, "an interval such as"),
        ("[1,2", Interval, "an interval such as"),
        ([], Annotated[list[int], Rule(bool, "one at least")], "(give one at least)"),
        (
            [],
            Annotated[str | list[int], Rule(bool, "text or numbers")] | None,
            "(give text or a list, each entry a whole number)",
        ),
        ("BPR", Annotated[Literal["CE"], Note("see loss")], "(choose from 'CE'); see loss"),
        (2**32, Seed, "below 4294967296"),
    ],
)
def test_values_that_are_refused(value, kind, says):
    text = problem(value, kind, "key")
    assert text is not None and says in text
    assert "\n" not in text


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)
KINDS = [
    Positive,
    Count,
    Dropout,
    bool,
    str,
    Interval,
    Literal["a"],
    Positive | None,
    list[int],
    dict[str, float],
    Pair,
]


@examples(100)
@given(ANYTHING, st.sampled_from(KINDS))
def test_any_value_passes_or_is_refused_in_one_line(value, kind):
    text = problem(value, kind, "key")
    assert text is None or (text.startswith(("invalid ", "unknown key")) and len(text) < 450)


@examples(100)
@given(st.floats(), st.floats(allow_nan=False, allow_infinity=False))
def test_bounds_at_their_borders(value, limit):
    closed = problem(value, Annotated[float, Bounds(ge=limit)], "key") is None
    opened = problem(value, Annotated[float, Bounds(gt=limit)], "key") is None
    assert closed == (math.isfinite(value) and value >= limit)
    assert opened == (math.isfinite(value) and value > limit)


def test_long_deep_and_endless_values_are_shown_shortly():
    endless: list = []
    endless.append(endless)
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 10**6, endless, deep, 10**5000, {"a": list(range(10**5))}):
        assert len(shown(value)) < 300


def test_words():
    assert describe(Positive | list[Positive]) == (
        "a whole number of at least 1 or a list, each entry a whole number of at least 1"
    )
    assert nearest("sasrec", ["SASRec", "LRURec"]) == " Did you mean 'SASRec'?"
    assert nearest("zzz", ["SASRec"]) == ""
    assert is_verbatim(Interval | None) and not is_verbatim(Name | None)


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(types).failed == 0
