"""The model of the documentation: run, compared, asked for lists, and put through the contract suite."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from recbole_llm.cli import main
from recbole_llm.config import Config
from recbole_llm.contract import LLMRecommender, Reranker
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.testing import CHECKS, check_model, scores_of
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
