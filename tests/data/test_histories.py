"""Histories against plain lists, without RecBole and without files."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.data.filters import first_users, k_core, parse_intervals, within, without_repeated_pairs
from recbole_llm.data.histories import Histories
from recbole_llm.errors import ConfigError

# Users 1 and up, each with at least one item out of 1 to 6.
sequences = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=7), min_size=1, max_size=5)
quick = settings(max_examples=60, deadline=None)


def histories_of(lists):
    users = torch.tensor([user for user, items in enumerate(lists, 1) for _ in items])
    items = torch.tensor([item for items in lists for item in items])
    columns = {"user": users, "item": items, "time": torch.arange(len(users)) + 100}
    return Histories(columns, user="user", item="item", n_users=len(lists) + 1, n_items=7)


def pairs(rows, items):
    return sorted(zip(rows.tolist(), items.tolist(), strict=True))


@quick
@given(sequences, st.integers(1, 4), st.data())
def test_lists_and_whole_histories(lists, width, data):
    histories = histories_of(lists)
    assert len(histories) == sum(map(len, lists))
    assert histories.has_repeats == any(len(set(items)) < len(items) for items in lists)
    assert histories.item_counts.tolist() == [sum(items.count(item) for items in lists) for item in range(7)]
    assert histories.depths.tolist() == [place for items in lists for place in range(len(items))]
    wanted = data.draw(st.lists(st.integers(0, len(histories) - 1), max_size=4))
    position = torch.tensor(wanted, dtype=torch.long)
    user, depth = histories.users[position], torch.from_numpy(histories.depths)[position]
    length = depth.clamp(max=width)
    found = histories.lists(position, length, width, ["item", "time"])
    for row, (u, d) in enumerate(zip(user.tolist(), depth.tolist(), strict=True)):
        visible = lists[u - 1][max(0, d - width) : d]
        assert found["item"][row].tolist() == visible + [0] * (width - len(visible))
    following = histories.lists(position, length, width, ["item"], shift=1)["item"]
    assert all(
        following[row, int(length[row]) - 1] == lists[u - 1][d]
        for row, (u, d) in enumerate(zip(user.tolist(), depth.tolist(), strict=True))
        if d > 0
    )
    expected = {
        (row, item)
        for row, (u, d) in enumerate(zip(user.tolist(), depth.tolist(), strict=True))
        for item in lists[u - 1][:d]
    }
    before = histories.before(user, position)
    assert set(pairs(*before)) == expected
    if histories.has_repeats:
        assert pairs(*before) == sorted(expected)
    assert set(pairs(*histories.all_of(user))) == {(row, i) for row, u in enumerate(user) for i in lists[u - 1]}
    end, whole = histories.ends(user)
    assert whole.tolist() == [len(lists[u - 1]) for u in user]
    assert (end - whole).tolist() == histories.offsets[user.numpy()].tolist()
    until = {u: max(d for v, d in zip(user, depth, strict=True) if u == v) for u in set(user.tolist())}
    covered = [int(histories.offsets[u]) + place for u in sorted(until) for place in range(int(until[u]) + 1)]
    assert histories.up_to(user, position).tolist() == covered


@quick
@given(sequences, st.integers(0, 2**20))
def test_kept_shuffled_and_reordered(lists, seed):
    histories = histories_of(lists)
    mask = np.random.default_rng(seed).random(len(histories)) < 0.6
    kept = histories.kept(mask)
    assert kept.items.tolist() == histories.items[torch.from_numpy(mask)].tolist()
    assert (
        np.diff(kept.offsets).tolist()
        == np.bincount(histories.users.numpy()[mask], minlength=histories.n_users).tolist()
    )
    position, length = histories.ends(torch.arange(1, histories.n_users))
    plain = histories.lists(position, length, 7, ["item", "time"], in_order=["time"])
    shuffled = histories.shuffled(seed).lists(position, length, 7, ["item", "time"], in_order=["time"])
    assert torch.equal(plain["time"], shuffled["time"])
    for row, items in enumerate(lists):
        assert sorted(shuffled["item"][row, : len(items)].tolist()) == sorted(items)
    source = torch.randperm(len(histories), generator=torch.Generator().manual_seed(seed))
    moved = histories.reordered(source, but=["user"])
    assert torch.equal(moved.users, histories.users)
    assert torch.equal(moved.items, histories.items[source])


def test_several_sequences_of_one_user():
    columns = {"user": torch.tensor([1, 1, 1, 1]), "item": torch.tensor([1, 2, 3, 4])}
    starts = torch.tensor([0, 0, 2, 2])
    histories = Histories(columns, user="user", item="item", n_users=2, n_items=5, starts=starts)
    assert histories.depths.tolist() == [0, 1, 0, 1]
    assert histories.before(torch.tensor([1]), torch.tensor([3]))[1].tolist() == [3]
    assert [part.tolist() for part in histories.ends(torch.tensor([1]))] == [[4], [2]]
    assert histories.kept(np.array([False, True, True, True])).starts.tolist() == [0, 1, 1]
    assert histories.up_to(torch.tensor([1]), torch.tensor([3])).tolist() == [2, 3]


def test_histories_need_no_recbole():
    code = (
        "import sys; sys.modules['recbole'] = None; import torch; from recbole_llm.data.histories import Histories;"
        "columns = {'u': torch.tensor([1, 1]), 'i': torch.tensor([2, 3])};"
        "h = Histories(columns, user='u', item='i', n_users=2, n_items=4);"
        "assert h.before(torch.tensor([1]), torch.tensor([1]))[1].tolist() == [2]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- filters


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=25), st.integers(0, 3), st.integers(0, 3))
def test_k_core_is_the_largest_set_that_satisfies_both(pairs, users, items):
    rows = set(range(len(pairs)))
    while True:
        bad = {
            row
            for row in rows
            if sum(pairs[other][0] == pairs[row][0] for other in rows) < users
            or sum(pairs[other][1] == pairs[row][1] for other in rows) < items
        }
        if not bad:
            break
        rows -= bad
    codes = [np.array([pair[side] for pair in pairs], dtype=np.int64) for side in range(2)]
    intervals = [parse_intervals("user", f"[{users},inf)"), parse_intervals("item", f"[{items},inf)")]
    kept, allowed = k_core(codes, [5, 5], intervals)
    assert set(np.flatnonzero(kept)) == rows
    assert all(allowed[side][codes[side][kept]].all() for side in range(2))


def test_intervals():
    intervals = parse_intervals("key", "[0,1];(3, 4)")
    values = np.array([0, 1, 2, 3, 3.5, 4, np.nan])
    assert values[within(values, intervals)].tolist() == [0, 1, 3.5]
    assert parse_intervals("key", None) is None
    for wrong in ("5", "[2,1]", "[a,b]", "", "[1,2,3]", "[nan,5]"):
        with pytest.raises(ConfigError, match="key=.*is not an interval"):
            parse_intervals("key", wrong)


def test_small_tables():
    frame = pd.DataFrame({"u": list("aabac"), "i": list("xxyxz"), "t": [2.0, 1, 5, 1, 0]})
    assert without_repeated_pairs(frame, ["u", "i"], "t", "first").index.tolist() == [1, 2, 4]
    assert without_repeated_pairs(frame, ["u", "i"], "t", "last").index.tolist() == [0, 2, 4]
    assert first_users(frame, "u", 2, 2)["u"].tolist() == ["a", "a", "b"]
