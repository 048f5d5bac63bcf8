import csv
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.dataset import SequentialDataset

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.rows import POSITION
from recbole_llm.data.times import stable_order
from recbole_llm.errors import ConfigError, DataError

PANDAS_3 = int(pd.__version__.split(".")[0]) >= 3
# RecBole's own loader, not ours: chained fillna, deprecated since pandas 2.
pytestmark = pytest.mark.filterwarnings("ignore:A value is (trying to be|being) set:Warning")
LOAD = {"inter": ["user_id", "item_id", "rating", "timestamp"]}
HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


def assert_same_rows(ours, stock):
    """Every field, dtype and value of every row."""
    assert len(ours) == len(stock)
    rows = ours[torch.arange(len(ours))] if len(ours) else None
    if rows is None:
        return
    expected = stock.join(stock.inter_feat[list(range(len(stock)))])
    assert set(rows.columns) == set(expected.columns)
    for field in expected.columns:
        assert rows[field].dtype == expected[field].dtype, field
        assert torch.equal(rows[field], expected[field]), field


def compare_with_recbole(config):
    ours, stock = HistoryDataset(config).build(), SequentialDataset(config).build()
    assert len(ours) == len(stock) == 3
    for mine, theirs in zip(ours, stock, strict=True):
        assert_same_rows(mine, theirs)
        assert mine.field2type == theirs.field2type
        assert mine.field2seqlen == theirs.field2seqlen
    for field, tokens in stock[0].field2id_token.items():
        assert ours[0].field2id_token[field].tolist() == tokens.tolist()
        assert ours[0].field2token_id[field] == stock[0].field2token_id[field]
    return ours, stock


# ---- equality with RecBole


