"""Raw ids survive training, recommending and exporting, whatever numbers they look like."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_llm.cli import main
from recbole_llm.data.served import ServedDataset
from recbole_llm.data.trained import TrainedData
from recbole_llm.quick_start import run
from recbole_llm.recommend import Recommender

ITEMS = [
    "01",
    "1",
    "1.0",
    "1e5",
    "100000",
    "007",
    "7",
    "00",
    "0",
    "10",
    "nan",
    "NA",
    "None",
    "True",
    'a"b',
    "a,b",
    "é",
]


def write(folder: Path, items: list[str], users: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for number, user in enumerate(users):
        lines += [f"{user}\t{items[(number + step) % len(items)]}\t{step}" for step in range(5)]
    (folder / f"{folder.name}.inter").write_bytes("\n".join(lines).encode() + b"\n")


SETTINGS = {"epochs": 1, "topk": [3], "valid_metric": "NDCG@3", "show_progress": False, "use_gpu": False}


def test_every_way_out_and_in(isolated):
    users = list(reversed(ITEMS))
    write(isolated / "dataset" / "odd", ITEMS, users)
    run_dir = run("LRURec", "odd", config_dict=SETTINGS)["run_dir"]
    recommender = Recommender.load(run_dir)
    assert sorted(recommender.items) == sorted(ITEMS)
    assert main(["recommend", run_dir, "--k=2", "--out=top.jsonl"]) == 0
    lists = [json.loads(line) for line in Path("top.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(row["user_id"] for row in lists) == sorted(users)
    assert {item for row in lists for item in row["item_id"]} <= set(ITEMS)
    assert main(["recommend", run_dir, "--k=2", "--out=top.csv", "--users=top.csv.users"]) == 2
    for name, delimiter in (("top.csv", ","), ("top.tsv", "\t")):
        assert main(["recommend", run_dir, "--k=2", f"--out={name}"]) == 0
        with Path(name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter))
        assert {row["user_id"] for row in rows} == set(users)
        assert main(["recommend", run_dir, "--k=2", f"--users={name}", "--out=again.jsonl"]) == 0  # and back in
        assert len(Path("again.jsonl").read_text(encoding="utf-8").splitlines()) == len(users)
    assert main(["recommend", run_dir, "--k=17", "--allow=007,1.0", "--users=01", "--mask_history=False"]) == 0
    assert main(["export", run_dir, "--out=vectors"]) == 0
    assert sorted(Path("vectors/items.txt").read_text(encoding="utf-8").split("\n")[:-1]) == sorted(ITEMS)
    assert sorted(Path("vectors/users.txt").read_text(encoding="utf-8").split("\n")[:-1]) == sorted(users)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=5),
        min_size=6,
        max_size=9,
        unique=True,
    )
)
def test_any_printable_id_comes_back_from_the_run_directory(items, isolated, make_data):
    trained, again = make_data(items)
    for field, tokens in trained.tokens.items():
        assert again.field2id_token[field].tolist() == list(tokens)
    assert sorted(again.field2id_token["item_id"].tolist()[1:]) == sorted(items)


@pytest.fixture
def make_data(isolated):
    from recbole_llm.config import Config
    from recbole_llm.data.dataset import HistoryDataset

    def make(items):
        folder = isolated / "dataset" / "odd"
        write(folder, items, [f"{item}'s" for item in items])
        config = Config("SASRec", "odd", config_dict=SETTINGS)
        dataset = HistoryDataset(config)
        dataset.build()
        TrainedData.of(dataset).save(isolated)
        trained = TrainedData.load(isolated)
        lines = (folder / "odd.inter").read_bytes().split(b"\n")
        (folder / "odd.inter").write_bytes(b"\n".join([lines[0], *reversed(lines[1:-1]), b""]))
        served = ServedDataset(config, trained)
        served.build()
        assert trained.same_histories(served)
        return trained, served

    return make
