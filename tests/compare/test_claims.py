"""Claims: verdicts from intervals, and the file that ships names rows and metrics that there are."""

from dataclasses import asdict

import pytest

from recbole_llm.compare.claims import FAILS, HOLDS, OPEN, ClaimTest, claims_page, read_claims
from recbole_llm.compare.leaderboard import find_plan
from recbole_llm.compare.pairs import Pair
from recbole_llm.compare.plan import make_plan
from recbole_llm.compare.records import RecordedComparison
from recbole_llm.compare.runs import Row
from recbole_llm.errors import ConfigError


def pair(low, high, other=0.1):
    middle = None if low is None else (low + high) / 2
    return Pair("a", "b", "masked", "ndcg@10", 0.1, other, middle or 0.0, low, high, 0.5, "users")


@pytest.mark.parametrize(
    ("expected", "low", "high", "verdict"),
    [
        ({}, 0.001, 0.01, HOLDS),
        ({}, -0.001, 0.01, OPEN),
        ({}, -0.02, -0.01, FAILS),
        ({"at_least": 0.45}, 0.01, 0.02, FAILS),  # 10 to 20 % of .1
        ({"at_least": 0.45}, 0.05, 0.06, HOLDS),
        ({"at_least": 0.45}, 0.04, 0.06, OPEN),
        ({"within": 0.05}, -0.004, 0.004, HOLDS),
        ({"within": 0.05}, -0.004, 0.006, OPEN),
        ({"within": 0.05}, 0.006, 0.007, FAILS),
        ({}, None, None, OPEN),  # one seed of a metric of whole lists
    ],
)
def test_a_verdict_is_where_the_interval_lies(expected, low, high, verdict):
    assert ClaimTest("board", "a", "b", "ndcg@10", **expected).verdict(pair(low, high)) == verdict


class Board(RecordedComparison):
    versions = ("masked", "unmasked")
    rows = (Row("b", "b", [None]), Row("a", "a", [None] * 3))

    def __init__(self, *pairs):
        self.board = {"pairs": [asdict(pair) for pair in pairs]}


CLAIMS = """
papers:
  - paper: A paper
    claims:
      - claim: A is better
        source: Table 1
        command: recbole-llm leaderboard board
        tests:
          - {board: board, row: a, against: b, metric: ndcg@10}
          - {board: other, row: a, against: b, metric: ndcg@10}
      - {claim: It is fast, source: Table 2, command: time, needs: a GPU}
      - {claim: It is new, source: Table 3, command: look}
"""


def test_the_page_says_what_was_found_and_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / "claims.yaml").write_text(CLAIMS, encoding="utf-8")
    monkeypatch.setattr("recbole_llm.compare.claims.props_dir", lambda: tmp_path)
    page = claims_page({"board": Board(pair(0.001, 0.01))}, "make")
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert "**holds** (1 of 2 comparisons not run yet)" in lines[0] and "+5.5% [+1.0%, +10.0%]" in lines[0]
    assert "a over b, 3 and 1 seed(s)" in lines[0]
    assert "cannot be tested here: a GPU" in lines[1] and "not run yet" in lines[2]
    both = {"board": Board(pair(0.001, 0.01)), "other": Board(pair(-0.02, -0.01))}
    assert f"**mixed**: {HOLDS}, {FAILS}" in claims_page(both, "make")


@pytest.mark.parametrize(
    "entry", ["{claim: x, source: y}", "{claim: x, source: y, command: z, tests: [{bord: b}]}", "{claims: []}"]
)
def test_claims_that_are_not_understood(tmp_path, entry):
    file = tmp_path / "claims.yaml"
    file.write_text(f"papers: [{{paper: p, claims: [{entry}]}}]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"claims\.yaml"):
        read_claims(file)


def test_every_test_of_a_claim_is_about_rows_and_metrics_of_a_plan():
    tests = [test for _, claims in read_claims() for claim in claims for test in claim.tests]
    plans = {board: make_plan(config_file_list=[find_plan(board)]) for board in {test.board for test in tests}}
    for test in tests:
        plan = plans[test.board]
        config = plan.jobs[0].config
        assert {test.row, test.against} <= set(plan.labels)
        name, _, k = test.metric.partition("@")
        assert name in [metric.lower() for metric in config["metrics"]] and int(k) in config["topk"]
