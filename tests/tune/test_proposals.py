import itertools
import sys

import pytest

from recbole_llm.errors import ConfigError, MissingExtraError
from recbole_llm.tune.journal import Trial
from recbole_llm.tune.proposals import Grid, choose
from recbole_llm.tune.space import read_lines

SPACE = read_lines(["n_layers choice [1,2,3]", "loss_type choice ['CE','BPR']"], "a.test")
RANGES = read_lines(
    ["learning_rate loguniform -8,0", "hidden_size quniform 16,64,16", "act choice ['a','b']"], "a.test"
)


@pytest.fixture
def hyperopt():
    return pytest.importorskip(
        "hyperopt", exc_type=ImportError, reason="hyperopt is not installed, or does not work here"
    )


def searched(proposals, space, score, count):
    """Trials as a study would run them; ``score`` of the settings, or None for a failure."""
    trials = []
    for number in range(count):
        point = proposals.propose(number, trials)
        if point is None:
            break
        params = {parameter.name: parameter.value(point[parameter.name]) for parameter in space}
        value = score(params)
        trials.append(Trial(number, params, point, "failed" if value is None else "finished", score=value))
    return trials


def test_the_grid_has_every_combination_once():
    trials = searched(Grid(SPACE), SPACE, lambda params: 0.0, 99)
    assert [tuple(trial.params.values()) for trial in trials] == list(itertools.product([1, 2, 3], ["CE", "BPR"]))


def test_a_range_has_no_grid():
    with pytest.raises(ConfigError, match="a.test, line 1: algo=exhaustive .* but learning_rate is loguniform"):
        Grid(RANGES)


def test_a_grid_is_not_cut_in_silence():
    with pytest.raises(ConfigError, match="tries all 6 combinations, but max_evals=4"):
        choose("exhaustive", SPACE, 4, 0, True, 20)
    assert choose(None, SPACE, None, 0, True, 20)[0] == "exhaustive"
    assert choose("exhaustive", SPACE, 6, 0, True, 20)[0] == "exhaustive"


def test_missing_hyperopt_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperopt", None)
    for algo, space in (("random", SPACE), (None, RANGES)):
        with pytest.raises(MissingExtraError, match=r"pip install 'recbole-llm\[tune\]'.*algo=exhaustive needs no"):
            choose(algo, space, None, 0, True, 20)
    assert choose("exhaustive", SPACE, None, 0, True, 20)[0] == "exhaustive"


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_the_same_results_lead_to_the_same_proposals(algo, hyperopt):
    def run(seed, bigger=True):
        proposals = choose(algo, RANGES, 100, seed, bigger, 3)[1]
        return [t.params for t in searched(proposals, RANGES, lambda p: abs(p["learning_rate"] - 0.01), 8)]

    assert run(1) == run(1) != run(2)
    for params in run(1):
        assert 3.3e-4 < params["learning_rate"] < 1 and params["act"] in ("a", "b")
        assert type(params["hidden_size"]) is int and params["hidden_size"] in (16, 32, 48, 64)


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_nothing_is_tried_twice_and_a_small_space_ends(algo, hyperopt):
    proposals = choose(algo, SPACE, 99, 0, True, 2)[1]
    trials = searched(proposals, SPACE, lambda params: None if params["n_layers"] == 3 else 1.0, 99)
    assert sorted(tuple(trial.params.values()) for trial in trials) == sorted(
        itertools.product([1, 2, 3], ["CE", "BPR"])
    )


@pytest.mark.parametrize("bigger", [True, False])
def test_tpe_learns_from_scores_whichever_way_is_better(bigger, hyperopt):
    sign = 1 if bigger else -1
    space = read_lines(["x uniform 0,1"], "a.test")
    proposals = choose("bayes", space, 99, 0, bigger, 10)[1]
    trials = searched(proposals, space, lambda params: -sign * abs(params["x"] - 0.8), 30)
    late = [abs(trial.params["x"] - 0.8) for trial in trials[15:]]
    assert sum(late) / len(late) < 0.25  # 0.34 at random


def test_recboles_own_tuner_takes_our_objective_function(hyperopt, shop, tiny, capsys):
    from recbole.trainer import HyperTuning

    from recbole_llm.tune import objective_function

    fixed = {**tiny, "model": "SASRec", "dataset": "shop", "state": "warning"}
    tuner = HyperTuning(
        lambda params, files: objective_function({**fixed, **params}, files),
        params_dict={"choice": {"hidden_size": [8, 16]}},
        algo="bayes",
        max_evals=2,
    )
    tuner.run()
    assert tuner.model == "SASRec" and tuner.best_params["hidden_size"] in (8, 16)
    assert all(result["test_result"] == {} for result in tuner.params2result.values())
