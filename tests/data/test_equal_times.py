"""shuffle_ties: training interactions of one user and time have no order, and every epoch draws one."""

import itertools

import pytest
import torch

from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError, DataError

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
START = 1_371_945_000  # in 32 bits, seconds apart are equal here
# Item: time. The last two are validated and tested, in the order of the file.
HISTORY = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 2, "f": 2, "g": 2, "h": 2}


@pytest.fixture
def loaders(atomic, make_config):
    rows = [f"{user}\t{item}\t{START + time}\n" for user in "vw" for item, time in HISTORY.items()]
    atomic(inter=HEADER + "".join(rows))

    def make(model="LRURec", **settings):
        config = make_config(model=model, train_batch_size=1, MAX_ITEM_LIST_LENGTH=8, **settings)
        return prepare_data(config, HistoryDataset(config))

    return make


def drawn(loader):
    """Training items of each user in the order of one epoch, from the rows with the most targets."""
    orders = {}
    for batch in loader:
        length = int(batch["item_length"])
        items = [*batch["item_id_list"][0, :length].tolist(), int(batch["item_id"])]
        tokens = "".join(loader.dataset.id2token("item_id", items))
        user = int(batch["user_id"])
        orders[user] = max(orders.get(user, ""), tokens, key=len)
        if "next_item_id_list" in batch:
            assert batch["next_item_id_list"][0, :length].tolist() == items[1:]
    return list(orders.values())


@pytest.mark.parametrize("view", ["sequence", "prefix"])
def test_every_epoch_draws_an_order_of_what_has_none(loaders, view):
    train, valid, test = loaders(shuffle_ties=True, train_view=view)
    seen = {order for _ in range(60) for order in drawn(train)}
    # f shares its time with the validated and the tested item, and stays before them.
    assert seen == {"".join(part) + "d" + tail for part in itertools.permutations("abc") for tail in ("ef", "fe")}
    for loader, target, before in ((valid, "g", "abcdef"), (test, "h", "abcdefg")):
        batch = next(iter(loader))[0]
        assert set(loader.dataset.id2token("item_id", batch["item_id"])) == {target}
        assert "".join(loader.dataset.id2token("item_id", batch["item_id_list"][0, : len(before)])) == before


def test_without_it_the_order_is_that_of_the_file(loaders):
    train, *_ = loaders()
    assert {order for _ in range(5) for order in drawn(train)} == {"abcdef"}


def test_an_order_depends_on_seed_and_epoch_alone(loaders):
    first, second, third = (
        loaders(shuffle_ties=True, worker=worker, seed=s)[0] for worker, s in ((0, 5), (1, 5), (0, 6))
    )
    epochs = [drawn(first) for _ in range(6)]
    assert [drawn(second) for _ in range(6)] == epochs
    assert [drawn(third) for _ in range(6)] != epochs
    second.set_epoch(3)  # as a resumed run does
    assert drawn(second) == epochs[3]


def test_targets_are_not_in_their_own_histories(loaders):
    train, *_ = loaders(model="SASRec", shuffle_ties=True)
    for _ in range(10):
        for batch in train:
            assert not torch.any(batch["item_id_list"] == batch["item_id"][:, None])


def test_where_it_cannot_be(loaders, atomic, make_config):
    with pytest.raises(ConfigError, match="shuffle_ties=True moves targets, and LlamaRec draws candidates"):
        loaders(model="LlamaRec", shuffle_ties=True)
    lists = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    atomic(**{"train.inter": lists + "v\ta b\tc\n", "test.inter": lists + "v\ta b c\td\n"})
    config = make_config(shuffle_ties=True, benchmark_filename=["train", "test"])
    with pytest.raises(DataError, match="shuffle_ties=True needs times"):
        next(iter(prepare_data(config, HistoryDataset(config))[0]))
