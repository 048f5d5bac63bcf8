"""Every page that is made from records: boards, claims, and tables inside pages written by hand."""

from pathlib import Path

from recbole_llm.compare import report, tables
from recbole_llm.compare.blocks import filled, pages_with_blocks
from recbole_llm.compare.board import page_of
from recbole_llm.compare.claims import PAGE, claims_page
from recbole_llm.compare.records import BOARD, RecordedComparison
from recbole_llm.errors import ConfigError
from recbole_llm.files import whole


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
            with whole(file) as partial:
                partial.write_text(content, encoding="utf-8", newline="\n")


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
