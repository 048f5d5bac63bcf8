"""Studies on made-up data: what is tried, kept, continued and tested."""

import csv
import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from recbole_llm import cli
from recbole_llm.config.schema import StudyOptions
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import CheckpointError, ConfigError, DataError
from recbole_llm.quick_start import load_run, run
from recbole_llm.trainer.trainer import RunTrainer
from recbole_llm.tune import StudyError, resume_study, tune
from recbole_llm.tune.study import JOURNAL, STARTS
from recbole_llm.tune.trial import _free_memory
from tests.run.test_kill import in_a_child, points

SPACE = {"choice": {"hidden_size": [8, 16], "learning_rate": [0.1, 0.001]}}


@pytest.fixture(autouse=True)
def _isolated(isolated, monkeypatch):
    monkeypatch.setattr("recbole_llm.tune.trial._free_memory", lambda: None)  # a quarter of a second each time


@pytest.fixture
def settings(shop, tiny):
    return {**tiny, "epochs": 2, "n_layers": 1, "inner_size": 16}


def table(result):
    """What must not depend on when and how often a study was interrupted."""
    return [
        (trial.number, trial.params, trial.state, trial.score, trial.result, trial.curve) for trial in result["trials"]
    ] + [(result["test_result"], result["run_dir"].rpartition("/")[2])]


@pytest.fixture
def trained(monkeypatch):
    """The settings of every epoch that is trained, in order; ``stop_at`` interrupts before the n-th."""
    epochs = []
    original = RunTrainer._train_epoch

    def train(self, data, epoch_idx, *args, **kwargs):
        if len(epochs) == train.stop_at:
            raise train.error
        epochs.append((self.config["hidden_size"], self.config["learning_rate"], epoch_idx))
        return original(self, data, epoch_idx, *args, **kwargs)

    train.stop_at, train.error = None, KeyboardInterrupt()
    monkeypatch.setattr(RunTrainer, "_train_epoch", train)
    return SimpleNamespace(epochs=epochs, switch=train)


# ---- a whole study


def test_a_study(settings, monkeypatch, caplog):
    caplog.set_level("INFO")
    tested, made = [], []
    evaluate, build = RunTrainer.evaluate, HistoryDataset.__init__
    with monkeypatch.context() as patch:
        patch.setattr(
            RunTrainer, "evaluate", lambda self, data, *a, **k: (tested.append(data), evaluate(self, data, *a, **k))[1]
        )
        patch.setattr(HistoryDataset, "__init__", lambda self, config: (made.append(1), build(self, config))[1])
        result = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)

    # Four trials on one prepared dataset, and the winner's run loaded; the last evaluation alone sees the test set.
    assert len(made) == 2
    held_out = [set(data.dataset.inter_feat["history_position"].tolist()) for data in tested]
    assert len(held_out) == 9 and all(not rows & held_out[-1] for rows in held_out[:-1])
    assert [trial.params for trial in result["trials"]] == [
        {"hidden_size": size, "learning_rate": rate} for size in (8, 16) for rate in (0.1, 0.001)
    ]

    # Every trial is what a run with its settings alone gives; the winner's file gives the winner's score and test.
    folder = Path(result["study_dir"])
    assert folder.parent == Path("saved") and folder.name.startswith("study-SASRec-shop-")
    alone = [run("SASRec", "shop", config_dict={**settings, **t.params}, saved=False) for t in result["trials"]]
    assert [r["best_valid_score"] for r in alone] == [t.score for t in result["trials"]]
    assert [r["best_valid_result"] for r in alone] == [t.result for t in result["trials"]]
    best = max(range(4), key=lambda number: alone[number]["best_valid_score"])
    assert result["best_params"] == result["trials"][best].params
    assert cli.main([f"--config_files={result['config_file']}", "--checkpoint_dir=again"]) == 0
    (again,) = Path("again").iterdir()
    report = json.loads((again / "results.json").read_text(encoding="utf-8"))
    assert report["best_valid_score"] == result["best_valid_score"]
    assert report["test_result"] == result["test_result"] == alone[best]["test_result"]
    assert report["test_unmasked"] == result["test_result_unmasked"]

    # What is left on disk.
    with (folder / "study.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["best_valid_NDCG@5"]) for row in rows] == [t.score for t in result["trials"]]
    assert [row["epochs"] for row in rows] == ["2"] * 4
    for trial in result["trials"]:
        run_dir = folder / "trials" / f"{trial.number:04d}"
        kept = {path.name for path in run_dir.iterdir()}
        assert kept >= {"config.yaml", "history.csv", "run.log"}
        is_best = trial.number == best
        assert is_best is ("model.safetensors" in kept) is ("results.json" in kept) is ("test_ranks.npz" in kept)
        assert is_best is ("trained.json" not in kept)
    loaded = load_run(result["run_dir"])
    assert loaded.trainer.evaluate(loaded.test_data) == result["test_result"]

    # The same call again reads its notes, and runs nothing.
    monkeypatch.setattr(RunTrainer, "_train_epoch", None)
    assert table(tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)) == table(result)
    assert "continued (4 finished)" in caplog.text


