import gzip
from collections import Counter

import pytest
from convert_helpers import make_zip, read_rows, write

from recbole_llm.convert import convert
from recbole_llm.errors import ConfigError, DataError

RATINGS_1M = "1::10::5::300\n1::11::3::100\n2::10::4::100\n2::12::1::100\n"
MOVIES_1M = (
    "10::Matrix, The (1999)::Action|Sci-Fi\n11::Misérables, Les (1995)::Drama\n"
    "12::Up: a::b (2009)::Comedy\n13::Unseen (2000)::Drama\n"
)
USERS_1M = "1::F::1::10::48067\n2::M::56::16::70072\n"


def ml_1m(tmp_path, **changes):
    members = {"ratings.dat": RATINGS_1M, "movies.dat": MOVIES_1M.encode("latin-1"), "users.dat": USERS_1M}
    members.update(changes)
    return make_zip(
        tmp_path / "ml-1m.zip", {f"ml-1m/{name}": data for name, data in members.items() if data is not None}
    )


def test_1m_from_zip(tmp_path):
    report = convert("ml-1m", ml_1m(tmp_path), tmp_path / "out" / "ml-1m")
    header, rows = read_rows(tmp_path / "out/ml-1m/ml-1m.inter")
    assert header == ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    # By time; the three rows at time 100 stay in file order.
    assert rows == [["1", "11", "3", "100"], ["2", "10", "4", "100"], ["2", "12", "1", "100"], ["1", "10", "5", "300"]]
    header, rows = read_rows(tmp_path / "out/ml-1m/ml-1m.item")
    assert header[:4] == ["item_id:token", "movie_title:token_seq", "release_year:token", "genre:token_seq"]
    assert rows[0] == ["10", "The Matrix", "1999", "Action Sci-Fi", "Matrix, The (1999)"]
    assert rows[1][1:3] == ["Les Misérables", "1995"]
    assert rows[2][1:3] == ["Up: a::b", "2009"]
    assert [row[0] for row in rows] == ["10", "11", "12", "13"]
    header, rows = read_rows(tmp_path / "out/ml-1m/ml-1m.user")
    assert rows == [["1", "F", "1", "10", "48067"], ["2", "M", "56", "16", "70072"]]
    assert (report.counts.users, report.counts.items, report.listed_items) == (2, 3, 4)


def test_folder_zip_and_gz_give_the_same_bytes(tmp_path):
    archive = ml_1m(tmp_path)
    for name, data in (("ratings.dat", RATINGS_1M), ("users.dat", USERS_1M)):
        write(tmp_path / "folder" / name, data)
    (tmp_path / "folder" / "movies.dat.gz").write_bytes(gzip.compress(MOVIES_1M.encode("latin-1")))
    convert("ml-1m", archive, tmp_path / "a" / "set")
    convert("ml-1m", tmp_path / "folder", tmp_path / "b" / "set")
    for ending in (".inter", ".item", ".user"):
        assert (tmp_path / f"a/set/set{ending}").read_bytes() == (tmp_path / f"b/set/set{ending}").read_bytes()


def test_same_input_same_bytes_also_in_the_sidecar(tmp_path):
    archive = ml_1m(tmp_path)
    for target in ("a", "b"):
        convert("ml-1m", archive, tmp_path / target / "set", k_core=1)
    files = sorted(path.name for path in (tmp_path / "a/set").iterdir())
    assert files == ["set.conversion.json", "set.inter", "set.item", "set.user"]
    for name in files:
        assert (tmp_path / "a/set" / name).read_bytes() == (tmp_path / "b/set" / name).read_bytes()


