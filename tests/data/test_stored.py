"""Prepared data from the cache is what reading the files gives, or the files are read."""

import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.array_file import DamagedFileError, read_about, read_arrays, write_arrays
from recbole_llm.config import Config
from recbole_llm.data import stored
from recbole_llm.data.dataset import HistoryDataset
from tests.conftest import write_dataset
from tests.killing import kill_at_random, needs_fork, seconds_of
from tests.properties import examples

COLUMNS = {"inter": "*", "user": "*", "item": "*"}


@pytest.fixture(autouse=True)
def every_size(monkeypatch, isolated):
    monkeypatch.setattr(stored, "LEAST_BYTES", 0)


@pytest.fixture
def shop(isolated):
    return write_dataset(isolated / "dataset")


def dataset_of(data_path="dataset", **settings):
    settings = {"data_path": str(data_path), "use_gpu": False, "show_progress": False, "load_col": COLUMNS, **settings}
    return HistoryDataset(Config("SASRec", "shop", config_dict=settings))


def entries(kind="table"):
    return sorted(Path("xdg/recbole-llm/data").glob(f"*.{kind}"))


def state(dataset):
    """All that can be asked of a dataset before and after it is split."""
    frames = {name: getattr(dataset, name).copy() for name in dataset.feat_name_list}
    maps = ("field2type", "field2source", "field2seqlen", "field2bucketnum", "field2token_id")
    known = {name: getattr(dataset, name) for name in maps}
    known["tokens"] = {field: words.tolist() for field, words in dataset.field2id_token.items()}
    known["alias"] = {name: list(fields) for name, fields in dataset.alias.items()}
    known["newest"], known["files"] = dataset.newest_time, dataset.source_files
    splits = [part.inter_feat.interaction for part in dataset.build()]
    feats = [feat.interaction for feat in (dataset.user_feat, dataset.item_feat) if feat is not None]
    known["notices"] = dataset.config.notices
    return frames, known, [*splits, *feats, dataset.histories.columns]


def assert_same(first, second):
    assert first[0].keys() == second[0].keys()
    for name, frame in first[0].items():
        assert frame.dtypes.equals(second[0][name].dtypes)
        assert frame.index.equals(second[0][name].index)
        for field in frame:
            for one, other in zip(frame[field], second[0][name][field], strict=True):
                np.testing.assert_array_equal(one, other)
                assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
    assert first[1] == second[1]
    for one, other in zip(first[2], second[2], strict=True):
        assert one.keys() == other.keys()
        for field, values in one.items():
            torch.testing.assert_close(values, other[field], rtol=0, atol=0)


def was_read(monkeypatch, make):
    """What is made, and whether an atomic file was read for it."""
    read = []
    with monkeypatch.context() as patch:
        whole = HistoryDataset._load_feat
        patch.setattr(HistoryDataset, "_load_feat", lambda self, *rest: read.append(1) or whole(self, *rest))
        return make(), bool(read)


ids = st.sampled_from(["a", "b", "7", "07", "é", "\U0001f600x", "c d", ""])
rows = st.lists(
    st.tuples(ids, ids, st.integers(0, 5) | st.floats(0, 9), st.sampled_from([1, 2.5, 4, ""])), min_size=4, max_size=30
)
items = st.lists(
    st.tuples(ids, st.sampled_from(["red hat", "", "x"]), st.sampled_from(["1 2.5", "", "3"])), max_size=6
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "user_inter_num_interval": st.just("[2,inf)"),
        "rm_dup_inter": st.sampled_from(["first", "last"]),
        "val_interval": st.just({"rating": "[1,3]"}),
        "normalize_all": st.booleans(),
        "time_order": st.sampled_from(["exact", "recbole"]),
        "filter_inter_by_user_or_item": st.booleans(),
        "smoke": st.booleans(),
        "seq_len": st.just({"title": 1}),
        "threshold": st.just({"rating": 2}),
        "load_col": st.just({"inter": ["user_id", "item_id", "timestamp", "rating"]}),
    },
)