def test_data_is_prepared_again_where_a_trial_changes_it(settings, monkeypatch):
    lengths = []
    build = HistoryDataset.__init__

    def counted(self, config):
        lengths.append(config["MAX_ITEM_LIST_LENGTH"])
        build(self, config)

    del settings["MAX_ITEM_LIST_LENGTH"]
    space = {"choice": {"MAX_ITEM_LIST_LENGTH": [3, 5], "learning_rate": [0.1, 0.01]}}
    with monkeypatch.context() as patch:
        patch.setattr(HistoryDataset, "__init__", counted)
        result = tune("SASRec", "shop", params_dict=space, config_dict=settings)
    assert lengths[1:-1] == [3, 5]  # the first is of the study's own check of the data, the last of the test
    scores = [
        run("SASRec", "shop", config_dict={**settings, **t.params}, saved=False)["best_valid_score"]
        for t in result["trials"]
    ]
    assert scores == [trial.score for trial in result["trials"]]


@pytest.mark.parametrize("masked", [True, False])
def test_the_score_is_that_of_mask_history(masked, settings):
    space = {"choice": {"hidden_size": [8, 16]}}
    result = tune("SASRec", "shop", params_dict=space, config_dict={**settings, "mask_history": masked, "epochs": 0})
    other = run(
        "SASRec", "shop", config_dict={**settings, "mask_history": masked, "epochs": 0, **result["best_params"]}
    )
    assert result["best_valid_score"] == other["best_valid_score"]
    assert result["test_result"] == other["test_result"] != result[f"test_result_{'un' * masked}masked"]


def test_a_metric_where_less_is_better(settings):
    settings |= {"metrics": ["AveragePopularity", "NDCG"], "valid_metric": "AveragePopularity@5"}
    result = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)
    scores = [trial.score for trial in result["trials"]]
    assert result["valid_score_bigger"] is False and len(set(scores)) > 1
    assert result["best_valid_score"] == min(scores)


def test_a_model_that_trains_nothing_and_the_users_own_class(settings, tiny):
    settings = {key: value for key, value in tiny.items() if key != "epochs"} | {"llm": "tiny-random-bert"}
    space = {"choice": {"decay": ["none", "harmonic"], "dim_reduction": ["none"]}}
    result = tune("LLMSeqSim", "shop", params_dict=space, config_dict=settings)
    assert [trial.state for trial in result["trials"]] == ["finished"] * 2 and result["trials"][0].curve == []

    from tests.test_quick_start import LastItem

    result = tune(LastItem, "shop", params_dict={"choice": {"width": [4, 8]}}, config_dict=tiny)
    assert result["best_params"]["width"] in (4, 8) and result["test_result"]


# ---- interruptions


def test_ctrl_c_in_a_trial_and_the_same_call_again(settings, trained, caplog):
    whole = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings, study="whole")
    epochs = list(trained.epochs)
    trained.epochs.clear()
    trained.switch.stop_at = 5  # before the second epoch of trial 2
    with pytest.raises(KeyboardInterrupt):
        tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)
    (folder,) = Path("saved").glob("study-*")
    assert f"recbole-llm tune --resume={folder}" in caplog.text
    trained.switch.stop_at = None
    continued = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)
    assert trained.epochs == epochs  # no epoch twice, none left out
    assert table(continued) == table(whole)


