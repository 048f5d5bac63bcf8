"""Filters against plain Python, and the engine beyond its memory: the same bytes, and nothing left behind."""

import errno
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pytest
from convert_helpers import write
from hypothesis import given
from hypothesis import strategies as st

import recbole_llm.convert.interactions as engine
import recbole_llm.convert.output as output
from recbole_llm.convert import convert
from recbole_llm.convert.interactions import Filters, Interactions
from recbole_llm.errors import ConfigError, DataError
from tests.killing import kill_at_random, needs_fork, seconds_of
from tests.properties import examples

NUMBERS = st.integers(0, 6)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(-3, 3), st.integers(0, 1), st.integers(1, 5)), max_size=60)


def by_hand(rows, filters, titled):
    """Numbers of the rows that stay, in output order."""
    kept = [(n, *row) for n, row in enumerate(rows)]
    if filters.min_rating is not None:
        kept = [row for row in kept if row[5] >= filters.min_rating]
    if filters.untitled == "drop":
        kept = [row for row in kept if row[2] in titled]

    def time(row):
        return row[3], row[4], row[0]

    if filters.dedup != "none":
        chosen = {}
        for row in sorted(kept, key=time, reverse=filters.dedup == "last"):
            chosen.setdefault((row[1], row[2]), row)
        kept = sorted(chosen.values())
    while True:
        users, items = Counter(row[1] for row in kept), Counter(row[2] for row in kept)
        smaller = [row for row in kept if users[row[1]] >= filters.k_core and items[row[2]] >= filters.k_core]
        if len(smaller) == len(kept):
            break
        kept = smaller
    return [row[0] for row in (sorted(kept, key=time) if filters.order == "time" else kept)]


@examples(60)
@given(
    rows=ROWS,
    rating=st.sampled_from([None, 2, 4.0]),
    titled=st.none() | st.sets(NUMBERS),
    dedup=st.sampled_from(["none", "first", "last"]),
    core=st.sampled_from([0, 1, 2, 3, 5]),
    order=st.sampled_from(["time", "input"]),
)
def test_filters_as_by_hand(tmp_path_factory, rows, rating, titled, dedup, core, order):
    filters = Filters(rating, "keep" if titled is None else "drop", dedup, core, order)
    with Interactions(["place", "rating"], tmp_path_factory.getbasetemp()) as table:
        for start in range(0, len(rows), 7):
            part = rows[start : start + 7]
            user, item, time, micro, stars = ([row[at] for row in part] for at in range(5))
            places = [float(start + at) for at in range(len(part))]
            table.extend([f"u{u}" for u in user], [f"i{i}" for i in item], time, [places, stars], micro)
        mask = np.array([int(raw[1:]) in (titled or ()) for raw in table.items], dtype=bool)
        chosen = table.choose(filters, mask)
        blocks = list(chosen.blocks())
        expected = by_hand(rows, filters, titled)
        assert [int(place) for block in blocks for place in block["value0"]] == expected
        assert chosen.counts.interactions == len(expected)
        kept = [rows[place] for place in expected]
        assert chosen.counts.users == len({row[0] for row in kept}) == chosen.users.sum()
        assert chosen.counts.items == len({row[1] for row in kept}) == chosen.items.sum()
        users, items = list(table.users), list(table.items)
        read = [row for block in blocks for row in zip(*map(np.ndarray.tolist, block.values()), strict=True)]
        assert [(users[u], items[i], t, m, s) for u, i, t, m, _, s in read] == [
            (f"u{u}", f"i{i}", t, m, s) for u, i, t, m, s in kept
        ]


def test_columns_may_have_any_name(tmp_path):
    fields = ("number", "time", "rating", "value0", "select")
    with Interactions(fields, tmp_path) as table:
        table.extend(["a", "b"], ["x", "y"], [2, 1], [[1.0, 5.0]] * 5)
        (block,) = table.choose(Filters(min_rating=4)).blocks()
        assert [block[f"value{place}"].tolist() for place in range(5)] == [[5.0]] * 5
    with Interactions(["stars"], tmp_path) as table, pytest.raises(ConfigError, match="no rating"):
        table.choose(Filters(min_rating=4.0))


def test_batches_that_do_not_fit_are_refused(tmp_path):
    for values in ([], [[1.0, 2.0]], [[1.0], [1.0]]):
        with Interactions(["rating"], tmp_path) as table, pytest.raises((ValueError, DataError)):
            table.extend(["a"], ["b"], [1], values)
            table.choose(Filters())


def reviews(seed, n=300):
    """Few users, items and times: many repeated pairs and ties."""
    draw = random.Random(seed)
    return [
        (f"u{draw.randrange(20)}", f"i{draw.randrange(12)}", draw.randrange(15), draw.randrange(1, 6))
        for _ in range(n)
    ]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def amazon(tmp_path):
    lines = [
        json.dumps({"reviewerID": user, "asin": item, "overall": float(rating), "unixReviewTime": time})
        for user, item, time, rating in reviews(3)
    ]
    write(tmp_path / "in" / "reviews_Beauty.json", "\n".join(lines) + "\n")
    write(tmp_path / "in" / "meta_Beauty.json", "".join(f"{{'asin': 'i{n}', 'title': 'T{n}'}}\n" for n in range(9)))
    return tmp_path / "in"


