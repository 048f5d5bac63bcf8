"""Rows with a search: tuned on validation data first, each with the same budget, then run as found."""

import json
import shutil
from pathlib import Path

import pytest

from recbole_llm.compare import compare, searches
from recbole_llm.compare.leaderboard import leaderboard
from recbole_llm.compare.publish import check
from recbole_llm.compare.records import record_name
from recbole_llm.errors import ConfigError
from tests.worlds import write_cycle

pytest.importorskip("optuna", reason="studies need Optuna, the extra `tune`")

PLAN = """
dataset: cycle
seeds: [1, 2]
epochs: 1
train_batch_size: 64
MAX_ITEM_LIST_LENGTH: 5
hidden_size: 8
inner_size: 16
n_layers: 1
tune: {algo: random, max_evals: 2}
models:
  - MostPopular
  - {model: SASRec, search: {learning_rate: [0.1, 1.0e-9]}}
  - {model: LRURec, search: {dropout: "uniform 0,0.5"}}
baselines: [MostPopular]
"""
HERE = {"data_path": "data", "show_progress": False, "use_gpu": False}
RESULTS = Path("docs/results")


@pytest.fixture(autouse=True)
def _isolated(isolated):
    write_cycle(isolated / "data")
    Path("toy.yaml").write_text(PLAN, encoding="utf-8")


@pytest.fixture
def studied(monkeypatch):
    """Return the names of the studies that run."""
    names, run = [], searches.run_study

    def noted(planned):
        names.append(planned.folder.name)
        return run(planned)

    monkeypatch.setattr(searches, "run_study", noted)
    return names


def board():
    return json.loads((RESULTS / "records/toy/board.json").read_text(encoding="utf-8"))


def test_rows_are_tuned_recorded_and_not_tuned_again(studied):
    leaderboard("toy.yaml", circumstances=HERE, seeds=[1])
    studies = board()["studies"]
    assert list(studies) == ["SASRec", "LRURec"] and len(studied) == 2
    for label, key in (("SASRec", "learning_rate"), ("LRURec", "dropout")):
        study = studies[label]
        assert study["trials"] == 2 and study["options"]["max_evals"] == 2 and study["seed"] not in (1, 2)
        table = Path("saved", study["study"], "study.csv").read_text(encoding="utf-8").splitlines()
        scores = [float(line.split(",")[2]) for line in table[1:]]
        assert study["best_valid_score"] == max(scores)
        record = json.loads((RESULTS / "records/toy" / record_name(label, 1)).read_text(encoding="utf-8"))
        assert record["settings"][key] == study["best_params"][key]
    assert studies["SASRec"]["best_params"] == {"learning_rate": 0.1}
    page = (RESULTS / "toy.md").read_text(encoding="utf-8")
    assert "## Tuning" in page and "`learning_rate choice [0.1, 1e-09]`" in page and "`learning_rate: 0.1`" in page
    assert check(RESULTS) == []

    # Neither another seed nor another machine tunes again.
    shutil.rmtree("saved")
    leaderboard("toy.yaml", circumstances=HERE, seeds=[2])
    assert len(studied) == 2 and board()["studies"] == studies
    assert [row["seeds"] for row in board()["rows"]] == [[1, 2]] * 3

    # Another space, budget or setting of the row does, for that row.
    Path("toy.yaml").write_text(PLAN.replace("1.0e-9", "0.05"), encoding="utf-8")
    leaderboard("toy.yaml", circumstances=HERE, rows=["SASRec"], seeds=[1])
    assert len(studied) == 3 and "SASRec" in studied[-1]


def test_a_row_that_is_not_tuned_yet_has_no_runs(studied):
    leaderboard("toy.yaml", circumstances=HERE, rows=["MostPopular"])
    assert not studied and [len(row["seeds"]) for row in board()["rows"]] == [2, 0, 0]
    assert "## Tuning" not in (RESULTS / "toy.md").read_text(encoding="utf-8")


def test_compare_tunes_too(studied):
    made = compare(config_file_list=["toy.yaml"], config_dict={**HERE, "seeds": [1]})
    rates = {row.label: row.runs[0].results["settings"].get("learning_rate") for row in made.rows}
    assert len(studied) == 2 and rates["SASRec"] == 0.1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("search: {learning_rate: [0.1]}, learning_rate: 0.1", "learning_rate is searched, but"),
        ("search: {learning_rate: 0.1}", "must map settings to lists of options"),
        ("search: [learning_rate]", "must map settings to lists of options"),
        ("search: {dropuot: [0.1]}", "dropuot"),
        ("search: {topk: [[5], [10]]}", "changes what is measured"),
        ("search: {learning_rate: 'normal 0,1'}", "is not a kind"),
    ],
)
def test_searches_that_cannot_be_made(line, message, studied):
    old = "search: {learning_rate: [0.1, 1.0e-9]}"
    Path("toy.yaml").write_text(PLAN.replace(old, line), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        leaderboard("toy.yaml", circumstances=HERE)
    assert not studied and not Path("saved").exists()


def test_an_unknown_option_of_the_studies():
    Path("toy.yaml").write_text(PLAN.replace("max_evals", "max_evlas"), encoding="utf-8")
    with pytest.raises(ConfigError, match="'max_evlas' is not an option of a study. Did you mean"):
        leaderboard("toy.yaml", circumstances=HERE)