def test_rows_equal_recbole_on_ml100k(make_config):
    config = make_config("ml-100k", time_order="recbole", load_col=LOAD, MAX_ITEM_LIST_LENGTH=20)
    ours, stock = compare_with_recbole(config)
    assert [len(part) for part in ours] == [97171, 943, 943]
    assert (ours[0].inter_matrix() != stock[0].inter_matrix()).nnz == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_args": {"split": {"LS": "valid_only"}}},
        {"eval_args": {"split": {"LS": "test_only"}}},
        {"eval_args": {"split": {"RS": [0.7, 0.2, 0.1]}}},
        {"eval_args": {"split": {"RS": [0.7, 0.2, 0.1]}, "group_by": None}},
        {"MAX_ITEM_LIST_LENGTH": 1},
        {"MAX_ITEM_LIST_LENGTH": 50},
        {"numerical_features": ["rating"]},
        {"numerical_features": ["timestamp"]},
        {"normalize_all": True},
        {"threshold": {"rating": 3}},
        {"val_interval": {"rating": "[2,4)"}},
        {"user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[4,inf)"},
        {"user_inter_num_interval": "[2,8];(10,11]", "item_inter_num_interval": "[1,17)"},
        {"user_inter_num_interval": None, "item_inter_num_interval": None},
        {"LIST_SUFFIX": "_seq", "ITEM_LIST_LENGTH_FIELD": "n"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_rows_equal_recbole(shop, make_config, settings):
    compare_with_recbole(make_config(time_order="recbole", **{"load_col": LOAD, **settings}))


def test_rows_equal_recbole_split_by_time(shop, make_config):
    config = make_config(time_order="recbole", normalize_all=True)  # unscaled times are nearly all one float32
    config["eval_args"]["split"] = {"TS": [0.7, 0.1, 0.2]}
    ours, _ = compare_with_recbole(config)
    assert len(ours[0]) > len(ours[2]) > 0


def test_rows_equal_recbole_with_an_alias(atomic, make_config):
    rows = [f"u{n % 3}\ti{n * 5 % 7}\ti{n % 9}\t{n}\n" for n in range(20)]
    atomic(inter="user_id:token\titem_id:token\tgift:token\ttimestamp:float\n" + "".join(rows))
    load = {"inter": ["user_id", "item_id", "gift", "timestamp"]}
    ours, _ = compare_with_recbole(make_config(time_order="recbole", load_col=load, alias_of_item_id=["gift"]))
    assert ours[0].item_num == 10  # two of the nine gifts are no item, and share its ids


def test_item_features_equal_recbole(shop, make_config, monkeypatch):
    if PANDAS_3:
        pytest.skip("RecBole cannot load a token_seq field on pandas 3")
    monkeypatch.setattr(np, "float", float, raising=False)
    for interval in ("[1,inf)", None, "[8,inf)"):
        load = LOAD | {"item": ["item_id", "class", "price"]}
        config = make_config(time_order="recbole", load_col=load, item_inter_num_interval=interval)
        compare_with_recbole(config)


def test_item_features_are_those_of_the_file(make_dataset, recbole_ml100k):
    dataset = make_dataset("ml-100k", load_col=LOAD | {"item": ["item_id", "class"]})
    test = dataset.build()[2]
    with (recbole_ml100k / "ml-100k.item").open(encoding="utf-8") as file:
        classes = {row[0]: row[3].split(" ") for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    rows = test[torch.arange(len(test))]
    assert rows["class"].dtype == torch.int64
    for item, ids in zip(rows["item_id"].tolist(), rows["class"], strict=True):
        words = test.id2token("class", ids[ids > 0])
        assert np.atleast_1d(words).tolist() == classes[test.id2token("item_id", item)]


def test_k_core_keeps_exactly_what_a_loop_keeps(shop, make_dataset):
    frame = pd.read_csv(shop / "shop" / "shop.inter", sep="\t")
    while True:
        users, items = frame["user_id:token"].value_counts(), frame["item_id:token"].value_counts()
        kept = frame[frame["user_id:token"].map(users).ge(6) & frame["item_id:token"].map(items).ge(7)]
        if len(kept) == len(frame):
            break
        frame = kept
    dataset = make_dataset(
        user_inter_num_interval="[6,inf)",
        item_inter_num_interval="[7,inf)",
        load_col={"inter": LOAD["inter"], "item": ["item_id", "price"]},
    )
    assert 0 < len(frame) == len(dataset.inter_feat) < 320
    assert set(dataset.field2id_token["user_id"][1:]) == set(frame["user_id:token"])
    # The .item rows of items that were filtered out are gone too.
    assert set(dataset.field2id_token["item_id"][1:]) == set(frame["item_id:token"])


def test_unused_columns_reach_no_batch(shop, make_dataset):
    settings = {"load_col": LOAD, "unused_col": {"inter": ["timestamp", "timestamp_list", "rating"]}}
    train = make_dataset(**settings).build()[0]
    everything = train[torch.arange(3)]
    expected = {"user_id", "item_id", "item_length", "item_id_list", "rating_list"}
    assert set(everything.columns) == expected
    assert set(train.rows_at(torch.tensor([5]), torch.tensor([1])).columns) == expected


def test_indices_of_every_kind_give_the_same_rows(shop, make_dataset):
    train = make_dataset(load_col=LOAD | {"item": ["item_id", "price"]}).build()[0]
    rows = train[torch.tensor([3, 4])]
    assert POSITION not in rows
    for index in (np.array([3, 4]), [3, 4], slice(3, 5)):
        for field, values in train[index].interaction.items():
            assert torch.equal(values, rows[field]), field
    for field, values in train[3].interaction.items():
        assert torch.equal(values, rows[field][0]), field
    assert "price" in rows
    assert "price" not in train.__getitem__(torch.tensor([3]), join=False)


# ---- order


def test_order_is_exact_and_ties_keep_file_order(atomic, make_dataset):
    # float32 has a spacing of 128 s here: all four times are one number to it.
    times = {"d": 1371945063, "b": 1371945061, "a": 1371945060, "c": 1371945061}
    assert len({np.float32(time) for time in times.values()}) == 1
    atomic(inter=HEADER + "".join(f"u\t{item}\t{time}\n" for item, time in times.items()))

    def order(time_order):
        dataset = make_dataset(time_order=time_order)
        dataset.build()
        return "".join(dataset.id2token("item_id", dataset.flat["item_id"].numpy()))

    assert order("exact") == "abcd"
    assert order("recbole") == "dbac"


@pytest.mark.parametrize(
    "times",
    [["1693526400123456", "1693526400123455", "1693526400123457"], ["0.30000002", "0.30000001", "0.30000003"]],
    ids=["microseconds", "fractions"],
)
def test_order_uses_every_digit(atomic, make_dataset, times):
    atomic(inter=HEADER + "".join(f"u\t{item}\t{time}\n" for item, time in zip("bac", times, strict=True)))
    dataset = make_dataset()
    dataset.build()
    assert "".join(dataset.id2token("item_id", dataset.flat["item_id"].numpy())) == "abc"


@pytest.mark.parametrize("normalize", [False, True])
def test_share_of_other_test_items_on_ml100k(make_dataset, normalize):
    def test_items(time_order):
        test = make_dataset("ml-100k", time_order=time_order, normalize_all=normalize).build()[2]
        return dict(zip(test.inter_feat["user_id"].tolist(), test.inter_feat["item_id"].tolist(), strict=True))

    exact, rounded = test_items("exact"), test_items("recbole")
    assert exact.keys() == rounded.keys()
    share = np.mean([exact[user] != rounded[user] for user in exact])
    assert share == pytest.approx(0.004 if normalize else 0.158, abs=0.0006)


@pytest.mark.parametrize(
    "values",
    [
        np.array([], dtype=np.int64),
        np.array([3, 1, 3, 2, 1]),
        np.random.default_rng(0).integers(-5, 2**20, 500),
        np.random.default_rng(1).integers(-(2**62), 2**62, 500),
        np.random.default_rng(2).integers(0, 2**40, 500).astype(np.float64),
        np.random.default_rng(3).integers(0, 9, 500).astype(np.float32),
        np.random.default_rng(4).random(500),
        np.array([np.inf, 2.0, -np.inf, 1e300, 2.0]),
    ],
    ids=str,
)
def test_stable_order(values):
    assert stable_order(values).tolist() == np.argsort(values, kind="stable").tolist()


# ---- histories


def test_history_is_whole_and_distinct_and_without_the_target(atomic, make_dataset):
    items = [f"i{number % 9}" for number in range(12)]  # nine items, the first three twice
    other = [f"i{number}" for number in range(4)]
    atomic(
        inter=HEADER
        + "".join(f"u\t{item}\t{time}\n" for time, item in enumerate(items))
        + "".join(f"v\t{item}\t{time}\n" for time, item in enumerate(other))
    )
    valid, test = make_dataset(MAX_ITEM_LIST_LENGTH=3).build()[1:]
    assert test.has_repeats
    for split, last, lengths in ((test, 11, (9, 3)), (valid, 10, (9, 2))):
        rows = split[torch.arange(2)]
        row, item = split.history(torch.arange(2))
        assert rows["item_length"].tolist() == [3, min(3, lengths[1])]
        assert torch.bincount(row).tolist() == list(lengths)
        mine = sorted(split.id2token("item_id", item[row == 0]))
        assert mine == sorted(set(items[:last]))
        theirs = split.id2token("item_id", item[row == 1]).tolist()
        assert theirs == other[: lengths[1]]
        assert rows["item_id"][1] not in item[row == 1]
        # Rows in another order, and none.
        assert torch.equal(split.history(torch.tensor([1]))[1], item[row == 1])
        assert split.history(torch.tensor([], dtype=torch.long))[0].shape == (0,)


def test_history_without_repeats(make_dataset):
    test = make_dataset("ml-100k").build()[2]
    assert not test.has_repeats
    row, item = test.history(torch.arange(len(test)))
    per_user = np.bincount(test.flat["user_id"].numpy())[test.inter_feat["user_id"].numpy()]
    assert torch.bincount(row).tolist() == (per_user - 1).tolist()
    assert len(torch.unique(row * test.item_num + item)) == len(row) == 100_000 - 943


@pytest.mark.parametrize("length", [1, 6])
def test_train_counts_hold_every_training_interaction_once(atomic, make_dataset, length):
    histories = {"u": "abcde", "v": "bcda", "w": "cab", "x": "dc"}
    rows = [f"{user}\t{item}\t{time}\n" for user, items in histories.items() for time, item in enumerate(items)]
    atomic(inter=HEADER + "".join(rows))
    train = make_dataset(MAX_ITEM_LIST_LENGTH=length).build()[0]
    # Test and validation items are left out where RecBole leaves them out: w has a test item only, x has none.
    seen = "abc" + "bc" + "ca" + "dc"
    counts = {item: int(train.train_counts[train.token2id("item_id", item)]) for item in "abcd"}
    assert counts == {item: seen.count(item) for item in "abcd"}
    assert train.inter_matrix().sum() == len(seen)


def test_users_with_one_or_two_interactions(atomic, make_dataset):
    atomic(inter=HEADER + "one\ta\t1\ntwo\ta\t1\ntwo\tb\t2\n" + "".join(f"four\t{item}\t5\n" for item in "abcd"))
    train, valid, test = make_dataset().build()
    tokens = train.field2id_token["user_id"]
    users = [sorted(tokens[split.inter_feat["user_id"]].reshape(-1).tolist()) for split in (train, valid, test)]
    assert users == [["four", "two"], ["four"], ["four"]]
    assert train.user_num == 4  # with padding: "one" keeps an id


def test_nobody_with_two_interactions(atomic, make_dataset):
    atomic(inter=HEADER + "u\ta\t1\nv\tb\t2\n")
    with pytest.raises(DataError, match="No user of 'shop' has two interactions"):
        make_dataset().build()


# ---- files


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: text.replace("\n", "\n\n").encode(),
        lambda text: (text + "   \n").encode(),
    ],
    ids=["bom", "crlf", "no newline at the end", "blank lines", "blanks in a line"],
)
def test_file_variants_read_the_same(atomic, make_dataset, change):
    text = HEADER + "u\tb\t2\nu\ta\t1\nu\tc\t3\n"
    atomic(inter=change(text))
    dataset = make_dataset()
    dataset.build()
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "b", "a", "c"]
    assert dataset.flat["timestamp"].tolist() == [1, 2, 3]


