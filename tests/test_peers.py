"""benchmarks/peers.py: its evaluator against hand-made lists, every library that is installed on a tiny world."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds import write_cycle

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("peers", BENCHMARKS / "peers.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "peers", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_histories_are_padded_on_the_left_and_keep_the_newest(peers):
    rows = peers.padded([np.array([1, 2, 3]), np.array([4])], 2)
    assert rows.tolist() == [[2, 3], [0, 4]]


def test_targets_are_ranked_among_what_the_user_did_not_have(peers):
    split = peers.Split([np.array([1, 2, 3, 4]), np.array([2, 3, 1, 5])], 20)

    def scores(items):  # smaller ids first
        return -torch.arange(21.0).repeat(len(items), 1)

    # After 1, 2, 3 the first that is left is 4; after 2, 3, 1 item 4 is before 5.
    assert peers.evaluate(split, scores, 3, part=-1) == {
        "recall@10": 1.0,
        "ndcg@10": pytest.approx((1 + 1 / np.log2(3)) / 2),
    }
    # Validation: 3 after 1, 2 and 1 after 2, 3.
    assert peers.evaluate(split, scores, 3, part=-2)["ndcg@10"] == 1.0


def test_training_ends_after_misses_and_the_best_weights_are_tested(peers, monkeypatch):
    class Options:
        eval_step, patience, length = 2, 2, 3

    found = iter([0.1, 0.3, 0.2, 0.3, 0.7])
    monkeypatch.setattr(peers, "evaluate", lambda *arguments, **options: {"ndcg@10": next(found)})
    model = torch.nn.Linear(1, 1)
    course = peers.Course(peers.Split([], 1), Options)
    ended = []
    for epoch in range(1, 9):
        torch.nn.init.constant_(model.weight, float(epoch))
        ended.append(course.epoch_ended(model, None))
    assert ended == [False] * 7 + [True]  # an equal score is a miss
    assert course.best_epoch == 4 and course.result(model, None)["ndcg@10"] == 0.7
    assert model.weight.item() == 4.0


@pytest.mark.parametrize("row", ["RePlay SasRec", "RecTools SASRec", "ours, all positions", "LRURec"])
def test_every_library_learns_what_comes_next(peers, row, isolated, monkeypatch, capsys):
    reason = peers.missing(peers.ROWS[row])
    if reason:
        pytest.skip(reason)
    write_cycle(isolated / "data")
    arguments = ["--dataset=cycle", f"--data_path={isolated / 'data'}", "--length=5", "--width=16", "--layers=1"]
    arguments += ["--heads=1", "--epochs=2", "--eval_step=1", "--batch=16", "--dropout=0.0", f"--one={row}"]
    monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
    peers.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["epochs"] == 2 and 1 <= result["best_epoch"] <= 2
    assert 0 <= result["ndcg@10"] <= result["recall@10"] <= 1 and result["cpu_to_best"] > 0 and result["peak_mb"] > 0


def test_what_is_not_installed_is_said(peers):
    assert peers.missing("no-such-package-at-all") == "no-such-package-at-all is not installed"
    assert peers.missing(None) is None and peers.missing("torch") is None
