"""What this repository publishes: every table is what its records say, and no figure was typed."""

import json
import re
from pathlib import Path

import pytest

from recbole_llm.compare.publish import BLOCK, all_pages, check

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
# Recall, NDCG and the like to three or four places: .1234, 0.123. Times, sizes and percentages look different.
FIGURE = re.compile(r"(?<![\w.])0?(\.\d{3,4})(?![\w.]*\d)")
WITHOUT_RECORDS = re.compile(r"<!-- figures without records -->.*?<!-- end of figures without records -->", re.DOTALL)
GENERATED = {"settings.md"}  # values of settings, which a test of its own makes again


def figures(text):
    """Figures of a page that were typed."""
    return FIGURE.findall(WITHOUT_RECORDS.sub("", BLOCK.sub("", text)))


def recorded():
    """Every metric of a record or a board, to three and four places."""
    found = set()
    for file in (RESULTS / "records").glob("*/*-seed*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        for part in ("test_masked", "test_unmasked", "best_valid_result"):
            for value in (record[part] or {}).values():
                found |= {f"{value:.{places}f}".removeprefix("0") for places in (3, 4)}
    return found


def pages():
    made = {page.resolve() for page in all_pages(RESULTS) if page.parent == RESULTS}
    written = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in written if page.resolve() not in made and page.name not in GENERATED]


def test_every_page_is_what_its_records_say():
    assert check(RESULTS) == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_figure_was_typed(page):
    typed = figures(page.read_text(encoding="utf-8"))
    assert [figure for figure in typed if figure not in recorded()] == []


def test_what_counts_as_a_figure():
    text = "a .1234 b 0.567, c **.0891** and 1.234 s, v0.1234.5, `0.2.0`, 99.7 %, .12, x.123"
    assert figures(text) == [".1234", ".567", ".0891"]
    assert figures("<!-- figures without records -->.1234<!-- end of figures without records -->") == []


def test_figures_without_records_are_marked_and_said_to_be():
    with_section = {page for page in pages() if WITHOUT_RECORDS.search(page.read_text(encoding="utf-8"))}
    assert {page.name for page in with_section} <= {"results.md", "language-models.md"}
    assert all("record" in WITHOUT_RECORDS.sub("", page.read_text(encoding="utf-8")) for page in with_section)


def test_records_are_small_and_name_no_folder_of_a_machine():
    for file in (RESULTS / "records").glob("*/*-seed*.json"):
        text = file.read_text(encoding="utf-8")
        assert len(text) < 30_000, file.name
        assert not re.search(r'"/(home|work|root|tmp|Users)/', text), file.name
        environment = json.loads(text)["environment"]
        assert environment["git"]["dirty"] is False, file.name
