"""The rule for times: what is doubtful is counted and said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.convert.command import check_main
from recbole_llm.data.times import examine_times, history_order
from tests.properties import examples

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
SECONDS = 1_300_000_000


def examine(users, times):
    users, times = np.array(users), np.array(times, dtype=float)
    order = history_order(users, times)
    return examine_times(users[order], times[order])


def test_nothing_to_say():
    report = examine([1, 1, 2, 2, 2], [SECONDS + n for n in range(5)])
    assert (report.interactions, report.users, report.tied_last) == (5, 2, 0)
    assert report.notices("timestamp") == []
    assert examine([], []).notices("timestamp") == []
    assert examine([1], [5]).notices("timestamp") == []


def test_all_equal():
    (notice,) = examine([1, 1, 2], [7, 7, 7]).notices("when")
    assert notice.startswith("All 3 interactions have the same when (7)")


def test_ties_count_users_whose_last_item_is_open():
    # The last two of user 1 are tied; the first two of user 2 are, which decides nothing; user 3 has one interaction.
    report = examine([1, 1, 1, 2, 2, 2, 3], [1, 5, 5, 3, 3, 4, 9])
    assert (report.tied_last, report.users) == (1, 2)
    (notice,) = report.notices("timestamp")
    assert "for 1 of 2 users (50.0%) the order of the file" in notice


@pytest.mark.parametrize(
    ("odd", "others", "below"),
    [
        ([SECONDS], [SECONDS * 1000 + n for n in range(9)], 1),
        ([SECONDS * 1000, SECONDS * 1000 + 1], [SECONDS + n for n in range(9)], 9),
        ([SECONDS * 10**6], [SECONDS * 1000 + n for n in range(9)], 9),
        ([0], [SECONDS + n for n in range(9)], 1),
        ([-1, -1], [SECONDS + n for n in range(9)], 2),
        ([2015], [SECONDS + n for n in range(9)], 1),
    ],
)
def test_units_that_are_mixed(odd, others, below):
    report = examine([1] * (len(odd) + len(others)), [*odd, *others])
    assert report.mixed
    assert report.below == below
    assert "seems to mix units" in " ".join(report.notices("timestamp"))
    assert f"{below:,} of {len(odd) + len(others)} times" in " ".join(report.notices("timestamp"))


@given(
    st.sampled_from([1, 1000, 10**6, 10**9]),
    st.lists(st.integers(315_532_800, 4_102_444_800), min_size=1, max_size=20),
)
@examples(60)
def test_dates_of_one_unit_are_not_mixed(unit, seconds):
    assert not examine([1] * len(seconds), [second * unit for second in seconds]).mixed


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), max_size=12))
@examples(60)
def test_small_numbers_are_ranks_or_days_and_ties_are_exact(pairs):
    report = examine([user for user, _ in pairs], [time for _, time in pairs])
    assert not report.mixed
    tied = 0
    for user in {user for user, _ in pairs}:
        times = sorted(time for other, time in pairs if other == user)
        tied += len(times) > 1 and times[-1] == times[-2]
    assert report.tied_last == tied


def test_a_run_says_it(atomic, make_dataset):
    rows = [("u", "a", 0), ("u", "b", SECONDS), ("u", "c", SECONDS), ("v", "a", 5 * SECONDS), ("v", "b", SECONDS * 9)]
    atomic(inter=HEADER + "".join(f"{user}\t{item}\t{time}\n" for user, item, time in rows))
    dataset = make_dataset()
    dataset.build()
    notices = " ".join(dataset.config.notices)
    assert "timestamp seems to mix units" in notices
    assert "1 of 5 times go up to 0, the others start at 1300000000" in notices
    assert "for 1 of 2 users" in notices


@pytest.mark.parametrize(("start", "said"), [(1_700_000_000_000_000_000, True), (1_700_000_000_000_000, False)])
def test_times_that_floats_cannot_tell_apart_are_said(start, said, atomic, make_dataset, capsys):
    """Nanoseconds since 1970: two events 100 ns apart are equal in 64 bits. Microseconds are exact."""
    rows = [
        ("u", "a", start),
        ("u", "b", start + 1000),
        ("u", "c", start + 1100),
        ("v", "a", start),
        ("v", "c", start),
    ]
    folder = atomic(inter=HEADER + "".join(f"{user}\t{item}\t{time}\n" for user, item, time in rows))
    dataset = make_dataset()
    dataset.build()
    (notice,) = (text for text in dataset.config.notices if "Equal values" in text)
    assert f"for {2 if said else 1} of 2 users" in notice
    assert ("those less than 256 apart are equal" in notice) == said
    check_main([str(folder / "shop")])
    assert ("those less than 256 apart are equal" in " ".join(capsys.readouterr().out.split())) == said
