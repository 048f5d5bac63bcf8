"""Tables of records inside pages that are written by hand, such as the README.

A block names a board and rows, and everything up to its end is made from the board's records::

    <!-- leaderboard ml-100k: LRURec; LLM2SASRec -->
    ...
    <!-- end of leaderboard -->
"""

import re
from collections.abc import Mapping
from pathlib import Path

from recbole_llm.compare.board import kind_of
from recbole_llm.compare.records import RecordedComparison
from recbole_llm.compare.tables import PLACES, escape_markdown, markdown_table
from recbole_llm.config.metrics import metric_name
from recbole_llm.config.values import nearest
from recbole_llm.errors import ConfigError

BLOCK = re.compile(
    r"(?P<head><!-- leaderboard (?P<board>[\w.-]+): (?P<rows>.*?) -->\n).*?(?P<end><!-- end of leaderboard -->)",
    re.DOTALL,
)
METRICS = ("recall@10", "ndcg@10")


def pages_with_blocks(results: Path) -> list[Path]:
    """Return the pages beside ``results`` (``docs/results``) that contain a block: those of docs, and the README."""
    folder = results.parent
    candidates = [folder.parent / "README.md", *sorted(folder.rglob("*.md"))]
    return [page for page in candidates if page.is_file() and BLOCK.search(page.read_text(encoding="utf-8"))]


def filled(page: Path, boards: Mapping[str, RecordedComparison]) -> str:
    """Return the text of a page with its blocks made again.

    Raises
    ------
    ConfigError
        If a block names a board or a row without records.
    """

    def fill(block: re.Match[str]) -> str:
        board = block["board"]
        if board not in boards:
            raise ConfigError(f"{page}: there are no records of the leaderboard {board!r}.{nearest(board, boards)}")
        labels = [" ".join(label.split()) for label in block["rows"].split(";")]
        return block["head"] + _table(page, board, boards[board], labels) + "\n" + block["end"]

    return BLOCK.sub(fill, page.read_text(encoding="utf-8"))


def _table(page: Path, board: str, comparison: RecordedComparison, labels: list[str]) -> str:
    rows = {row.label: row for row in comparison.rows}
    for label in labels:
        if label not in rows:
            raise ConfigError(f"{page}: {label!r} is not a row of {board} with records.{nearest(label, rows)}")
    version = comparison.versions[0]
    metrics = [metric for metric in METRICS if metric in comparison.metrics]
    ordered = sorted(labels, key=lambda label: -comparison.cells[version, label, comparison.headline].mean)
    grid = []
    for label in ordered:
        cells = [comparison.cells[version, label, metric] for metric in metrics]
        grid.append(
            [
                escape_markdown(label),
                kind_of(rows[label]),
                *(
                    f"{cell.mean:.{PLACES}f}" + (f" ±{cell.deviation:.{PLACES}f}" if cell.deviation else "")
                    for cell in cells
                ),
                str(len(rows[label].runs)),
            ]
        )
    return markdown_table(grid, ["model", "learns from", *map(metric_name, metrics), "seeds"], 2)
