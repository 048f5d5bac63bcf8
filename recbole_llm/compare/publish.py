"""Every page that is made from records: boards, claims, and tables inside pages that are written by hand.

Such a page, like the README, marks a block that names a board and rows; everything up to its end is made from the
board's records::

    <!-- leaderboard ml-100k: LRURec; LLM2SASRec -->
    ...
    <!-- end of leaderboard -->
"""

import re
from collections.abc import Mapping
from pathlib import Path

from recbole_llm.compare import report, tables
from recbole_llm.compare.board import kind_of, page_of
from recbole_llm.compare.claims import PAGE, claims_page
from recbole_llm.compare.records import BOARD, RecordedComparison
from recbole_llm.compare.tables import PLACES, markdown_table
from recbole_llm.config.metrics import metric_name
from recbole_llm.config.values import nearest
from recbole_llm.errors import ConfigError
from recbole_llm.files import write_text

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
                label,
                kind_of(rows[label]),
                *(
                    f"{cell.mean:.{PLACES}f}" + (f" ±{cell.deviation:.{PLACES}f}" if cell.deviation else "")
                    for cell in cells
                ),
                str(len(rows[label].runs)),
            ]
        )
    return markdown_table(grid, ["model", "learns from", *map(metric_name, metrics), "seeds"], 2)


def boards_in(results: Path) -> dict[str, RecordedComparison]:
    """Return the boards that have records, by name.

    Raises
    ------
    ConfigError
        If there are none.
    """
    folders = sorted(file.parent for file in (results / "records").glob(f"*/{BOARD}"))
    if not folders:
        raise ConfigError(f"There are no records in {results / 'records'}: run a plan first.")
    return {folder.name: RecordedComparison(folder, results) for folder in folders}


def pages_of(comparison: RecordedComparison, board: str, results: Path) -> dict[Path, str]:
    """Render the pages of a board from its records alone, by file."""
    command = f"recbole-llm leaderboard {board}"
    return {
        results / f"{board}.md": page_of(comparison, board, command),
        results / f"{board}.csv": tables.as_csv(comparison),
        results / f"{board}.html": report.render(comparison, command),
    }


def all_pages(results: str | Path) -> dict[Path, str]:
    """Render every page that is made from the records of ``results``, by file; what it needs is in the records.

    Raises
    ------
    ConfigError
        If there are no records, or a page asks for a row that has none.
    """
    results = Path(results)
    boards = boards_in(results)
    pages = {file: text for name, board in boards.items() for file, text in pages_of(board, name, results).items()}
    pages[results / PAGE] = claims_page(boards, "recbole-llm leaderboard")
    return pages | {page: filled(page, boards) for page in pages_with_blocks(results) if page not in pages}


def write_pages(results: str | Path) -> None:
    """Write every page again that its records change."""
    for file, content in all_pages(results).items():
        if _differs(file, content):
            write_text(file, content)


def check(results: str | Path) -> list[Path]:
    """Return pages that are missing or differ from their records.

    Raises
    ------
    ConfigError
        If there are no records, or a page asks for a row that has none.
    """
    return [file for file, content in all_pages(results).items() if _differs(file, content)]


def _differs(file: Path, content: str) -> bool:
    return not file.is_file() or file.read_bytes() != content.encode()
