import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from recbole_llm.cli import main
from recbole_llm.config import Config
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.quick_start import run
from recbole_llm.run import experiment
from recbole_llm.run.evaluate import evaluate_run
from recbole_llm.run.folder import LOCK, create_run_dir, new_run, remove_abandoned, run_lock
from recbole_llm.trainer.accumulation import DivergedError
from recbole_llm.trainer.trainer import RunTrainer


def read(run_dir):
    return json.loads((Path(run_dir) / "results.json").read_text(encoding="utf-8"))


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


SETTLED = ("test_result", "test_masked", "test_unmasked", "best_valid_score", "best_valid_result", "stages", "updates")


@pytest.mark.parametrize("how", ["evaluate", "resume"])
@pytest.mark.parametrize("model", ["SASRec", "MostPopular", "S3Rec"])
def test_a_full_disk_while_results_are_written_leaves_a_run_that_can_be_finished(
    model, how, shop, tiny, isolated, monkeypatch
):
    settings = {**tiny, "item_attribute": "kind", "pretrain_epochs": 1} if model == "S3Rec" else dict(tiny)
    whole = run(model, "shop", config_dict={**settings, "checkpoint_dir": "whole", "save_state": how == "resume"})
    monkeypatch.setattr(experiment, "write_results", full)
    with pytest.raises(CheckpointError, match=r"No space left.*The weights are safe.*evaluate saved/"):
        run(model, "shop", config_dict={**settings, "save_state": how == "resume"})
    monkeypatch.undo()
    monkeypatch.chdir(isolated)
    (run_dir,) = Path("saved").iterdir()
    assert not (run_dir / "results.json").exists()
    command = ["evaluate", str(run_dir)] if how == "evaluate" else ["run", f"--resume={run_dir}"]
    assert main(command) == 0
    found, expected = read(run_dir), read(whole["run_dir"])
    for key in SETTLED:
        assert found[key] == expected[key], key
    assert not (run_dir / "trained.json").exists()
    first, second = (np.load(Path(folder) / "test_ranks.npz") for folder in (run_dir, whole["run_dir"]))
    assert all(np.array_equal(first[name], second[name]) for name in first.files)


@pytest.mark.parametrize("name", ["trained.json", "test_ranks.npz", "results.json", "ids.npz", "training_state"])
def test_a_full_disk_at_any_file_leaves_no_half_one(name, shop, tiny, isolated, monkeypatch):
    """Every file appears by a rename: where that fails, nothing is there, and the same command works afterwards."""
    original = os.replace

    def replace(source, target):
        if Path(target).name == name:
            full()
        return original(source, target)

    rename = Path.rename
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "rename", lambda self, to: full() if Path(to).name == name else rename(self, to))
    with pytest.raises(CheckpointError, match="No space left"):
        run("SASRec", "shop", config_dict=tiny)
    monkeypatch.undo()
    monkeypatch.chdir(isolated)
    kept = list(Path("saved").iterdir())
    assert [path for path in Path("saved").rglob("*.tmp")] == []
    if kept and (kept[0] / "trained.json").exists():
        assert main(["evaluate", str(kept[0])]) == 0
    else:
        assert main(["--model=SASRec", "--dataset=shop", "--resume", *(f"--{k}={v}" for k, v in tiny.items())]) == 0
    (run_dir,) = [path for path in Path("saved").iterdir() if (path / "results.json").exists()]
    assert read(run_dir)["test_result"] == run("SASRec", "shop", config_dict=tiny, saved=False)["test_result"]


def test_another_protocol_on_the_same_weights(shop, tiny):
    run_dir = Path(run("SASRec", "shop", config_dict=tiny)["run_dir"])
    before = (run_dir / "results.json").read_bytes()
    result = evaluate_run(run_dir, {"topk": [1, 3], "metrics": "Recall,MRR", "mask_history": False})
    assert list(result["test_result"]) == ["recall@1", "recall@3", "mrr@1", "mrr@3"]
    assert result["test_result"] == result["test_unmasked"] and result["protocol"]["valid_metric"] == "NDCG@5"
    assert "history not masked" in result["protocol"]["text"] and "best epoch by NDCG@5" in result["protocol"]["text"]
    expected = run("SASRec", "shop", config_dict={**tiny, "topk": [1, 3, 5], "checkpoint_dir": "other"})
    assert result["test_masked"]["recall@3"] == expected["test_result"]["recall@3"]
    assert (run_dir / "results.json").read_bytes() == before
    (folder,) = (run_dir / "evaluations").iterdir()
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == result
    assert main(["evaluate", str(run_dir), "--topk=2", "--out=elsewhere"]) == 0
    assert set(read("elsewhere")["test_result"]) == {"recall@2", "ndcg@2", "mrr@2"}
    assert main(["evaluate", str(run_dir)]) == 0  # the same again


def test_a_control_on_the_same_weights(shop, tiny, capsys):
    run_dir = Path(run("SASRec", "shop", config_dict=tiny)["run_dir"])
    shuffled = run("SASRec", "shop", config_dict={**tiny, "control": "shuffled_history"})
    result = evaluate_run(run_dir, {"control": "shuffled_history"})
    assert result["test_result"] == shuffled["test_result"] and result["label"] == "SASRec [shuffled_history]"
    for control, said in (("shuffled_text", "has no"), ("shuffled_history_train", "a control of training")):
        with pytest.raises(ConfigError, match=said):
            evaluate_run(run_dir, {"control": control})
    with pytest.raises(ConfigError, match="was trained under control='shuffled_history'"):
        evaluate_run(shuffled["run_dir"], {"control": "none"})


