"""The papers' claims, each with its test and a verdict from the records of leaderboards.

``props/claims.yaml`` says which rows of which boards a claim is about; the page is made from the stored pairs alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm.compare.pairs import Pair
from recbole_llm.compare.records import RecordedComparison
from recbole_llm.compare.tables import PLACES, escape_markdown, markdown_table
from recbole_llm.config.metrics import metric_name
from recbole_llm.config.registry import props_dir
from recbole_llm.config.values import load_yaml
from recbole_llm.errors import ConfigError

PAGE = "claims.md"
HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
_KEYS = {"claim", "source", "command", "tests", "needs"}


@dataclass(frozen=True)
class ClaimTest:
    """A comparison of two rows that a claim predicts.

    Attributes
    ----------
    board, row, against, metric : which rows on which metric.
    at_least : the smallest difference, as a share of the other row's mean, with which the claim holds.
    within : the largest difference either way with which it holds, instead.
    """

    board: str
    row: str
    against: str
    metric: str
    at_least: float = 0.0
    within: float | None = None

    def verdict(self, pair: Pair) -> str:
        """Compare the 95 % interval of a pair with what the claim predicts."""
        if pair.low is None or pair.high is None:
            return OPEN
        low, high = pair.relative(pair.low), pair.relative(pair.high)
        if self.within is not None:
            holds, fails = -self.within <= low and high <= self.within, low > self.within or high < -self.within
        else:
            holds, fails = low > self.at_least, high <= self.at_least
        return HOLDS if holds else FAILS if fails else OPEN


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes
    ----------
    text, source : the claim, and where it stands.
    command : the command that tests it.
    tests : rows that it is about.
    needs : what a test of it takes that is not at hand, if anything.
    """

    text: str
    source: str
    command: str
    tests: tuple[ClaimTest, ...]
    needs: str | None


def read_claims(file: Path | None = None) -> list[tuple[str, list[Claim]]]:
    """Read the claims by paper.

    Raises
    ------
    ConfigError
        For a claim with missing or unknown keys.
    """
    file = file or props_dir() / "claims.yaml"
    papers = []
    for paper in load_yaml(file)["papers"]:
        papers.append((str(paper["paper"]), [_claim(entry, file) for entry in paper["claims"]]))
    return papers


def _claim(entry: Mapping[str, Any], file: Path) -> Claim:
    if not {"claim", "source", "command"} <= set(entry) <= _KEYS:
        raise ConfigError(
            f"{file}: the claim {dict(entry)!r} must have claim, source and command, and may have needs."
        )
    try:
        tests = tuple(ClaimTest(**test) for test in entry.get("tests") or ())
    except TypeError as error:
        raise ConfigError(f"{file}: {entry['claim']!r} has a test that is not understood ({error}).") from error
    return Claim(entry["claim"], entry["source"], entry["command"], tests, entry.get("needs"))


def tests_of_board(board: str) -> list[ClaimTest]:
    """Return what the claims ask of a board."""
    return [test for _, claims in read_claims() for claim in claims for test in claim.tests if test.board == board]


def claims_page(boards: Mapping[str, RecordedComparison], command: str) -> str:
    """Render the page of all claims.

    Parameters
    ----------
    boards : mapping
        The boards that have records, by name.
    command : str
        The command that makes the page.
    """
    parts = [
        "# Claims of the papers",
        f"<!-- Made by `{command}` from the records and props/claims.yaml; changes by hand are lost. -->",
        "A claim holds if the 95 % interval of the difference lies on its side, and does not hold if it lies on the "
        "other side; otherwise it is not decided. Intervals are over users, seeds averaged, or over seeds for metrics "
        "of whole lists; with one seed they miss how much training varies. Data, splits and language models are "
        "those of the boards, not always those of the papers.",
    ]
    for paper, claims in read_claims():
        grid = [_line(claim, boards) for claim in claims]
        heads = ["claim", "where", "test", "verdict", "effect [95 %]"]
        parts += [f"## {paper}", markdown_table(grid, heads, 2, len(heads))]
    return "\n\n".join(parts) + "\n"


def _line(claim: Claim, boards: Mapping[str, RecordedComparison]) -> list[str]:
    found = [(test, pair) for test in claim.tests for pair in [_pair_of(test, boards)] if pair is not None]
    effects = "; ".join(_effect(test, pair, boards[test.board]) for test, pair in found)
    verdict = _overall(claim, [test.verdict(pair) for test, pair in found])
    return [claim.text, claim.source, f"`{claim.command}`", verdict, effects]


def _pair_of(test: ClaimTest, boards: Mapping[str, RecordedComparison]) -> Pair | None:
    board = boards.get(test.board)
    return None if board is None else board.pair(test.row, test.against, test.metric)


def _overall(claim: Claim, verdicts: Sequence[str]) -> str:
    if claim.needs and not claim.tests:
        return f"cannot be tested here: {escape_markdown(claim.needs)}"
    missing = len(claim.tests) - len(verdicts)
    kinds = list(dict.fromkeys(verdicts))
    text = f"**{kinds[0]}**" if len(kinds) == 1 else "**mixed**: " + ", ".join(verdicts) if kinds else "not run yet"
    text += f" ({missing} of {len(claim.tests)} comparisons not run yet)" if missing and kinds else ""
    return text + (f"; a full test needs {escape_markdown(claim.needs)}" if claim.needs else "")


def _effect(test: ClaimTest, pair: Pair, board: RecordedComparison) -> str:
    runs = {row.label: len(row.runs) for row in board.rows}
    seeds = dict.fromkeys(str(runs[label]) for label in (test.row, test.against))
    text = f"{escape_markdown(test.board)}, {escape_markdown(test.row)} over {escape_markdown(test.against)}, "
    text += f"{' and '.join(seeds)} seed(s): {metric_name(test.metric)} {pair.mean:.{PLACES}f} and "
    text += f"{pair.other:.{PLACES}f}, "
    if pair.low is None or pair.high is None:
        return text + f"{pair.relative(pair.difference):+.1%} (one seed, no interval)"
    low, high = pair.relative(pair.low), pair.relative(pair.high)
    return text + f"{pair.relative(pair.difference):+.1%} [{low:+.1%}, {high:+.1%}]"
