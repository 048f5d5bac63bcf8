import gzip
import json

import pytest
from convert_helpers import read_rows, write

import recbole_llm.convert.reading as reading
from recbole_llm.convert import convert
from recbole_llm.errors import ConfigError, DataError

DAY = 86_400


def reviews_2014(rows):
    return "".join(
        json.dumps({"reviewerID": user, "asin": item, "overall": rating, "reviewText": "ok", "unixReviewTime": time})
        + "\n"
        for user, item, rating, time in rows
    )


ROWS = [("A1", "B1", 5.0, 2 * DAY), ("A1", "B2", 4.0, DAY), ("A2", "B1", 3.0, DAY), ("A2", "B3", 1.0, DAY)]
META = [
    {
        "asin": "B1",
        "title": 'Tom &amp; Jerry&#39;s "Best" \t Toy',
        "price": 9.99,
        "brand": "Acme & Co",
        "categories": [["Toys & Games", "Board Games"], ["Other"]],
        "description": "It's <b>good</b>.\nVery &lt;i&gt;good&lt;/i&gt;.",
        "related": {"also_bought": ["B2", "B9"]},
    },
    {"asin": "B2", "categories": [["Toys & Games"]], "salesRank": {"Toys & Games": 5}},
    {"asin": "B9", "title": "Not reviewed"},
]


def literals(records):
    return "".join(repr(record) + "\n" for record in records)


@pytest.fixture
def toys_2014(tmp_path):
    write(tmp_path / "in" / "reviews_Toys_and_Games_5.json.gz", reviews_2014(ROWS))
    write(tmp_path / "in" / "meta_Toys_and_Games.json.gz", literals(META))
    return tmp_path / "in"


def test_2014_folder(tmp_path, toys_2014):
    report = convert("amazon-toys-2014", toys_2014, tmp_path / "set")
    header, rows = read_rows(tmp_path / "set/set.inter")
    assert header == ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    assert rows == [
        ["A1", "B2", "4", str(DAY)],
        ["A2", "B1", "3", str(DAY)],
        ["A2", "B3", "1", str(DAY)],
        ["A1", "B1", "5", str(2 * DAY)],
    ]
    header, rows = read_rows(tmp_path / "set/set.item")
    assert header[:4] == ["item_id:token", "title:token_seq", "categories:token_seq", "brand:token"]
    # Only reviewed items; the one without metadata comes last and empty.
    assert [row[0] for row in rows] == ["B1", "B2", "B3"]
    assert rows[0][1:] == [
        'Tom & Jerry\'s "Best" Toy',
        "Toys & Games > Board Games",
        "Acme & Co",
        "9.99",
        "It's good . Very good .",
        "Toys_&_Games Board_Games",
    ]
    assert rows[1][1:3] == ["", "Toys & Games"] and rows[2][1:] == [""] * 6
    assert report.untitled_items == 2


def test_the_file_itself_finds_its_metadata(tmp_path, toys_2014):
    whole = convert("amazon-toys-2014", toys_2014, tmp_path / "a" / "set")
    single = convert("amazon-toys-2014", toys_2014 / "reviews_Toys_and_Games_5.json.gz", tmp_path / "b" / "set")
    assert whole.hashes == single.hashes


def test_untitled_and_items(tmp_path, toys_2014):
    report = convert("amazon-toys-2014", toys_2014, tmp_path / "a", untitled="drop")
    assert (report.counts.users, report.counts.items, report.counts.interactions, report.listed_items) == (2, 1, 2, 1)
    report = convert("amazon-toys-2014", toys_2014, tmp_path / "b", items="all", text_fields=["categories", "title"])
    header, rows = read_rows(tmp_path / "b/b.item")
    assert header == ["item_id:token", "categories:token_seq", "title:token_seq"]
    assert [row[0] for row in rows] == ["B1", "B2", "B9", "B3"]