def test_ids_are_text(atomic, make_dataset):
    ids = ["007", "7", "7.0", '"quoted', 'mid"dle', "NA", "None", "nan", "null", "1e3", " blank ", "Ümlaut", "-"]
    atomic(inter=HEADER + "".join(f"NULL\t{item}\t{time}\n" for time, item in enumerate(ids)))
    dataset = make_dataset()
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", *ids]
    assert dataset.field2id_token["user_id"].tolist() == ["[PAD]", "NULL"]


def test_ids_that_look_like_numbers_stay_apart(atomic, make_dataset):
    ids = ["01", "1", "1.0", "1e5", "100000", "007", "7", "00", "0", "10", "+1", "True", "1_0", "9" * 40]
    users = ["007", "7"]
    atomic(
        inter=HEADER + "".join(f"{user}\t{item}\t{time}\n" for user in users for time, item in enumerate(ids)),
        item="item_id:token\tcode:token\ttags:token_seq\n" + "".join(f"{item}\t{item}\t{item} x\n" for item in ids),
        user="user_id:token\tzip:token\n" + "".join(f"{user}\t{user}\n" for user in users),
    )
    load = {
        "inter": ["user_id", "item_id", "timestamp"],
        "item": ["item_id", "code", "tags"],
        "user": ["user_id", "zip"],
    }
    dataset = make_dataset(load_col=load)
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", *ids]
    assert dataset.field2id_token["user_id"].tolist() == dataset.field2id_token["zip"].tolist() == ["[PAD]", *users]
    assert dataset.field2id_token["code"].tolist() == ["[PAD]", *ids]
    assert dataset.field2id_token["tags"].tolist() == ["[PAD]", "01", "x", *ids[1:]]


