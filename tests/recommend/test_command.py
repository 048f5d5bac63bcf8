import csv
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_llm.cli import main
from recbole_llm.errors import DataError
from recbole_llm.quick_start import run
from recbole_llm.recommend import Recommender, reading
from tests.closeness import assert_same_list, pairs
from tests.worlds import write_cycle

SETTINGS = {"epochs": 2, "train_batch_size": 64, "learning_rate": 0.01, "show_progress": False, "use_gpu": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cycle")
    write_cycle(folder / "data")
    places = {"data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
    return Path(run("LRURec", "cycle", config_dict={**SETTINGS, **places})["run_dir"])


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


def read(file):
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    if file.suffix != ".jsonl":
        return pd.read_csv(file, sep="," if file.suffix == ".csv" else "\t", dtype={"user_id": str, "item_id": str})
    lists = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    frame = pd.DataFrame(lists).explode(["item_id", "score"], ignore_index=True)
    return frame.assign(rank=frame.groupby("user_id", sort=False).cumcount() + 1)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_all_users_in_every_format(suffix, trained, monkeypatch):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", exc_type=ImportError)
    file = Path("new") / f"top.{suffix}"
    assert main(["recommend", str(trained), "--k=4", f"--out={file}", "--eval_batch_size=7"]) == 0
    frame = read(file)
    expected = pd.concat(Recommender.load(trained).recommend_users(k=4))
    for column in ("user_id", "rank"):
        assert frame[column].tolist() == expected[column].tolist()
    # Batches of another size round differently.
    for user, rows in frame.groupby("user_id"):
        assert_same_list(pairs(rows), pairs(expected[expected["user_id"] == user]))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("mask_history", ["True", "False"])
def test_recall_of_the_file_is_the_figure_of_the_run(mask_history, trained):
    given = [str(trained), "--history=test", f"--mask_history={mask_history}", "--k=10", "--out=test.csv"]
    assert main(["recommend", *given]) == 0
    with Path("test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    hits = sum(row["item_id"] == row["target"] for row in rows)
    report = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    figure = report["test_masked" if mask_history == "True" else "test_unmasked"]["recall@10"]
    assert hits / len({row["user_id"] for row in rows}) == figure > 0


def test_some_users_to_the_terminal(trained, capsys, caplog):
    Path("who.txt").write_text("u3\n\nu1\nu3\n", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert main(["recommend", str(trained), "--users=who.txt", "--k=2", "--deny=i0"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["user_id"] for row in rows] == ["u3", "u3", "u1", "u1"]
    assert "2 lists of up to 2 items" in caplog.text
    assert main(["recommend", str(trained), "--users=u1,u3", "--k=2", "--deny=i0"]) == 0
    again = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["user_id"] for row in again] == ["u1", "u1", "u3", "u3"]
    for user in ("u1", "u3"):  # another order of users is another batch: the same lists up to rounding
        assert_same_list(
            *(
                [(row["item_id"], float(row["score"])) for row in made if row["user_id"] == user]
                for made in (again, rows)
            )
        )
    assert main(["recommend", str(trained), "--users=u1,nobody", "--unknown=skip", "--k=2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_users_for_whom_nothing_is_left_are_counted(trained, capsys, caplog):
    assert main(["recommend", str(trained), "--users=u0,u1", "--allow=i0,i1", "--k=2"]) == 0
    users = {row["user_id"] for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert users == {"u1"}  # u0 has had both
    assert "1 users have no item left" in caplog.text


def test_new_users_from_a_file(trained, capsys):
    lines = [{"user_id": "ann", "item_id": ["i1", "i2"]}, {"user_id": 7, "item_id": ["i5"]}]
    Path("new.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert main(["recommend", str(trained), "--histories=new.jsonl", "--k=3", "--out=new.tsv"]) == 0
    frame = read(Path("new.tsv"))
    assert frame["user_id"].tolist() == ["ann"] * 3 + ["7"] * 3
    expected = Recommender.load(trained).recommend([["i1", "i2"], ["i5"]], k=3)
    assert frame["item_id"].tolist() == [item for found in expected for item, _ in found]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--users=nobody"], "1 of 1 users are not known: 'nobody'"),
        (["--users=nowhere.txt"], "There is no file 'nowhere.txt'"),
        (["--users=,"], "holds no value of 'user_id'"),
        (["--k=0"], "k=0 must be at least 1"),
        (["--out=top.xlsx"], "must end in one of .csv"),
        (["--out=/proc/nothing/top.csv"], "cannot be written"),
        (["--userz=all"], "Did you mean 'users'"),
        (["--epochs=3"], "--epochs is not an option here"),
        (["--allow=i77"], "leave no item"),
        (["--histories=nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--histories=x", "--users=u1"], "drop --users"),
        (["--new_items=nowhere.item"], "cannot be read"),
    ],
)
def test_errors(arguments, says, trained, capsys):
    assert main(["recommend", str(trained), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_run_that_is_none(capsys):
    assert main(["recommend", "nowhere"]) == 2
    assert "nowhere is not a run directory" in capsys.readouterr().err


def test_a_failure_leaves_no_file_behind(trained, monkeypatch):
    def broken(*_, **__):
        yield pd.DataFrame({"user_id": ["u1"], "item_id": ["i1"], "rank": [1], "score": [0.5]})
        raise KeyboardInterrupt

    monkeypatch.setattr(Recommender, "recommend_users", broken)
    Path("top.csv").write_text("old", encoding="utf-8")
    assert main(["recommend", str(trained), "--out=top.csv"]) == 130
    assert [path.name for path in Path().iterdir() if path.is_file()] == ["top.csv"]
    assert Path("top.csv").read_text(encoding="utf-8") == "old"


# ---- files


def test_ids_from_tables(tmp_path):
    for name, text in (
        ("a.inter", "item_id:token\tuser_id:token\nx\tu1\ny\tu2\nz\tu1\n"),
        ("a.csv", "user_id,age\nu1,3\nu2,4\n"),
        ("a.txt", "\ufeffu1\r\nu2\r\n"),
        ("b.txt", "user_id\nu1\nu2\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert reading.read_ids(str(tmp_path / name), "user_id") == ["u1", "u2"]
    (tmp_path / "c.csv").write_text("who,age\nu1,3\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column in its first line is called 'user_id'"):
        reading.read_ids(str(tmp_path / "c.csv"), "user_id")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="d.txt, line 1: not utf-8 text"):
        reading.read_ids(str(tmp_path / "d.txt"), "user_id")


@pytest.mark.parametrize("line", ["{", '{"user_id": "a"}', '{"user_id": "a", "item_id": "i1"}', "[1]"])
def test_histories_of_another_form(line, tmp_path):
    file = tmp_path / "new.jsonl"
    file.write_text('{"user_id": "a", "item_id": ["i1"]}\n' + line, encoding="utf-8")
    with pytest.raises(DataError, match="new.jsonl, line 2"):
        list(reading.read_histories(str(file), "user_id", "item_id", 1))


def test_new_items_from_files(tmp_path):
    expected = [{"item_id": "n1", "title": "Heat"}, {"item_id": "n2", "title": "Ran"}]
    (tmp_path / "new.item").write_text("item_id:token\ttitle:token_seq\nn1\tHeat\r\n\nn2\tRan", encoding="utf-8")
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in expected), encoding="utf-8")
    assert reading.read_items(str(tmp_path / "new.item"), "item_id") == expected
    assert reading.read_items(str(tmp_path / "new.jsonl"), "item_id") == expected
    for name, text, says in (
        ("x.item", "id:token\nn1\n", "no field 'item_id'; it has id"),
        ("x.item", "item_id:token\ttitle:token_seq\nn1\n", "line 2: 1 fields instead of the 2"),
        ("x.jsonl", "{}\n{", "line 2"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=says):
            reading.read_items(str(tmp_path / name), "item_id")


def test_missing_packages_are_named(monkeypatch, trained, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main(["recommend", str(trained), "--out=top.parquet"]) == 2
    assert "pip install 'recbole-llm[convert]'" in capsys.readouterr().err
    assert main(["export", str(trained), "--out=vectors", "--faiss"]) == 2
    assert "pip install 'recbole-llm[faiss]'" in capsys.readouterr().err
    assert not Path("vectors").exists()


# ---- vectors


def test_export(trained):
    assert main(["export", str(trained), "--out=vectors", "--eval_batch_size=7"]) == 0
    users, items = (np.load(f"vectors/{name}_vectors.npy") for name in ("user", "item"))
    user_ids, item_ids = (
        Path(f"vectors/{name}.txt").read_text(encoding="utf-8").splitlines() for name in ("users", "items")
    )
    recommender = Recommender.load(trained)
    assert item_ids == recommender.items
    assert (users.dtype, len(users), len(items)) == (np.float32, len(user_ids), len(item_ids))
    lists = pd.concat(recommender.recommend_users(k=5, mask_history=False))
    assert sorted(user_ids) == sorted(set(lists["user_id"]))
    for user, row in zip(user_ids, users @ items.T, strict=True):
        best = np.argsort(-row, kind="stable")[:5]
        assert_same_list([(item_ids[i], float(row[i])) for i in best], pairs(lists[lists["user_id"] == user]))
    described = json.loads(Path("vectors/export.json").read_text(encoding="utf-8"))
    assert described["last_column_is_item_bias"] is True
    assert (described["users"], described["items"], described["dim"]) == (40, 30, 65)


def test_export_of_items_alone_and_of_some_users(trained, capsys):
    assert main(["export", str(trained), "--out=a", "--users=none"]) == 0
    assert sorted(path.name for path in Path("a").iterdir()) == ["export.json", "item_vectors.npy", "items.txt"]
    assert main(["export", str(trained), "--out=b", "--users=u5,u2", "--history=test"]) == 0
    assert Path("b/users.txt").read_text(encoding="utf-8") == "u5\nu2\n"
    assert np.load("b/user_vectors.npy").shape == (2, 65)
