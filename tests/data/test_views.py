from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llm.contract import LLMRecommender
from recbole_llm.data.loader import TrainLoader, prepare_data
from recbole_llm.data.rows import NEXT
from recbole_llm.data.views import TrainRows, view_of
from recbole_llm.errors import ConfigError, DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "pod" / "segment_sampling.npz"
LIST = "item_id_list"
HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


@pytest.fixture
def histories(atomic):
    """User ``u`` of length n has the items ``u-0 .. u-(n-1)``: an item says whose it is and where it stands."""

    def write(lengths):
        rows = [f"{u}\t{u}-{t}\t{t}\n" for u, length in enumerate(lengths) for t in range(length)]
        atomic(inter=HEADER + "".join(rows))

    return write


def depth_of(dataset, position):
    return position.numpy() - dataset.offsets[dataset.flat["user_id"][position].numpy()]


def tokens(dataset, items):
    return [dataset.field2id_token["item_id"][item] for item in items]


def test_golden_pod_segment_sampling(histories, make_dataset):
    golden = np.load(GOLDEN)
    lengths = np.unique(golden["n"])
    assert lengths.tolist() == [4, 5, 6, 22, 23, 24, 50, 60]
    users, epochs = 60, 900
    histories(np.repeat(lengths, users))
    long, short = (make_dataset(MAX_ITEM_LIST_LENGTH=length).build()[0] for length in (100, 20))
    rows, cut = TrainRows(long, "segment", seed=3), TrainRows(short, "segment", seed=3)
    draws = {int(n): [] for n in lengths}
    for epoch in range(epochs):
        position, length = rows.draw(rows.generator(epoch))
        same, kept = cut.draw(cut.generator(epoch))
        assert torch.equal(position, same)
        end = depth_of(long, position)
        outcome = np.stack([end - length.numpy(), end, end - kept.numpy(), kept.numpy() + 1], axis=1)
        for n, part in zip(lengths, np.split(outcome, len(lengths)), strict=True):
            draws[int(n)].append(part)
    for n in lengths:
        own = golden["n"] == n
        support = np.stack([golden[name][own] for name in ("start", "end", "first_kept", "kept_length")], axis=1)
        outcomes, counts = np.unique(np.concatenate(draws[int(n)]), axis=0, return_counts=True)
        # Every outcome of the released sampler comes up, no other does: start, end, what is kept, and its length.
        order = np.lexsort(support.T[::-1])
        assert np.array_equal(outcomes, support[order])
        expected = golden["prob"][own][order] * users * epochs
        freedom = max(len(expected) - 1, 1)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert expected.min() > 10
        assert chi_square < freedom + 4 * np.sqrt(2 * freedom)
        if n == 50:
            ends = np.concatenate(draws[50])[:, 1]
            assert np.mean(ends >= 48 - 5) == pytest.approx(0.34, abs=0.01)  # uniform ends would give .11


def test_golden_pod_p5_sequence_sampling(histories, make_dataset):
    golden = np.load(GOLDEN.with_name("p5_sequence_sampling.npz"))
    lengths = [5, 6, 7, 8, 30]
    users, epochs = 40, 250
    histories(np.repeat(lengths, users))
    dataset = make_dataset(MAX_ITEM_LIST_LENGTH=100).build()[0]
    rows = TrainRows(dataset, "p5", seed=3)
    draws = []
    for epoch in range(epochs):
        position, length = rows.draw(rows.generator(epoch))
        target = depth_of(dataset, position) + 1
        draws.append(np.stack([target - length.numpy(), target - 1, target], axis=1))
    for place, n in enumerate(lengths):
        own = golden["n"] == n
        expected = np.stack([golden[name][own] for name in ("first", "last", "target")], axis=1)
        mine = np.concatenate([draw[place * users : (place + 1) * users] for draw in draws])
        outcomes, counts = np.unique(mine, axis=0, return_counts=True)
        order = np.lexsort(expected.T[::-1])
        assert np.array_equal(outcomes, expected[order])
        wanted = golden["prob"][own][order] * users * epochs
        freedom = max(len(wanted) - 1, 1)
        assert ((counts - wanted) ** 2 / wanted).sum() < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("view", ["segment", "p5"])
