import json
from datetime import datetime, timezone
from decimal import Decimal

import pytest
from convert_helpers import make_zip, read_rows, write

import recbole_llm.convert.reading as reading
from recbole_llm.convert import convert
from recbole_llm.convert.options import OPTIONS
from recbole_llm.errors import ConfigError, DataError, RecBoleLLMError

LOG = "who,what,when,stars\nann,x1,2024-01-02,5\nbob,x2,2024-01-01T10:00:00Z,4.5\nann,x2,2024-01-02,1\n"
COLUMNS = {"user_col": "who", "item_col": "what", "time_col": "when", "rating_col": "stars"}
ROWS = [["bob", "x2", "4.5", "1704103200"], ["ann", "x1", "5", "1704153600"], ["ann", "x2", "1", "1704153600"]]


def test_csv(tmp_path):
    convert("generic", write(tmp_path / "log.csv", LOG), tmp_path / "set", **COLUMNS)
    assert read_rows(tmp_path / "set/set.inter") == (
        ["user_id:token", "item_id:token", "rating:float", "timestamp:float"],
        ROWS,
    )
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["set.conversion.json", "set.inter"]


def test_tsv_gz_jsonl_zip_headerless_and_parquet_are_the_same(tmp_path):
    records = [
        dict(zip(LOG.split("\n")[0].split(","), line.split(","), strict=True)) for line in LOG.split("\n")[1:-1]
    ]
    files = {
        "csv": write(tmp_path / "log.csv", LOG),
        "tsv": write(tmp_path / "log.tsv.gz", LOG.replace(",", "\t")),
        "jsonl": write(tmp_path / "log.jsonl", "".join(json.dumps(record) + "\n" for record in records)),
        "zip": make_zip(tmp_path / "log.zip", {"deep/log.csv": LOG}),
        "bom": write(tmp_path / "bom.csv", b"\xef\xbb\xbf" + LOG.encode()),
        "quoted": write(tmp_path / "quoted.csv", LOG.replace("ann", '"ann"')),
    }
    hashes = {
        name: next(iter(convert("generic", path, tmp_path / name / "set", **COLUMNS).hashes.values()))
        for name, path in files.items()
    }
    bare = write(tmp_path / "bare.dat", LOG.split("\n", 1)[1].replace(",", "|"))
    report = convert(
        "generic", bare, tmp_path / "bare" / "set", delimiter="|", columns="who,what,when,stars", **COLUMNS
    )
    hashes["bare"] = next(iter(report.hashes.values()))
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        pass
    else:
        pyarrow.parquet.write_table(
            pa.Table.from_pylist([{**record, "stars": float(record["stars"])} for record in records]),
            tmp_path / "p.parquet",
        )
        report = convert("generic", tmp_path / "p.parquet", tmp_path / "parquet" / "set", **COLUMNS)
        hashes["parquet"] = next(iter(report.hashes.values()))
    assert len(set(hashes.values())) == 1, hashes


def test_items_and_users(tmp_path):
    items = 'what,Product Name,price,notes\nx1,"Lamp, ""small""\nround",9.5,a\nx2,None,,b\nx3,Unsold,1,c\n'
    users = [{"who": "ann", "age": 31, "tags": ["a", "b"]}, {"who": "bob"}]
    convert(
        "generic",
        write(tmp_path / "log.csv", LOG),
        tmp_path / "set",
        metadata=write(tmp_path / "items.csv", items),
        item_fields="Product Name=title:token_seq,price:float",
        users=write(tmp_path / "users.jsonl", "".join(json.dumps(user) + "\n" for user in users)),
        user_fields="age:token,tags:token_seq",
        **COLUMNS,
    )
    assert read_rows(tmp_path / "set/set.item") == (
        ["item_id:token", "title:token_seq", "price:float"],
        [["x1", 'Lamp, "small" round', "9.5"], ["x2", " None", ""], ["x3", "Unsold", "1"]],
    )
    assert read_rows(tmp_path / "set/set.user") == (
        ["user_id:token", "age:token", "tags:token_seq"],
        [["ann", "31", "a b"], ["bob", "", ""]],
    )


