"""Files that were split beforehand: published splits with and without ready-made lists of items."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.data.benchmark import chain
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError, DataError
from recbole_llm.quick_start import run
from recbole_llm.run.protocol import protocol_text

FILES = ["train", "valid", "test"]
LISTS = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
PLAIN = "user_id:token\titem_id:token\ttimestamp:float\n"


def histories(users=12, items=20, seed=1):
    draw = random.Random(seed)
    return {f"u{u}": [f"i{draw.randrange(items):02}" for _ in range(4 + u % 7)] for u in range(users)}


def examples(sequences, longest=50, prefixes=True):
    """``(user, list, target)`` of each part, as UniSRec writes them; without prefixes, as S3Rec's files are read."""
    parts = {name: [] for name in FILES}
    for user, items in sequences.items():
        last = len(items) - 2
        for end in range(1, last) if prefixes else [last - 1]:
            parts["train"].append((user, items[max(0, end - longest) : end], items[end]))
        for name, end in (("valid", last), ("test", last + 1)):
            parts[name].append((user, items[max(0, end - longest) : end], items[end]))
    return parts


@pytest.fixture
def write(tmp_path):
    def make(parts, header=LISTS):
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        for name, rows in parts.items():
            lines = [
                "\t".join(" ".join(cell) if isinstance(cell, list) else str(cell) for cell in row) for row in rows
            ]
            (folder / f"shop.{name}.inter").write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return make


def rows_of(split):
    """``(user, list, target, whole history)`` of each row, in raw ids."""
    result = []
    for index in range(len(split)):
        row = split[torch.tensor([index])]
        length = int(row["item_length"])
        items = split.id2token("item_id", row["item_id_list"][0, :length])
        _, history = split.history(torch.tensor([index]))
        result.append(
            (
                split.id2token("user_id", int(row["user_id"])),
                list(np.atleast_1d(items)),
                split.id2token("item_id", int(row["item_id"])),
                set(np.atleast_1d(split.id2token("item_id", history)).tolist()),
            )
        )
    return result


@pytest.mark.parametrize("longest", [50, 3])
def test_ready_made_lists_are_the_rows_and_lengthen_the_history(write, make_dataset, longest):
    sequences = histories()
    parts = examples(sequences, longest)
    write(parts)
    splits = make_dataset(benchmark_filename=FILES, MAX_ITEM_LIST_LENGTH=5).build()
    for name, split in zip(FILES, splits, strict=True):
        found = rows_of(split)
        assert [row[:3] for row in found] == [(user, items[-5:], target) for user, items, target in parts[name]]
        for (user, _, _, history), (_, items, _) in zip(found, parts[name], strict=True):
            end = len(sequences[user]) - {"test": 1, "valid": 2}.get(name, 0)
            if name != "train":
                assert history == set(sequences[user][:end])  # also what the lists cut off
            assert set(items) <= history <= set(sequences[user])
    counts = splits[0].train_counts
    for item in set(sum(sequences.values(), [])):
        seen = sum(items[:-2].count(item) for items in sequences.values())
        assert counts[splits[0].token2id("item_id", item)] == seen


def test_one_example_a_user_trains_at_every_position(write, make_dataset):
    sequences = histories()
    write(examples(sequences, prefixes=False))
    dataset = make_dataset("shop", "LRURec", benchmark_filename=FILES, MAX_ITEM_LIST_LENGTH=20)
    train, valid, test = prepare_data(dataset.config, dataset)
    (batch,) = list(train)
    assert train.rows.view == "sequence"
    assert sorted(batch["item_length"].tolist()) == sorted(len(items) - 3 for items in sequences.values())
    assert len(valid.dataset) == len(test.dataset) == len(sequences)
    assert train.dataset.train_counts.sum() == sum(len(items) - 2 for items in sequences.values())


@pytest.mark.parametrize("timed", [True, False])
def test_plain_interactions_of_three_files(write, make_dataset, timed):
    sequences = histories()
    parts = {name: [] for name in FILES}
    for user, items in sequences.items():
        for number, item in enumerate(items):
            name = "test" if number == len(items) - 1 else "valid" if number == len(items) - 2 else "train"
            parts[name].append((user, item, number) if timed else (user, item))
    if timed:  # the time decides inside a file
        random.Random(0).shuffle(parts["train"])
    write(parts, PLAIN if timed else "user_id:token\titem_id:token\n")
    splits = make_dataset(benchmark_filename=FILES).build()
    expected = examples(sequences, 6)
    for name, split in zip(FILES, splits, strict=True):
        assert sorted(row[:3] for row in rows_of(split)) == sorted(expected[name])


def test_two_files_have_no_validation(write, make_dataset):
    parts = examples(histories())
    write({"a": parts["train"], "b": parts["test"]})
    dataset = make_dataset(benchmark_filename=["a", "b"])
    _, valid, test = prepare_data(dataset.config, dataset)
    assert valid is None
    assert len(test.dataset) == 12


