import pytest

from recbole_llm.tune.journal import Trial
from recbole_llm.tune.pruning import Pruner


def pruner(rule="median", bigger=True, after=0, trials=1, keep=0.25, factor=3.0):
    return Pruner(rule, bigger, after, trials, keep, factor)


def trial(*scores, state="finished", stage=0):
    return Trial(0, {}, {}, state, curve=[[stage, epoch, score] for epoch, score in enumerate(scores)])


def curve(*scores, stage=0):
    return [[stage, epoch, score] for epoch, score in enumerate(scores)]


def test_median_compares_the_best_so_far_at_the_same_epoch():
    others = [trial(0.1, 0.5, 0.9), trial(0.3, 0.2, 0.1), trial(0.2, 0.4, 0.4)]
    # Best so far after two epochs: .5, .3, .4.
    assert pruner().reason(curve(0.1, 0.39), others) == "0.39 by epoch 1, median of 3 trials 0.4"
    assert pruner().reason(curve(0.1, 0.40), others) is None
    assert pruner().reason(curve(0.45, 0.0), others) is None  # was better before
    assert pruner("none").reason(curve(0.0), others) is None


def test_a_smaller_score_may_be_the_better_one():
    others = [trial(5.0), trial(3.0), trial(4.0)]
    assert pruner(bigger=False).reason(curve(4.1), others)
    assert pruner(bigger=False).reason(curve(4.0), others) is None


def test_percentile_lets_fewer_go_on():
    others = [trial(score) for score in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert pruner("median").reason(curve(3.5), others) is None
    assert pruner("percentile", keep=0.25).reason(curve(3.5), others)
    assert pruner("percentile", keep=0.25).reason(curve(4.0), others) is None
    assert pruner("percentile", keep=0.9).reason(curve(1.5), others) is None


def test_a_trial_that_stopped_by_itself_still_counts_but_a_pruned_one_only_where_it_has_been():
    assert pruner().reason(curve(0.1, 0.1, 0.1), [trial(0.5)])
    assert pruner().reason(curve(0.1, 0.1, 0.1), [trial(0.5, state="pruned")]) is None
    assert pruner().reason(curve(0.1), [trial(0.5, state="pruned")])
    assert pruner().reason(curve(0.1), [trial(0.5, state="failed")]) is None


def test_every_trial_gets_its_first_epochs_and_needs_company():
    others = [trial(0.5, 0.5, 0.5), trial(0.5, 0.5, 0.5)]
    assert pruner(after=3).reason(curve(0.1, 0.1), others) is None
    assert pruner(after=3).reason(curve(0.1, 0.1, 0.1), others)
    assert pruner(trials=3).reason(curve(0.1), others) is None


def test_stages_are_compared_with_stages():
    first_only = trial(0.5)
    both = Trial(1, {}, {}, "finished", curve=[[0, 0, 0.1], [1, 0, 0.2]])
    assert pruner().reason([[0, 0, 0.15], [1, 0, 0.15]], [both])
    assert pruner().reason([[0, 0, 0.15]], [both]) is None
    assert pruner().reason([[0, 0, 0.15]], [first_only])


@pytest.mark.parametrize(
    ("epochs", "own", "others", "pruned"),
    [
        (1, 0.1, [], False),  # the first to come goes on
        (1, 0.1, [0.5], True),  # one of two goes on
        (1, 0.4, [0.5, 0.3, 0.2, 0.1, 0.0], False),  # two of six
        (1, 0.3, [0.5, 0.4, 0.2, 0.1, 0.0], True),
        (2, 0.0, [0.5, 0.4], False),  # no rung at two epochs
        (3, 0.0, [0.5, 0.4], True),
    ],
)
def test_successive_halving(epochs, own, others, pruned):
    rule = pruner("halving", after=1, factor=3.0)
    reason = rule.reason(curve(*[own] * epochs), [trial(*[score] * epochs) for score in others])
    assert (reason is not None) is pruned


def test_halving_counts_a_rung_once_also_where_validation_skips_it():
    rule = pruner("halving", after=1, factor=3.0)
    others = [trial(*[0.5] * 9), trial(*[0.5] * 9)]
    skipping = [[0, 1, 0.9], [0, 3, 0.1]]  # validated after 2 and 4 epochs: the rungs 1 and 3
    assert rule.reason(skipping, others) is None  # its best so far is .9
    assert rule.reason([[0, 1, 0.1]], others)
    assert rule.reason([[0, 1, 0.1], [0, 3, 0.1]], others)
    assert rule.reason([[0, 2, 0.1], [0, 3, 0.1]], others) is None