def journal_of(study_dir):
    """The journal's lines, and the file."""
    file = Path(study_dir) / JOURNAL
    return file.read_bytes().splitlines(keepends=True), file


def states(study_dir):
    """Trial states that Optuna itself reads from a study's folder."""
    study = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(f"{study_dir}/{JOURNAL}")))
    return [trial.state.name for trial in study.trials]


def test_a_journal_cut_anywhere_leads_to_the_same_study(settings, trained):
    whole = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings, keep_trials="all")
    lines, file = journal_of(whole["study_dir"])
    trained.epochs.clear()
    for cut in range(1, len(lines), 6):
        # The process died while it wrote this line; the lock of the journal was its own.
        file.write_bytes(b"".join(lines[:cut]) + lines[cut][:20])
        file.with_name(f"{JOURNAL}.lock").symlink_to(file.name)
        assert table(resume_study(whole["study_dir"])) == table(whole)
    assert trained.epochs == []  # all results stand in the run directories


KILLED = """
import sys, time
from recbole_llm.trainer.trainer import RunTrainer
original = RunTrainer._train_epoch
def train(self, data, epoch_idx, *args, **kwargs):
    print("epoch", self.config["hidden_size"], self.config["learning_rate"], epoch_idx, flush=True)
    if (self.config["hidden_size"], self.config["learning_rate"], epoch_idx) == (16, 0.1, 1):
        time.sleep(600)  # until it is killed
    return original(self, data, epoch_idx, *args, **kwargs)
RunTrainer._train_epoch = train
from recbole_llm.cli import main
main(sys.argv[1:])
"""


def test_kill_9(settings, trained):
    """Nothing finished is run again after kill -9, and the final table is that of an uninterrupted study."""
    Path("a.test").write_text("hidden_size choice [8,16]\nlearning_rate choice [0.1,0.001]\n", encoding="utf-8")
    Path("s.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    arguments = ["--model=SASRec", "--dataset=shop", "--params_file=a.test", "--config_files=s.yaml"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, "tune", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    for line in process.stdout:
        if line.split() == ["epoch", "16", "0.1", "1"]:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (folder,) = Path("saved").iterdir()
    assert states(folder) == ["COMPLETE", "COMPLETE", "RUNNING"]

    assert cli.main(arguments) == 0
    assert trained.epochs == [(16, 0.1, 1), (16, 0.001, 0), (16, 0.001, 1)]
    whole = tune("SASRec", "shop", params_file="a.test", config_file_list=["s.yaml"], study="whole")
    assert table(resume_study(folder)) == table(whole)
    one, other = ((Path(f) / "best.yaml").read_text(encoding="utf-8") for f in (folder, "saved/whole"))
    assert one.split("\n", 2)[2] == other.split("\n", 2)[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")
@pytest.mark.parametrize("options", [["--pruner=halving", "--prune_factor=2"], ["--algo=bayes", "--pruner=median"]])
def test_killed_before_any_write(options, settings):
    """The same command afterwards gives the study of one that was left alone; RECBOLE_LLM_KILLS tries more points."""
    Path("a.test").write_text("hidden_size choice [8,16]\nlearning_rate choice [0.1,0.001]\n", encoding="utf-8")
    Path("s.yaml").write_text(yaml.safe_dump({**settings, "epochs": 3}), encoding="utf-8")
    model = ["tune", "--model=SASRec", "--dataset=shop", "--params_file=a.test", "--config_files=s.yaml"]
    command = [*model, "--max_evals=4", "--random_trials=2", "--prune_after=1", "--prune_trials=1", *options]

    def left(name):
        # A trial that goes on after a kill writes a second TensorBoard file beside the first.
        files = Path("saved", name).rglob("*")
        return {str(file.relative_to(Path("saved", name))).split(".tfevents.")[0] for file in files}

    status, total = in_a_child([*command, "--study=whole"])
    assert status == 0
    whole = resume_study("saved/whole")
    for number, point in enumerate(points(total - 5, seed=len(options[0]))[1::2]):  # a first run makes more folders
        name = f"killed{number}"
        assert in_a_child([*command, f"--study={name}"], point) == (-signal.SIGKILL, point)
        assert in_a_child([*command, f"--study={name}"])[0] == 0
        killed = resume_study(f"saved/{name}")
        assert table(killed) == table(whole), f"killed before write {point} of {total}"
        assert left(name) == left("whole")
        one, other = (Path("saved", each, "best.yaml").read_text(encoding="utf-8") for each in (name, "whole"))
        assert one.split("\n", 2)[2] == other.split("\n", 2)[2]


def test_two_processes_do_not_share_a_study(settings, monkeypatch):
    def again(self, *args, **kwargs):
        tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)

    monkeypatch.setattr(RunTrainer, "fit", again)
    result = None
    with pytest.raises(StudyError, match="is being run by another process"):
        result = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)
    assert result is None


