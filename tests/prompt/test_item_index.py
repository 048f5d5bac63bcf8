"""Item indexes: distinct codes, from training data only unless they are called leaky."""

import re

import numpy as np
import pytest
import scipy.sparse as sp

from recbole_llm.errors import ConfigError
from recbole_llm.prompt.item_index import (
    SCHEMES,
    Histories,
    bpr_vectors,
    build_item_index,
)
from recbole_llm.prompt.spectral import spectral_clusters


def histories(n_users=60, n_items=80, length=10, seed=0):
    """Two groups of users and items that hardly mix; the last two items of a user are held out."""
    draw = np.random.default_rng(seed)
    users = np.repeat(np.arange(1, n_users), length)
    half = (n_items - 1) // 2
    items = 1 + draw.integers(half, size=len(users)) + half * (users % 2)
    train = np.tile(np.arange(length) < length - 2, n_users - 1)
    return Histories(users, items, train, n_users, n_items)


OPTIONS = {
    "collaborative": {"clusters": 3, "cluster_size": 5},
    "sci": {"clusters": 3, "cluster_size": 8},
    "gci": {"factors": 8, "subspaces": 4, "codewords": 3},
}


def build(scheme, data, seed=1):
    texts = ["", *(f"Item {number // 2}" for number in range(1, data.n_items - 1)), ""]
    return build_item_index(scheme, data, seed, texts, **OPTIONS.get(scheme, {}))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_item_and_user_has_a_code_of_its_own_which_the_seed_decides(scheme):
    data = histories()
    index = build(scheme, data)
    assert index.items[0] == index.users[0] == "" and "" not in index.items[1:]
    assert len(set(index.items)) == len(index.items) == data.n_items
    assert len(set(index.users)) == len(index.users) == data.n_users
    again = build(scheme, data)
    assert (index.items, index.users) == (again.items, again.users)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "sequential_full"])
def test_codes_do_not_depend_on_held_out_interactions(scheme):
    data = histories()
    swapped = data.item.copy()
    held_out = np.flatnonzero(~data.train)
    swapped[held_out] = np.random.default_rng(5).permutation(swapped[held_out])
    changed = Histories(data.user, swapped, data.train, data.n_users, data.n_items)
    assert build(scheme, data).items == build(scheme, changed).items
    assert build("sequential_full", data).items != build("sequential_full", changed).items


def test_sequential_numbers_follow_first_appearance_and_unseen_items_come_last():
    data = Histories(
        np.array([1, 1, 1, 2, 2, 2]),
        np.array([4, 2, 1, 2, 5, 3]),
        np.array([True, True, False, True, True, False]),
        n_users=3,
        n_items=6,
    )
    index = build_item_index("sequential_train", data, seed=0)
    assert [index.items[item] for item in (4, 2, 5)] == ["1001", "1002", "1003"]
    assert {index.items[1], index.items[3]} == {"1004", "1005"} and index.leak == "reduced"
    full = build_item_index("sequential_full", data, seed=0)
    assert full.leak == "leaky" and sorted(map(int, full.items[1:])) == [1, 2, 3, 4, 5]
    first_user_first = [full.items[item] for item in (4, 2, 1, 5, 3)] == ["1", "2", "3", "4", "5"]
    assert first_user_first or [full.items[item] for item in (2, 5, 3, 4, 1)] == ["1", "2", "3", "4", "5"]


def test_rule_of_the_largest_id_finds_what_leaks_and_nothing_else():
    draw = np.random.default_rng(0)
    n_users, length = 300, 8
    users = np.repeat(np.arange(1, n_users + 1), length)
    items = 1 + draw.permutation(n_users * length)
    data = Histories(users, items, np.tile(np.arange(length) < length - 2, n_users), n_users + 1, len(items) + 1)
    history, target = items.reshape(n_users, length)[:, :-1], items.reshape(n_users, length)[:, -1]
    hits = {}
    for scheme in ("random", "sequential_train", "sequential_full"):
        number = np.array([0, *map(int, build(scheme, data).items[1:])])
        hits[scheme] = (number[history].max(1) + 1 == number[target]).mean()
    assert hits["sequential_full"] == 1 and hits["random"] < 0.05 and hits["sequential_train"] < 0.05