@pytest.mark.parametrize("separator", [",", "::", "|", "||"])
def test_other_separators(atomic, make_dataset, separator):
    text = (HEADER + "u\ta b\t1\nu\tc\t2\n").replace("\t", separator)
    atomic(inter=text)
    dataset = make_dataset(field_separator=separator)
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "a b", "c"]


def test_other_field_names_and_encoding(atomic, make_dataset):
    text = "when:float\twho:token\twhat:token\n" + "".join(f"{time}\tZoë\t{item}\n" for time, item in enumerate("aba"))
    atomic(inter=text.encode("latin-1"))
    names = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "what", "TIME_FIELD": "when", "encoding": "latin-1"}
    dataset = make_dataset(**names)
    dataset.build()
    assert dataset.field2id_token["who"].tolist() == ["[PAD]", "Zoë"]
    assert [path.name for path in dataset.source_files] == ["shop.inter"]


def test_missing_ids_are_left_out_and_said(atomic, make_dataset, caplog):
    atomic(
        inter=HEADER + "u\ta\t1\n\tb\t2\nu\t\t3\nu\tc\t4\n",
        # RecBole drops the wrong row of this one: repeated ids before a missing one.
        item="item_id:token\tprice:float\na\t1\na\t2\nc\t3\n\t4\n",
    )
    dataset = make_dataset(load_col={"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "price"]})
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "a", "c"]
    assert dataset.item_feat["price"].tolist()[1:] == [1, 3]
    assert "2 lines of the .inter file have no user_id or item_id" in caplog.text
    assert "1 lines of the .item file have no item_id" in caplog.text


def test_missing_feature_values_are_padding_or_the_mean(atomic, make_dataset):
    atomic(
        inter=HEADER + "u\ta\t1\nu\tb\t2\nu\tc\t3\n",
        item="item_id:token\tbrand:token\tprice:float\ttags:token_seq\na\tX\t1\tp q\nb\t\t\t\nc\tY\t4\tq\n",
    )
    load = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand", "price", "tags"]}
    dataset = make_dataset(load_col=load)
    dataset.build()
    feature = dataset.get_item_feature()
    assert feature["brand"].tolist() == [0, 1, 0, 2]
    assert feature["price"].tolist()[1:] == [1, 2.5, 4]
    assert feature["tags"].tolist() == [[0, 0], [1, 2], [0, 0], [2, 0]]


def test_sequences_are_cut_at_seq_len(atomic, make_dataset):
    atomic(inter=HEADER + "u\ta\t1\nu\tb\t2\nu\ta\t3\n", item="item_id:token\tv:float_seq\na\t1 2 3\nb\t4\n")
    load = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "v"]}
    dataset = make_dataset(load_col=load, seq_len={"v": 2})
    dataset.build()
    assert dataset.get_item_feature()["v"].tolist()[1:] == [[1, 2], [4, 0]]