def test_input_order_on_request(tmp_path):
    convert("ml-1m", ml_1m(tmp_path), tmp_path / "set", order="input")
    assert [row[1] for row in read_rows(tmp_path / "set/set.inter")[1]] == ["10", "11", "10", "12"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratings.dat": RATINGS_1M + "2::13::4\n"}, r"ratings\.dat, line 5: 3 fields where 4"),
        ({"ratings.dat": RATINGS_1M + "2::13::4::1::2\n"}, r"line 5: 5 fields"),
        ({"ratings.dat": RATINGS_1M + "2::13::good::1\n"}, r"line 5: the rating 'good' is not a number"),
        ({"ratings.dat": RATINGS_1M + "2::13::nan::1\n"}, r"line 5: a rating is not a finite number"),
        ({"ratings.dat": RATINGS_1M + "2::13::4::1e9\n"}, r"line 5: the time '1e9' is not a whole number"),
        ({"ratings.dat": RATINGS_1M + "2::13::4::99999999999999999999\n"}, r"line 5: a time does not fit"),
        ({"ratings.dat": RATINGS_1M + "::13::4::1\n"}, r"line 5: an empty user or item id"),
        ({"ratings.dat": RATINGS_1M.encode() + b"\xff::13::4::1\n"}, r"line 5: byte 0xff is not UTF-8"),
        ({"ratings.dat": ""}, "no usable interaction"),
        (
            {"movies.dat": MOVIES_1M.encode("latin-1") + b"10::Again (1999)::Drama\n"},
            r"movies\.dat, line 5: the id '10'",
        ),
        ({"movies.dat": None}, r"no movies\.dat found there; it holds ratings\.dat, users\.dat"),
    ],
)
def test_bad_files_are_named_and_leave_nothing(tmp_path, changes, message):
    archive = ml_1m(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        convert("ml-1m", archive, tmp_path / "out" / "set")
    assert not (tmp_path / "out").exists()


def test_bad_lines_can_be_counted(tmp_path):
    archive = ml_1m(tmp_path, **{"ratings.dat": "1::10\n" + RATINGS_1M + "\n2::13::good::1\n"})
    report = convert("ml-1m", archive, tmp_path / "set", on_error="skip")
    assert report.counts.interactions == 4
    assert sum(report.skipped.values()) == 2
    assert any(place.endswith("ratings.dat, line 1") for place in report.first_skipped.values())
    assert any(place.endswith("ratings.dat, line 7") for place in report.first_skipped.values())


def test_windows_line_ends_and_missing_last_line_end(tmp_path):
    plain = convert("ml-1m", ml_1m(tmp_path), tmp_path / "a" / "set")
    text = RATINGS_1M.replace("\n", "\r\n")[:-2]
    other = convert("ml-1m", ml_1m(tmp_path, **{"ratings.dat": text}), tmp_path / "b" / "set")
    assert plain.hashes == other.hashes


def ml_100k(tmp_path):
    flags = "|".join("0" * 19)
    items = [
        f"1|Toy Story (1995)|01-Jan-1995||http://x|{flags}".replace("|0|0|0|", "|0|1|1|", 1),
        f"267|unknown||||{flags}"[:-1] + "1",
        f"3|Caf\xe9 (1996)|01-Jan-1996||http://x|{flags}",
    ]
    folder = tmp_path / "ml-100k"
    write(folder / "u.data", "1\t1\t3\t881250949\n1\t267\t5\t881250949\n2\t3\t1\t880000000\n")
    write(folder / "u.item", "\n".join(items).encode("latin-1") + b"\n")
    write(folder / "u.user", "1|24|M|technician|85711\n2|53|F|other|94043\n")
    return folder


def test_100k(tmp_path):
    report = convert("ml-100k", ml_100k(tmp_path), tmp_path / "set")
    header, rows = read_rows(tmp_path / "set/set.item")
    assert header[:4] == ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]
    assert rows[0][:4] == ["1", "Toy Story", "1995", "Action Adventure"]
    assert rows[1][:4] == ["267", "unknown", "", "Western"]
    assert rows[2][1] == "Café"
    assert [row[0] for row in read_rows(tmp_path / "set/set.inter")[1]] == ["2", "1", "1"]
    assert any("bundled" in note for note in report.notes)


def ml_latest(tmp_path, folder="ml-latest-small"):
    members = {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,5\n1,2,3.5,4\n",
        "movies.csv": 'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n'
        '2,"""Great"" Performances (2009)",(no genres listed)\n3,Babylon 5,Sci-Fi\n',
        "tags.csv": "userId,movieId,tag,timestamp\n1,1,Dark Comedy,1\n2,1,dark comedy,2\n2,1,politics,2\n",
    }
    return make_zip(tmp_path / f"{folder}.zip", {f"{folder}/{name}": data for name, data in members.items()})