@pytest.mark.parametrize(
    ("times", "written"),
    [
        (["3", "1", "2"], ["1", "2", "3"]),
        (["1.5", "1.25", "1"], ["1", "1.25", "1.5"]),
        (["1700000000123", "1700000000122", "1700000000121"], ["1700000000121", "1700000000122", "1700000000123"]),
        (["1970-01-02", "1970-01-01T00:00:01.5", "1970-01-01 01:00:00+01:00"], ["0", "1.5", "86400"]),
        (["-5", "0", "-5.5"], ["-5.5", "-5", "0"]),
        (["9007199254740993", "9007199254740992", "0"], ["0", "9007199254740992", "9007199254740993"]),
    ],
)
def test_times_are_exact(tmp_path, times, written):
    log = "user,item,t\n" + "".join(f"u,i{n},{time}\n" for n, time in enumerate(times))
    convert(
        "generic", write(tmp_path / "log.csv", log), tmp_path / "set", user_col="user", item_col="item", time_col="t"
    )
    assert [row[-1] for row in read_rows(tmp_path / "set/set.inter")[1]] == written


def test_time_pattern_and_no_time(tmp_path):
    log = write(tmp_path / "log.csv", "u,i,t\na,1,31.12.2023\na,2,01.12.2023\n")
    convert("generic", log, tmp_path / "a", user_col="u", item_col="i", time_col="t", time_format="%d.%m.%Y")
    assert [row[1] for row in read_rows(tmp_path / "a/a.inter")[1]] == ["2", "1"]
    days = write(tmp_path / "days.jsonl", '{"u": "a", "i": "1", "t": 20240102}\n')
    convert("generic", days, tmp_path / "d", user_col="u", item_col="i", time_col="t", time_format="%Y%m%d")
    assert read_rows(tmp_path / "d/d.inter")[1] == [["a", "1", "1704153600"]]
    report = convert("generic", log, tmp_path / "b", user_col="u", item_col="i")
    assert read_rows(tmp_path / "b/b.inter")[1] == [["a", "1", "0"], ["a", "2", "1"]]
    assert "order of the rows" in report.text()
    with pytest.raises(DataError, match=r"log\.csv, line 2: the time '31.12.2023' is not a number or an ISO date"):
        convert("generic", log, tmp_path / "c", user_col="u", item_col="i", time_col="t")


def test_sessions_recognise_their_columns(tmp_path):
    log = write(tmp_path / "sessions.csv", "SessionId,ItemId,Timestamp\n1,10,5\n1,11,4\n2,10,6\n")
    products = write(tmp_path / "products.csv", "ItemId,name\n10,Pizza\n11,Salad\n")
    report = convert("sessions", log, tmp_path / "set", metadata=products)
    assert read_rows(tmp_path / "set/set.inter")[1] == [["1", "11", "4"], ["1", "10", "5"], ["2", "10", "6"]]
    assert read_rows(tmp_path / "set/set.item") == (
        ["item_id:token", "name:token_seq"],
        [["10", "Pizza"], ["11", "Salad"]],
    )
    assert report.untitled_items == 0 and "258,710" in report.text()
    strange = write(tmp_path / "strange.csv", "a,b\n1,2\n")
    with pytest.raises(
        ConfigError, match=r"sessions needs user_col \(--user_col\); the columns of .*strange\.csv are: a, b"
    ):
        convert("sessions", strange, tmp_path / "set2")


@pytest.mark.parametrize(
    ("log", "options", "message"),
    [
        (LOG, {"item_col": "sku"}, r"log\.csv, line 1: no column 'sku'; the columns are who, what, when, stars"),
        (LOG + "ann,x1\n", {}, r"log\.csv, line 5: 2 fields where 4 are expected"),
        (LOG + ",x1,2024-01-02,5\n", {}, r"line 5: an empty user or item id"),
        (LOG + "ann,x1,2024-01-02,high\n", {}, r"line 5: the stars 'high' is not a number"),
        (LOG + 'ann,"a\nb",2024-01-02,high\n', {}, r"line 6: the stars 'high' is not a number"),
        (LOG + 'ann,"x1,2024-01-02,5\n', {}, r"line 5: a quote is opened here and not closed"),
        (LOG.encode() + b"ann,\xe9,2024-01-02,5\n", {}, r"line 5: byte 0xe9 is not UTF-8; convert the file"),
        (LOG.encode("utf-16"), {}, r"line 1: this is UTF-16 text"),
        ("", {}, "is empty|no usable"),
        (LOG, {"user_col": None}, r"generic needs user_col"),
    ],
)
def test_bad_logs(tmp_path, log, options, message):
    with pytest.raises((DataError, ConfigError), match=message):
        convert("generic", write(tmp_path / "log.csv", log), tmp_path / "out" / "set", **{**COLUMNS, **options})
    assert not (tmp_path / "out").exists()