@pytest.mark.parametrize("scheme", ["random", "sequential_train", "collaborative", "sci", "gci", "title"])
@pytest.mark.parametrize("cluster_size", [100, 10**6])
def test_the_next_code_is_not_the_next_item_of_a_file_that_is_sorted_by_user(scheme, cluster_size):
    """Internal ids count up along the file, held-out items included; no part of a code may follow them."""
    n_users, length = 60, 6
    users, items = np.repeat(np.arange(1, n_users + 1), length), np.arange(1, n_users * length + 1)
    data = Histories(users, items, np.tile(np.arange(length) < length - 2, n_users), n_users + 1, len(items) + 1)
    options = {"cluster_size": cluster_size} if scheme in ("collaborative", "sci") else {}
    options |= {"factors": 8, "codewords": 3} if scheme == "gci" else {}
    index = build_item_index(scheme, data, 1, ["", *["the same title"] * len(items)], **options)
    steps = [tuple(map(int, re.findall(r"\d+", code))) for code in index.items]
    place = {item: rank for rank, item in enumerate(sorted(items, key=lambda item: (len(steps[item]), steps[item])))}
    last, target = items.reshape(n_users, length)[:, -2], items.reshape(n_users, length)[:, -1]
    assert np.mean([place[b] - place[a] == 1 for a, b in zip(last, target, strict=True)]) < 0.1
    numbers = [place[item] for item in items]
    assert abs(np.corrcoef(items, numbers)[0, 1]) < 0.3 or scheme == "sequential_train"


def test_spectral_clusters_find_separate_blocks_and_lonely_nodes():
    block = np.ones((6, 6)) - np.eye(6)
    affinity = sp.block_diag([block, block, block, np.zeros((2, 2))], "csr")
    labels = spectral_clusters(affinity, 3, seed=0)
    assert [len(set(labels[start : start + 6])) for start in (0, 6, 12)] == [1, 1, 1]
    assert len(set(labels[[0, 6, 12]])) == 3 and (labels[18:] == 3).all()


@pytest.mark.parametrize("scheme", ["collaborative", "sci"])
def test_items_bought_together_share_the_start_of_their_codes(scheme):
    data = histories()
    index = build(scheme, data)
    first = [code.split(">")[0] if scheme == "collaborative" else code.partition(" ")[0] for code in index.items]
    seen = np.unique(data.item[data.train])
    half = (data.n_items - 1) // 2
    assert not {first[item] for item in seen if item <= half} & {first[item] for item in seen if item > half}


def test_collaborative_tokens_are_few_and_a_leaf_is_never_larger_than_asked():
    index = build("collaborative", histories())
    assert len(index.new_tokens) <= 6
    assert {step + ">" for code in index.items[1:] for step in code.split(">")[:-1]} <= set(index.new_tokens)


def test_bpr_vectors_prefer_the_items_of_the_own_group():
    data = histories()
    users, items = bpr_vectors(data, 8, seed=0, epochs=200, learning_rate=0.05)
    half = (data.n_items - 1) // 2
    scores = users @ items[: 2 * half].T
    own = (np.arange(1, data.n_users) % 2)[:, None] == (np.arange(2 * half) >= half)
    assert scores[own].mean() > scores[~own].mean() + 1


def test_shared_and_missing_texts_are_told_apart():
    data = histories(n_items=6)
    index = build_item_index("title", data, 0, ["", "A", "A", "", "A #2", ""])
    assert len(set(index.items)) == 6 and index.items[4] == "A #2"
    assert sorted(index.items[1:3]) == ["A", "A #3"]  # which of the two has the number is random


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("sequential", {}, "item_index='sequential' is not one of random"),
        ("sci", {"clusters": 1}, "item_index_clusters=1"),
        ("gci", {"factors": 10, "subspaces": 4}, "item_index_factors=10"),
    ],
)
def test_errors_name_key_and_value(scheme, options, message):
    with pytest.raises(ConfigError, match=message):
        build_item_index(scheme, histories(), 0, **options)