def test_ratings_csv_has_user_first_in_2014_and_item_first_in_2018(tmp_path):
    write(tmp_path / "14" / "ratings_Video_Games.csv", "A1,B1,5.0,86400\n")
    write(tmp_path / "14" / "meta_Video_Games.json.gz", literals([{"asin": "B1", "title": "x"}]))
    write(tmp_path / "18" / "Video_Games.csv", "B1,A1,5.0,86400\n")
    write(tmp_path / "18" / "meta_Video_Games.json.gz", json.dumps({"asin": "B1", "title": "x"}) + "\n")
    for name, folder in (("amazon-games-2014", "14"), ("amazon-video-games-2018", "18")):
        convert(name, tmp_path / folder, tmp_path / f"out{folder}")
        assert read_rows(tmp_path / f"out{folder}/out{folder}.inter")[1] == [["A1", "B1", "5", "86400"]]
    with pytest.raises(DataError, match="describes none of the 1 reviewed items.*--columns"):
        convert("amazon-games-2014", tmp_path / "14", tmp_path / "swapped", columns="item,user,rating,time")
    with pytest.raises(ConfigError, match="it must name user, item, rating and time"):
        convert("amazon-games-2014", tmp_path / "14", tmp_path / "swapped", columns="item,user")


def test_2018(tmp_path):
    write(tmp_path / "in" / "Movies_and_TV_5.json.gz", reviews_2014([*ROWS, ROWS[0]]))
    meta = [
        {"asin": "B1", "title": "Up", "category": ["Movies & TV", "<span>x</span>", "Kids"], "price": "$5.00"},
        {"asin": "B1", "title": "Up again"},
        {"asin": "B2", "title": "var aPageStart = (new Date()).getTime();"},
        {"asin": "B3", "title": "Three", "description": ["One.", "Two."], "brand": "\n\nX\n"},
    ]
    write(tmp_path / "in" / "meta_Movies_and_TV.json.gz", "".join(json.dumps(record) + "\n" for record in meta))
    report = convert("amazon-movies-2018", tmp_path / "in", tmp_path / "set", dedup="first")
    assert report.counts.interactions == 4
    rows = {row[0]: row[1:] for row in read_rows(tmp_path / "set/set.item")[1]}
    assert rows["B1"] == ["Up", "Movies & TV > Kids", "", "5.00", "", "Movies_&_TV Kids"]
    assert rows["B2"][0] == "" and rows["B3"][2:] == ["X", "", "One. Two.", ""]
    assert sorted(report.skipped.values()) == [1, 1]
    assert [recipe.name for recipe, counts in report.published] == ["amazon-movies-2018-litellm4rec"]


def reviews_2023():
    rows = [("U1", "C1", "P1", 5.0, 1_600_000_000_123), ("U1", "C2", "P2", 4.0, 1_600_000_000_122)]
    return [
        {
            "user_id": user,
            "asin": child,
            "parent_asin": parent,
            "rating": rating,
            "timestamp": time,
            "title": "of the review",
        }
        for user, child, parent, rating, time in rows
    ]


META_2023 = [
    {
        "parent_asin": "P1",
        "title": "Drum",
        "store": "Beat",
        "categories": ["Music", "Drums"],
        "description": ["a", "b"],
        "price": 3.5,
    },
    {"parent_asin": "P2", "title": "NA", "store": None, "categories": [], "description": [], "price": None},
]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_2023_jsonl_joins_on_the_parent_and_keeps_milliseconds(tmp_path):
    write(tmp_path / "in" / "Musical_Instruments.jsonl.gz", lines(reviews_2023()))
    write(tmp_path / "in" / "meta_Musical_Instruments.jsonl.gz", lines(META_2023))
    convert("amazon-musical-instruments-2023", tmp_path / "in", tmp_path / "set")
    assert read_rows(tmp_path / "set/set.inter")[1] == [
        ["U1", "P2", "4", "1600000000122"],
        ["U1", "P1", "5", "1600000000123"],
    ]
    assert read_rows(tmp_path / "set/set.item")[1] == [
        ["P1", "Drum", "Music > Drums", "Beat", "3.5", "a b", "Music Drums"],
        ["P2", " NA", "", "", "", "", ""],
    ]


