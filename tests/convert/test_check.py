import pytest
from convert_helpers import write

from recbole_llm.convert import check
from recbole_llm.convert.command import check_main, convert_main
from recbole_llm.errors import DataError


def dataset(tmp_path, inter, item=None, name="set"):
    write(tmp_path / name / f"{name}.inter", inter)
    if item is not None:
        write(tmp_path / name / f"{name}.item", item)
    return tmp_path / name


HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"
GOOD = HEAD + "".join(
    f"u{user}\ti{(user + step) % 9}\t{1000 + 10 * step + user}\n" for step in range(5) for user in range(6)
)
ITEMS = "item_id:token\ttitle:token_seq\tgenre:token_seq\n" + "".join(f"i{n}\tTitle {n}\tDrama\n" for n in range(9))


def test_a_good_set_has_no_warning(tmp_path):
    many = HEAD + "".join(
        f"u{user}\ti{(7 * user + step) % 90}\t{99 * step + user}\n" for step in range(5) for user in range(90)
    )
    items = "item_id:token\ttitle:token_seq\n" + "".join(f"i{n}\tTitle {n}\n" for n in range(90))
    report = check(dataset(tmp_path, many, items))
    assert not [finding for finding in report.findings if finding.severity != "note"], report.text()
    assert "nothing that would hurt" in report.text()
    assert report.sizes["interactions"] == 450 and report.sizes["train_rows"] == 90 * 2


def test_ties_and_targets(tmp_path):
    rows = [
        ("a", 1, 5),
        ("a", 2, 6),
        ("a", 3, 6),
        ("b", 1, 1),
        ("b", 2, 2),
        ("b", 1, 3),
        ("c", 1, 1),
        ("c", 1, 1),
        ("d", 4, 9),
    ]
    report = check(dataset(tmp_path, HEAD + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in rows)))
    assert report["final_ties"].value == 0.5  # a and c of four users
    assert report["duplicates"].value == 2
    assert report["target_in_history"].value == 2  # b and c
    assert report["short_users"].value == 2  # c and d
    assert report["no_items"].severity == "warning"
    assert report.keys["user_inter_num_interval"] == '"[3,inf)"'


def test_float32_ranks_and_leaky_ids(tmp_path):
    # 10 s apart: the same float32 at 9e8; the file has the later one first.
    rows = HEAD + "".join(f"u{n}\ta\t880000010\nu{n}\tb\t880000000\nu{n}\tc\t870000000\n" for n in range(4))
    assert check(dataset(tmp_path, rows, name="one"))["float32_time"].value == 1.0
    ranks = HEAD + "".join(f"u{n}\ti{(n * 3 + k) % 10}\t{k}\n" for n in range(4) for k in range(3))
    report = check(dataset(tmp_path, ranks, name="two"))
    assert "rank_times" in report and "leaky_ids" in report and "float32_time" not in report


def test_text(tmp_path):
    items = (
        "item_id:token\ttitle:token_seq\tyear:token\n"
        + "i0\tSame\t1990\ni1\tSame\t1991\ni2\t\t\ni3\tOther\t\ni99\tUnrated\t\n"
    )
    report = check(dataset(tmp_path, GOOD, items))
    assert report["repeated_titles"].value == 1
    assert report["repeated_titles"].keys["item_text"] == '"{title} ({year})"'
    assert report["untitled_items"].value == report["items_without_text"].value == 1
    assert report["unlisted_items"].value == 5
    assert report["unrated_items"].value == 1


def test_what_the_reader_misreads(tmp_path):
    items = 'item_id:token\ttitle:token_seq\tprice:float\ni0\t"Half"-Life\t1\ni1\tNone\tcheap\n'
    items += "i2\ta\ni0\tagain\t\nNA\tb\rc\t2\n"
    report = check(dataset(tmp_path, GOOD, items.encode() + b"i3\t\xff\t3\n"))
    errors = {finding.name: finding for finding in report.findings if finding.severity == "error"}
    assert errors.keys() == {
        "leading_quotes:title",
        "missing_words:title",
        "missing_words:item_id",
        "line_breaks:title",
        "not_a_number:price",
        "field_count",
        "duplicate_items",
        "not_utf8",
    }
    assert "line 2" in errors["leading_quotes:title"].text and "line 4" in errors["field_count"].text
    assert "line 7" in errors["not_utf8"].text


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ("", "the file is empty"),
        ("user_id\titem_id\n", "line 1: 'user_id' is not 'name:type'"),
        ("user_id:text\n", "line 1: 'user_id:text' is not"),
        ("user_id:token\tuser_id:token\n", "'user_id' is there twice"),
        ("user:token\titem_id:token\ttimestamp:float\n", "no field 'user_id'; the fields are user, item_id"),
        (HEAD, "no interaction"),
        (HEAD + "a\tb\tsoon\n", "line 2: the time 'soon' is not"),
    ],
)
def test_unreadable(tmp_path, inter, message):
    with pytest.raises(DataError, match=message):
        check(dataset(tmp_path, inter))


def test_missing(tmp_path):
    with pytest.raises(DataError, match=r"there is no nothing\.inter; give the folder"):
        check("nothing", tmp_path)


def test_no_time(tmp_path):
    report = check(dataset(tmp_path, "user_id:token\titem_id:token\na\tb\n"))
    assert report["no_time"].severity == "error"


def test_bundled_100k(bundled_ml100k):
    report = check("ml-100k", bundled_ml100k.parent)
    assert round(report["final_ties"].value, 3) == 0.440
    assert round(report["float32_time"].value, 3) == 0.158
    assert report["repeated_titles"].value == 23
    assert "duplicates" not in report


def test_shipped_sets(shared_datasets):
    small = check("ml-latest-small", shared_datasets)
    assert round(small["final_ties"].value, 3) == 0.154 and round(small["float32_time"].value, 3) == 0.362
    assert small["repeated_titles"].value == 278 and small["unrated_items"].value == 18
    beauty = check(shared_datasets / "amazon-beauty-2014")
    assert "rank_times" in beauty and "leaky_ids" in beauty
    assert beauty["untitled_items"].value == 7 and beauty["repeated_titles"].value == 55 - 27


def test_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = write(tmp_path / "log.csv", "user,item,time\na,1,1\na,2,2\nb,1,3\n")
    arguments = ["sessions", "--input", str(log), "--output", "dataset/shop", "--text_fields", "title"]
    assert convert_main(arguments[:-2]) == 0
    assert "interactions 3" in capsys.readouterr().out
    assert check_main(["shop"]) == 0
    assert "users 2" in capsys.readouterr().out
    assert convert_main(["--list"]) == 0
    assert "ml-latest-small-llamarec" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        convert_main(["ml-1m"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        convert_main(["--help"])
    assert stop.value.code == 0
    assert "--recipe" in capsys.readouterr().out