def test_bad_catalogues(tmp_path):
    log = write(tmp_path / "log.csv", LOG)

    def with_items(text, **options):
        return convert(
            "generic", log, tmp_path / "set", metadata=write(tmp_path / "items.csv", text), **COLUMNS, **options
        )

    with pytest.raises(DataError, match=r"items\.csv, line 3: the id 'x1' occurs twice"):
        with_items("what,title\nx1,a\nx1,b\n")
    with pytest.raises(DataError, match=r"items\.csv: no column 'what'; the columns are id, title"):
        with_items("id,title\nx1,a\n")
    with pytest.raises(DataError, match=r"items\.csv, line 2: the price 'cheap' is not a number"):
        with_items("what,price\nx1,cheap\n", item_fields="price:float")
    with pytest.raises(ConfigError, match="the type is 'text'; allowed are token, token_seq, float"):
        with_items("what,title\nx1,a\n", item_fields="title:text")
    with pytest.raises(DataError, match="no column 'name'; the columns are title"):
        with_items("what,title\nx1,a\n", item_fields="name:token")


def test_damaged_parquet(tmp_path):
    for data in (b"PAR1", b"PAR1" * 9):
        with pytest.raises(DataError, match=r"log\.parquet: the parquet data is damaged"):
            convert("generic", write(tmp_path / "log.parquet", data), tmp_path / "set", **COLUMNS)


def test_parquet_of_all_kinds(tmp_path):
    """Times with and without zone, decimals, lists; a path with pattern characters that looks like a column."""
    pa = pytest.importorskip("pyarrow", exc_type=ImportError)
    from pyarrow import parquet

    at = datetime(2024, 1, 2, 3, 4, 5, 250_000, tzinfo=timezone.utc)
    folder = tmp_path / "what=x[1]*"
    folder.mkdir()
    log = pa.table(
        {
            "who": ["a", "b"],
            "what": pa.array(["x1", "x2"]).dictionary_encode(),
            "zoned": pa.array([at] * 2, pa.timestamp("us", tz="Europe/Berlin")),
            "local": pa.array([at.replace(tzinfo=None)] * 2, pa.timestamp("ns")),
            "day": [at.date()] * 2,
            "stars": pa.array([Decimal("4.50"), Decimal("5.00")]),
        }
    )
    parquet.write_table(log, folder / "log?.parquet")
    items = pa.table({"what": ["x1", "x2"], "title": ["One", None], "tags": [["a", "b"], []], "price": [1.5, None]})
    parquet.write_table(items, tmp_path / "items.parquet")
    for column, written in (("zoned", "1704164645.25"), ("local", "1704164645.25"), ("day", "1704153600")):
        convert(
            "generic",
            folder / "log?.parquet",
            tmp_path / column,
            metadata=tmp_path / "items.parquet",
            **{**COLUMNS, "time_col": column},
        )
        assert read_rows(tmp_path / column / f"{column}.inter")[1] == [
            ["a", "x1", "4.5", written],
            ["b", "x2", "5", written],
        ]
    assert read_rows(tmp_path / "day/day.item")[1] == [["x1", "One", "a b", "1.5"], ["x2", "", "", ""]]
    with pytest.raises(DataError, match=r"no column 'when'; the columns are who, what, zoned"):
        convert("generic", folder, tmp_path / "set", **COLUMNS)


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_delimiter_of_several_characters(tmp_path, quote):
    log = write(tmp_path / "log.dat", f"who::what::when\nann::{quote}x,1{quote}::5\n")
    convert("generic", log, tmp_path / "set", delimiter="::", user_col="who", item_col="what", time_col="when")
    assert read_rows(tmp_path / "set/set.inter")[1] == [["ann", f"{quote}x,1{quote}", "5"]]
    with pytest.raises(ConfigError, match="delimiter is '\"'; it must not be empty"):
        convert("generic", log, tmp_path / "b", delimiter='"', user_col="who", item_col="what")


def test_unknown_ending(tmp_path):
    with pytest.raises(ConfigError, match="cannot tell the format from the ending 'xls'"):
        convert("generic", write(tmp_path / "log.xls", LOG), tmp_path / "set", **COLUMNS)