def test_repeated_pairs_are_removed_by_time(atomic, make_dataset):
    text = HEADER + "u\ta\t3\nu\tb\t2\nu\ta\t1\nu\tc\t9\nu\tc\t9\n"
    atomic(inter=text)
    for keep, expected in (("first", [("a", 1), ("b", 2), ("c", 9)]), ("last", [("b", 2), ("a", 3), ("c", 9)])):
        dataset = make_dataset(rm_dup_inter=keep)
        dataset.build()
        items = dataset.id2token("item_id", dataset.flat["item_id"]).tolist()
        assert list(zip(items, dataset.flat["timestamp"].tolist(), strict=True)) == expected


def test_smoke_keeps_a_handful(shop, make_dataset):
    dataset = make_dataset(smoke=True, smoke_users=9, smoke_interactions=4)
    assert dataset.user_num == 10
    assert dataset.inter_feat.groupby("user_id").size().max() == 4


# ---- bad input: what is wrong, where, and what to do


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("uid:token\titem_id:token\ttimestamp:float\n", {}, r"no field 'user_id' \(USER_ID_FIELD\).*uid.*--USER_ID_"),
        ("user_id:token\titems:token\ttimestamp:float\n", {}, r"'item_id' \(ITEM_ID_FIELD\).*--ITEM_ID_FIELD=NAME"),
        ("user_id:token\titem_id:token\tts:float\n", {}, r"no field 'timestamp' \(TIME_FIELD\).*It has: user_id"),
        ("user_id:token\titem_id:token\ttimestamp:token\nu\ta\t1\n", {}, r"timestamp:float"),
        ("user_id:float\titem_id:token\ttimestamp:float\n1\ta\t1\n", {}, r"USER_ID_FIELD.*user_id:token"),
        (HEADER, {"load_col": {"inter": ["user_id", "item_id"]}}, r"load_col leaves out 'timestamp' \(TIME_FIELD\)"),
        (HEADER + "u\ta\t1\nu\tb\t\n", {}, r"1 interactions of 'shop' have no 'timestamp', the first in row 2"),
        (
            HEADER + "u\ta\t1\nu\tb\tMonday\n",
            {},
            r"shop\.inter, line 3, column 'timestamp': 'Monday'",
        ),
        (
            HEADER + "u\ta\t1\n\nu\tb\tMonday\n",
            {},
            r"shop\.inter, line 4, column 'timestamp': 'Monday'",
        ),
        ("user_id\titem_id\ttimestamp\nu\ta\t1\n", {}, r"line 1: 'user_id' is not `name:type`.*token_seq"),
        ("user_id:tokn\titem_id:token\ttimestamp:float\n", {}, r"line 1: 'user_id:tokn' is not `name:type`"),
        (HEADER.replace("\t", ","), {}, r"is not `name:type`.*field_separator='\\t'"),
        ("", {}, r"line 1: '' is not `name:type`"),
        (HEADER + "u\ta\t1\nu\tb\n", {}, r"shop\.inter, line 3: 2 fields instead of the 3 of line 1"),
        (HEADER + "u\ta\t1\tx\nu\tb\t2\tx\n", {}, r"line 2: 4 fields instead of the 3"),
        (HEADER + "u\ta\t1\t\nu\tb\t2\t\n", {}, r"line 2: 4 fields instead of the 3"),
        (HEADER + "u\ta\t1\nu\t\t\t2\n\t\n", {}, r"line 3: 4 fields instead of the 3"),
        (HEADER + "u\ta\t1\n\t\n", {}, r"line 3: 2 fields instead of the 3"),
        (HEADER.encode() + b"u\t\xff\xfe\t1\n", {}, r"not utf-8 text.*encoding"),
        (b"us\xffer_id:token\n", {}, r"not utf-8 text.*encoding"),
        (HEADER, {}, r"Nothing is left of the \.inter data of 'shop'.*item_inter_num_interval"),
        (HEADER + "u\ta\t1\n", {"user_inter_num_interval": "[5,inf)"}, r"Nothing is left.*\[5,inf\)"),
    ],
)
def test_bad_interactions(atomic, make_dataset, text, settings, message):
    atomic(inter=text)
    with pytest.raises(DataError, match=message):
        make_dataset(**settings)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("id:token\tclass:token\na\tX\n", {}, r"shop\.item has no field 'item_id' \(ITEM_ID_FIELD\)"),
        ("item_id:token\tkind:token\na\tX\n", {"item_attribute": "class"}, r"no field 'class' \(item_attribute\)"),
        ("item_id:token\tclass:token\na\tX\tY\n", {}, r"shop\.item, line 2: 3 fields"),
    ],
)
def test_bad_items(atomic, make_dataset, text, settings, message):
    atomic(inter=HEADER + "u\ta\t1\n", item=text)
    load = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}
    with pytest.raises(DataError, match=message):
        make_dataset(load_col=load, **settings)


