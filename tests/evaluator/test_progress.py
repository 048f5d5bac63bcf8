"""Lines in the log of a pass that takes long, and none of one that does not."""

import logging

import pytest

from recbole_llm.evaluator import progress as module


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


class Loader(list):
    """Batches of which some may be done already."""

    def __init__(self, length, rest):
        super().__init__(rest)
        self.length = length

    def __len__(self):
        return self.length


def lines(monkeypatch, caplog, seconds, count, done=0):
    caplog.set_level(logging.INFO)
    clock = Clock(monkeypatch)
    read = []
    for _ in module.progress(Loader(count + done, range(count)), "Train     0", False, done, lambda: 1000 * len(read)):
        clock.now += seconds
        read.append(0)
    assert len(read) == count
    return [record.message for record in caplog.records]


def test_a_slow_pass_is_forecast_after_its_first_batch_and_then_reported(monkeypatch, caplog):
    said = lines(monkeypatch, caplog, 25.0, 7)
    assert said[0] == "Train 0: 1 of 7 batches, 40 tokens a second, about 2 min left"
    assert said[1] == "Train 0: 4 of 7 batches, 40 tokens a second, about 75 s left"
    assert len(said) == 2


def test_a_quick_pass_says_nothing(monkeypatch, caplog):
    assert lines(monkeypatch, caplog, 0.01, 50) == []


def test_a_resumed_pass_counts_what_was_done_and_not_its_time(monkeypatch, caplog):
    said = lines(monkeypatch, caplog, 100.0, 5, done=90)
    assert said[0] == "Train 0: 91 of 95 batches, 10 tokens a second, about 7 min left"


@pytest.mark.parametrize(("seconds", "text"), [(30, "30 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds, text):
    assert module._duration(seconds) == text