@pytest.mark.parametrize(
    ("rows", "items"),
    [
        ('a,5" disk,1\nb,"x,\n""y""\n",2\nc,5" tape,3', ['5" disk', 'x, "y" ', '5" tape']),
        ('a,"x"y,1\n\nb,"",2', None),
        ("a,x,1\n,,\nb,y,2\n,,", ["x", "y"]),
    ],
)
def test_quotes_and_blank_rows(tmp_path, rows, items):
    log = write(tmp_path / "log.csv", "who,what,when\n" + rows)
    columns = {"user_col": "who", "item_col": "what", "time_col": "when"}
    if items is None:
        with pytest.raises(DataError, match=r"log\.csv, line 4: an empty user or item id"):
            convert("generic", log, tmp_path / "set", **columns)
        return
    convert("generic", log, tmp_path / "set", **columns)
    assert [row[1] for row in read_rows(tmp_path / "set/set.inter")[1]] == items


def test_numbers_of_rows_over_many_batches(tmp_path, monkeypatch):
    """Line numbers in errors, whatever the size of a batch, with fields over several lines and blank lines."""
    lines = ["who,what,when", "a,x,1", "", 'b,"y\n\nz",2', "c,x,3", "", "d,x,bad", 'e,"open,5', "f,x,6"]
    for size in (1, 2, 3, 100):
        monkeypatch.setattr(reading, "_BATCH_ROWS", size)
        columns = {"user_col": "who", "item_col": "what", "time_col": "when", "overwrite": True}
        for count, line, error in ((9, 10, "a quote is opened here"), (7, 9, "the time 'bad'"), (5, None, None)):
            log = write(tmp_path / "log.csv", "\n".join(lines[:count]) + ("\n" if size % 2 else ""))
            if error is None:
                assert convert("generic", log, tmp_path / "set", **columns).counts.interactions == 3
                continue
            with pytest.raises(DataError, match=rf"log\.csv, line {line}: {error}"):
                convert("generic", log, tmp_path / "set", **{**columns, "on_error": "skip" if count == 9 else "stop"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item_fields": "a=title:token,b=title:token"}, "two fields would be named 'title'"),
        ({"item_fields": "a=item_id:token"}, "two fields would be named 'item_id'"),
        ({"inter_fields": "rating"}, "two fields would be named 'rating'"),
    ],
)
def test_names_of_fields_are_distinct(tmp_path, options, message):
    log = write(tmp_path / "log.csv", "who,what,rating\nann,x,1\n")
    items = write(tmp_path / "items.csv", "what,a,b\nx,1,2\n")
    settings = {"user_col": "who", "item_col": "what", "rating_col": "rating", "metadata": items}
    with pytest.raises(ConfigError, match=message):
        convert("generic", log, tmp_path / "set", **settings, **options)
    assert not (tmp_path / "set").exists()


def test_names_that_a_header_can_hold(tmp_path):
    log = write(tmp_path / "log.csv", "who,what,dwell: time (s)\nann,x,1\n")
    convert("generic", log, tmp_path / "set", user_col="who", item_col="what", inter_fields=["dwell: time (s)"])
    assert read_rows(tmp_path / "set/set.inter")[0][2] == "dwell_time_(s):float"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_blank_lines_are_passed_over(tmp_path, ending):
    rows = {
        "csv": ["who,what", "ann,x", "bob,y"],
        "jsonl": ['{"who": "ann", "what": "x"}', '{"who": "bob", "what": "y"}'],
    }
    log = write(tmp_path / f"log.{ending}", "\r\n\n  \n".join(rows[ending]) + "\n\n")
    report = convert("generic", log, tmp_path / "set", user_col="who", item_col="what")
    assert report.counts.interactions == 2 and not report.skipped


VALUES = [-1, 0, 1.5, float("nan"), True, "", "x", [], ["x"], {}, {"a": 1}, "a=b=c:token", "who", "\0", b"x", object()]
KEYS = ["input", "metadata", "recipe", "min_rating", "untitled", "dedup", "k_core", "order", "items", "ids", "output"]
KEYS += ["text_fields", "on_error", "nosuch", *sorted(OPTIONS)]


@pytest.mark.parametrize("key", KEYS)
def test_no_value_ends_in_a_traceback(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    log = write(tmp_path / "log.csv", LOG)
    items = write(tmp_path / "items.csv", "what,title\nx1,a\nx2,b\n")
    given = {"input": log, "output": "out/set", "metadata": items, "overwrite": True, **COLUMNS}
    for value in VALUES:
        try:
            convert("generic", **{**given, key: value})
        except RecBoleLLMError as error:
            assert "\n" not in str(error), value