def test_a_control_of_the_texts_must_reach_the_scores(shop, tiny):
    options = {**tiny, "llm": "tiny-random-bert", "dim_reduction": "none"}
    run_dir = run("LLMSeqSim", "shop", config_dict=options)["run_dir"]
    result = evaluate_run(run_dir, {"control": "shuffled_text"})
    assert result["notices"][-1].startswith("control=shuffled_text was applied at evaluation")
    learned = run("LLM2SASRec", "shop", config_dict={**tiny, "llm": "tiny-random-bert", "dim_reduction": "none"})
    with pytest.raises(ConfigError, match="has no effect: .* has stored the texts in its weights"):
        evaluate_run(learned["run_dir"], {"control": "shuffled_text"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs=3"], "--epochs cannot be changed by an evaluation"),
        (["--topkk=3"], "Did you mean 'topk'"),
        (["--topk=0"], "topk"),
        (["--metrics=Nosuch"], "nosuch"),
        (["--topk="], "topk"),
        (["--mask_history=perhaps"], "mask_history"),
        (["--out=/proc/nothing/here"], "cannot be written"),
    ],
)
def test_what_an_evaluation_refuses(arguments, said, shop, tiny, capsys):
    run_dir = run("MostPopular", "shop", config_dict={**tiny, "epochs": 0})["run_dir"]
    assert main(["evaluate", run_dir, *arguments]) == 2
    assert said.lower() in capsys.readouterr().err.lower()


def test_training_that_has_not_ended(shop, tiny, isolated, capsys):
    run_dir = create_run_dir(Config("SASRec", "shop", config_dict=tiny))
    assert main(["evaluate", str(run_dir)]) == 2
    assert "its training has not ended. Continue it with" in capsys.readouterr().err
    assert main(["evaluate", "nowhere"]) == 2
    assert "nowhere is not a run directory" in capsys.readouterr().err


# ---- what killed runs leave


def test_abandoned_directories_go_and_others_stay(shop, tiny, isolated):
    config = Config("SASRec", "shop", config_dict=tiny)
    finished = Path(run("SASRec", "shop", config_dict=tiny)["run_dir"])
    killed, alive, named, young = (create_run_dir(config) for _ in range(4))
    for folder in (killed, alive, named):
        (folder / LOCK).touch()
        (folder / "run.log").touch()
    (killed / "model.safetensors").write_bytes(b"initial")  # the run keeps a state, and there is none
    (named / "notes.txt").touch()  # somebody's own
    empty, other = Path("saved/SASRec-shop-2026-01-01_00-00-00"), Path("saved/mine")
    empty.mkdir()
    other.mkdir()
    with run_lock(alive):
        assert set(remove_abandoned(Path("saved"))) == {killed, empty}
        assert {path for path in Path("saved").iterdir()} == {finished, alive, named, young, other}
    shutil.copytree(finished, killed)
    (killed / "results.json").unlink()
    (killed / LOCK).touch()
    assert remove_abandoned(Path("saved")) == []  # it has a state


def test_a_new_run_removes_them_and_is_never_taken_for_one(shop, tiny, isolated):
    config = Config("SASRec", "shop", config_dict=tiny)
    left = create_run_dir(config)
    (left / LOCK).touch()
    with new_run(config) as run_dir:
        assert not left.exists() or left == run_dir
        assert remove_abandoned(Path("saved")) == [] and run_dir.is_dir()
    assert not (run_dir / LOCK).exists()


def test_a_run_without_a_state_that_is_named_begins_again(shop, tiny, isolated):
    run_dir = create_run_dir(Config("SASRec", "shop", config_dict=tiny))
    (run_dir / LOCK).touch()
    assert main([f"--resume={run_dir}"]) == 0
    whole = run("SASRec", "shop", config_dict=tiny, saved=False)
    assert read(run_dir)["test_result"] == whole["test_result"]


def test_what_writing_left_goes_with_the_results(shop, tiny, isolated, monkeypatch):
    monkeypatch.setattr(experiment, "write_results", full)
    with pytest.raises(CheckpointError):
        run("SASRec", "shop", config_dict=tiny)
    (run_dir,) = Path("saved").iterdir()
    (run_dir / "training_state").rename(run_dir / "training_state.old")  # killed between two renames
    shutil.copytree(run_dir / "training_state.old", run_dir / "training_state.new")
    (run_dir / "model.tmp").touch()
    assert main(["evaluate", str(run_dir)]) == 0
    assert not [path for path in run_dir.iterdir() if path.name.endswith((".old", ".new", ".tmp", "trained.json"))]


def test_a_run_that_diverged_at_once_stays_as_evidence(shop, tiny, isolated, monkeypatch):
    def diverge(*_, **__):
        raise DivergedError("The training loss is nan.")

    monkeypatch.setattr(RunTrainer, "_train_epoch", diverge)
    with pytest.raises(DivergedError):
        run("SASRec", "shop", config_dict=tiny)
    (run_dir,) = Path("saved").iterdir()
    assert (run_dir / "run.log").is_file() and (run_dir / "model.safetensors").is_file()
