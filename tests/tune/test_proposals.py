"""What a study tries next, and when it gives a trial up: Optuna's samplers and pruners as our options set them."""

import itertools
import sys
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.errors import ConfigError, MissingExtraError
from recbole_llm.tune import tune
from recbole_llm.tune.options import options_of, pruner_of, sampler_of
from recbole_llm.tune.planning import decided
from recbole_llm.tune.space import read_lines
from recbole_llm.tune.study import STAGE, Study, prune_rule
from recbole_llm.tune.trial import Outcome

optuna.logging.set_verbosity(optuna.logging.WARNING)
HALVING = options_of({"pruner": "halving", "prune_after": 1})

SPACE = read_lines(["n_layers choice [1,2,3]", "loss_type choice ['CE','BPR']"], "a.test")
RANGES = read_lines(
    ["learning_rate loguniform -8,0", "hidden_size quniform 16,64,16", "act choice ['a','b']"], "a.test"
)


def study_of(folder, space, seed=0, bigger=True, **options):
    folder.mkdir(exist_ok=True)
    return Study(folder, space, decided(options_of(options), space), "NDCG@10", bigger, seed)


def searched(study, score, count):
    """Parameters of trials; ``score`` of the settings, or None for a failure."""
    tried = []
    for _ in range(count):
        trial = study.ask()
        if trial is None:
            break
        value = score(trial.params)
        tried.append(trial.params)
        study.tell(trial, Outcome("failed" if value is None else "finished", value, details={"error": ""}))
    return tried


def test_the_grid_has_every_combination_once(tmp_path):
    tried = searched(study_of(tmp_path, SPACE), lambda params: 0.0, 99)
    assert [tuple(params.values()) for params in tried] == list(itertools.product([1, 2, 3], ["CE", "BPR"]))


def test_exhaustive_tries_every_multiple(tmp_path):
    space = read_lines(["hidden_size quniform 16,48,16", "act choice ['a','b']"], "a.test")
    tried = searched(study_of(tmp_path, space), lambda params: 0.0, 99)
    assert [tuple(params.values()) for params in tried] == list(itertools.product([16, 32, 48], "ab"))
    assert all(type(params["hidden_size"]) is int for params in tried)


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_a_space_of_multiples_ends_when_all_were_tried(algo, tmp_path):
    study = study_of(tmp_path, read_lines(["hidden_size quniform 16,112,16"], "a.test"), algo=algo, early_stop=0)
    tried = searched(study, lambda params: 1.0, 99)
    assert sorted(params["hidden_size"] for params in tried) == list(range(16, 113, 16))
    assert study.ended == "every setting has been tried"


def test_a_range_has_no_grid():
    with pytest.raises(ConfigError, match="a.test, line 1: algo=exhaustive .* but learning_rate is loguniform"):
        decided(options_of({"algo": "exhaustive"}), RANGES)


def test_a_grid_is_not_cut_in_silence():
    with pytest.raises(ConfigError, match="tries all 6 combinations, but max_evals=4"):
        decided(options_of({"algo": "exhaustive", "max_evals": 4}), SPACE)
    assert decided(options_of({}), SPACE).algo == "exhaustive"
    assert decided(options_of({"max_evals": 5}), SPACE).algo == "bayes"
    assert decided(options_of({"algo": "exhaustive", "max_evals": 6}), SPACE).algo == "exhaustive"