def test_bad_users(atomic, make_dataset):
    atomic(inter=HEADER + "u\ta\t1\n", user="id:token\tage:float\nu\t3\n")
    load = {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "age"]}
    with pytest.raises(DataError, match=r"shop\.user has no field 'user_id' \(USER_ID_FIELD\)"):
        make_dataset(load_col=load)


@pytest.mark.parametrize("interval", ["5", "[5,", "[x,inf)", "[9,3]", "5,10"])
def test_an_interval_that_is_none_is_no_silent_filter(shop, make_dataset, interval):
    with pytest.raises(ConfigError, match=r"interval.*\[5,inf\)"):
        make_dataset(user_inter_num_interval=interval)


def test_download(make_dataset, tmp_path, monkeypatch):
    archive = tmp_path / "Shop-archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("Shop-archive.inter", HEADER + "u\ta\t1\n")
    monkeypatch.setattr(HistoryDataset, "_get_download_url", lambda *_, **__: archive.as_uri())
    assert make_dataset(data_path=str(tmp_path / "new")).item_num == 2
    assert [path.name for path in (tmp_path / "new" / "shop").iterdir()] == ["shop.inter"]
    archive.write_bytes(b"no zip file")
    for failure in ("not a zip file", "No such file"):
        with pytest.raises(DataError, match=f"'shop' cannot be downloaded from .*{failure}.*Put the atomic files"):
            make_dataset(data_path=str(tmp_path / "failed"))
        assert not (tmp_path / "failed" / "shop").exists()
        archive.unlink(missing_ok=True)


def test_missing_files(atomic, make_dataset, tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*shop.*shop\.inter.*data_path"):
        make_dataset()
    atomic(csv="a,b\n")
    (tmp_path / "shop" / "other.inter").write_text(HEADER)
    with pytest.raises(DataError, match=r"no file shop\.inter in .*found: other\.inter.*same name"):
        make_dataset()


def test_what_is_not_supported_is_refused(shop, make_dataset):
    with pytest.raises(ConfigError, match="invalid value for time_order: 'exakt'"):
        make_dataset(time_order="exakt")
    with pytest.raises(DataError, match="prefixes per batch"):
        make_dataset().data_augmentation()


def test_a_feature_model_without_an_item_file_is_told_so(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    rows = [f"u{u}\ti{(u + t) % 9}\t{t}" for u in range(6) for t in range(5)]
    (folder / "bare.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    config = Config("FDSA", "bare", config_dict={"data_path": str(tmp_path), "use_gpu": False})
    with pytest.raises(DataError, match="bare.item.*FDSA.*class"):
        HistoryDataset(config)
