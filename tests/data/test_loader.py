import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.dataloader import NegSampleEvalDataLoader

from recbole_llm.data.candidates import DistinctSampler
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import FullSortLoader, prepare_data
from recbole_llm.errors import DataError
from recbole_llm.run.protocol import protocol_text
from tests.properties import examples


@pytest.fixture
def loaders(make_config):
    def make(dataset="shop", model="SASRec", **settings):
        config = make_config(dataset, model, **settings)
        return prepare_data(config, HistoryDataset(config))

    return make


def epoch(loader):
    """Every field of every batch."""
    return [{field: batch[field] for field in batch.columns} for batch in loader]


def assert_equal(left, right):
    assert len(left) == len(right) > 1
    for mine, theirs in zip(left, right, strict=True):
        assert mine.keys() == theirs.keys()
        for field in mine:
            assert torch.equal(mine[field], theirs[field]), field


def rows_of(batches):
    return sorted(
        (int(user), int(item), tuple(items.tolist()))
        for batch in batches
        for user, item, items in zip(batch["user_id"], batch["item_id"], batch["item_id_list"], strict=True)
    )


@pytest.mark.parametrize("view", ["prefix", "segment", "sequence"])
def test_epochs_are_new_and_reproducible(shop, loaders, view):
    loader, twin = (loaders(train_view=view, train_batch_size=16)[0] for _ in range(2))
    # As RecBole iterates: nobody says which epoch it is.
    first, second = epoch(loader), epoch(loader)
    assert len(first) == len(loader)
    if view == "segment":
        assert rows_of(first) != rows_of(second)
    else:
        assert rows_of(first) == rows_of(second)
    assert [batch["item_id"].tolist() for batch in first] != [batch["item_id"].tolist() for batch in second]
    twin.set_epoch(1)  # a resumed run starts here
    assert_equal(epoch(twin), second)
    twin.set_epoch(0)
    assert_equal(epoch(twin), first)


@pytest.mark.parametrize("view", ["segment", "sequence"])
def test_workers_change_nothing(shop, loaders, view):
    alone, helped = (loaders(train_view=view, train_batch_size=16, worker=worker)[0] for worker in (0, 2))
    for _ in range(2):
        assert_equal(epoch(helped), epoch(alone))


def test_evaluation_with_workers(shop, loaders):
    alone, helped = (loaders(eval_batch_size=10, worker=worker)[2] for worker in (0, 2))
    for mine, theirs in zip(helped, alone, strict=True):
        assert torch.equal(mine[0]["item_id_list"], theirs[0]["item_id_list"])
        assert torch.equal(mine[1][1], theirs[1][1])


def test_without_shuffling_the_order_stays(shop, loaders):
    loader = loaders(shuffle=False, train_batch_size=16)[0]
    assert_equal(epoch(loader), epoch(loader))


def test_negatives_are_not_the_target(shop, loaders):
    settings = {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 2}}
    settings |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "price"]}}
    loader = loaders(train_batch_size=40, **settings)[0]
    batches = epoch(loader)
    assert len(batches[0]["item_id"]) == 40  # twenty rows, each with two negatives
    seen = set()
    prices = loader.dataset.get_item_feature()["price"]
    for batch in batches:
        assert not (batch["neg_item_id"] == batch["item_id"]).any()
        assert torch.equal(batch["neg_price"], prices[batch["neg_item_id"]])
        seen |= set(batch["neg_item_id"].tolist())
    assert seen == set(range(1, loader.dataset.item_num))
    rows = rows_of(batches)
    assert rows[::2] == rows[1::2]


@pytest.mark.parametrize("model", ["BERT4Rec", "SASRec"])
def test_stock_models_learn_from_the_batches(shop, make_config, model):
    config = make_config(model=model, train_batch_size=32, hidden_size=8, inner_size=8, n_layers=1)
    train, _, test = prepare_data(config, HistoryDataset(config))
    network = config.model_class(config, train.dataset)
    batch = next(iter(train))
    assert network.calculate_loss(batch).isfinite()
    assert next(iter(test))[0]["item_id"].shape == network.predict(next(iter(test))[0]).shape
    if model == "BERT4Rec":
        masked = batch["Mask_item_id_list"] == train.dataset.item_num
        assert masked.any()
        assert (batch["item_id_list"][masked] > 0).all()


# ---- evaluation


