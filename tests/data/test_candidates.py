from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.data.candidates import CandidateSampler, UnseenNegatives
from recbole_llm.data.rows import POSITION
from recbole_llm.data.train_candidates import PrefixNegatives
from recbole_llm.errors import DataError
from tests.properties import examples


@pytest.fixture
def dataset(shop, make_dataset):
    dataset = make_dataset(user_inter_num_interval="[2,inf)")
    dataset.build()
    return dataset


def had(dataset):
    sets = [set() for _ in range(dataset.user_num)]
    for user, item in zip(dataset.flat["user_id"].tolist(), dataset.flat["item_id"].tolist(), strict=True):
        sets[user].add(item)
    return sets


@pytest.mark.parametrize("fixed", [True, False])
def test_candidates_are_the_target_and_distinct_unseen_items(dataset, fixed):
    histories = had(dataset)
    most = dataset.item_num - 1 - max(map(len, histories))
    sampler = CandidateSampler(dataset, most, seed=1)
    users = torch.arange(1, dataset.user_num).repeat(20)
    targets = torch.tensor([min(histories[user]) for user in users.tolist()])
    candidates = sampler.draw(users, targets, fixed=fixed)
    assert candidates.shape == (len(users), most + 1)
    drawn = set()
    for user, target, row in zip(users.tolist(), targets.tolist(), candidates.tolist(), strict=True):
        assert len(set(row)) == len(row)
        assert set(row) & histories[user] == {target}
        assert min(row) > 0
        assert max(row) < dataset.item_num
        drawn |= set(row)
    assert drawn == set(range(1, dataset.item_num))
    places = (candidates == targets[:, None]).int().argmax(1)
    assert len(places.unique()) > 3  # the target's place tells nothing


def test_evaluation_negatives_are_fixed_per_user_and_seed(dataset):
    users = torch.tensor([3, 1, 3])
    targets = torch.tensor([1, 2, 1])
    sampler = CandidateSampler(dataset, 5, seed=1)
    first = sampler.draw(users, targets, fixed=True)
    torch.manual_seed(0)
    assert torch.equal(CandidateSampler(dataset, 5, seed=1).draw(users, targets, fixed=True), first)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(CandidateSampler(dataset, 5, seed=2).draw(users, targets, fixed=True), first)
    # Training draws anew.
    draws = [sampler.draw(users, targets, fixed=False).sort(1).values for _ in range(2)]
    assert not torch.equal(*draws)


def test_the_order_of_evaluated_candidates_tells_nothing(dataset):
    users = torch.arange(1, dataset.user_num)
    candidates = CandidateSampler(dataset, 9, seed=1).draw(users, torch.ones_like(users), fixed=True)
    places = torch.arange(10).expand(len(users), 10)
    assert abs(torch.corrcoef(torch.stack([candidates.flatten(), places.flatten()]).float())[0, 1]) < 0.15
    assert len((candidates == 1).int().argmax(1).unique()) == 10
    assert not torch.equal(candidates, candidates.sort(1).values)


def test_too_many_negatives(dataset):
    histories = had(dataset)
    most = dataset.item_num - 1 - max(map(len, histories))
    with pytest.raises(DataError, match=rf"topn_negatives={most + 1} is too many.*At most {most} are possible"):
        CandidateSampler(dataset, most + 1, seed=1)


def before(dataset, position):
    """Items that the user of this position had before it, repetitions included."""
    start = dataset.offsets[int(dataset.flat["user_id"][position])]
    return set(dataset.flat["item_id"][start:position].tolist())


@pytest.mark.parametrize("pool", [None, 9])
def test_negatives_are_distinct_and_outside_the_history_so_far(dataset, pool):
    position = dataset.inter_feat[POSITION]
    negatives = PrefixNegatives(dataset, 5)
    allowed = [set(range(1, dataset.item_num))] * len(position)
    if pool:
        items = torch.rand(len(position), dataset.item_num - 1).argsort(1)[:, :pool] + 1
        negatives.draw_from(dataset, items)
        allowed = [set(row) for row in items.tolist()]
    order = torch.randperm(len(position))
    drawn = negatives.draw(position[order], torch.Generator().manual_seed(0))
    later = 0
    for row, where in zip(drawn.tolist(), order.tolist(), strict=True):
        at = int(position[where])
        target, history = int(dataset.flat["item_id"][at]), before(dataset, at)
        others = set(row) - {target}
        assert target in row and 0 not in row and len(set(row)) == 6
        assert not others & history
        if pool and len(allowed[where] - history - {target}) >= 5:
            assert others <= allowed[where]
        user = dataset.flat["user_id"] == dataset.flat["user_id"][at]
        later += bool(others & (set(dataset.flat["item_id"][user].tolist()) - history))
    assert later > 10  # what the user has later may be among them
    again = negatives.draw(position[order], torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_a_small_catalogue_gives_fewer_negatives(dataset):
    position = dataset.inter_feat[POSITION]
    drawn = PrefixNegatives(dataset, dataset.item_num).draw(position, torch.Generator().manual_seed(0))
    for row, at in zip(drawn.tolist(), position.tolist(), strict=True):
        target, history = int(dataset.flat["item_id"][at]), before(dataset, at)
        kept = [item for item in row if item]
        assert row == kept + [0] * (len(row) - len(kept))  # none stands before one
        expected = set(range(1, dataset.item_num)) - history | {target}
        assert set(kept) <= expected and len(set(kept)) == len(kept) >= len(expected) - 2


@examples(30)
@given(st.integers(2, 60), st.integers(1, 59), st.integers(0, 2**31))
def test_unseen_negatives_are_distinct_and_as_many_as_there_are(n_items, wanted, seed):
    draw = torch.Generator().manual_seed(seed)
    users = torch.randint(1, 5, (40,), generator=draw)
    items = torch.randint(1, n_items, (40,), generator=draw)
    torch.manual_seed(seed)
    world = SimpleNamespace(
        item_num=n_items, uid_field="u", iid_field="i", flat={"u": users, "i": items}, train_positions=np.arange(40)
    )
    negatives = UnseenNegatives(world, wanted)
    user, target = torch.arange(1, 5), torch.randint(1, n_items, (4,), generator=draw)
    drawn = negatives.draw(user, target)
    for row in range(4):
        had = {*items[users == user[row]].tolist(), int(target[row])}
        got = [item for item in drawn[row].tolist() if item]
        assert drawn[row].tolist() == got + [0] * (drawn.shape[1] - len(got))
        assert len(set(got)) == len(got) == min(wanted, n_items - 1 - len(had)) and not had & set(got)
