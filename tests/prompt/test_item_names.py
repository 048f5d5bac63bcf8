"""What written names become: items by name, else by embedding or spelling; and what is counted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.prompt.item_names import (
    ItemNames,
    NameCounts,
    map_choice,
    map_list,
    map_set,
    normalised,
)
from recbole_llm.prompt.nearest import NearestItems
from tests.properties import examples

TITLES = ["", "red", "green", "blue", "pink", "twin", "twin", "", "grey"]
NAMES = ItemNames(TITLES, np.array([0, 5, 1, 1, 1, 2, 3, 9, 0]))
POINTS = {"red": 0.0, "pink": 1.0, "rose": 0.4, "green": 5.0, "blue": 9.0, "navy": 8.9, "grey": 20.0, "twin": 30.0}


def vector(name):
    """On a parabola: the nearest point has the largest product."""
    x = POINTS.get(name, 50.0)
    return [2 * x, -x * x, 1.0]


def encode(names):
    return np.array([[POINTS.get(name, 50.0), 1.0, 0.0] for name in names], dtype=np.float32)


@pytest.fixture
def nearest():
    vectors = np.array([vector(title) if title else [0, 0, 0] for title in TITLES], dtype=np.float32)
    return NearestItems(vectors, encode, torch.device("cpu"))


def test_names_are_compared_without_blanks_and_escapes():
    assert normalised(" Tom &amp;  Jerry\n") == "Tom & Jerry"


def test_a_title_of_several_items_names_the_most_popular_first():
    assert NAMES.items_of["twin"] == [6, 5]
    assert "" not in NAMES.items_of
    assert map_set([["twin"]], [set()], NAMES, None) == [[6, 5]]


def test_exact_names_in_order_then_the_nearest_of_the_others(nearest):
    # The second blue gives blue's nearest other item; rose is nearest to red, which is listed, and then to pink.
    assert map_set([["blue", "rose", "red", "blue"]], [set()], NAMES, nearest) == [[3, 1, 2, 4]]
    assert map_set([["blue", "rose", "red", "blue"]], [set()], NAMES, None) == [[3, 1]]


def test_replacements_leave_out_the_history_and_exact_names_do_not(nearest):
    assert map_set([["rose", "red"]], [{1, 4}], NAMES, nearest) == [[1, 2]]


def test_names_that_are_all_made_up_still_give_distinct_items(nearest):
    written = ["navy"] * 3 + ["rose"] * 2 + ["nonsense", ""]
    (items,) = map_set([written], [{2}], NAMES, nearest)
    assert items[:3] == [3, 4, 1]  # the three nearest of navy; 2 is in the history
    assert len(items) == len(set(items)) == 6 and 2 not in items and 0 not in items and 7 not in items


def test_a_list_keeps_places(nearest):
    assert map_list([["blue", "rose", "", "red", "blue", "navy"]], [set()], NAMES, nearest) == [[3, 4, 1, 2]]
    assert map_list([["blue", "rose", "red"], ["rose"]], [set(), {1}], NAMES, nearest) == [[3, 4, 1], [4]]
    assert map_list([["blue", "rose", "red"]], [set()], NAMES, None) == [[3, 1]]
    assert map_list([["rose", "rose"]], [set()], NAMES, nearest) == [[1, 4]]


def test_a_choice_is_of_what_there_was():
    written = ["red", "greem", "red", "purple-blue", "x", "y"]
    assert map_choice([written], [[1, 2, 3, 5, 6]], NAMES) == ([[1, 2, 3, 5, 6]], 4)
    assert map_choice([["pink"], [""]], [[2, 3], [1]], NAMES)[1] == 1
    assert map_choice([[""]], [[1]], NAMES) == ([[]], 0)


def test_the_most_similar_spelling_is_taken():
    assert map_choice([["greer"]], [[1, 3, 2, 4]], NAMES)[0] == [[2]]
    assert map_choice([["twin", "twin"]], [[5, 6, 1]], NAMES) == ([[5, 6]], 0)


def test_counts():
    counts = NameCounts()
    NAMES.count(["red", "rose", "red", "", "twin", "rose"], {1, 5}, counts)
    assert counts == NameCounts(names=6, exact=3, unknown=2, empty=1, repeated=2, seen=2)


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("The Mask (1994)", "The Mask (1994)"),
        ("the MASK  (1994)", "The Mask (1994)"),
        ("Mask, The (1994)", "The Mask (1994)"),
        ("mask, the (1994)", "The Mask (1994)"),
        ("Mask (1994)", "The Mask (1994)"),
        ("The Ring", "Ring"),
        ("ring", "Ring"),
        ("thing", "Thing"),
        ("the thing", "The Thing"),
        ("IT", "It"),
        ("Maskerade", "Maskerade"),
        ("", ""),
    ],
)
def test_case_and_articles_do_not_make_another_name(written, title):
    titles = ["", "The Mask (1994)", "Ring", "The Thing", "Thing", "It", "it"]
    names = ItemNames(titles, np.array([0, 1, 1, 9, 1, 5, 2]))
    assert names.as_in_catalogue(written) == title


@examples(100)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_every_title_names_itself(titles):
    names = ItemNames(["", *titles], np.zeros(len(titles) + 1))
    for title in titles:
        assert names.as_in_catalogue(title) == normalised(title)
