"""Trials under Ray Tune, in processes of their own; skipped where it cannot be imported."""

import sys
from pathlib import Path

import pytest

from recbole_llm.errors import ConfigError, MissingExtraError
from recbole_llm.tune import StudyError, tune
from recbole_llm.tune.journal import Journal

SPACE = {"choice": {"hidden_size": [16, 8], "learning_rate": [0.05, 1e-9]}}


def ray_tune_works():
    try:
        from ray import tune as ray_tune
    except Exception as error:  # each old version fails in a way of its own on today's packages
        return f"Ray Tune cannot be imported here ({type(error).__name__}: {error})"
    return "" if ray_tune else "Ray Tune is missing"


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


@pytest.fixture(scope="module")
def cluster():
    """One local Ray for all tests of this module."""
    reason = ray_tune_works()
    if reason:
        pytest.skip(reason)
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def settings(shop, tiny):
    return {**tiny, "epochs": 3, "n_layers": 1, "inner_size": 16, "data_path": str(Path("dataset").resolve())}


def test_missing_ray_is_said_with_the_remedy(monkeypatch, shop, tiny):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install -U 'ray\[tune\]'.*Without Ray: --tool=Hyperopt"):
        tune("SASRec", "shop", params_dict=SPACE, config_dict=tiny, tool="Ray")


def test_ray_gives_what_one_trial_after_the_other_gives(cluster, settings):
    alone = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings, study="alone")
    beside = tune("SASRec", "shop", params_dict=SPACE, config_dict=settings, study="beside", tool="Ray", parallel=2)
    pairs = list(zip(alone["trials"], beside["trials"], strict=True))
    assert all((a.params, a.score, a.curve, a.result) == (b.params, b.score, b.curve, b.result) for a, b in pairs)
    assert beside["test_result"] == alone["test_result"]
    log = Path(beside["run_dir"]) / "run.log"
    assert "epoch 2 evaluating" in log.read_text(encoding="utf-8")

    # Two trials were under way at the same time.
    lines = Journal(Path(beside["study_dir"]) / "trials.jsonl").file.read_text(encoding="utf-8").splitlines()
    events = [("started" if '"event": "started"' in line else "ended") for line in lines]
    assert events[:2] == ["started", "started"]

    # A study may change its tool: what ended stays, what did not is done.
    journal = Path(beside["study_dir"]) / "trials.jsonl"
    journal.write_text("".join(line + "\n" for line in lines[:4]), encoding="utf-8")
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


def test_a_study_of_failures_ends_under_ray_too(cluster, settings):
    space = {"choice": {"hidden_size": [9], "seed": list(range(9))}}
    with pytest.raises(StudyError, match="The first [5-7] trials failed"):
        tune("SASRec", "shop", params_dict=space, config_dict=settings, tool="Ray", parallel=2)
