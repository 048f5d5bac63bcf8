"""The model of the documentation: run, compared, asked for lists, put through the contract suite. Lists with Ray."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from recbole_llm.cli import main
from recbole_llm.config import Config
from recbole_llm.contract import LLMRecommender, Reranker
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.quick_start import run
from recbole_llm.recommend import Recommender
from recbole_llm.testing import CHECKS, check_model, scores_of
from tests.closeness import assert_same_list, pairs
from tests.worlds import write_cycle, write_twins

ROOT = Path(__file__).parents[1]
MODEL = "my_model:TextGRU"
SETTINGS = ["--use_gpu=False", "--show_progress=False", "--llm=tiny-random-bert"]


@pytest.fixture(autouse=True)
def example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield
    sys.modules.pop("my_model", None)


@pytest.mark.parametrize("check", CHECKS)
def test_the_example_passes_the_contract_suite(check):
    assert check_model(MODEL, {"llm": "tiny-random-bert", "dropout_prob": 0.0}, [check]) == {check: "passed"}


def test_the_example_trains_recommends_and_scores_new_items(tmp_path):
    write_cycle(tmp_path / "data")
    assert main([f"--model={MODEL}", "--dataset=cycle", "--data_path=data", *SETTINGS, "--epochs=3"]) == 0
    (folder,) = Path("saved").glob("TextGRU-cycle-*")
    results = json.loads((folder / "results.json").read_text())
    assert results["language_models"]["llm"] == "tiny-random-bert (random)"
    assert results["notices"] == []
    Path("new.tsv").write_text("item_id:token\ttitle:token_seq\nnew\tapple volume 3\n")
    assert main(["recommend", str(folder), "--out=lists.csv", "--k=31", "--new_items=new.tsv"]) == 0
    assert ",new," in Path("lists.csv").read_text()


def test_items_of_one_text_score_alike_in_the_example(tmp_path):
    """First and second editions share their texts, and nothing else tells them apart."""
    write_twins(tmp_path)
    settings = {"data_path": str(tmp_path), "use_gpu": False, "llm": "tiny-random-bert", "show_progress": False}
    config = Config(MODEL, "twins", config_dict=settings)
    train, _, test = prepare_data(config, HistoryDataset(config))
    model = config.model_class(config, train.dataset)
    scores = scores_of(model, next(iter(test))[0])
    tokens = train.dataset.field2token_id["item_id"]
    first, second = ([tokens[f"{edition}{number}"] for number in range(12)] for edition in "ab")
    torch.testing.assert_close(scores[:, first], scores[:, second])
    assert scores[:, first].std() > 0


def test_the_check_list_is_true(tmp_path):
    """Code blocks of the page run, and the hooks that it names exist."""
    page = (ROOT / "docs" / "add-a-model.md").read_text(encoding="utf-8")
    source = re.search(r"```python\n# my_model.py\n(.*?)```", page, re.S)[1]
    Path("page_model.py").write_text(source)
    outcomes = check_model("page_model:LastItem", checks=["names", "scores", "predict", "loss", "weights", "vectors"])
    assert set(outcomes.values()) == {"passed"}
    named = set(re.findall(r"`([a-z_]+)(?:\([a-z]*\))?`", page.partition("## 4.")[2].partition("## 5.")[0]))
    assert named <= {*vars(LLMRecommender), *vars(Reranker)}


# ---- Ray


def test_lists_of_ray_are_those_of_one_recommender(tmp_path):
    """Two workers and several batches; one user is of no data set, one has no item that the run knows."""
    pytest.importorskip("ray", "2.30", reason="older versions of Ray Data fail on today's pandas and pyarrow")
    pytest.importorskip("ray.data", exc_type=ImportError)
    write_cycle(tmp_path / "data")
    settings = {"data_path": "data", "epochs": 2, "learning_rate": 0.01, "show_progress": False, "use_gpu": False}
    run_dir = run("LRURec", "cycle", config_dict=settings)["run_dir"]
    recommender = Recommender.load(run_dir)
    histories = {user: recommender.history(user) for user in recommender.users}
    histories |= {"somebody": ["i3", "unheard of", "i4"], "nobody": ["unheard of"]}
    pd.DataFrame({"user_id": list(histories), "item_id": list(histories.values())}).to_parquet("histories.parquet")
    command = [sys.executable, str(ROOT / "examples" / "ray_recommend.py"), run_dir, "histories.parquet", "lists"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--k=4", "--workers=2", "--batch=7"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lists = pd.read_parquet("lists")
    assert list(lists.columns) == ["user_id", "item_id", "rank", "score"]
    assert set(lists["user_id"]) == {*histories} - {"nobody"}
    expected = recommender.recommend(list(histories.values()), k=4, unknown="skip")
    for user, wanted in zip(histories, expected, strict=True):
        found = lists[lists["user_id"] == user]
        assert found["rank"].tolist() == list(range(1, len(wanted) + 1))
        assert_same_list(pairs(found), wanted)
