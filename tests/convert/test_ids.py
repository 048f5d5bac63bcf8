"""Ids are the text of the input, from every format, with and without the optional packages."""

import csv
import io
import json

import pytest
from convert_helpers import read_rows, write
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

import recbole_llm.convert.records as records
from recbole_llm.convert import convert
from recbole_llm.errors import DataError
from tests.properties import examples

COLUMNS = {"user_col": "u", "item_col": "i", "time_col": "t"}
# Different texts that are one number, or that 64 bits or a float cannot tell apart.
NUMBERS = [
    *("0", "-0", "1", "1.0", "1.00", "1e0", "100000", "1e5", "1E5", "7", "9007199254740993", "9007199254740992.0"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("18446744073709551617", "-9223372036854775808", "-9223372036854775809", "123456789012345678901234567890"),
]
LOOK_ALIKES = [
    *NUMBERS,
    "01",
    "007",
    "00",
    "+1",
    " 1",
    "1 ",
    "1_0",
    "1,0",
    "0x1",
    "inf",
    "nan",
    "NA",
    "null",
    '"x"',
    "'x",
]


@pytest.fixture(params=["orjson", "standard library"])
def parser(request, monkeypatch):
    if request.param == "orjson":
        pytest.importorskip("orjson")
    else:
        monkeypatch.setattr(records, "fast_loads", records.standard_loads)
    return request.param


def ids_of(path):
    return [row[1] for row in read_rows(path)[1]]


def as_csv(rows, header=("u", "i", "t")):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def test_csv_ids_are_not_parsed(tmp_path):
    log = write(tmp_path / "log.csv", as_csv([("u", raw, n) for n, raw in enumerate(LOOK_ALIKES)]))
    items = write(tmp_path / "items.csv", as_csv([(raw, f"Title {raw}") for raw in LOOK_ALIKES], ("i", "title")))
    report = convert("generic", log, tmp_path / "set", metadata=items, **COLUMNS)
    assert ids_of(tmp_path / "set/set.inter") == LOOK_ALIKES
    assert [row[0] for row in read_rows(tmp_path / "set/set.item")[1]] == LOOK_ALIKES
    assert report.counts.items == len(LOOK_ALIKES) == report.listed_items and report.untitled_items == 0


@pytest.mark.parametrize("form", ['{"u": "a", "i": %s, "t": %d}', "{'u': 'a', 'i': %s, 't': %d}"])
def test_numbers_are_ids_as_they_are_written(tmp_path, parser, form):
    log = write(tmp_path / "log.jsonl", "".join(form % (raw, n) + "\n" for n, raw in enumerate(NUMBERS)))
    items = "".join(f'{{"i": {raw}, "title": "Title {raw}"}}\n' for raw in NUMBERS)
    report = convert("generic", log, tmp_path / "set", metadata=write(tmp_path / "items.jsonl", items), **COLUMNS)
    assert ids_of(tmp_path / "set/set.inter") == NUMBERS
    assert read_rows(tmp_path / "set/set.item")[1] == [[raw, f"Title {raw}"] for raw in NUMBERS]
    assert report.counts.items == len(NUMBERS)


def test_large_numbers_in_text_fields(tmp_path, parser):
    """Also outside of ids a whole number has all its digits, with and without orjson."""
    big = "18446744073709551616"
    log = write(tmp_path / "log.jsonl", '{"u": "a", "i": "x", "t": 1}\n{"u": "a", "i": "y", "t": 2}\n')
    items = f'{{"i": "x", "title": {big}, "tags": [{big}, -{big}]}}\n'
    items += f"{{'i': 'y', 'title': {big}, 'tags': [u'b', {big}]}}\n"
    convert("generic", log, tmp_path / "set", metadata=write(tmp_path / "items.jsonl", items), **COLUMNS)
    assert read_rows(tmp_path / "set/set.item")[1] == [["x", big, f"{big} -{big}"], ["y", big, f"b {big}"]]


@pytest.mark.parametrize("value", ["true", "[1]", '{"a": 1}'])
def test_other_values_are_no_ids(tmp_path, parser, value):
    log = write(tmp_path / "log.jsonl", f'{{"u": "a", "i": {value}, "t": 1}}\n')
    with pytest.raises(DataError, match=r"log\.jsonl, line 1: an id that is neither text nor a number"):
        convert("generic", log, tmp_path / "set", **COLUMNS)


@pytest.mark.parametrize("value", ["null", '""', "NaN"])
def test_missing_ids(tmp_path, parser, value):
    log = write(tmp_path / "log.jsonl", f'{{"u": "a", "i": {value}, "t": 1}}\n')
    with pytest.raises(DataError, match=r"log\.jsonl, line 1: an empty user or item id"):
        convert("generic", log, tmp_path / "set", **COLUMNS)


def test_parquet_ids_keep_all_digits(tmp_path):
    pa = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    from decimal import Decimal

    for name, values, kind in (
        ("int", [2**53 + 1, 2**53, -(2**63), 2**63 - 1], pa.int64()),
        ("uint", [2**64 - 1, 2**64 - 2, 0, 1], pa.uint64()),
        ("decimal", [Decimal(10**30 + 1), Decimal(10**30), Decimal(-1), Decimal(0)], pa.decimal128(38, 0)),
        ("text", ["01", "1", "1.0", "NA"], pa.string()),
        ("category", ["01", "1", "1.0", "NA"], pa.dictionary(pa.int32(), pa.string())),
    ):
        column = (
            pa.array(values[:4], pa.string()).dictionary_encode() if name == "category" else pa.array(values, kind)
        )
        table = pa.table({"u": pa.array(["a"] * 4), "i": column, "t": pa.array(range(4))})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        convert("generic", tmp_path / f"{name}.parquet", tmp_path / name, **COLUMNS)
        assert ids_of(tmp_path / name / f"{name}.inter") == [str(value) for value in values]


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.5, None]])
def test_parquet_floats_are_no_ids(tmp_path, values):
    pa = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    parquet.write_table(pa.table({"u": ["a", "b"], "i": values, "t": [1, 2]}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"log\.parquet: the column 'i' holds ids of the type DOUBLE.*astype"):
        convert("generic", tmp_path / "log.parquet", tmp_path / "set", **COLUMNS)


# What str.isprintable allows: no control or format characters, no separators but the blank.
printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), min_size=1)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.lists(st.tuples(printable, printable), min_size=1, max_size=8))
@example(raw=[(text, text) for text in LOOK_ALIKES])
@example(raw=[(" ", "_"), ("_", " "), ('"', '""'), ("é", "e\u0301"), ("🂡", "\u4e00")])
def test_any_printable_id_survives(tmp_path, parser, form, raw):
    rows = [(user, item, n) for n, (user, item) in enumerate(raw)]
    records_ = "".join(
        json.dumps(dict(zip("uit", row, strict=True)), ensure_ascii=n % 2 > 0) + "\n" for n, row in enumerate(rows)
    )
    log = write(tmp_path / f"log.{form}", as_csv(rows) if form == "csv" else records_)
    items = list(dict.fromkeys(item for _, item in raw))
    titles = write(tmp_path / "items.jsonl", "".join(json.dumps({"i": item, "title": "T"}) + "\n" for item in items))
    report = convert("generic", log, tmp_path / "set", metadata=titles, overwrite=True, **COLUMNS)
    assert [tuple(row[:2]) for row in read_rows(tmp_path / "set/set.inter")[1]] == raw
    assert [row[0] for row in read_rows(tmp_path / "set/set.item")[1]] == items
    assert report.counts.items == len(items) == report.listed_items
    assert report.counts.users == len({user for user, _ in raw}) and report.renamed_ids == 0


