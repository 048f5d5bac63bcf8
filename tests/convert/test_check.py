import re

import pytest
from convert_helpers import write
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from recbole_llm.convert import check
from recbole_llm.convert.command import check_main, convert_main
from recbole_llm.errors import ConfigError, DataError, RecBoleLLMError
from tests.properties import examples


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
    assert "no problems found" in report.text()
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


def test_what_a_run_refuses_and_what_stock_recbole_misreads(tmp_path):
    items = 'item_id:token\ttitle:token_seq\tprice:float\ni0\t"Half"-Life\t1\ni1\tNone\tcheap\n'
    items += "i2\ta\ni0\tagain\t\nNA\tb\rc\t2\n"
    report = check(dataset(tmp_path, GOOD, items.encode() + b"i3\t\xff\t3\n"))
    by_severity = {severity: {} for severity in ("error", "warning", "note")}
    for finding in report.findings:
        by_severity[finding.severity][finding.name] = finding.text
    errors, warnings = by_severity["error"], by_severity["warning"]
    assert errors.keys() == {"not_a_number:price", "field_count", "duplicate_items", "not_utf8"}
    assert warnings.keys() >= {
        "leading_quotes:title",
        "missing_words:title",
        "missing_words:item_id",
        "line_breaks:title",
    }
    assert "line 2" in warnings["leading_quotes:title"] and "line 4" in errors["field_count"]
    assert "line 7" in errors["not_utf8"] and "line 5" in errors["duplicate_items"]


@pytest.mark.parametrize(
    ("rows", "finding", "text"),
    [
        ("u0\ti\0\t1\n", "nul:item_id", "1 values of item_id have a NUL character, .* line 7"),
        ("u\x000\ti0\t1\n", "nul:user_id", "1 values of user_id have a NUL character, .* line 7"),
        ("u0\ti0\t1e39\nu0\ti1\t-1e300\n", "time_range", "2 values of timestamp are beyond 3.4e38"),
    ],
)
def test_ids_and_times_that_a_run_cannot_hold(tmp_path, rows, finding, text):
    report = check(dataset(tmp_path, HEAD + "u\ti\t1\n" * 5 + rows))
    assert report[finding].severity == "error" and re.search(text, report[finding].text)
    assert report.failed


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ("", "line 1: '' is not `name:type`"),
        ("user_id\titem_id\n", "line 1: 'user_id' is not `name:type`"),
        ("user_id:text\n", "line 1: 'user_id:text' is not"),
        ("user_id:token\tuser_id:token\n", "'user_id' occurs twice"),
        ("user:token\titem_id:token\ttimestamp:float\n", r"no field 'user_id' \(USER_ID_FIELD\); .* --USER_ID_FIELD="),
        (HEAD, "no usable interaction"),
        (HEAD + "a\tb\tsoon\n", r"no usable interaction: .* 1 values of timestamp:float are not .* line 2"),
    ],
)
def test_unreadable(tmp_path, inter, message):
    with pytest.raises(DataError, match=message):
        check(dataset(tmp_path, inter))


# What a run leaves out or refuses, in every way that we could think of.
LINES = [
    "u0\ti0\t1",
    "u1\ti0\t2",
    "01\t1\t3",
    "1\t01\t4",
    "1.0\t1e5\t5",
    "NA\tnull\t6",
    'u"\t"i\t7',
    "a\rb\tc\u2028d\t8",
    "  \t \t9",
    "é\te\u0301\t1e1",
]
LEFT_OUT = ["\ti0\t1", "u0\t\t1", "", "   "]
REFUSED = ["u0\ti0\tinf", "u0\ti0\tTrue", "u0\ti0\t1_0", "u0\ti0\tnan", "u0\ti0\t", "u0\ti0", "u0\ti0\t1\t2", "x"]


def counts_of_a_run(folder, **settings):
    from recbole_llm.config import Config
    from recbole_llm.data.dataset import HistoryDataset

    given = {"data_path": str(folder.parent), "show_progress": False, "use_gpu": False, **settings}
    data = HistoryDataset(Config(model="SASRec", dataset=folder.name, config_dict=given))
    return data.user_num - 1, data.item_num - 1, len(data.inter_feat)


@examples(5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.sampled_from(LINES + LEFT_OUT), max_size=12),
    ended=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_counts_are_those_of_a_run(tmp_path, end, lines, ended):
    lines = [*LINES, "u0\ti1\t5", *lines]
    folder = dataset(tmp_path, (HEAD + "\n".join(lines)).replace("\n", end) + (end if ended else ""))
    report = check(folder)
    assert not report.failed
    sizes = report.sizes
    assert (sizes["users"], sizes["items"], sizes["interactions"]) == counts_of_a_run(folder)
    empty = sum(line in LEFT_OUT[:2] for line in lines)
    assert ("no_id" in report) == bool(empty) and (not empty or report["no_id"].value == empty)