def test_missing_optuna_is_said_with_the_remedy(monkeypatch, isolated, shop, tiny):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'recbole-llm\[tune\]'"):
        tune("SASRec", "shop", params_dict={"choice": {"hidden_size": [8]}}, config_dict=tiny)
    assert not Path("saved").exists()


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_the_same_results_lead_to_the_same_proposals(algo, tmp_path):
    def run(name, seed, killed_every=99):
        tried = []
        while len(tried) < 8:  # another process each time
            study = study_of(tmp_path / name, RANGES, seed, algo=algo, random_trials=3)
            tried += searched(
                study, lambda params: abs(params["learning_rate"] - 0.01), min(killed_every, 8 - len(tried))
            )
        return tried

    assert run("a", 1) == run("b", 1, killed_every=3) != run("c", 2)
    for params in run("d", 1):
        assert 3.3e-4 < params["learning_rate"] < 1 and params["act"] in ("a", "b")
        assert type(params["hidden_size"]) is int and params["hidden_size"] in (16, 32, 48, 64)


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_nothing_is_tried_twice_and_a_small_space_ends(algo, tmp_path):
    study = study_of(tmp_path, SPACE, algo=algo, random_trials=2, early_stop=0)
    tried = searched(study, lambda params: None if params["n_layers"] == 3 else 1.0, 99)
    assert sorted(tuple(params.values()) for params in tried) == sorted(itertools.product([1, 2, 3], ["CE", "BPR"]))
    assert study.ended == "every setting has been tried"


@pytest.mark.parametrize("bigger", [True, False])
def test_tpe_learns_from_scores_whichever_way_is_better(bigger, tmp_path):
    sign = 1 if bigger else -1
    study = study_of(tmp_path, read_lines(["x uniform 0,1"], "a.test"), 0, bigger, algo="bayes", random_trials=10)
    tried = searched(study, lambda params: -sign * abs(params["x"] - 0.8), 30)
    late = [abs(params["x"] - 0.8) for params in tried[15:]]
    assert sum(late) / len(late) < 0.25  # 0.34 at random


# ---- pruning


def curve(*scores, stage=0):
    return [[stage, epoch, score] for epoch, score in enumerate(scores, 1)]


def pruned(tmp_path, own, others, bigger=True, **options):
    """Whether a trial stops at the end of its curve, after the others finished with theirs."""
    space = read_lines([f"n_layers choice {list(range(len(others) + 1))}"], "a.test")
    options = {"pruner": "median", "prune_after": 0, "prune_trials": 1, **options}
    study = study_of(tmp_path, space, bigger=bigger, **options)
    for scores in others:
        trial = study.ask()
        rule = prune_rule(study.optuna, trial.number, "median")
        for place in range(len(scores)):
            rule(scores[: place + 1])
        study.tell(trial, Outcome("finished", scores[-1][-1]))
    trial = study.ask()
    rule = prune_rule(study.optuna, trial.number, "median")
    reasons = [rule(own[: place + 1]) for place in range(len(own))]
    assert not any(reasons[:-1])
    if reasons[-1]:
        study.tell(trial, Outcome("pruned", details={"reason": reasons[-1]}))
        noted = study.trials[trial.number]
        scores = [score for _, _, score in own]
        assert noted.score == (max(scores) if bigger else min(scores)) and noted.curve == [tuple(p) for p in own]
    return bool(reasons[-1])


def test_median_compares_the_best_so_far_with_the_others_at_that_epoch(tmp_path):
    others = [curve(0.1, 0.5, 0.9), curve(0.3, 0.2, 0.1), curve(0.2, 0.4, 0.4)]
    assert pruned(tmp_path / "a", curve(0.25, 0.39), others)
    assert not pruned(tmp_path / "b", curve(0.25, 0.40), others)
    assert not pruned(tmp_path / "c", curve(0.45, 0.0), others)  # was better before
    assert not pruned(tmp_path / "d", curve(0.0), others, pruner="none")


def test_a_smaller_score_may_be_the_better_one(tmp_path):
    others = [curve(5.0), curve(3.0), curve(4.0)]
    assert pruned(tmp_path / "a", curve(4.1), others, bigger=False)
    assert not pruned(tmp_path / "b", curve(4.0), others, bigger=False)