# ---- trials that fail


def test_a_model_is_freed_before_the_next_trial(settings, monkeypatch):
    models = weakref.WeakSet()
    alive = []
    original = RunTrainer.fit

    def fit(self, *args, **kwargs):
        alive.append(len(models))
        models.add(self.model)
        if self.config["hidden_size"] == 8:
            raise DataError("its traceback holds the trainer")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "fit", fit)
    monkeypatch.setattr("recbole_llm.tune.trial._free_memory", _free_memory)
    tune("SASRec", "shop", params_dict={"choice": {"hidden_size": [16, 8, 24]}}, config_dict={**settings, "epochs": 1})
    assert alive == [0, 0, 0]


def test_failed_trials_are_noted_and_the_study_goes_on(settings, monkeypatch):
    original = RunTrainer._train_epoch

    def train(self, data, epoch_idx, *args, **kwargs):
        size = self.config["hidden_size"]
        if size == 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if size == 24:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(float("nan"))
        if size == 40:
            raise KeyError("a bug")
        return original(self, data, epoch_idx, *args, **kwargs)

    space = {"choice": {"hidden_size": [9, 8, 16, 24, 40]}}
    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "_train_epoch", train)
        result = tune("SASRec", "shop", params_dict=space, config_dict=settings)
    assert [trial.state for trial in result["trials"]] == ["failed", "finished", "failed", "failed", "failed"]
    errors = [trial.details.get("error", "") for trial in result["trials"]]
    for error, says in zip(errors, ["multiple of the number of", "", "Out of memory", "loss", "a bug"], strict=True):
        assert says in error
    assert "train_batch_size" in errors[2]
    folder = Path(result["study_dir"])
    assert "Traceback" in (folder / "trials" / "0004" / "run.log").read_text(encoding="utf-8")
    assert errors[2] in (folder / "study.html").read_text(encoding="utf-8").replace("&#x27;", "'")

    again = tune("SASRec", "shop", params_dict=space, config_dict=settings)
    assert table(again) == table(result)  # failed trials have ended, too
    again = resume_study(folder, retry_failed=True)
    # The first fails again; a trial that ended stays in the study.
    assert [trial.state for trial in again["trials"][5:]] == ["failed"] + ["finished"] * 3
    assert [trial.params for trial in again["trials"][5:]] == [again["trials"][n].params for n in (0, 2, 3, 4)]


def test_a_study_of_failures_says_so(settings, monkeypatch):
    monkeypatch.setattr(RunTrainer, "fit", lambda *args, **kwargs: 1 / 0)
    space = {"choice": {"hidden_size": [8, 16], "seed": list(range(10))}}
    with pytest.raises(StudyError, match="The first 5 trials failed, the last with: ZeroDivisionError.*run.log"):
        tune("SASRec", "shop", params_dict=space, config_dict=settings)
    with pytest.raises(StudyError, match="No trial of .* finished. The first error: ZeroDivisionError"):
        tune("SASRec", "shop", params_dict={"choice": {"hidden_size": [8]}}, config_dict=settings)


def test_a_trial_that_kills_the_process_is_given_up(settings, trained):
    for attempt in range(STARTS + 1):
        trained.switch.stop_at = len(trained.epochs)
        if attempt == STARTS:
            trained.switch.stop_at = None
            break
        with pytest.raises(KeyboardInterrupt):
            tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)
    result = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)
    assert [trial.state for trial in result["trials"]] == ["failed"] + ["finished"] * 3
    assert "no memory left" in result["trials"][0].details["error"]