def test_segments_stay_within_training_items(histories, make_dataset, view):
    lengths = [2, 3, 4, 5, 9, 30]
    histories(lengths)
    train = make_dataset(MAX_ITEM_LIST_LENGTH=50).build()[0]
    rows = TrainRows(train, view, seed=1)
    assert len(rows) == len(lengths)
    # RecBole leaves no test item of two interactions, and no validation item of three.
    last = np.array([1, 1, 1, 2, 6, 27])
    reached = np.zeros(len(lengths), dtype=int)
    for epoch in range(300):
        position, length = rows.draw(rows.generator(epoch))
        end = depth_of(train, position)
        assert (length.numpy() >= 1).all()
        assert (length.numpy() <= end).all()
        reached = np.maximum(reached, end)
    assert reached.tolist() == last.tolist()


@pytest.mark.parametrize("length", [1, 4, 7, 50])
def test_sequences_have_every_training_target_once(histories, make_config, make_dataset, length):
    lengths = [2, 4, 5, 7, 8, 16, 17]
    histories(lengths)
    config = make_config(MAX_ITEM_LIST_LENGTH=length, train_view="sequence", train_batch_size=3)
    loader, _, _ = prepare_data(config, make_dataset(MAX_ITEM_LIST_LENGTH=length, train_view="sequence"))
    found = []
    for batch in loader:
        for items, following, n, target, user in zip(
            batch["item_id_list"],
            batch[NEXT + "item_id_list"],
            batch["item_length"],
            batch["item_id"],
            batch["user_id"],
            strict=True,
        ):
            inputs, targets = tokens(loader.dataset, items[:n]), tokens(loader.dataset, following[:n])
            name = loader.dataset.field2id_token["user_id"][user]
            first = int(inputs[0].split("-")[1])
            assert inputs == [f"{name}-{first + step}" for step in range(n)]
            assert targets == [f"{name}-{first + step + 1}" for step in range(n)]
            assert following[n - 1] == target
            assert not items[n:].any()
            assert not following[n:].any()
            found += targets
    training = {2: 2, 4: 2, 5: 3, 7: 5, 8: 6, 16: 14, 17: 15}
    expected = [f"{user}-{t}" for user, n in enumerate(lengths) for t in range(1, training[n])]
    assert sorted(found) == sorted(expected)


# The training histories of the golden set of LRURec; that of one item has no target behind an item.
AUTHORS_HISTORIES = """5 26
23 4 20
24 8 29 26 15
24 9 26 15 11 27 9 8
7 5 17 8 13 1 12 24 27 7 20 29
13 6 25 25 24 22 17 28 30 1 3 25 10
15 7 5 15 10 24 4 4 9 20 17 2 1 17 23 30 13 29 29 8
24 11 10 4 1 30 8 24 29 24 1 22 5 4 2 4 28 28 2 20 28 5 20 2 28 26 6 10 30 18"""


def test_golden_lrurec_windows(atomic, make_config, make_dataset):
    golden = np.load(GOLDEN.parents[1] / "lrurec" / "strong_f64.npz")
    both = (
        (items, following) for items, following in zip(golden["tokens_right"], golden["labels_right"], strict=True)
    )
    expected = [(items[items > 0].tolist(), following[: (items > 0).sum()].tolist()) for items, following in both]
    lines = [
        f"{user}\t{item}\t{time}\n"
        for user, items in enumerate(AUTHORS_HISTORIES.splitlines())
        for time, item in enumerate([*items.split(), 1, 2])  # validation and test item
    ]
    atomic(inter=HEADER + "".join(lines))
    settings = {"MAX_ITEM_LIST_LENGTH": 12, "train_view": "sequence", "windows": "original", "train_batch_size": 99}
    loader, _, _ = prepare_data(make_config(**settings), make_dataset(**settings))
    (batch,) = loader
    mine = [
        tuple([int(name) for name in tokens(loader.dataset, batch[field][i, :n])] for field in (LIST, NEXT + LIST))
        for i, n in enumerate(batch["item_length"].tolist())
    ]
    assert sorted(mine) == sorted(pair for pair in expected if pair[0])
    everything, _, _ = prepare_data(make_config(**{**settings, "windows": "all"}), make_dataset(**settings))
    (batch,) = everything
    assert batch["item_length"].sum() == sum(len(row.split()) - 1 for row in AUTHORS_HISTORIES.splitlines())