def test_2023_parquet_equals_jsonl(tmp_path):
    pa = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    for folder, records in (
        ("raw_review_Musical_Instruments", reviews_2023()),
        ("raw_meta_Musical_Instruments", META_2023),
    ):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for shard, record in enumerate(records):
            parquet.write_table(
                pa.Table.from_pylist([record]), tmp_path / "in" / folder / f"full-0000{shard}-of-00002.parquet"
            )
    write(tmp_path / "json" / "Musical_Instruments.jsonl", lines(reviews_2023()))
    write(tmp_path / "json" / "meta_Musical_Instruments.jsonl", lines(META_2023))
    first = convert("amazon-musical-instruments-2023", tmp_path / "in", tmp_path / "a" / "set")
    second = convert("amazon-musical-instruments-2023", tmp_path / "json", tmp_path / "b" / "set")
    assert first.hashes == second.hashes


def test_2023_ready_splits(tmp_path):
    header = "user_id,parent_asin,rating,timestamp,history\n"
    for part, row in (("test", "U1,P3,5.0,3,P1 P2\n"), ("train", "U1,P1,5.0,1,\n"), ("valid", "U1,P2,5.0,2,P1\n")):
        write(tmp_path / "in" / f"All_Beauty.{part}.csv", header + row)
    convert("amazon-beauty-2023", tmp_path / "in", tmp_path / "set", no_metadata=True, order="input")
    assert [row[1] for row in read_rows(tmp_path / "set/set.inter")[1]] == ["P1", "P2", "P3"]
    assert not (tmp_path / "set/set.item").exists()
    write(tmp_path / "bad" / "All_Beauty.csv", "user,item\n")
    with pytest.raises(DataError, match=r"All_Beauty\.csv, line 1: the header is 'user,item'"):
        convert("amazon-beauty-2023", tmp_path / "bad", tmp_path / "set2", no_metadata=True)


# ---- what can be wrong -------------------------------------------------------------------------------------------


def changed(toys, data, name="reviews_Toys_and_Games_5.json.gz"):
    write(toys / name, data)
    return toys


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ('{"reviewerID": "A3", "asin": "B1", "over\n', r"line 5: not JSON"),
        ('{"reviewerID": "A3", "overall": 5, "unixReviewTime": 1}\n', r"line 5: the record has no 'asin'"),
        ('{"reviewerID": 3, "asin": "B1", "overall": 5, "unixReviewTime": 1}\n', r"line 5: an id that is not text: 3"),
        ('{"reviewerID": "A3", "asin": "B1", "overall": null, "unixReviewTime": 1}\n', r"line 5: the rating None"),
        ('{"reviewerID": "A3", "asin": "B1", "overall": 5, "unixReviewTime": "x"}\n', r"line 5: the time 'x'"),
        ('{"reviewerID": "A3", "asin": "B1", "overall": 5, "unixReviewTime": 1.5}\n', r"line 5: the time 1.5"),
        ('{"reviewerID": "A3", "asin": "B1", "overall": 5, "unixReviewTime": null}\n', r"line 5: the time None"),
        ("[1, 2]\n", r"line 5: not a dictionary"),
        ("{'a': __import__('os').system('true')}\n", r"line 5: not JSON and not a literal of plain data"),
        ("[" * 100_000 + "\n", r"line 5: "),
    ],
)
def test_bad_review_lines(tmp_path, toys_2014, tail, message):
    source = changed(toys_2014, reviews_2014(ROWS) + tail + reviews_2014(ROWS[:1]))
    with pytest.raises(DataError, match=r"reviews_Toys_and_Games_5\.json\.gz, " + message):
        convert("amazon-toys-2014", source, tmp_path / "out" / "set")
    assert not (tmp_path / "out").exists()
    report = convert("amazon-toys-2014", source, tmp_path / "out" / "set", on_error="skip")
    assert report.counts.interactions == 5 and sum(report.skipped.values()) == 1