# ---- pruning, ending, keeping


def test_pruned_trials(settings, trained):
    settings["epochs"] = 4
    space = {"choice": {"hidden_size": [32, 16], "learning_rate": [0.02, 0.1, 1e-9]}}
    options = {"pruner": "median", "prune_after": 2, "prune_trials": 2}
    whole = tune("SASRec", "shop", params_dict=space, config_dict=settings, study="whole", **options)
    states = [trial.state for trial in whole["trials"]]
    assert states[:3] == ["finished", "finished", "pruned"]
    for trial in whole["trials"]:
        if trial.state == "pruned":
            assert 2 <= len(trial.curve) < 4 and trial.details["reason"].startswith("median pruner after epoch")
            assert trial.score == max(score for _, _, score in trial.curve)
    unpruned = tune("SASRec", "shop", params_dict=space, config_dict=settings)
    assert [t.curve[: len(p.curve)] for t, p in zip(unpruned["trials"], whole["trials"], strict=True)] == [
        p.curve for p in whole["trials"]
    ]

    # Killed right after the validation that would have ended the trial, before that was noted.
    number = states.index("pruned")
    lines, file = journal_of(whole["study_dir"])
    (end,) = [
        place
        for place, line in enumerate(map(json.loads, lines))
        if line.get("trial_id") == number and line.get("state") == TrialState.PRUNED.value
    ]
    file.write_bytes(b"".join(lines[:end]))
    assert table(resume_study(whole["study_dir"])) == table(whole)


def test_a_study_ends_where_nothing_improves_and_goes_on_when_asked(settings, monkeypatch):
    space = {"choice": {"hidden_size": [8, 16, 24], "learning_rate": [0.1, 0.01, 0.001]}}
    options = {"params_dict": space, "config_dict": {**settings, "epochs": 1}, "algo": "random"}
    first = tune("SASRec", "shop", **options, max_evals=2)
    assert len(first["trials"]) == 2
    more = resume_study(first["study_dir"], max_evals=5)
    assert table(more)[:2] == table(first)[:2] and len(more["trials"]) == 5
    stopped = tune("SASRec", "shop", **options, early_stop=2, study="other")
    scores = [trial.score for trial in stopped["trials"]]
    assert len(scores) == scores.index(max(scores)) + 3 or len(scores) == 9


@pytest.mark.parametrize(("keep", "weights", "folders"), [("all", 4, 4), ("light", 1, 4), ("best", 1, 1)])
def test_what_is_kept(keep, weights, folders, settings):
    result = tune("SASRec", "shop", params_dict=SPACE, config_dict={**settings, "epochs": 1}, keep_trials=keep)
    trials = Path(result["study_dir"]) / "trials"
    assert len(list(trials.glob("*/model.safetensors"))) == weights
    assert len(list(trials.iterdir())) == folders
    assert list(trials.glob("*/training_state")) == []
    assert (Path(result["run_dir"]) / "test_ranks.npz").is_file()


# ---- one study is one study


def test_a_folder_holds_one_study(settings, shop):
    tune("SASRec", "shop", params_dict=SPACE, config_dict={**settings, "epochs": 0}, study="mine")
    with pytest.raises(CheckpointError, match=r"holds a study with other settings \(epochs\)"):
        tune("SASRec", "shop", params_dict=SPACE, config_dict={**settings, "epochs": 1}, study="mine")
    with pytest.raises(CheckpointError, match=r"other settings \(the search space\)"):
        space = {"choice": {"hidden_size": [8], "learning_rate": [0.1]}}
        tune(
            "SASRec",
            "shop",
            params_dict=space,
            config_dict={**settings, "epochs": 0},
            study="mine",
        )
    with pytest.raises(CheckpointError, match="is not a study"):
        resume_study("saved/nothing")
    file = shop / "shop.inter"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="changed since .*mine began"):
        resume_study("saved/mine")


