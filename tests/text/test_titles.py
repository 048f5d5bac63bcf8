"""Titles as people write them: an article behind a comma moves to the front, and nothing else changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.text.item_text import load_item_text
from recbole_llm.text.titles import ARTICLES, clean_title, fronted_article, without_article
from tests.properties import examples


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Mask, The (1994)", "The Mask (1994)"),
        ("Mask, The", "The Mask"),
        ("Beautiful Mind, A (2001)", "A Beautiful Mind (2001)"),
        ("Avventura, L' (1960)", "L'Avventura (1960)"),
        (
            "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
            "The City of Lost Children (La Cité des enfants perdus) (1995)",
        ),
        (
            "Good, the Bad and the Ugly, The (Buono, il brutto, il cattivo, Il) (1966)",
            "The Good, the Bad and the Ugly (Il Buono, il brutto, il cattivo) (1966)",
        ),
        ("Paris, Texas (1984)", "Paris, Texas (1984)"),
        ("Cook, the Thief, His Wife & Her Lover, The (1989)", "The Cook, the Thief, His Wife & Her Lover (1989)"),
        (", The", ", The"),
        ("The Mask (1994)", "The Mask (1994)"),
        ("Mask, the (1994)", "Mask, the (1994)"),
        ("", ""),
    ],
)
def test_articles_move_to_the_front(title, expected):
    assert fronted_article(title) == expected


def test_any_case_and_no_article():
    assert fronted_article("mask, the (1994)", any_case=True) == "the mask (1994)"
    assert without_article("the mask") == "mask"
    assert without_article("the ") == "the "
    assert without_article("theatre") == "theatre"


@examples(100)
@given(st.text(st.characters(codec="utf-8", exclude_characters="(),"), min_size=1), st.sampled_from(sorted(ARTICLES)))
def test_every_article_comes_back_from_behind_the_comma(title, article):
    title = " ".join(title.split()) or "x"
    written = article + title if article.endswith("'") else f"{article} {title}"
    assert fronted_article(f"{title}, {article} (1999)") == f"{written} (1999)"


def test_titles_for_prompts_are_clean_and_texts_for_encoders_as_in_the_file(tmp_path):
    file = tmp_path / "m.item"
    file.write_text(
        "item_id:token\ttitle:token_seq\tgenre:token_seq\n1\tMask, The (1994)\tWar, The\n", encoding="utf-8"
    )
    assert load_item_text(file, ["[PAD]", "1"], title_only=True).texts[1] == "The Mask (1994)"
    assert load_item_text(file, ["[PAD]", "1"], for_prompt=True).texts[1] == "The Mask (1994), War, The"
    assert load_item_text(file, ["[PAD]", "1"]).texts[1] == "Mask, The (1994), War, The"
    own = load_item_text(file, ["[PAD]", "1"], template="{genre}", title_only=True)
    assert own.texts[1] == "The War"
    for separator in ("|", ",", ";"):  # whatever separates the parts of other fields
        read = load_item_text(file, ["[PAD]", "1"], seq_separator=separator, title_only=True)
        assert read.texts[1] == "The Mask (1994)"


def test_entities_and_control_characters_reach_no_prompt(tmp_path):
    assert clean_title(" Tom &amp;amp; Jerry\x85&lt;3 R&regular \ufeff") == "Tom & Jerry <3 R&regular"
    file = tmp_path / "m.item"
    file.write_text("item_id:token\ttitle:token_seq\n1\tGood &amp; Bad, The (1966)\n", encoding="utf-8")
    assert load_item_text(file, ["[PAD]", "1"], title_only=True).texts[1] == "The Good & Bad (1966)"
