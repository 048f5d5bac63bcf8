"""Refitting: all interactions, as many updates as validation chose, and no figures that nobody can have."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recbole_llm import Recommender
from recbole_llm.cli import main
from recbole_llm.compare.runs import load_finished
from recbole_llm.config.values import load_yaml
from recbole_llm.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from recbole_llm.quick_start import load_run, refit, run
from recbole_llm.run.evaluate import evaluate_run
from recbole_llm.trainer.trainer import RunTrainer
from tests.test_quick_start import interrupt_in_epoch

# 14 users of 8 interactions: 70 training rows of 98, so 5 updates an epoch before and 7 after.
BATCHES = {"train_batch_size": 16, "epochs": 3, "stopping_step": 9, "lr_schedule": "linear"}


@pytest.fixture(autouse=True)
def _shop(shop):
    pass


def results_of(folder):
    return json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))


def curve_of(folder):
    with (Path(folder) / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def best_in_epoch(monkeypatch, number):
    """Make validation prefer an epoch."""
    scores = iter([0.5 + (epoch == number) * 0.1 for epoch in range(1, 100)])
    monkeypatch.setattr(RunTrainer, "_valid_epoch", lambda *_, **__: (next(scores), {"ndcg@5": 0.0}))


def test_all_interactions_for_the_updates_and_rates_of_the_best_epoch(tiny, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patched:
        best_in_epoch(patched, 2)
        first = run("SASRec", "shop", config_dict={**tiny, **BATCHES})["run_dir"]
    assert results_of(first)["stages"][0]["best_updates"] == 10
    assert results_of(first)["stages"][0]["planned_updates"] == 15
    assert f"recbole-llm refit {first}" in caplog.text
    caplog.clear()
    second = refit(first)
    assert second["test_result"] is None and second["best_valid_result"] is None
    assert "FINAL FIT on all interactions, not evaluated" in caplog.text
    assert f"for 10 updates (train), as validation chose in {Path(first).name}; there are no test" in caplog.text
    assert "recbole-llm evaluate" not in caplog.text and "recbole-llm recommend" in caplog.text
    folder = Path(second["run_dir"])
    assert folder.name.startswith("SASRec-shop-refit-")
    results, curve = results_of(folder), curve_of(folder)
    assert results["dataset"]["train_rows"] == 98 and results["updates"] == 10
    assert results["test_masked"] is results["test_unmasked"] is results["best_valid_score"] is None
    assert results["protocol"]["text"].startswith("FINAL FIT on all interactions, not evaluated")
    assert [row["updates"] for row in curve] == ["7", "10"]  # it stops inside the second epoch
    assert curve[-1]["learning_rate"] == curve_of(first)[1]["learning_rate"]
    assert not (folder / "test_ranks.npz").exists()


def test_it_recommends_and_is_compared_evaluated_and_built_on_by_nothing(tiny):
    first = run("SASRec", "shop", config_dict=tiny)["run_dir"]
    folder = refit(first)["run_dir"]
    recommender = Recommender.load(folder)
    assert recommender.run.valid_data is recommender.run.test_data is None
    assert len(recommender.recommend([["i1", "i2"]], k=3)[0]) == 3
    assert sum(len(frame) for frame in recommender.recommend_users(k=2)) == 28
    with pytest.raises(DataError, match="trained on all interactions"):
        next(recommender.recommend_users(k=2, history="test"))
    with pytest.raises(CheckpointError, match="no test figures to compare"):
        load_finished(folder)
    with pytest.raises(CheckpointError, match="nothing is left to evaluate"):
        evaluate_run(folder)
    with pytest.raises(CheckpointError, match="it has seen what would be validated"):
        run("SASRec", "shop", config_dict={**tiny, "init_from": folder})
    with pytest.raises(CheckpointError, match="it has seen what would be validated"):
        run("ScoreEnsemble", "shop", config_dict={**tiny, "members": [folder, first]})
    with pytest.raises(UnsupportedError, match="nothing to refit"):
        refit(folder)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("LiteLLM4Rec", {"llm": "tiny-random-t5", "item_llm_mode": "two_stage", "train_batch_size": 16}),
        ("LRURec", {"protocol": "temporal_session", "allow_rank_times": True}),
        ("GRU4Rec", {"cold_items": 0.2}),
        ("FPMC", {}),
        ("LLMSeqSim", {"llm": "tiny-random-bert", "dim_reduction": "none"}),
    ],
)
def test_every_kind_of_model_and_protocol(tiny, model, settings):
    first = run(model, "shop", config_dict={**tiny, **settings})["run_dir"]
    folder = refit(first)["run_dir"]
    before, after = results_of(first)["stages"], results_of(folder)["stages"]
    assert [stage["updates"] for stage in after] == [stage["best_updates"] for stage in before]
    assert len(load_run(folder).train_data.dataset) == 98
    assert load_yaml(Path(folder) / "config.yaml")["final_fit"]["run"] == Path(first).name


def test_a_model_that_counts_has_counted_everything(tiny):
    folder = refit(run("MostPopular", "shop", config_dict=tiny)["run_dir"])["run_dir"]
    loaded = load_run(folder)
    assert loaded.trainer.evaluator.train_counts.sum() == 14 * 8
    assert np.array_equal(loaded.trainer.evaluator.train_counts, loaded.dataset.all_counts)


def test_an_interrupted_refit_goes_on(tiny, monkeypatch):
    with monkeypatch.context() as patched:
        best_in_epoch(patched, 2)
        first = run("SASRec", "shop", config_dict={**tiny, **BATCHES})["run_dir"]
    whole = refit(first)["run_dir"]
    undo = interrupt_in_epoch(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        refit(first, {"checkpoint_dir": "other"})
    undo()
    (folder,) = Path("other").iterdir()
    assert main([f"--resume={folder}"]) == 0
    one, two = (load_file(f"{place}/model.safetensors") for place in (whole, folder))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_what_cannot_be_refitted_says_why(tiny):
    first = run("SASRec", "shop", config_dict=tiny)["run_dir"]
    with pytest.raises(ConfigError, match="--learning_rate cannot be changed by a refit"):
        refit(first, {"learning_rate": 0.1})
    with pytest.raises(CheckpointError, match="not a run directory"):
        refit("nowhere")
    hybrid = run("ScoreEnsemble", "shop", config_dict={**tiny, "members": [first, first]})["run_dir"]
    with pytest.raises(UnsupportedError, match="Refit its members"):
        refit(hybrid)
    control = run("SASRec", "shop", config_dict={**tiny, "control": "shuffled_history_train"})["run_dir"]
    with pytest.raises(UnsupportedError, match="is a control"):
        refit(control)
    with pytest.raises(ConfigError, match="final_fit=.* does not give updates"):
        run("SASRec", "shop", config_dict={**tiny, "final_fit": {"run": "x", "stages": {}}})


def test_the_command(tiny, capsys):
    first = run("SASRec", "shop", config_dict=tiny)["run_dir"]
    assert main(["refit", first, "--checkpoint_dir=models"]) == 0
    (folder,) = Path("models").iterdir()
    assert main(["recommend", str(folder), "--users=u1", "--k=2"]) == 0
    assert main(["refit", first, "--epochs=3"]) == 2 and "cannot be changed by a refit" in capsys.readouterr().err