LOG = {"user_col": "u", "item_col": "i", "time_col": "t"}


def fill(table, n):
    """Add made-up interactions with many ties and repeated pairs."""
    draw = np.random.default_rng(0)
    users, items = [f"u{k}" for k in range(2000)], [f"i{k}" for k in range(1000)]
    for _ in range(0, n, 50_000):
        user, item = draw.integers(0, 2000, 50_000), draw.integers(0, 1000, 50_000)
        times, micros = draw.integers(0, 10**6, 50_000).tolist(), draw.integers(0, 2, 50_000).tolist()
        table.extend([users[k] for k in user], [items[k] for k in item], times, (), micros)
    return table


@pytest.mark.parametrize("filters", [Filters(), Filters(dedup="first", k_core=150, order="input")])
def test_the_same_rows_from_the_disk(tmp_path, monkeypatch, filters):
    def rows(folder):
        with Interactions([], folder) as table:
            chosen = fill(table, 400_000).choose(filters)
            blocks = {name: [block[name] for block in chosen.blocks()] for name in ("user", "item", "time", "micro")}
            return chosen.steps, [np.concatenate(part) for part in blocks.values()], list(folder.glob("spilled/*"))

    steps, kept, _ = rows(tmp_path)
    monkeypatch.setattr(engine, "MEMORY", "20MB")
    monkeypatch.setattr(engine, "THREADS", 1)
    spilled_steps, spilled, on_disk = rows(tmp_path)
    assert on_disk, "the test is to use the disk"
    assert spilled_steps == steps
    assert all(map(np.array_equal, spilled, kept))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(tmp_path, monkeypatch, error):
    source = amazon(tmp_path)

    def interrupted(*_):
        raise error

    monkeypatch.setattr(output.Output, "write_json", interrupted)
    with pytest.raises(error):
        convert("amazon-beauty-2014", source, tmp_path / "out" / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@needs_fork
def test_kills_leave_nothing_that_matters(tmp_path):
    rows = (f"u{user},i{item},{time}\n" for user, item, time, _ in reviews(0, 20_000))
    source = write(tmp_path / "log.csv", "u,i,t\n" + "".join(rows))
    convert("generic", source, tmp_path / "undisturbed" / "set", **LOG)

    def work():
        convert("generic", source, tmp_path / "out" / "set", overwrite=True, **LOG)

    kill_at_random(work, seconds_of(work))
    work()
    assert files(tmp_path / "out" / "set") == files(tmp_path / "undisturbed" / "set")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["set"]


def test_a_full_disk_is_an_error_that_says_so(tmp_path, monkeypatch):
    with Interactions([], tmp_path) as table:

        class Full:
            def execute(self, _):
                raise duckdb.IOException("Could not write file: No space left on device\n\nLINE 1: ...")

            def register(self, *_):
                pass

        table._engine.close()
        monkeypatch.setattr(table, "_engine", Full())
        with pytest.raises(DataError, match="No space left on device.$"):
            table.choose(Filters())
        monkeypatch.undo()

    def refused(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    source = amazon(tmp_path)
    monkeypatch.setattr(output, "work_folder", refused)
    with pytest.raises(DataError, match="cannot be written: Permission denied"):
        convert("amazon-beauty-2014", source, tmp_path / "set")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of a process from /proc")
def test_memory_does_not_follow_the_interactions(tmp_path):
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "import test_interactions as tests\n"
        "tests.engine.MEMORY, tests.engine.THREADS = '24MB', 1\n"
        "with tests.Interactions([], Path(sys.argv[1])) as table:\n"
        "    for _ in tests.fill(table, int(sys.argv[2])).choose(tests.Filters(k_core=2)).blocks(): pass\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text()).group(1))\n"
    )
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parent), str(here.parents[2])])
    peaks = []
    for n in (500_000, 1_500_000):
        # Each in a process of its own: what the first one frees would not all be used again by the second.
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(n)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        peaks.append(int(done.stdout))
    # In memory a million rows more take 28 MB for the columns alone, and as much again to filter and to sort them.
    assert peaks[1] - peaks[0] < 28_000, peaks


def test_doubtful_times_are_said(tmp_path):
    def notes(times):
        text = "u,i,t\n" + "".join(f"u{n % 4},i{n},{time}\n" for n, time in enumerate(times))
        report = convert("generic", write(tmp_path / "log.csv", text), tmp_path / "set", overwrite=True, **LOG)
        return [note for note in report.notes if note in report.text()]

    assert notes(range(40)) == []
    (equal,) = notes([7] * 40)
    assert "All 40 interactions have the same timestamp (7)" in equal
    seconds = range(1_700_000_000, 1_700_000_020)
    (mixed,) = notes([*seconds, *(1000 * time for time in seconds)])
    assert "20 of 40 times go up to 1700000019, the others start at 1.7e+12" in mixed
    (tied,) = notes([*range(36), 100.5, 100, 100, 100, 100.5])  # the first user's last two
    assert "for 1 of 4 users (25.0%)" in tied
