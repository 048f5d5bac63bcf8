import csv
import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from recbole.utils import set_color

from recbole_llm.config import Config
from recbole_llm.config.values import SECRETS
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.evaluator.metrics import mrr, ndcg
from recbole_llm.quick_start import load_run, run
from recbole_llm.run.evaluate import evaluate_run
from recbole_llm.run.folder import LOCK, create_run_dir, find_resumable, is_running, run_lock
from recbole_llm.run.identity import plain, same_experiment
from recbole_llm.run.logging import log_to_console
from recbole_llm.run.results import popularity_rank

SECRET = "hf_averysecrettoken"


@pytest.fixture
def finished(shop, tiny, monkeypatch):
    """A finished run of LiteLLM4Rec with a token, a misspelt key and a value that YAML could mistake."""
    settings = {
        **tiny,
        "smoke": True,
        "epochs": 2,
        "item_text": "{title}, {kind}",
        "llm_token": SECRET,
        "llm_revision": "1234567",
        "learning_rte": 1,
        "allow_unknown_keys": True,
        "embedding_cache_dir": "cache",
    }
    monkeypatch.setattr(sys, "argv", ["recbole-llm", f"--llm_token={SECRET}", "--item_text={title}, {kind}"])
    result = run("LiteLLM4Rec", "shop", config_dict=settings)
    return Path(result["run_dir"]), result