def test_ids_for_stock_recbole(tmp_path):
    log = write(tmp_path / "log.csv", as_csv([("NA", '"x', 1), ("NA_", "'x", 2), ("b", "y", 3)]))
    report = convert("generic", log, tmp_path / "a", **COLUMNS)
    assert report.renamed_ids == 0 and "would misread (NA, null, a leading quotation mark): 2" in report.text()
    report = convert("generic", log, tmp_path / "b", ids="recbole", **COLUMNS)
    assert [row[:2] for row in read_rows(tmp_path / "b/b.inter")[1]] == [["NA__", "'x_"], ["NA_", "'x"], ["b", "y"]]
    assert report.renamed_ids == 2 and "would misread" not in report.text()


@pytest.mark.parametrize("quoted", ["plain", '"quoted"'])
def test_a_lone_carriage_return_ends_no_line(tmp_path, quoted):
    """Whether or not there is a quotation mark somewhere else in the file."""
    log = write(tmp_path / "log.csv", f"u,i,t,x\r\na,p\rq,1,1\r\nb,r,2,{quoted}\r\n")
    report = convert("generic", log, tmp_path / "set", **COLUMNS)
    assert [row[:2] for row in read_rows(tmp_path / "set/set.inter")[1]] == [["a", "p q"], ["b", "r"]]
    assert report.renamed_ids == 1


@pytest.mark.parametrize("time", ["True", "inf", "nan", "1_000", "١٢", ""])
def test_what_is_no_time(tmp_path, time):
    log = write(tmp_path / "log.csv", f"u,i,t\na,b,{time}\n")
    with pytest.raises(DataError, match=r"log\.csv, line 2: the time"):
        convert("generic", log, tmp_path / "set", **COLUMNS)


@pytest.mark.parametrize("rating", ["true", '"1_0"', '"inf"', '"١"', "null"])
def test_what_is_no_rating(tmp_path, parser, rating):
    log = write(tmp_path / "log.jsonl", f'{{"u": "a", "i": "b", "t": 1, "r": {rating}}}\n')
    with pytest.raises(DataError, match=r"log\.jsonl, line 1: .*(is not a number|not a finite number)"):
        convert("generic", log, tmp_path / "set", rating_col="r", **COLUMNS)