def test_percentile_lets_fewer_go_on(tmp_path):
    others = [curve(score) for score in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert not pruned(tmp_path / "a", curve(3.5), others)
    assert pruned(tmp_path / "b", curve(3.5), others, pruner="percentile", prune_keep=0.25)
    assert not pruned(tmp_path / "c", curve(4.0), others, pruner="percentile", prune_keep=0.25)


def test_every_trial_gets_its_first_epochs_and_needs_company(tmp_path):
    others = [curve(0.5, 0.5, 0.5), curve(0.5, 0.5, 0.5)]
    assert not pruned(tmp_path / "a", curve(0.1, 0.1), others, prune_after=3)
    assert pruned(tmp_path / "b", curve(0.1, 0.1, 0.1), others, prune_after=3)
    assert not pruned(tmp_path / "c", curve(0.1), others, prune_trials=3)


def test_stages_are_compared_with_stages(tmp_path):
    both = [*curve(0.1), *curve(0.2, stage=1)]
    assert pruned(tmp_path / "a", [*curve(0.15), *curve(0.15, stage=1)], [both])
    assert not pruned(tmp_path / "b", [*curve(0.1), *curve(0.25, stage=1)], [both])
    assert STAGE > 10**5


def frozen(number, *scores, state="COMPLETE"):
    """A trial with scores after 1, 2, ... epochs."""
    steps = dict(enumerate(scores, 1))
    state = optuna.trial.TrialState[state]
    value = scores[-1] if state == optuna.trial.TrialState.COMPLETE else None
    trial = optuna.trial.create_trial(state=state, value=value, intermediate_values=steps)
    trial.number = number
    return trial


@pytest.mark.parametrize(
    ("own", "others", "stops"),
    [
        ([0.1], [], False),  # the first to come goes on
        ([0.1], [[0.5]], True),  # one of two goes on
        ([0.5], [[0.5]], False),
        ([0.4], [[0.5], [0.3], [0.2], [0.1], [0.0]], False),  # two of six
        ([0.3], [[0.5], [0.4], [0.2], [0.1], [0.0]], True),
        ([0.9, 0.0], [[0.5, 0.5], [0.4, 0.4]], False),  # no rung at two epochs
        ([0.9, 0.0, 0.0], [[0.5, 0.5, 0.5], [0.4, 0.4, 0.4]], True),
        ([0.9, 0.0, 0.45], [[0.5, 0.5, 0.5], [0.4, 0.4]], True),  # who stopped before a rung was not on it
        ([0.9, 0.0, 0.6], [[0.5, 0.5, 0.5], [0.7]], False),
    ],
)
@pytest.mark.parametrize("bigger", [True, False])
def test_successive_halving_lets_one_of_three_go_on(own, others, stops, bigger):
    sign = 1 if bigger else -1
    study = optuna.create_study(direction="maximize" if bigger else "minimize")
    for scores in others:
        study.add_trial(frozen(0, *(sign * score for score in scores)))
    study.add_trial(frozen(0, *(sign * 9.0 for _ in own), state="FAIL"))  # failed trials do not count
    trial = frozen(99, *(sign * score for score in own), state="RUNNING")
    assert pruner_of(HALVING).prune(study, trial) is stops


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=9), min_size=1, max_size=9))
def test_halving_decides_as_optuna_does(curves):
    """Trial after trial, each until it is pruned; Optuna notes rungs as it goes."""
    ours, theirs = pruner_of(HALVING), optuna.pruners.SuccessiveHalvingPruner(1, 3)
    stops = []
    for pruner in (ours, theirs):
        study = optuna.create_study(direction="maximize", pruner=pruner)
        stops.append([])
        for scores in curves:
            trial = study.ask()
            for step, score in enumerate(scores, 1):
                trial.report(score, step)
                if trial.should_prune():
                    break
            stops[-1].append(step)
            study.tell(trial, scores[step - 1])
    assert stops[0] == stops[1]


def test_optuna_gets_what_the_options_say():
    assert isinstance(pruner_of(options_of({"pruner": "none"})), optuna.pruners.NopPruner)
    assert isinstance(sampler_of(options_of({"algo": "random"}), 0), optuna.samplers.RandomSampler)
    assert isinstance(sampler_of(options_of({"algo": "bayes"}), 0), optuna.samplers.TPESampler)


# ---- RecBole's own tuner


def test_recboles_own_tuner_takes_our_objective_function(isolated, shop, tiny, capsys):
    pytest.importorskip("hyperopt", exc_type=ImportError, reason="hyperopt is not installed, or does not work here")
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