def write(folder, rows, items):
    target = Path(folder) / "shop"
    target.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float\trating:float"]
    lines += ["\t".join(map(str, row)) for row in rows]
    (target / "shop.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["item_id:token\ttitle:token_seq\tvector:float_seq", *("\t".join(row) for row in items)]
    (target / "shop.item").write_text("\n".join(lines) + "\n", encoding="utf-8")


@examples(15)
@given(rows, items, filters)
def test_what_is_restored_is_what_reading_gives(tmp_path_factory, rows, items, given):
    folder = tmp_path_factory.mktemp("random")
    write(folder, rows, items)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        outcomes = []
        for room in (0, 100, 100):
            try:
                outcomes.append(state(dataset_of(folder, data_cache_mb=room, **given)))
            except Exception as error:
                outcomes.append((type(error), str(error)))
    if isinstance(outcomes[0][0], type):
        assert outcomes[1] == outcomes[2] == outcomes[0]
    else:
        assert_same(outcomes[0], outcomes[1])
        assert_same(outcomes[0], outcomes[2])


def test_files_are_read_once(shop, monkeypatch):
    first, read = was_read(monkeypatch, dataset_of)
    assert read and len(entries()) == 1
    expected = state(first)
    assert len(entries("exact")) == 1
    again, read = was_read(monkeypatch, dataset_of)
    assert not read
    assert_same(expected, state(again))
    monkeypatch.setattr("recbole_llm.data.dataset.history_order", None)  # the order is there, too
    dataset_of().build()


def test_settings_of_the_model_do_not_matter_and_those_of_the_data_do(shop, monkeypatch):
    dataset_of()
    assert not was_read(monkeypatch, lambda: dataset_of(hidden_size=32, seed=7, MAX_ITEM_LIST_LENGTH=4))[1]
    assert was_read(monkeypatch, lambda: dataset_of(user_inter_num_interval="[3,inf)"))[1]
    assert was_read(monkeypatch, lambda: dataset_of(load_col={"inter": ["user_id", "item_id", "timestamp"]}))[1]
    assert not was_read(monkeypatch, lambda: dataset_of(user_inter_num_interval="[3,inf)"))[1]
    assert len(entries()) == 3


def test_the_folder_does_not_matter_and_the_content_does(shop, monkeypatch):
    before = dataset_of()
    os.rename("dataset", "elsewhere")
    moved, read = was_read(monkeypatch, lambda: dataset_of("elsewhere"))
    assert not read and moved.source_files == [Path("elsewhere/shop") / path.name for path in before.source_files]
    for suffix, old, new in (("inter", "i3", "i4"), ("item", "red", "sea")):
        file = Path("elsewhere/shop") / f"shop.{suffix}"
        times = file.stat()
        file.write_text(file.read_text().replace(old, new, 1))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as large and as old as before
        assert was_read(monkeypatch, lambda: dataset_of("elsewhere"))[1]
    Path("elsewhere/shop/shop.user").write_text("user_id:token\nu1\nu2\n")
    grown, read = was_read(monkeypatch, lambda: dataset_of("elsewhere"))
    assert read and grown.user_feat is not None


def test_a_file_that_changes_while_it_is_read_is_not_kept(shop, monkeypatch):
    whole = HistoryDataset._load_feat

    def changing(self, path, source):
        frame = whole(self, path, source)
        with Path(path).open("a") as file:
            file.write("\n")
        return frame

    monkeypatch.setattr(HistoryDataset, "_load_feat", changing)
    dataset_of()
    assert not entries()


@pytest.mark.parametrize("kind", ["table", "exact"])
def test_damaged_entries_are_reported_and_made_again(shop, monkeypatch, caplog, kind):
    expected = state(dataset_of())
    (path,) = entries(kind)
    whole = path.read_bytes()
    draw = random.Random(0)
    for number in range(40):
        place = draw.randrange(len(whole))
        damaged = whole[:place] if number % 2 else whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :]
        path.write_bytes(damaged)
        caplog.clear()
        found = state(dataset_of())
        assert_same(expected, found)
        # A flipped bit in the settings makes an entry that does not apply: it is written again, too.
        assert "is damaged" in caplog.text or path.read_bytes() != damaged
        for other in entries():
            other.unlink()
        path.write_bytes(whole)
        if kind == "exact":
            dataset_of()


