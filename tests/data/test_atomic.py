"""Reading atomic files: ids as they are written, one idea of a line, errors with their place."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from recbole_llm.data import atomic
from recbole_llm.data.atomic import AtomicFormat, read_table, read_types
from recbole_llm.data.lines import read_lines
from recbole_llm.data.times import parse_number
from recbole_llm.errors import ConfigError, DataError
from recbole_llm.text.item_text import load_item_text
from tests.properties import examples

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
quick = examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
# What an id may be: anything but the separators, and not only spaces.
text = st.text(st.characters(exclude_characters="\t\n", exclude_categories=["Cs"]), max_size=8)
ids = st.one_of(
    st.sampled_from(
        ["01", "1", "1.0", "1e5", "100000", "007", "7", "00", "0", "10", "NA", "null", "nan", "True", '"']
    ),
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8),
    st.integers(-(2**70), 2**70).map(str),
)


def read(path, **form):
    form = AtomicFormat(**form)
    header = read_types(path, form)
    return read_table(path, form, header, list(header))


def values(frame):
    """Every column as plain lists, missing values as None, categories with their order."""
    columns = {}
    for name, column in frame.items():
        if column.dtype == "category":
            columns[name] = (column.cat.codes.tolist(), column.cat.categories.tolist())
        else:
            columns[name] = [None if np.ndim(v) == 0 and v != v else np.asarray(v).tolist() for v in column]
    return columns


@pytest.fixture
def inter(tmp_path):
    def write(content):
        path = tmp_path / "shop.inter"
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    return write


@quick
@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=12))
def test_ids_are_the_texts_of_the_file(inter, pairs):
    path = inter(HEADER + "".join(f"{user}\t{item}\t{n}\n" for n, (user, item) in enumerate(pairs)))
    frame = read(path)
    assert frame["user_id"].tolist() == [user for user, _ in pairs]
    assert frame["item_id"].tolist() == [item for _, item in pairs]
    assert frame["item_id"].cat.categories.tolist() == list(dict.fromkeys(item for _, item in pairs))


number = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["", "+5", " 7", "7 ", ".5", "5.", "1E3", "-0", "1e-320"]),
)


@quick
@given(
    st.lists(
        st.tuples(text, st.lists(text.filter(lambda t: " " not in t), max_size=3).map(" ".join), number), max_size=8
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_both_ways_of_reading_agree(inter, rows, end, last_end):
    lines = ["id:token\ttags:token_seq\tprice:float", *("\t".join(row) for row in rows)]
    path = inter(end.join(lines) + end * last_end)
    form = AtomicFormat()
    header = read_types(path, form)
    whole = atomic._read_whole(path, form, header, list(header))
    by_line = atomic._read_by_line(path, form, header, list(header))
    if any("\r" in cell for row in rows for cell in row):
        assert whole is None
    if whole is not None:
        assert values(atomic.pd.DataFrame(whole)) == values(atomic.pd.DataFrame(by_line))
    blank = [not "\t".join(row).strip(" ") for row in rows]
    assert len(by_line["id"]) == len(rows) - sum(blank)
    assert read(path)["price"].dtype == np.float64


def test_a_usual_file_is_read_whole(inter):
    path = inter(HEADER + "u\ta\t1\n\nv\t\t2.5\r\nu\tb\t")
    form = AtomicFormat()
    header = read_types(path, form)
    frame = atomic.pd.DataFrame(atomic._read_whole(path, form, header, ["item_id", "timestamp", "user_id"]))
    assert frame["user_id"].tolist() == ["u", "v", "u"]
    assert frame["item_id"].cat.codes.tolist() == [0, -1, 1]
    np.testing.assert_array_equal(frame["timestamp"], [1, 2.5, np.nan])


def test_categories_of_several_blocks_are_one(inter, monkeypatch):
    monkeypatch.setattr(atomic, "_BLOCK_BYTES", 64)
    path = inter(HEADER + "".join(f"u{n % 7}\ti{n % 11}\t{n}\n" for n in range(200)))
    form = AtomicFormat()
    header = read_types(path, form)
    whole = atomic._read_whole(path, form, header, list(header))
    assert values(atomic.pd.DataFrame(whole)) == values(
        atomic.pd.DataFrame(atomic._read_by_line(path, form, header, list(header)))
    )


# ---- lines


def test_a_carriage_return_inside_a_field_ends_no_line(tmp_path):
    path = tmp_path / "shop.item"
    path.write_bytes(b"item_id:token\ttitle:token_seq\r\na\tone\rtwo\n\nb\tthree\x0bfour\xc2\x85five\r\n")
    assert read(path)["title"].map(list).tolist() == [["one\rtwo"], ["three\x0bfour\x85five"]]
    assert [number for number, _ in read_lines(path)] == [1, 2, 4]
    texts = load_item_text(path, ["[PAD]", "a", "b"], template="{title}").texts
    assert texts == ["", "one\rtwo", "three\x0bfour\x85five"]


def test_a_carriage_return_that_would_make_two_sound_rows(inter):
    with pytest.raises(DataError, match=r"shop\.inter, line 2: 5 fields instead of the 3"):
        read(inter(HEADER + "u\ta\t1\rv\tb\t2\n"))


@pytest.mark.parametrize("last", ["u", "u\tb", "u\tb\t2\t"])
def test_a_last_line_that_was_cut(inter, tmp_path, last):
    with pytest.raises(DataError, match=rf"line 3: {last.count(chr(9)) + 1} fields instead of the 3"):
        read(inter(HEADER + "u\ta\t1\n" + last))
    path = tmp_path / "shop.item"
    path.write_text("item_id:token\ttitle:token_seq\nu\tone\nb", encoding="utf-8")
    with pytest.raises(DataError, match="line 3: 1 fields instead of the 2"):
        load_item_text(path, ["[PAD]", "u"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "u\ta\tTrue\nu\tb\tFalse\n", r"line 2, column 'timestamp': 'True' is not a finite number"),
        (HEADER + "u\ta\t1\n\nu\tb\tinf\n", r"line 4, column 'timestamp': 'inf' is not a finite number"),
        (HEADER + "u\ta\t-Infinity\n", r"line 2, column 'timestamp': '-Infinity'"),
        (HEADER + "u\ta\tnan\n", r"line 2, column 'timestamp': 'nan'"),
        (HEADER + "u\ta\t1e999\n", r"line 2, column 'timestamp': '1e999'"),
        (HEADER + "u\ta\t1_000\n", r"line 2, column 'timestamp': '1_000'"),
        (HEADER + "u\ta\t0x10\n", r"line 2, column 'timestamp': '0x10'"),
        (HEADER + "u\ta\t١\n", r"line 2, column 'timestamp'"),
        ("item_id:token\tv:float_seq\na\t1 2\nb\t3 x\n", r"line 3, column 'v': 'x' is not a finite number"),
        ("a:token\tb:float\ta:token\n", r"line 1: the field 'a' occurs twice"),
        (HEADER.encode() + b"u\ta\t1\nu\t\xff\t1\n", r"line 3: not utf-8 text"),
    ],
)
def test_errors_name_their_place(inter, content, message):
    with pytest.raises(DataError, match=r"shop\.inter, " + message) as caught:
        read(inter(content))
    assert not isinstance(caught.value.__cause__, DataError)


@pytest.mark.parametrize("codec", ["utf-16", "latin-1", "cp1252", "utf-8", "gbk"])
def test_encodings(inter, codec):
    name = "书" if codec in ("utf-16", "utf-8", "gbk") else "Zoë"
    path = inter((HEADER + f"{name}\ta\t1\r\n").encode(codec))
    assert read(path, encoding=codec)["user_id"].tolist() == [name]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"field_separator": ""}, "field_separator=''"),
        ({"field_separator": "\n"}, "field_separator"),
        ({"seq_separator": ""}, "seq_separator=''"),
        ({"field_separator": " "}, "both ' '"),
    ],
)
def test_separators_that_separate_nothing(form, message):
    with pytest.raises(ConfigError, match=message):
        AtomicFormat(**form)


def test_an_encoding_that_does_not_exist(inter):
    with pytest.raises(ConfigError, match="encoding='utf-9'"):
        read(inter(HEADER), encoding="utf-9")


@pytest.mark.parametrize("word", ["", "x", "inf", "nan", "True", "1_0", "1,5", "--1", "1e", "e5", "."])
def test_what_is_no_number(word):
    with pytest.raises(ValueError, match="not a finite number"):
        parse_number(word)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read(Path(tmp_path / "none.inter"))
