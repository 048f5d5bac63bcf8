"""Lines in the log of a pass that takes long, and none of one that does not; a bar on a terminal."""

import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_llm import progress as module
from recbole_llm.convert import check, convert
from recbole_llm.progress import Progress


class Loader(list):
    """Batches of which some may be done already."""

    def __init__(self, length, rest):
        super().__init__(rest)
        self.length = length

    def __len__(self):
        return self.length


@pytest.fixture
def clock(monkeypatch, caplog):
    """A clock that only the test moves, in ``clock.now``."""
    caplog.set_level(logging.INFO)

    class Clock:
        now = 0.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def lines(clock, caplog, seconds, count, done=0):
    read = []
    batches = Loader(count + done, range(count))
    for _ in module.progress(batches, "Train, epoch 1", False, done, lambda: 1000 * len(read)):
        clock.now += seconds
        read.append(0)
    assert len(read) == count
    return [record.message for record in caplog.records]


def test_a_slow_pass_is_forecast_after_its_first_batch_and_then_every_half_minute(clock, caplog):
    said = lines(clock, caplog, 15.0, 6)
    assert said == [
        "Train, epoch 1: 17% of 6 batches, 67 tokens a second, about 75 s left",
        "Train, epoch 1: 50% of 6 batches, 67 tokens a second, about 45 s left",
        "Train, epoch 1: 83% of 6 batches, 67 tokens a second, about 15 s left",
    ]


def test_a_quick_pass_says_nothing(clock, caplog):
    assert lines(clock, caplog, 0.01, 50) == []


def test_a_resumed_pass_counts_what_was_done_and_not_its_time(clock, caplog):
    said = lines(clock, caplog, 100.0, 5, done=90)
    assert said[0] == "Train, epoch 1: 96% of 95 batches, 10 tokens a second, about 7 min left"


def test_without_a_total_there_is_no_share(clock, caplog):
    with Progress(None, "Recommend", "users") as passed:
        for _ in range(3):
            clock.now += 40
            passed.update(1000)
    assert caplog.messages == [
        f"Recommend: {n},000 users, {t} so far" for n, t in ((1, "40 s"), (2, "80 s"), (3, "2 min"))
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_unless_it_is_turned_off(clock, caplog, monkeypatch):
    drawn = {}
    for show in (True, False):
        monkeypatch.setattr("sys.stderr", Terminal())
        with Progress(4, "Encode item texts", "texts", show) as passed:
            clock.now += 60
            passed.update(2)
        drawn[show] = module.sys.stderr.getvalue()
    assert "Encode item texts" in drawn[True] and drawn[False] == ""
    assert caplog.messages == ["Encode item texts: 50% of 4 texts, about 60 s left"]


@pytest.mark.parametrize(("seconds", "text"), [(30, "30 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds, text):
    assert module.duration(seconds) == text


def test_converters_show_what_they_read_and_write(isolated, monkeypatch):
    Path("log.csv").write_text("who,what,at\nann,a,1\nann,b,2\n")
    monkeypatch.setattr(sys, "stderr", Terminal())
    columns = {"user_col": "who", "item_col": "what", "time_col": "at"}
    convert("generic", "log.csv", "dataset/log", **columns, progress=True)
    assert not check("log", progress=True).failed
    drawn = sys.stderr.getvalue()
    assert re.search(r"log\.csv.* bytes", drawn) and re.search(r"log\.inter.* lines", drawn)
    monkeypatch.setattr(sys, "stderr", Terminal())
    convert("generic", "log.csv", "dataset/log", **columns, overwrite=True)
    assert "log.inter" not in sys.stderr.getvalue()


def test_converters_say_how_far_they_are_where_there_is_no_terminal(isolated):
    rows = "".join(f"u{row % 50},i{row % 70},{row}\n" for row in range(40_000))
    Path("log.csv").write_text(f"who,what,at\n{rows}")
    arguments = ["generic", "--input", "log.csv", "--user_col=who", "--item_col=what", "--time_col=at"]
    code = "import recbole_llm.progress as p; p.EVERY = 0.0; from recbole_llm.cli import main; "
    for command in (["convert", *arguments, "--output=dataset/log"], ["check", "log"]):
        done = subprocess.run(
            [sys.executable, "-c", f"{code}raise SystemExit(main({command!r}))"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert re.search(r"log\.\w+: .* (left|so far)", done.stderr), done.stderr
        assert "so far" not in done.stdout


def test_converters_do_without_torch():
    code = "import recbole_llm.convert.command, sys; assert not {'torch', 'recbole'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