@pytest.mark.parametrize(("length", "rows"), [(1, 0), (2, 3), (3, 2), (4, 1)])
def test_windows_of_short_histories(histories, make_dataset, length, rows):
    histories([6 + 2])
    train = make_dataset(MAX_ITEM_LIST_LENGTH=length).build()[0]
    _, sizes = TrainRows(train, "sequence", 0, windows="original").draw(torch.Generator())
    assert sizes.tolist() == [min(length, 5) if length == 4 else length - 1] * rows


@pytest.mark.parametrize(("items", "length"), [(2, 3), (4, 3), (5, 3), (9, 3), (9, 1), (9, 20)])
def test_newest_windows(histories, make_dataset, items, length):
    histories([items + 2])
    train = make_dataset(MAX_ITEM_LIST_LENGTH=length).build()[0]
    position, sizes = TrainRows(train, "sequence", 0, windows="newest").draw(torch.Generator())
    assert depth_of(train, position).tolist() == [items - 1]
    assert sizes.tolist() == [min(length, items - 1)]


def test_prefixes_are_the_rows_of_the_dataset(shop, make_config, make_dataset):
    train = make_dataset().build()[0]
    loader = TrainLoader(make_config(train_view="prefix"), train, None, shuffle=False)
    batches = list(loader)
    rows = train[torch.arange(len(train))]
    assert len(batches) == len(loader) == 1
    assert set(batches[0].columns) == set(rows.columns)
    for field in rows.columns:
        assert torch.equal(batches[0][field], rows[field]), field


def test_the_newest_prefixes_of_every_user(shop, make_dataset):
    train = make_dataset().build()[0]
    every, _ = TrainRows(train, "prefix", 0).draw(torch.Generator())
    position, length = TrainRows(train, "prefix", 0, per_user=2).draw(torch.Generator())
    user = train.flat["user_id"]
    expected = [p for p in every.tolist() if ((user[every] == user[p]) & (every > p)).sum() < 2]
    assert position.tolist() == expected and len(position) == len(length) < len(every)
    row = {at: i for i, at in enumerate(every.tolist())}
    assert length.tolist() == [int(train.inter_feat["item_length"][row[p]]) for p in expected]


def test_draws_depend_on_seed_and_epoch_alone(histories, make_dataset):
    histories([12] * 50)
    train = make_dataset().build()[0]
    rows = TrainRows(train, "segment", seed=0)
    first, second, again = (rows.draw(rows.generator(epoch)) for epoch in (0, 1, 0))
    other = TrainRows(train, "segment", seed=1).draw(TrainRows(train, "segment", seed=1).generator(0))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("view", ["prefix", "segment", "sequence"])
def test_split_by_share(shop, make_dataset, view):
    train = make_dataset(eval_args={"split": {"RS": [0.6, 0.2, 0.2]}}).build()[0]
    rows = TrainRows(train, view, seed=0)
    position, length = rows.draw(rows.generator(0))
    allowed = set(train.inter_feat["history_position"].tolist())
    assert set(position.tolist()) <= allowed
    assert len(position) == len(length) == len(rows) > 0
    assert (length.numpy() <= depth_of(train, position)).all()


def test_nothing_to_train_on(histories, make_dataset):
    histories([3, 3])
    train = make_dataset(eval_args={"split": {"RS": [0.0, 0.5, 0.5]}}).build()[0]
    with pytest.raises(DataError, match="No user of 'shop' has two training items.*eval_args"):
        TrainRows(train, "prefix", seed=0)


def test_view_of(shop, make_config):
    class Plain(LLMRecommender):
        pass

    class Declared(LLMRecommender):
        train_view = "segment"

    class Depends(LLMRecommender):
        @classmethod
        def view_for(cls, config):
            return "sequence" if config["MAX_ITEM_LIST_LENGTH"] == 6 else "prefix"

    config = make_config()
    assert [view_of(config, model) for model in (Plain, Declared, Depends)] == ["prefix", "segment", "sequence"]
    assert view_of(make_config(train_view="prefix"), Declared) == "prefix"
    with pytest.raises(ConfigError, match="invalid value for train_view: 'segments'.*Did you mean 'segment'"):
        view_of(make_config(train_view="segments"), Plain)