@pytest.mark.parametrize("name", ["ml-20m", "ml-25m", "ml-32m", "ml-latest", "ml-latest-small"])
def test_csv_releases(tmp_path, name):
    convert(name, ml_latest(tmp_path, name), tmp_path / "set", movie_tags=2)
    header, rows = read_rows(tmp_path / "set/set.item")
    assert header[-1] == "tags:token_seq"
    assert rows[0] == [
        "1",
        "The American President",
        "1995",
        "Comedy Drama",
        "American President, The (1995)",
        "dark_comedy politics",
    ]
    # A leading quote is kept, behind a blank that RecBole's word split drops.
    assert rows[1][:4] == ["2", ' "Great" Performances', "2009", ""]
    assert rows[2][1:3] == ["Babylon 5", ""]
    assert read_rows(tmp_path / "set/set.inter")[1] == [["1", "2", "3.5", "4"], ["1", "1", "4", "5"]]


def test_10m_layout(tmp_path):
    members = {
        "ratings.dat": "1::122::4.5::838985046\n",
        "movies.dat": "122::Boomerang: Ça va (1992)::Comedy|Romance\n".encode(),
        "tags.dat": "15::122::excellent!::1215184630\n",
    }
    archive = make_zip(tmp_path / "ml-10m.zip", {f"ml-10M100K/{name}": data for name, data in members.items()})
    convert("ml-10m", archive, tmp_path / "set", movie_tags=5)
    assert read_rows(tmp_path / "set/set.item")[1] == [
        ["122", "Boomerang: Ça va", "1992", "Comedy Romance", "Boomerang: Ça va (1992)", "excellent!"]
    ]
    assert not (tmp_path / "set/set.user").exists()


def test_wrong_header(tmp_path):
    archive = make_zip(
        tmp_path / "a.zip", {"ratings.csv": "user,movie\n1,2\n", "movies.csv": "movieId,title,genres\n"}
    )
    with pytest.raises(DataError, match=r"ratings\.csv, line 1: the header is 'user,movie'; expected 'userId"):
        convert("ml-20m", archive, tmp_path / "set")


def test_unknown_name_and_option(tmp_path):
    with pytest.raises(ConfigError, match="no converter 'ml-2m'; choose from ml-100k"):
        convert("ml-2m", tmp_path)
    with pytest.raises(ConfigError, match="no option 'user_key'; it has movie_tags"):
        convert("ml-1m", ml_1m(tmp_path), tmp_path / "set", user_key="name")


# ---- the real downloads ------------------------------------------------------------------------------------------


def test_real_100k_equals_the_bundled_copy(tmp_path, shared_raw, bundled_ml100k):
    report = convert("ml-100k", shared_raw / "ml-100k.zip", tmp_path / "set", order="input")
    assert (tmp_path / "set/set.inter").read_bytes() == (bundled_ml100k / "ml-100k.inter").read_bytes()
    assert report.listed_items == 1682
    ours = {row[0]: row for row in read_rows(tmp_path / "set/set.item")[1]}
    bundled = {row[0]: row for row in read_rows(bundled_ml100k / "ml-100k.item")[1]}
    assert ours.keys() == bundled.keys()
    assert Counter(ours[key][2] == bundled[key][2] for key in ours)[False] <= 5
    assert all(ours[key][3] == bundled[key][3] for key in ours)


def test_real_1m_counts(tmp_path, shared_raw):
    report = convert("ml-1m", shared_raw / "ml-1m.zip", tmp_path / "set")
    counts = report.counts
    assert (counts.users, report.listed_items, counts.items, counts.interactions) == (6040, 3883, 3706, 1_000_209)
    assert [recipe.name for recipe, measured in report.published if recipe.agrees(measured)] == [
        "ml-1m-litellm4rec",
        "ml-1m-5core",
    ]


def test_real_latest_small_and_the_llamarec_recipe(tmp_path, shared_raw):
    report = convert("ml-latest-small", shared_raw / "ml-latest-small.zip", tmp_path / "a" / "set")
    assert (report.counts.users, report.listed_items, report.counts.interactions) == (610, 9742, 100_836)
    report = convert(
        "ml-latest-small",
        shared_raw / "ml-latest-small.zip",
        tmp_path / "b" / "set",
        recipe="ml-latest-small-llamarec",
    )
    counts = report.counts
    assert (counts.users, counts.items, report.listed_items, counts.interactions) == (610, 3650, 3650, 90_274)
    assert round(counts.mean_length, 2) == 147.99
    assert len(read_rows(tmp_path / "b/set/set.item")[1]) == 3650