def test_lists_that_do_not_continue_each_other(write, make_dataset):
    parts = {
        "train": [("u", ["a", "b"], "c"), ("u", ["x", "y"], "z")],
        "valid": [("u", ["x", "y", "z"], "a")],
        "test": [("u", ["p"], "q")],
    }
    write(parts)
    splits = make_dataset(benchmark_filename=FILES).build()
    for name, split in zip(FILES, splits, strict=True):
        assert [row[:3] for row in rows_of(split)] == parts[name]
        assert all(row[3] == set(row[1]) for row in rows_of(split))
    rows, (_, items) = splits[2].after_last(torch.tensor([1]))
    assert splits[2].id2token("item_id", rows["item_id_list"][0, : int(rows["item_length"])]).tolist() == ["p", "q"]
    assert set(splits[2].id2token("item_id", items)) == set("abcxyzpq")
    dataset = make_dataset("shop", "LRURec", benchmark_filename=FILES)
    with pytest.raises(DataError, match="train_view='sequence' needs one sequence a user.*train_view=prefix"):
        prepare_data(dataset.config, dataset)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 4), min_size=3, max_size=9), min_size=1, max_size=4),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_chained_examples_are_found_again(sequences, longest, shuffle):
    rows = [
        (user, items[max(0, end - longest) : end], items[end], min(2, end - 1))
        for user, items in enumerate(sequences)
        for end in range(1, len(items))
    ]
    shuffle.shuffle(rows)
    users, lists, targets, parts = zip(*rows, strict=True)
    chained = chain(np.array(users), [np.array(part) for part in lists], np.array(targets), np.array(parts))
    for user, items, target, position, length in zip(
        users, lists, targets, chained.position, chained.length, strict=True
    ):
        assert chained.items[position - length : position].tolist() == items
        assert (chained.items[position], chained.users[position]) == (target, user)
        assert chained.starts[position] <= position - length
        assert (chained.users[chained.starts[position] : position] == user).all()


def test_a_run_says_which_files_split_it(write, tmp_path):
    write(examples(histories()))
    more = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "use_gpu": False}
    given = {**more, "benchmark_filename": FILES, "epochs": 1, "show_progress": False, "topk": [5]}
    result = run("SASRec", "shop", config_dict={**given, "valid_metric": "MRR@5"})
    assert set(result["test_result"]) >= {"recall@5", "ndcg@5"}


def test_the_protocol_says_it(write, make_config):
    write(examples(histories()))
    text = protocol_text(make_config(benchmark_filename=FILES))
    assert "split by the files train, valid, test" in text
    assert "leave-one-out" not in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"benchmark_filename": ["train"]}, "must name the files of training, validation and test"),
        ({"benchmark_filename": ["train", "train", "test"]}, "must name the files"),
        ({"benchmark_filename": ["train", "dev", "test"]}, "names 'dev', but there is no file .*shop.test.inter"),
        ({"benchmark_filename": FILES, "protocol": "temporal_session"}, "leave out benchmark_filename"),
    ],
)
def test_names_that_do_not_fit(write, make_dataset, more, message):
    write(examples(histories()))
    with pytest.raises((ConfigError, DataError), match=message):
        make_dataset(**more)


def test_files_that_do_not_fit(write, make_dataset):
    parts = examples(histories())
    write(parts)
    write({"test": [("u1", "", "i1")] * 3})
    with pytest.raises(DataError, match="Nothing to evaluate.*benchmark_filename="):
        make_dataset(benchmark_filename=FILES).build()
    write({"test": [("u1", ["i1"], "")]})
    with pytest.raises(DataError, match="shop.test.inter: 1 lines have no item_id"):
        make_dataset(benchmark_filename=FILES)
    write({"test": [("u1", "i1")]}, "user_id:token\titem_id:token\n")
    with pytest.raises(DataError, match="shop.test.inter has the fields user_id, item_id, but the first file has"):
        make_dataset(benchmark_filename=FILES)


def test_filters_that_have_no_effect_are_said(write, make_dataset):
    write(examples(histories()))
    dataset = make_dataset(benchmark_filename=FILES, item_inter_num_interval="[5,inf)", rm_dup_inter="first")
    dataset.build()
    assert dataset.config.notices == [
        "rm_dup_inter, item_inter_num_interval: files split beforehand (benchmark_filename) are not filtered."
    ]


def test_an_empty_validation_file_is_said(write, make_dataset):
    folder = write(examples(histories()))
    (folder / "shop.valid.inter").write_text(LISTS, encoding="utf-8")
    dataset = make_dataset(benchmark_filename=FILES)
    dataset.build()
    (notice,) = (text for text in dataset.config.notices if "validation" in text)
    assert notice.startswith("No user has a validation item: there is no early stopping")