def test_an_empty_array_and_unaligned_ones(tmp_path):
    arrays = {"a": np.arange(3, dtype=np.uint8), "b": np.array([], dtype=np.int64), "c": np.eye(2, dtype=np.float32)}
    write_arrays(tmp_path / "x", arrays, {"k": [1, "é"]})
    assert read_about(tmp_path / "x") == {"k": [1, "é"]}
    found = read_arrays(tmp_path / "x")
    assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(DamagedFileError):
        read_about(tmp_path / "x")


def test_off_without_room_and_without_a_folder(shop, caplog):
    dataset_of(data_cache_mb=0)
    assert not Path("xdg/recbole-llm/data").exists()
    Path("xdg/recbole-llm").mkdir(parents=True)
    Path("xdg/recbole-llm/data").write_text("a file, where the folder would be")
    expected = state(dataset_of(data_cache_mb=0))
    assert_same(expected, state(dataset_of()))
    assert "cannot be written" in caplog.text


def test_what_was_not_used_for_longest_goes_first(shop, monkeypatch):
    intervals = [f"[{low},inf)" for low in (1, 2, 3)]
    for age, interval in enumerate(intervals):
        dataset_of(user_inter_num_interval=interval)
        for path in entries():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10 - age))
    left = Path("xdg/recbole-llm/data/.x.table.00000000.partial")  # of a process that was killed
    left.touch()
    size = max(path.stat().st_size for path in entries())
    monkeypatch.setattr(stored, "_room", lambda config: int(2.9 * size))
    dataset_of(user_inter_num_interval=intervals[0])  # used again
    dataset_of(user_inter_num_interval="[4,inf)")
    assert not left.exists() and len(entries()) == 2
    assert not was_read(monkeypatch, lambda: dataset_of(user_inter_num_interval=intervals[0]))[1]
    assert was_read(monkeypatch, lambda: dataset_of(user_inter_num_interval=intervals[1]))[1]


def test_warnings_and_notices_are_said_again(shop, caplog):
    with Path("dataset/shop/shop.inter").open("a") as file:
        file.write("\ti1\t5\nu1\tunknown\t6\n")
    for _ in range(2):
        caplog.clear()
        dataset = dataset_of(filter_inter_by_user_or_item=True)
        assert "1 lines of the .inter file have no user_id" in caplog.text
        assert any("does not list their user or item" in text for text in dataset.config.notices)


def _prepare_again_and_again(start, answers):
    torch.set_num_threads(1)
    start.wait()
    for _ in range(10):
        for path in [*entries(), *entries("exact")]:
            path.unlink(missing_ok=True)
        dataset = dataset_of()
        answers.put(([len(part) for part in dataset.build()], dataset.histories.items.tolist()))


@needs_fork
def test_two_processes_at_once(shop, capfd):
    """Both write and remove the same entries, and neither sees half of one."""
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(2), context.SimpleQueue()
    both = [context.Process(target=_prepare_again_and_again, args=(start, answers)) for _ in range(2)]
    for process in both:
        process.start()
    found = [answers.get() for _ in range(20)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    dataset = dataset_of(data_cache_mb=0)
    expected = [len(part) for part in dataset.build()], dataset.histories.items.tolist()
    assert all(each == expected for each in found)
    assert "damaged" not in capfd.readouterr().err


@needs_fork
def test_kills_leave_whole_entries_or_none(shop):
    frame = pd.DataFrame(
        {"user_id:token": np.arange(30_000) % 700, "item_id:token": np.arange(30_000) % 97, "timestamp:float": 1.5}
    )
    frame.to_csv("dataset/shop/shop.inter", sep="\t", index=False)
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    expected = dataset_of(data_cache_mb=0, **columns).build()

    def work():
        dataset_of(**columns).build()

    seconds = seconds_of(work)
    for path in [*entries(), *entries("exact")]:
        path.unlink()
    kill_at_random(work, seconds)
    for one, other in zip(expected, dataset_of(**columns).build(), strict=True):
        for field, values in one.inter_feat.interaction.items():
            torch.testing.assert_close(values, other.inter_feat[field], rtol=0, atol=0)
    assert not [path for path in Path("xdg/recbole-llm/data").iterdir() if ".partial" in path.name]
