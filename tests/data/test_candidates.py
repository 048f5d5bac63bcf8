import pytest
import torch

from recbole_llm.data.candidates import CandidateSampler
from recbole_llm.errors import DataError


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


def test_too_many_negatives(dataset):
    histories = had(dataset)
    most = dataset.item_num - 1 - max(map(len, histories))
    with pytest.raises(DataError, match=rf"topn_negatives={most + 1} is too many.*At most {most} are possible"):
        CandidateSampler(dataset, most + 1, seed=1)