def test_a_study_keeps_to_the_language_model_that_auto_stood_for(tiny, shop, monkeypatch):
    settings = {key: value for key, value in tiny.items() if key != "epochs"}
    space = {"choice": {"decay": ["none", "harmonic"]}}
    monkeypatch.setattr("recbole_llm.run.identity._resolved", lambda spec, causal, weights: now)
    result = tune("LLMSeqSim", "shop", params_dict=space, config_dict=settings)
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    (entry,) = report["auto"]
    now = SimpleNamespace(name=entry["name"], revision=entry["revision"])
    assert table(tune("LLMSeqSim", "shop", params_dict=space, config_dict=settings)) == table(result)
    now = SimpleNamespace(name="another", revision="1")
    with pytest.raises(CheckpointError, match="began with another language model: llm=auto was .* is another now"):
        tune("LLMSeqSim", "shop", params_dict=space, config_dict=settings)


def test_a_damaged_journal_is_named(settings):
    study_dir = tune("SASRec", "shop", params_dict=SPACE, config_dict={**settings, "epochs": 0})["study_dir"]
    lines, file = journal_of(study_dir)
    for damaged in (b"{}\n", b"nonsense\n", b"[]\n"):
        file.write_bytes(b"".join([*lines[:3], damaged, *lines[3:]]))
        with pytest.raises(CheckpointError, match="journal.log is damaged"):
            resume_study(study_dir)


def test_without_validation_data_there_is_nothing_to_search_by(settings):
    settings["eval_args"] = {"split": {"LS": "test_only"}}
    with pytest.raises(ConfigError, match="leaves no validation data"):
        tune("SASRec", "shop", params_dict=SPACE, config_dict=settings)


# ---- the command line


def test_the_command_line(settings, capsys):
    Path("a.test").write_text("hidden_size choice [8,16]\n", encoding="utf-8")
    Path("s.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    arguments = ["--model=SASRec", "--dataset=shop", "--config_files=s.yaml", "--epochs=1"]
    assert cli.main([*arguments, "--params_file=a.test"]) == 0
    (folder,) = Path("saved").iterdir()
    Path("s.yaml").unlink()
    assert cli.main(["tune", f"--resume={folder}"]) == 0
    assert cli.main(["tune", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} = " in text for name in StudyOptions.types())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--params_file=none.test"], "There is no file 'none.test'"),
        (["--params_file"], "--params_file needs a file"),
        (["--resume=saved/x", "--epochs=1"], "but not dataset, epochs, model"),
        (["--resume"], "needs the folder of a study"),
        (
            ["--algo=baies"],
            "invalid value for algo: 'baies' (choose from 'exhaustive', 'random', 'bayes' or ~ (null)). Did you mean",
        ),
        (["--max_evals=0"], "invalid value for max_evals: 0 (give a whole number of at least 1"),
        (["--prune_keep=2"], "invalid value for prune_keep: 2 (give a number above 0 and below 1)"),
        (["--parallel=2"], "parallel=2 applies to trials under Ray only: add --tool=Ray"),
        (["--output_file=a.result"], "a study writes study.csv"),
        (["--model=SASRec,GRU4Rec"], "a study searches the settings of one model"),
        (["--hidden_size=8"], "hidden_size is searched, but hidden_size=8 is given as well"),
    ],
)
def test_user_errors(arguments, says, shop, capsys):
    model = [] if "--model=SASRec,GRU4Rec" in arguments else ["--model=SASRec"]
    assert cli.main(["tune", *model, "--dataset=shop", *arguments]) == 2
    text = capsys.readouterr().err
    assert says in text and "Traceback" not in text


def test_a_space_with_every_kind(settings):
    space = {
        "choice": {"clip_grad_norm": [None, 1, {"max_norm": 5}], "loss_type": ["CE"], "hidden_act": ["gelu", "relu"]},
        "loguniform": {"learning_rate": [-9.21, -4.61]},
        "quniform": {"hidden_size": [8, 16, 8]},
        "uniform": {"hidden_dropout_prob": [0, 0.9]},
    }
    options = {"algo": "bayes", "max_evals": 8, "random_trials": 4}
    result = tune("SASRec", "shop", params_dict=space, config_dict={**settings, "epochs": 1}, **options)
    assert [trial.state for trial in result["trials"]] == ["finished"] * 8
    assert table(resume_study(result["study_dir"])) == table(result)
    again = yaml.safe_load(Path(result["config_file"]).read_text(encoding="utf-8"))
    assert {key: again.get(key) for key in result["best_params"]} == result["best_params"]
