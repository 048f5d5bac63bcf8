"""Ids are text, exactly as in the file."""

import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_llm.errors import DataError
from recbole_llm.recommend.reading import as_id, read_histories, read_ids, read_items

# What can stand in a field of an atomic file.
IDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), min_size=1, max_size=6).filter(str.strip),
    min_size=1,
    max_size=5,
    unique=True,
).filter(lambda ids: ids[0].partition(":")[0] != "user_id" and not ids[0].startswith("\ufeff"))
NUMBERS = ["01", "1", "1.0", "1e5", "100000", "007", "7", "00", "0", "10", "1" * 30, "-0", "nan", "True", " 7", "7 "]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(ids=IDS)
def test_one_id_a_line(ids, tmp_path):
    file = tmp_path / "who.txt"
    file.write_bytes("\n".join(ids).encode())
    assert read_ids(str(file), "user_id") == ids


@QUICK
@given(ids=IDS)
def test_every_table(ids, tmp_path):
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(
                [["user_id", "item_id"], *([one, "x"] for one in ids)]
            )
        assert read_ids(str(tmp_path / name), "user_id") == ids
    atomic = "\n".join(["item_id:token\tuser_id:token", *(f"x\t{one}" for one in ids)])
    (tmp_path / "a.inter").write_bytes(atomic.encode())
    assert read_ids(str(tmp_path / "a.inter"), "user_id") == ids


@QUICK
@given(ids=IDS)
def test_histories_of_every_format(ids, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"user_id": ids[0], "item_id": ids}) + "\n", encoding="utf-8")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["item_id", "user_id"], *([one, ids[0]] for one in ids)])
    for name in ("a.jsonl", "a.csv"):
        assert list(read_histories(str(tmp_path / name), "user_id", "item_id", 9)) == [([ids[0]], [ids])]


def test_numbers_keep_their_text(tmp_path):
    assert read_ids(",".join(NUMBERS[:-2]), "user_id") == NUMBERS[:-2]
    lines = '{"user_id": 007.5e1, "item_id": [1]}'.replace("007", "7"), '{"user_id": 1, "item_id": [1.0, 1e5, 12]}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n" + '{"user_id": %s, "item_id": ["1"]}' % ("9" * 30))
    ((users, histories),) = read_histories(str(tmp_path / "a.jsonl"), "user_id", "item_id", 9)
    assert users == ["7.5e1", "1", "9" * 30] and histories == [["1"], ["1.0", "1e5", "12"], ["1"]]
    (tmp_path / "new.jsonl").write_text('{"item_id": 1.50, "title": "x"}\n', encoding="utf-8")
    assert read_items(str(tmp_path / "new.jsonl"), "item_id") == [{"item_id": "1.50", "title": "x"}]


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"user_id": ["a", "b", "a"], "item_id": [2**63 - 1, 7, 1]}), file)
    assert read_ids(str(file), "user_id") == ["a", "b"]
    assert list(read_histories(str(file), "user_id", "item_id", 1)) == [
        (["a"], [[str(2**63 - 1), "1"]]),
        (["b"], [["7"]]),
    ]
    for values in ([1.0], [None], [True]):
        parquet.write_table(arrow.table({"user_id": ["a"], "item_id": values}), file)
        with pytest.raises(DataError, match="row 0: an id is"):
            list(read_histories(str(file), "user_id", "item_id", 1))
    with pytest.raises(DataError, match="has no column 'who'; it has user_id, item_id"):
        read_ids(str(file), "who")
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_ids(str(file), "user_id")


@pytest.mark.parametrize("value", [None, True, 1.0, float("nan"), b"7", ["7"]])
def test_what_is_no_id(value):
    with pytest.raises(DataError, match="ids are text"):
        as_id(value)
    assert [as_id(value) for value in (7, np.int64(7), "7", np.str_("07"))] == ["7", "7", "7", "07"]


@pytest.mark.parametrize("line", ['{"user_id": null, "item_id": []}', '{"user_id": "a", "item_id": [true]}', "[", "3"])
def test_histories_that_name_no_ids(line, tmp_path):
    (tmp_path / "a.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match="a.jsonl, line 1"):
        list(read_histories(str(tmp_path / "a.jsonl"), "user_id", "item_id", 1))
    with pytest.raises(DataError, match="nowhere.csv"):
        list(read_histories(str(tmp_path / "nowhere.csv"), "user_id", "item_id", 1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl holds no history\.$"),
        ("a.csv", "user_id,item_id\n", r"a\.csv holds no history\.$"),
        ("a.jsonl", '{"user_id": "ann"}\n', r"line 1: there is no 'item_id'\. Each line"),
        ("a.jsonl", '{"item_id": ["1"]}\n', r"line 1: there is no 'user_id'\. Each line"),
        ("a.jsonl", '{"user_id": null, "item_id": ["1"]}\n', r"line 1: user_id is None, [^.]* as text\. Each line"),
    ],
)
def test_histories_that_are_missing_something(name, content, message, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        list(read_histories(str(tmp_path / name), "user_id", "item_id", 1))


def test_a_table_with_times_is_read_in_their_order(tmp_path):
    """An interaction log is rarely sorted; the order of the file decides only where there is no time."""
    rows = [("ann", "c", 30), ("bob", "x", 5), ("ann", "a", 9), ("ann", "b", 9.5), ("ann", "d", 30)]
    sorted_by_time = {"ann": ["a", "b", "c", "d"], "bob": ["x"]}
    as_in_the_file = {"ann": ["c", "a", "b", "d"], "bob": ["x"]}
    head = ("user_id", "item_id", "timestamp")
    for name, types, separator in (("a.inter", (":token", ":token", ":float"), "\t"), ("a.csv", ("", "", ""), ",")):
        lines = [separator.join(map("".join, zip(head, types, strict=True)))]
        lines += [separator.join(map(str, row)) for row in rows]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    arrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    columns = dict(zip(head, map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    for name in ("a.inter", "a.csv", "a.parquet"):
        for field, expected in (("timestamp", sorted_by_time), ("time", as_in_the_file)):
            read = read_histories(str(tmp_path / name), "user_id", "item_id", 9, time_field=field)
            assert [dict(zip(*part, strict=True)) for part in read] == [expected]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("ann,a,soon", r"line 2, column 'timestamp': 'soon' is not a finite number"),
        ("ann,a,", r"line 2, column 'timestamp': '' is not a finite number"),
        (",a,3", r"an interaction has no user_id"),
        ("ann,,3", r"an interaction has no item_id"),
    ],
)
def test_interactions_that_are_missing_something(row, message, tmp_path):
    (tmp_path / "a.csv").write_text(f"user_id,item_id,timestamp\n{row}\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        list(read_histories(str(tmp_path / "a.csv"), "user_id", "item_id", 9, time_field="timestamp"))


def test_a_user_may_be_called_all():
    assert read_ids("all,", "user_id") == ["all"]