@pytest.mark.parametrize("line", REFUSED)
def test_what_a_run_refuses_is_an_error(tmp_path, line):
    folder = dataset(tmp_path, HEAD + "\n".join([*LINES, "u0\ti1\t5", line]))
    report = check(folder)
    assert report.failed and report.sizes["interactions"] == len(LINES) + 1
    with pytest.raises(DataError):
        counts_of_a_run(folder)


def test_doubtful_times(tmp_path):
    def findings(times):
        rows = "".join(f"u{n % 4}\ti{n}\t{time}\n" for n, time in enumerate(times))
        return check(dataset(tmp_path, HEAD + rows))

    assert "equal_times" in findings([7] * 40)
    seconds = range(1_700_000_000, 1_700_000_020)
    assert findings([*seconds, *(1000 * time for time in seconds)])["mixed_units"].value == 20
    assert {"equal_times", "mixed_units"}.isdisjoint(finding.name for finding in findings(seconds).findings)


def test_settings_of_a_run(tmp_path, capsys):
    text = "session:token|sku:token|at:float|é:token\n" + "".join(f"s{n % 9}|i{n % 7}|{n}|x\n" for n in range(90))
    folder = dataset(tmp_path, text.encode("latin-1"), name="shop")
    write(folder / "shop.item", "sku:token|title:token_seq\ni0|Café\n".encode("latin-1"))
    fields = {"USER_ID_FIELD": "session", "ITEM_ID_FIELD": "sku", "TIME_FIELD": "at"}
    form = {"field_separator": "|", "encoding": "latin-1", **fields}
    report = check(folder, settings={**form, "epochs": 3})
    assert (report.sizes["users"], report.sizes["items"], report.sizes["interactions"]) == (9, 7, 90)
    assert report["unlisted_items"].value == 6 and not report.failed
    assert counts_of_a_run(folder, **form) == (9, 7, 90)
    yaml = write(tmp_path / "mine.yaml", "".join(f"{key}: '{value}'\n" for key, value in form.items()) + "epochs: 3\n")
    for arguments in (
        [str(folder), f"--config_files={yaml}"],
        [str(folder), *(f"--{key}={value}" for key, value in form.items())],
        ["shop", f"--data_path={tmp_path}", f"--config_files={yaml}", "--encoding=cp1252"],
        ["--dataset=shop", "--data_path", str(tmp_path), "--config_files", str(yaml)],
    ):
        assert check_main(arguments) == 0
        assert "users 9   items 7   interactions 90" in capsys.readouterr().out
    # As UTF-8 the item's title is damaged: an error, and the exit status says so.
    assert (
        check_main([str(folder), *(f"--{key}={value}" for key, value in {**form, "encoding": "utf-8"}.items())]) == 1
    )
    assert "ERROR   shop.item: 1 values are not utf-8 text (first: line 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shop", "--USER_FIELD=x"], "--USER_FIELD is not a setting of the check. Did you mean 'USER_ID_FIELD'"),
        (["shop", "--encoding=klingon"], "encoding='klingon' is not a text encoding"),
        (["shop", "--TIME_FIELD=when"], "no_time"),
        (["shop", "--ITEM_ID_FIELD=sku"], r"no field 'sku' \(ITEM_ID_FIELD\); the fields are user_id, item_id"),
        (["shop", "--MAX_ITEM_LIST_LENGTH=many"], "invalid value for MAX_ITEM_LIST_LENGTH: 'many'"),
        (["shop", "--config_files=nothing.yaml"], "nothing.yaml"),
        (["shop", "two"], "takes one dataset, a name or a folder, but got shop, two"),
        ([], "takes one dataset"),
    ],
)
def test_wrong_settings(tmp_path, monkeypatch, arguments, message, capsys):
    monkeypatch.chdir(tmp_path)
    dataset(tmp_path / "dataset", GOOD, name="shop")
    if message == "no_time":
        assert check_main(arguments) == 1
        assert "has no field 'when'" in capsys.readouterr().out
        return
    with pytest.raises(RecBoleLLMError, match=message):
        check_main(arguments)


def test_advice_is_possible(tmp_path, capsys):
    """No finding and no error names an option that check does not have."""
    folder = dataset(tmp_path, HEAD + "\n".join([*LINES, "u0\ti1\t5", *REFUSED]))
    text = check(folder).text()
    assert "--time_format" not in text and "--on_error" not in text
    assert check_main(["--help"]) == 0
    assert "--USER_ID_FIELD" in capsys.readouterr().out


def test_missing(tmp_path):
    with pytest.raises(DataError, match=r"there is no nothing\.inter; pass the folder"):
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
    with pytest.raises(ConfigError, match="--input"):
        convert_main(["ml-1m"])
    with pytest.raises(SystemExit) as stop:
        convert_main(["--help"])
    assert stop.value.code == 0
    assert "--recipe" in capsys.readouterr().out