def test_contents(finished):
    run_dir, result = finished
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {"config.yaml", "model.safetensors", "results.json", "test_ranks.npz", "history.csv", "run.log"}
    assert run_dir.name.startswith("LiteLLM4Rec-shop-smoke-")
    for path in run_dir.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path

    report = json.loads((run_dir / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert report["test_result"] == result["test_result"]
    assert report["test_masked"] == result["test_result"]
    assert report["test_unmasked"] == result["test_result_unmasked"]
    assert report["best_valid_score"] == result["best_valid_score"]
    assert report["smoke"] is True
    assert report["protocol"]["text"].startswith("SMOKE RUN, history masked, leave-one-out, full ranking")
    assert report["model_class"] == "recbole_llm.model.litellm4rec.LiteLLM4Rec"
    assert report["dataset"]["users"] == 14
    assert report["dataset"]["items"] == 12
    assert report["dataset"]["interactions"] == 14 * 8
    assert set(report["dataset"]["files"]) == {"shop.inter", "shop.item"}  # the texts came from the second
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in report["dataset"]["files"].values())
    assert report["dataset"]["filters"]["item_inter_num_interval"] == "[1,inf)"
    assert report["language_models"]["item_text"] == "{title}, {kind}"
    assert report["language_models"]["llm_revision"]
    assert report["settings"]["epochs"] == 2
    assert "Did you mean 'learning_rate'" in report["notices"][0]
    assert report["command"] == "recbole-llm '--llm_token=(hidden)' '--item_text={title}, {kind}'"
    assert report["environment"]["packages"]["recbole"] == "1.2.1"
    assert {"data", "model", "train", "valid", "test"} <= set(report["seconds"])
    assert all(value >= 0 for value in report["seconds"].values())
    assert set(report["cpu_seconds"]) == set(report["seconds"]) and report["cpu_seconds"]["train"] > 0
    assert report["epochs"] == 4  # two stages
    assert report["updates"] == sum(stage["updates"] for stage in report["stages"]) > 0
    assert report["peak_memory_mb"] > 0
    assert report["parameters"]["all"] >= report["parameters"]["trained"] > 0

    lines = (run_dir / "history.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 4
    assert lines[0].startswith("stage,epoch,updates,learning_rate,train_loss")


def test_epochs_count_from_one_on_the_screen_and_in_every_file(shop, tiny, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    caplog.set_level(logging.INFO)
    run_dir = Path(run("SASRec", "shop", config_dict={**tiny, "epochs": 3, "stopping_step": 9})["run_dir"])
    said = re.sub(r"\x1b\[[0-9;]*m", "", caplog.text)
    assert re.findall(r"epoch (\d+) training", said) == re.findall(r"epoch (\d+) evaluating", said) == ["1", "2", "3"]
    with (run_dir / "history.csv").open(encoding="utf-8") as file:
        curve = list(csv.DictReader(file))
    assert [row["epoch"] for row in curve] == ["1", "2", "3"]
    best = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["stages"][-1]
    assert float(curve[best["best_epoch"] - 1]["valid_score"]) == best["best_valid_score"]
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/train_loss")] == [1, 2, 3]


def test_ranks_recompute_the_metrics(finished):
    run_dir, result = finished
    ranks = np.load(run_dir / "test_ranks.npz")  # no pickle inside
    assert len(ranks["user"]) == 14
    assert set(ranks["user"]) == {f"u{user}" for user in range(14)}
    assert all(target.startswith("i") for target in ranks["target"])
    assert (ranks["history_length"] == 7).all()
    for masks, expected in (("masked", result["test_result"]), ("unmasked", result["test_result_unmasked"])):
        rank = ranks[f"rank_{masks}"]
        assert ndcg(rank, 5).mean() == expected["ndcg@5"]
        assert mrr(rank, 5).mean() == expected["mrr@5"]
    assert (ranks["rank_masked"] <= ranks["rank_unmasked"]).all()


def test_the_screen_counts_no_padding_and_says_what_comes_next(shop, tiny, caplog):
    caplog.set_level(logging.INFO)
    run_dir = run("SASRec", "shop", config_dict=tiny)["run_dir"]
    assert "shop: 14 users, 12 items, 112 interactions (8.0 per user), 33.33% of the pairs empty" in caplog.text
    assert f"written to {run_dir}: results.json, history.csv, test_ranks.npz\n" in caplog.text
    for command in ("recommend", "evaluate", "compare"):
        assert f": recbole-llm {command} {run_dir}" in caplog.text


def test_popularity_rank():
    counts = np.array([0, 5, 9, 0, 5, 1])
    assert popularity_rank(counts)[1:].tolist() == [2, 1, 5, 2, 4]


def test_memory_and_popularity_rank_of_a_run(finished):
    run_dir, _ = finished
    report = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    assert set(report["phase_peak_memory_mb"]) == {"data", "model", "train", "valid", "test"}
    assert max(report["phase_peak_memory_mb"].values()) == report["peak_memory_mb"]
    ranks = np.load(run_dir / "test_ranks.npz")
    order = np.argsort(ranks["target_popularity_rank"])
    assert (np.diff(ranks["target_popularity"][order]) <= 0).all()
    assert 1 <= ranks["target_popularity_rank"].min() <= ranks["target_popularity_rank"].max() <= 12


def test_a_run_that_is_alive_is_left_alone(finished):
    run_dir, _ = finished
    assert not (run_dir / LOCK).exists()
    with run_lock(run_dir):
        assert is_running(run_dir)
        with pytest.raises(CheckpointError, match="is being run by another process"), run_lock(run_dir):
            pass
    assert not is_running(run_dir)
    (run_dir / "results.json").unlink()
    config = Config(config_file_list=[run_dir / "config.yaml"], config_dict={"resume": True})
    assert find_resumable(config) == run_dir
    with run_lock(run_dir):
        assert find_resumable(config) is None


def test_other_data_are_not_resumed(finished, isolated):
    run_dir, _ = finished
    (run_dir / "results.json").unlink()
    with (isolated / "dataset" / "shop" / "shop.item").open("a", encoding="utf-8") as file:
        file.write("i99\tanother\tred\n")
    settings = {"config_file_list": [run_dir / "config.yaml"]}
    assert find_resumable(Config(**settings, config_dict={"resume": True})) is None
    with pytest.raises(CheckpointError, match="was started on other data"):
        find_resumable(Config(**settings, config_dict={"resume": str(run_dir)}))


def test_config_yaml_replays(finished, caplog):
    run_dir, result = finished
    caplog.clear()
    config = Config(config_file_list=[run_dir / "config.yaml"])
    original = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["settings"]
    replayed = {key: value for key, value in plain(config.merged).items() if key not in SECRETS}
    assert replayed == original
    assert config["epochs"] == 2  # and not what a smoke run sets by default
    assert config["llm_revision"] == "1234567"
    again = run(config_file_list=[run_dir / "config.yaml"])
    assert again["test_result"] == result["test_result"]
    assert again["best_valid_result"] == result["best_valid_result"]
    assert again["run_dir"] != result["run_dir"]


def test_load_run_gives_the_same_numbers(finished):
    run_dir, result = finished
    loaded = load_run(run_dir)
    assert loaded.trainer.evaluate(loaded.test_data, load_best_model=False) == result["test_result"]
    assert loaded.trainer.evaluation.unmasked == result["test_result_unmasked"]
    assert loaded.model.training is False


def test_load_run_refuses_other_data_and_unfinished_runs(finished, tmp_path):
    run_dir, _ = finished
    file = tmp_path / "dataset" / "shop" / "shop.inter"
    file.write_text(re.sub(r"\ti(\d)", r"\tother\1", file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"has none of the 12 items that the run was trained on"):
        load_run(run_dir)
    (run_dir / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_run(run_dir)
    for damaged in ("[]", "3", "{}", '{"dbtaset": {}}', '{"dataset": {"filfs": {}}}'):
        (run_dir / "results.json").write_text(damaged, encoding="utf-8")
        for read in (load_run, evaluate_run):
            with pytest.raises(CheckpointError, match=r"results\.json is damaged"):
                read(run_dir)
    (run_dir / "results.json").unlink()
    with pytest.raises(CheckpointError, match="is not finished.*recbole-llm --resume="):
        load_run(run_dir)
    with pytest.raises(CheckpointError, match="is not a run directory"):
        load_run(tmp_path / "nowhere")


def test_two_runs_in_the_same_second(isolated, monkeypatch):
    monkeypatch.setattr("recbole_llm.run.folder.time.strftime", lambda _: "now")
    config = Config("SASRec", "ml-100k")
    names = [create_run_dir(config).name for _ in range(3)]
    assert names == ["SASRec-ml-100k-now", "SASRec-ml-100k-now-1", "SASRec-ml-100k-now-2"]


def test_checkpoint_dir_that_cannot_be_written(isolated):
    (isolated / "file").write_text("", encoding="utf-8")
    config = Config("SASRec", "ml-100k", config_dict={"checkpoint_dir": "file"})
    with pytest.raises(ConfigError, match="checkpoint_dir='file' cannot be written"):
        create_run_dir(config)


def test_same_experiment():
    first = {"epochs": 1, "topk": (5, 10), "seed": 1, "gpu_id": "0", "amp": None}
    assert same_experiment(first, {"epochs": 1, "topk": [5, 10], "seed": 1, "show_progress": False})
    assert not same_experiment(first, {"epochs": 1, "topk": [5], "seed": 1})
    assert not same_experiment(first, {**first, "amp": "bf16"})


# ---- logging


def test_console_is_plain_in_a_pipe_and_obeys_the_level(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    level = logging.root.level
    try:
        log_to_console()
        log_to_console()
        logging.info(set_color("green", "green"))
        log_to_console("warning")
        logging.info("hidden")
        logging.warning("shown")
    finally:
        logging.root.setLevel(level)
    assert [line.split("  ")[-1] for line in capsys.readouterr().err.splitlines()] == ["green", "shown"]


def test_logging_of_the_calling_program_is_left_alone():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    log_to_console("ERROR")
    assert (root.handlers, root.level) == (handlers, level)
