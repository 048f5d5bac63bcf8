"""``study.html`` and ``study.csv``: what they say of a study whose numbers are known."""

import csv
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest

from recbole_llm.tune import resume_study, tune
from recbole_llm.tune.options import options_of
from recbole_llm.tune.page import groups_of, importance
from recbole_llm.tune.planning import decided
from recbole_llm.tune.space import read_lines
from recbole_llm.tune.study import Study, prune_rule
from recbole_llm.tune.trial import Outcome


class Tables(HTMLParser):
    """The text of every table of a page, by rows; what is outside of tables is left out."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.cell = [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(self.cell.split()))
            self.cell = None


def without_scripts(page):
    return re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)


def made_up(folder, lines, score, algo="exhaustive", pruned=lambda params: False, bigger=True, **options):
    """A study whose trials get the score of their settings, some pruned after their first epoch."""
    space = read_lines(lines, "a.test")
    study = Study(folder, space, decided(options_of({"algo": algo, **options}), space), "NDCG@10", bigger, 1)
    while (trial := study.ask()) is not None:
        value = score(trial.params)
        prune_rule(study.optuna, trial.number, "median")([(0, 1, value)])
        study.tell(trial, Outcome("pruned" if pruned(trial.params) else "finished", value))
    return study


def groups(study, name):
    (parameter,) = [parameter for parameter in study.space if parameter.name == name]
    return groups_of(study, parameter)


LINES = ["n_layers choice [1,2]", "loss_type choice ['CE','BPR']", "seed choice [1,2,3]"]


def score(params):
    return params["n_layers"] / 10 + params["seed"] / 1000


def test_mean_spread_and_best_of_each_value(tmp_path):
    study = made_up(tmp_path, LINES, score, pruned=lambda params: params["loss_type"] == "BPR" and params["seed"] == 3)
    one, two = groups(study, "n_layers")
    scores = [0.101, 0.101, 0.102, 0.102, 0.103]
    assert (one.label, one.trials, one.pruned, one.best) == ("1", 5, 1, pytest.approx(0.103))
    assert one.mean == pytest.approx(statistics.mean(scores))
    assert one.deviation == pytest.approx(statistics.stdev(scores))
    assert two.mean == pytest.approx(one.mean + 0.1)
    assert [(group.label, group.trials, group.pruned) for group in groups(study, "loss_type")] == [
        ("CE", 6, 0),
        ("BPR", 4, 2),
    ]


def test_a_single_trial_has_no_spread_and_smaller_may_be_better(tmp_path):
    study = made_up(tmp_path, ["n_layers choice [2,1]"], lambda params: 5.0 - params["n_layers"], bigger=False)
    assert [(group.label, group.best, group.deviation) for group in groups(study, "n_layers")] == [
        ("2", 3.0, None),
        ("1", 4.0, None),
    ]


def test_a_range_is_shown_in_quarters_of_the_trials(tmp_path):
    study = made_up(
        tmp_path,
        ["learning_rate loguniform -8,0"],
        lambda params: params["learning_rate"],
        algo="random",
        max_evals=40,
        early_stop=0,
    )
    quarters = groups(study, "learning_rate")
    assert [group.trials for group in quarters] == [10] * 4
    values = sorted(trial.params["learning_rate"] for trial in study.trials)
    assert quarters[0].label == f"{values[0]:.4g} to {values[9]:.4g}"
    assert quarters[3].best == values[-1] and quarters[1].mean == pytest.approx(statistics.mean(values[10:20]))


def test_a_few_values_of_a_range_and_options_that_look_alike(tmp_path):
    ranged, alike = tmp_path / "ranged", tmp_path / "alike"
    ranged.mkdir(), alike.mkdir()
    study = made_up(ranged, ["dropout uniform 0,0.5"], lambda params: 1.0, algo="random", max_evals=2)
    assert [group.label for group in groups(study, "dropout")] == sorted(
        str(t.params["dropout"]) for t in study.trials
    )
    study = made_up(alike, ["clip_grad_norm choice [1,1.0,True]"], lambda params: 1.0)
    assert [(group.place, group.label) for group in groups(study, "clip_grad_norm")] == [
        (0, "1"),
        (1, "1.0"),
        (2, "True"),
    ]


def test_importance_names_the_parameter_that_matters(tmp_path):
    study = made_up(tmp_path, LINES, score)
    shares = importance(study)
    assert shares["n_layers"] > 0.9 > shares["seed"] and sum(shares.values()) == pytest.approx(1.0)


def test_importance_of_too_few_trials_is_not_given(tmp_path):
    assert importance(made_up(tmp_path, LINES[:2], lambda params: params["n_layers"])) == {}


@pytest.fixture
def settings(isolated, shop, tiny, monkeypatch):
    monkeypatch.setattr("recbole_llm.tune.trial._free_memory", lambda: None)
    return {**tiny, "epochs": 2, "n_layers": 1, "inner_size": 16}


def test_the_page_of_a_study(settings):
    space = {"choice": {"hidden_size": [8, 16, 9], "learning_rate": [0.1, 0.001], "loss_type": ["CE"]}}
    result = tune("SASRec", "shop", params_dict=space, config_dict=settings, study="saved/my study")
    folder = Path(result["study_dir"])
    page = (folder / "study.html").read_text(encoding="utf-8")

    # One file: nothing is loaded from elsewhere.
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=", page) and "@import" not in page
    text = without_scripts(page)
    assert "Study of SASRec on shop" in text and "6 trials" in text

    # The tables, which need no script.
    metrics, parameters, *effects, trials = Tables(text).tables
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    assert metrics[0] == ["Metric", "Best validation", "Test, history masked", "Test, history not masked"]
    assert [
        "NDCG@5",
        *(
            f"{figures['ndcg@5']:.6f}"
            for figures in (report["best_valid_result"], report["test_masked"], report["test_unmasked"])
        ),
    ] in metrics
    best = result["best_params"]
    assert [row[:2] for row in parameters[1:]] == [[name, str(value)] for name, value in best.items()]
    assert {row[3] for row in parameters[1:]} == {"–"} and "Too few finished trials (4 of 8)" in text
    assert "Effect of loss_type" not in text  # it has one option
    by_name = dict(zip(re.findall(r"<h3>Effect of (\w+)</h3>", text), effects, strict=True))
    scores = [trial.score for trial in result["trials"] if trial.params["hidden_size"] == 8]
    assert by_name["hidden_size"][1][:3] == ["8", "2", f"{statistics.mean(scores):.6f}"]
    assert len(by_name["hidden_size"]) == 3  # of the failed trials there is nothing to show
    assert [row[0] for row in trials[1:]] == [
        str(trial.number) for trial in sorted(result["trials"], key=lambda t: (t.score is None, -(t.score or 0)))
    ]
    assert "multiple of the number of" in trials[-1][-1]

    # Where the numbers come from, and how to go on.
    fact = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert "leave-one-out" in fact["Protocol"] and "seed 2020" in fact["Protocol"]
    assert "exhaustive, seed 2020" in fact["Search"] and "every setting has been tried" in fact["Search"]
    assert "shop.inter sha256:" in fact["Files"] and "torch" in fact["Code"] and fact["Hardware"] and fact["Optuna"]
    assert "2 of 6 trials failed" in text
    (commands,) = re.findall(r"<pre>(.*?)</pre>", text, flags=re.S)
    assert commands.replace("&#39;", "'").splitlines()[:2] == [
        f"recbole-llm --config_files='{folder}/best.yaml'",
        f"recbole-llm recommend '{result['run_dir']}'",
    ]


def test_the_page_says_that_the_test_set_was_evaluated_twice(settings):
    space = {"choice": {"learning_rate": [1e-9, 0.1, 0.05]}}
    first = tune("SASRec", "shop", params_dict=space, config_dict=settings, algo="random", max_evals=1)
    again = resume_study(first["study_dir"], max_evals=3)
    page = (Path(again["study_dir"]) / "study.html").read_text(encoding="utf-8")
    if again["run_dir"] == first["run_dir"]:
        assert "winners in turn" not in page
    else:
        assert "The test set was evaluated for 2 winners in turn: trials 0," in page
        assert all((Path(result["run_dir"]) / "model.safetensors").is_file() for result in (first, again))


def test_the_table_of_trials_as_a_file(settings):
    space = {"choice": {"hidden_size": [9, 8], "seed": [1, 2]}}
    result = tune("SASRec", "shop", params_dict=space, config_dict=settings)
    with (Path(result["study_dir"]) / "study.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    heads = ["trial", "state", "best_valid_NDCG@5", "hidden_size", "seed", "recall@5", "ndcg@5", "mrr@5", "best_epoch"]
    assert list(rows[0])[: len(heads)] == heads and list(rows[0])[-1] == "note"
    assert [row["state"] for row in rows] == ["failed", "failed", "finished", "finished"]
    assert rows[0]["ndcg@5"] == "" and float(rows[2]["ndcg@5"]) == result["trials"][2].result["ndcg@5"]
    assert int(rows[2]["parameters"]) > 0 and int(rows[2]["peak_memory_mb"]) > 0


def test_a_page_of_every_kind_of_parameter(settings):
    space = {
        "choice": {"clip_grad_norm": [None, 1, {"max_norm": 5}], "loss_type": ["CE"], "hidden_act": ["gelu", "relu"]},
        "loguniform": {"learning_rate": [-9.21, -4.61]},
        "quniform": {"hidden_size": [8, 16, 8]},
        "uniform": {"hidden_dropout_prob": [0, 0.9]},
    }
    options = {"algo": "bayes", "max_evals": 9, "random_trials": 4}
    result = tune("SASRec", "shop", params_dict=space, config_dict={**settings, "epochs": 1}, **options)
    assert [trial.state for trial in result["trials"]] == ["finished"] * 9
    text = without_scripts((Path(result["study_dir"]) / "study.html").read_text(encoding="utf-8"))
    names = re.findall(r"<h3>Effect of (\w+)</h3>", text)
    shares = {row[0]: row[3] for row in Tables(text).tables[1][1:]}
    assert shares["loss_type"] == "–" and set(names) == set(shares) - {"loss_type"}
    found = [float(shares[name].removesuffix(" %")) for name in names]
    assert found == sorted(found, reverse=True) and 97 <= sum(found) <= 103  # rounded
