"""Trials under Ray, in processes of their own; skipped where it cannot be imported."""

import json
import sys
from pathlib import Path

import pytest

from recbole_llm.errors import ConfigError, MissingExtraError
from recbole_llm.tune import tune
from recbole_llm.tune.study import JOURNAL

SPACE = {"choice": {"hidden_size": [16, 8], "learning_rate": [0.05, 1e-9]}}
# Codes of Optuna's journal.
CREATE_TRIAL, END_TRIAL = 4, 6


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


@pytest.fixture(scope="module")
def cluster():
    """One local Ray for all tests of this module."""
    try:
        import ray
    except Exception as error:  # each old version fails in a way of its own on today's packages
        pytest.skip(f"Ray cannot be imported here ({type(error).__name__}: {error})")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def settings(shop, tiny):
    return {**tiny, "epochs": 3, "n_layers": 1, "inner_size": 16, "data_path": str(Path("dataset").resolve())}


def test_missing_ray_is_said_with_the_remedy(monkeypatch, shop, tiny):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install -U ray\. Without Ray, leave --tool out"):
        tune("SASRec", "shop", params_dict=SPACE, config_dict=tiny, tool="Ray")


def test_ray_gives_what_one_trial_after_the_other_gives(cluster, settings):
    alone = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings, study="alone")
    beside = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings, study="beside", tool="Ray", parallel=2)
    pairs = list(zip(alone["trials"], beside["trials"], strict=True))
    assert all((a.params, a.score, a.curve, a.result) == (b.params, b.score, b.curve, b.result) for a, b in pairs)
    assert beside["test_result"] == alone["test_result"]
    log = Path(beside["run_dir"]) / "run.log"
    assert "epoch 3 evaluating" in log.read_text(encoding="utf-8")

    # Two trials were under way at the same time: both were added before the first one ended.
    file = Path(beside["study_dir"]) / JOURNAL
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    operations = [json.loads(line)["op_code"] for line in lines]
    added = [place for place, code in enumerate(operations) if code == CREATE_TRIAL]
    assert added[1] < operations.index(END_TRIAL)

    # A study may change its tool: what ended stays, what did not is done.
    file.write_text("".join(lines[: added[2] + 1]), encoding="utf-8")
    again = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings, study="beside")
    assert [trial.score for trial in again["trials"]] == [trial.score for trial in alone["trials"]]


def test_ray_prunes_and_notes_failures(cluster, settings):
    space = {"choice": {"hidden_size": [16, 9, 8], "learning_rate": [0.05, 1e-9]}}
    options = {"tool": "Ray", "parallel": 1, "pruner": "median", "prune_after": 1, "prune_trials": 1}
    result = tune("SASRec", "shop", params_dict=space, config_dict=settings, **options)
    states = [trial.state for trial in result["trials"]]
    assert states[2:4] == ["failed", "failed"] and states[0] == "finished" and "pruned" in states
    for trial in result["trials"]:
        if trial.state == "pruned":
            assert len(trial.curve) == trial.details["epochs"] < 3
    assert "multiple of the number of" in result["trials"][2].details["error"]


def test_what_ray_is_asked_for_must_be_there(cluster, settings):
    with pytest.raises(ConfigError, match="cpus_per_trial=99, but the cluster has 2 CPUs"):
        tune("SASRec", "shop", params_dict=SPACE, config_dict=settings, tool="Ray", cpus_per_trial=99)