def test_non_utf8(tmp_path, toys_2014):
    source = changed(toys_2014, reviews_2014(ROWS).encode() + b'{"reviewerID": "\xff", "asin": "B1"}\n')
    with pytest.raises(DataError, match=r"line 5: .*(0xff|UTF-8|utf-8)"):
        convert("amazon-toys-2014", source, tmp_path / "set")


def test_damaged_gz(tmp_path, toys_2014):
    path = toys_2014 / "reviews_Toys_and_Games_5.json.gz"
    whole = gzip.compress(reviews_2014(ROWS * 5000).encode(), mtime=0)
    for data in (whole[: len(whole) // 2], whole[:-4] + b"\0\0\0\0", whole[:200] + b"\xff" * 50 + whole[250:]):
        path.write_bytes(data)
        with pytest.raises(
            DataError, match=r"_5\.json\.gz, (after line \d+: the compressed data is damaged|line \d+: not JSON)"
        ):
            convert("amazon-toys-2014", toys_2014, tmp_path / "out" / "set")
        assert not (tmp_path / "out").exists()


def test_huge_line(tmp_path, toys_2014):
    source = changed(toys_2014, reviews_2014(ROWS).encode() + b"x" * (17 << 20))
    with pytest.raises(DataError, match=r"line 5: the line is longer than 16 MiB"):
        convert("amazon-toys-2014", source, tmp_path / "set")


def test_hostile_metadata_line(tmp_path, toys_2014):
    source = changed(toys_2014, literals(META) + "__import__('os').system('true')\n", "meta_Toys_and_Games.json.gz")
    with pytest.raises(DataError, match=r"meta_Toys_and_Games\.json\.gz, line 4: not JSON and not a literal"):
        convert("amazon-toys-2014", source, tmp_path / "set")
    assert convert("amazon-toys-2014", source, tmp_path / "set", on_error="skip").counts.interactions == 4


def test_missing_files(tmp_path, toys_2014):
    (toys_2014 / "meta_Toys_and_Games.json.gz").unlink()
    with pytest.raises(DataError, match=r"no metadata file .* 'toys-and-games' found; pass it with --metadata"):
        convert("amazon-toys-2014", toys_2014, tmp_path / "set")
    with pytest.raises(ConfigError, match="untitled=drop needs item titles"):
        convert("amazon-toys-2014", toys_2014, tmp_path / "set", no_metadata=True, untitled="drop")
    with pytest.raises(
        DataError, match=r"no reviews or ratings of the category 'beauty' found there; it holds reviews_Toys"
    ):
        convert("amazon-beauty-2014", toys_2014, tmp_path / "set")
    write(toys_2014 / "ratings_Toys_and_Games.csv", "A,B,1.0,1\n")
    with pytest.raises(DataError, match="several files match: reviews_.*5-core reviews.*ratings_.*pass the one"):
        convert("amazon-toys-2014", toys_2014, tmp_path / "set", no_metadata=True)
    with pytest.raises(DataError, match="no such file or folder"):
        convert("amazon-toys-2014", tmp_path / "nowhere", tmp_path / "set")


def test_loose_reviews_in_several_processes(tmp_path, toys_2014, monkeypatch):
    monkeypatch.setattr(reading, "PARALLEL_FROM", 0)
    rows = [(f"A{n % 50}", f"B{n % 7}", float(n % 5 + 1), n) for n in range(3000)]
    records = [
        {"reviewerID": u, "asin": i, "overall": r, "unixReviewTime": t, "reviewText": 'it\'s "x"'}
        for u, i, r, t in rows
    ]
    (toys_2014 / "reviews_Toys_and_Games_5.json.gz").unlink()
    write(toys_2014 / "reviews_Toys_and_Games.json.gz", literals(records))
    one = convert("amazon-toys-2014", toys_2014, tmp_path / "a" / "set", workers=1)
    two = convert("amazon-toys-2014", toys_2014, tmp_path / "b" / "set", workers=2)
    assert one.hashes == two.hashes and one.counts.interactions == 3000
    assert (tmp_path / "a/set/set.conversion.json").read_bytes() == (
        tmp_path / "b/set/set.conversion.json"
    ).read_bytes()