def test_batches_shrink_to_the_score_memory(loaders):
    _, _, large = loaders("ml-100k", eval_batch_size=512)
    _, _, small = loaders("ml-100k", eval_batch_size=512, eval_score_memory_mb=1)
    assert isinstance(small, FullSortLoader)
    fitting = 2**20 // (4 * 1683)
    assert [len(batch[0]) for batch in large] == [512, 431]
    sizes = [len(batch[0]) for batch in small]
    assert sizes == [fitting] * (943 // fitting) + [943 % fitting]
    assert len(small) == len(sizes)
    small, large = ([torch.cat([batch[3] for batch in loader])] for loader in (small, large))
    assert torch.equal(small[0], large[0])


def test_evaluation_batches_carry_the_history(shop, loaders):
    test = loaders(eval_batch_size=7)[2]
    start = 0
    for interaction, (row, item), number, target in test:
        size = len(target)
        assert torch.equal(number, torch.arange(size))
        assert torch.equal(target, interaction["item_id"])
        expected = test.dataset.history(torch.arange(start, start + size))
        assert torch.equal(row, expected[0])
        assert torch.equal(item, expected[1])
        start += size
    assert start == len(test.dataset)


def test_sampled_evaluation(shop, loaders):
    _, valid, test = loaders(eval_args={"mode": {"valid": "uni9", "test": "full"}}, eval_batch_size=55)
    assert isinstance(valid, NegSampleEvalDataLoader)
    assert isinstance(test, FullSortLoader)
    rows = 0
    for interaction, row, target_row, target in valid:
        size = len(target)
        assert torch.equal(target_row, torch.arange(size))
        items = interaction["item_id"].view(10, size)
        assert torch.equal(row.view(10, size), target_row.expand(10, size))
        assert torch.equal(items[0], target)
        assert torch.equal(target, valid.dataset[rows + target_row]["item_id"])
        assert not (items[1:] == target).any()
        lists = interaction["item_id_list"].view(10, size, -1)
        assert (lists == lists[:1]).all()
        rows += size
    assert rows == len(valid.dataset) > 30


def test_sampled_items_depend_on_the_seed_alone(shop, loaders):
    def sampled(**settings):
        loader = loaders(eval_args={"mode": "uni9"}, **settings)[2]
        epochs = [torch.cat([batch[0]["item_id"].view(10, -1).T for batch in loader]) for _ in range(2)]
        assert torch.equal(*epochs)
        return epochs[0]

    before = np.random.get_state()[1].copy()  # noqa: NPY002 - training draws its negatives from it
    small, large, other = sampled(eval_batch_size=10), sampled(eval_batch_size=1000), sampled(seed=1)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(small, large)
    assert torch.equal(small[:, 0], other[:, 0])
    assert not torch.equal(small, other)


def test_empty_splits_have_no_loader(shop, loaders):
    train, valid, test = loaders(eval_args={"split": {"LS": "valid_only"}})
    assert len(train) > 0
    assert len(valid) > 0
    assert test is None


def test_a_batch_is_a_copy(shop, loaders):
    """What a model writes into a batch does not reach the data."""
    train, _, test = loaders(shuffle=False)
    before = train.dataset.flat["item_id"].clone()
    for batch in (next(iter(train)), next(iter(test))[0]):
        for field in batch.columns:
            batch[field].zero_()
    assert torch.equal(train.dataset.flat["item_id"], before)
    assert np.all(train.dataset.train_counts.sum() > 0)
    assert next(iter(train))["item_id"].all()


# ---- sampled ranking


def negatives(loader, count):
    """Targets and negatives of every row."""
    items = torch.cat([batch[0]["item_id"].view(count + 1, -1).T for batch in loader])
    return items[:, 0], items[:, 1:]


@pytest.mark.parametrize("mode", ["uni9", "pop9", "uni16"])
def test_negatives_are_distinct_and_outside_the_whole_history(shop, loaders, mode):
    for loader in loaders(eval_args={"mode": mode}, MAX_ITEM_LIST_LENGTH=2)[1:]:
        targets, items = negatives(loader, int(mode[3:]))
        history = loader.dataset.history(torch.arange(len(targets)))
        assert torch.bincount(history[0]).max() > 2
        for row, (target, drawn) in enumerate(zip(targets.tolist(), items.tolist(), strict=True)):
            assert len(set(drawn)) == len(drawn)
            assert not set(drawn) & {0, target, *history[1][history[0] == row].tolist()}


def test_without_a_mask_negatives_may_be_in_the_history(shop, loaders):
    test = loaders(eval_args={"mode": "uni20"}, mask_history=False)[2]
    targets, items = negatives(test, 20)
    row, item = test.dataset.history(torch.arange(len(targets)))
    assert any(item[row == n].tolist() and set(items[n].tolist()) & set(item[row == n].tolist()) for n in range(10))
    assert all(len(set(drawn)) == 20 for drawn in items.tolist())
    assert not (items == targets[:, None]).any()


def test_every_model_ranks_the_same_negatives(shop, loaders):
    mode = {"eval_args": {"mode": {"valid": "uni5", "test": "pop7"}}}
    for phase, count in ((1, 5), (2, 7)):
        known = None
        for model, more in (("SASRec", {}), ("GRU4Rec", {"eval_batch_size": 9}), ("FPMC", {})):
            found = negatives(loaders(model=model, **mode, **more)[phase], count)[1]
            assert known is None or torch.equal(found, known)
            known = found


def test_popular_items_are_drawn_more_often(shop, loaders):
    train, _, test = loaders(eval_args={"mode": "pop3"}, mask_history=False)
    counts = train.dataset.train_counts
    drawn = np.bincount(negatives(test, 3)[1].flatten().numpy(), minlength=len(counts))
    assert drawn[counts == 0].sum() == 0
    assert np.corrcoef(drawn[1:], counts[1:])[0, 1] > 0.3


@pytest.mark.parametrize("mode", ["uni34", "pop31", "uni1000"])
def test_more_negatives_than_there_are(shop, loaders, mode):
    with pytest.raises(DataError, match=rf"eval_args.mode asks for {mode[3:]} sampled items, but of .* mode=full"):
        loaders(eval_args={"mode": mode})


@pytest.mark.parametrize(
    ("mode", "masked", "label"),
    [
        ("full", True, "full ranking,"),
        ("uni9", True, "ranked among 9 distinct items sampled uniformly outside the history"),
        ("pop9", False, "ranked among 9 distinct items sampled by popularity in training in or outside the history"),
        ({"valid": "uni5", "test": "full"}, True, "test: full ranking, validation: ranked among 5 distinct items"),
    ],
)
def test_the_protocol_says_what_each_phase_ranks(shop, make_config, mode, masked, label):
    assert label in protocol_text(make_config(eval_args={"mode": mode}, mask_history=masked))


@examples(40)
@given(st.integers(2, 12), st.integers(0, 2**31), st.booleans())
def test_distinct_draws_up_to_the_last_item(n_items, seed, popular):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(0, 3, (n_items,), generator=generator) * 10.0 ** torch.arange(n_items)
    weights = weights if popular else torch.ones(n_items)
    weights[0] = 0
    taken = (torch.rand(4 * n_items, generator=generator) < 0.4).nonzero()[:, 0]
    sampler = DistinctSampler(weights)
    possible = sampler.possible(taken, 4)
    for owner in range(4):
        allowed = [i for i in range(1, n_items) if weights[i] > 0 and owner * n_items + i not in taken.tolist()]
        assert int(possible[owner]) == len(allowed)
        items = sampler.draw(taken, torch.full((3,), owner), len(allowed), generator)
        assert all(sorted(row) == allowed for row in items.tolist())


def test_draws_without_replacement_have_the_right_chances():
    # Of weights 1, 2, 3, the pair (first, second) has chance w_i / 6 * w_j / (6 - w_i); the set is its two orders.
    weights = torch.tensor([0.0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    empty = torch.zeros(0, dtype=torch.long)
    items = DistinctSampler(weights).draw(empty, torch.zeros(40_000, dtype=torch.long), 2, generator)
    pairs = torch.bincount((1 << items).sum(1), minlength=16) / len(items)
    for i, j in ((1, 2), (1, 3), (2, 3)):
        chance = sum(float(weights[a] / 6 * weights[b] / (6 - weights[a])) for a, b in ((i, j), (j, i)))
        assert pairs[(1 << i) + (1 << j)] == pytest.approx(chance, abs=0.015)


def test_no_sampler_is_built_for_a_model_that_draws_no_negatives(loaders, atomic, monkeypatch):
    """RecBole's keeps a set of items for every user."""

    rows = "".join(f"u{row % 9}\ti{row % 7}\t{row}\n" for row in range(60))
    atomic(inter="user_id:token\titem_id:token\ttimestamp:float\n" + rows)

    def refuse(*arguments):
        raise AssertionError("a sampler was built")

    monkeypatch.setattr("recbole_llm.data.loader.RepeatableSampler", refuse)
    monkeypatch.setattr("recbole_llm.data.loader.SequenceSampler", refuse)
    assert all(loader is not None for loader in loaders(model="LRURec"))
    with pytest.raises(AssertionError, match="a sampler was built"):
        loaders(model="SASRec", loss_type="BPR", train_neg_sample_args={"distribution": "uniform", "sample_num": 1})
