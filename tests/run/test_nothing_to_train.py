"""Models that do not train: epochs are a note, and the row is there."""

import json
from pathlib import Path

import pytest

from recbole_llm.compare import compare
from recbole_llm.config import Config
from recbole_llm.quick_start import run


def read(result):
    return json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", ["MostPopular", "VSKNN", "LLMSeqSim"])
def test_epochs_have_no_effect_and_say_so_before_anything_is_read(model, shop, tiny):
    settings = {**tiny, "llm": "tiny-random-bert", "dim_reduction": "none"} if model == "LLMSeqSim" else dict(tiny)
    config = Config(model, "shop", config_dict={**settings, "epochs": 5})
    assert config["epochs"] == 0 and f"{model} has nothing to train: epochs=5 has no effect." in config.notices
    report = read(run(model, "shop", config_dict={**settings, "epochs": 5}))
    silent = read(run(model, "shop", config_dict={**settings, "epochs": 0}))
    assert report["test_result"] == silent["test_result"] and report["updates"] == 0
    assert f"{model} has nothing to train: epochs=5 has no effect." in report["notices"]
    assert not [notice for notice in silent["notices"] if "nothing to train" in notice]


def test_a_comparison_has_their_row(shop, tiny):
    comparison = compare(["SASRec", "MostPopular"], "shop", config_dict={**tiny, "epochs": 2, "seeds": [1]})
    assert [row.label for row in comparison.rows] == ["SASRec", "MostPopular"]


@pytest.mark.parametrize("retriever", ["MostPopular", "VSKNN"])
def test_a_smoke_run_of_two_steps_whose_retriever_does_not_train(retriever, shop, isolated):
    settings = {"smoke": True, "retriever": retriever, "use_gpu": False, "show_progress": False}
    report = read(run("LlamaRec", "shop", config_dict={**settings, "topk": [5], "valid_metric": "NDCG@5"}))
    assert report["test_result"] and [stage["stage"] for stage in report["stages"]] == ["retriever", "ranker"]
    assert report["stages"][0]["updates"] == 0 < report["stages"][1]["updates"]
