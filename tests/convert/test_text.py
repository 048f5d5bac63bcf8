import io
import random

import pandas as pd
import pytest

from recbole_llm.convert.amazon import TAG
from recbole_llm.convert.movielens import movie_title
from recbole_llm.convert.values import (
    MAX_FIELD_CHARS,
    MISSING_WORDS,
    clean_sequence,
    clean_text,
    clean_token,
    renamed_ids,
)
from recbole_llm.text.titles import unescape


@pytest.mark.parametrize(
    ("raw", "title", "year"),
    [
        ("Matrix, The (1999)", "The Matrix", "1999"),
        ("Matrix, The", "The Matrix", ""),
        ("City of Lost Children, The (Cité des enfants perdus, La) (1995)", "The City of Lost Children", "1995"),
        ("Lord of the Rings: The Two Towers, The (2002)", "The Lord of the Rings: The Two Towers", "2002"),
        ("Misérables, Les (1995)", "Les Misérables", "1995"),
        ("Avventura, L' (Adventure, The) (1960)", "L'Avventura", "1960"),
        ("Boot, Das (Boat, The) (1981)", "Das Boot", "1981"),
        ("American in Paris, An (1951)", "An American in Paris", "1951"),
        ("Happy, Texas (1999)", "Happy, Texas", "1999"),
        ("Girl, Interrupted (1999)", "Girl, Interrupted", "1999"),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", "2009"),
        ("Evangelion: 3.0 You Can (Not) Redo (2012)", "Evangelion: 3.0 You Can (Not) Redo", "2012"),
        ("Seven (a.k.a. Se7en) (1995)", "Seven", "1995"),
        ("Dream of Light (a.k.a. Quince Tree Sun, The) (Sol del membrillo, El) (1992)", "Dream of Light", "1992"),
        ("Death Note: Desu nôto (2006–2007)", "Death Note: Desu nôto", ""),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", "1968"),
        ("1984 (1956)", "1984", "1956"),
        ("Toy Story (1995) ", "Toy Story", "1995"),
        ("(1922)", "", "1922"),
        ("unknown", "unknown", ""),
    ],
)
def test_titles_as_people_write_them(raw, title, year):
    assert movie_title(raw) == (title, year)


def test_entities():
    assert (
        unescape("Salt &amp; Pepper &#39;n&#x27; &quot;x&quot; &amp;amp; &amp;quot;") == 'Salt & Pepper \'n\' "x" & "'
    )
    # Without its semicolon nothing is an entity.
    assert unescape("R&regular AT&T &copy 2014 &unknown;") == "R&regular AT&T &copy 2014 &unknown;"


def test_clean_text():
    assert clean_text("  a\tb\r\nc\u2028d\x85e \x00f\ufeff\xa0g ") == "a b c d e f g"
    assert clean_text("pair \ud83d\ude00, lone \ud83d.") == "pair 😀, lone \ufffd."
    assert len(clean_text("word " * 10_000)) <= MAX_FIELD_CHARS
    assert not clean_text("word " * 10_000).endswith(" ")
    assert len(clean_text("x" * 200_000)) == MAX_FIELD_CHARS
    assert clean_text(TAG.sub(" ", "<b>Bold</b><br/>5 < 6 > 4")) == "Bold 5 < 6 > 4"


def test_ids_stay_distinct():
    assert renamed_ids(["a", "b c", "7"]) == {}
    raw = ["NA", "NA_", "NA__", '"x', "'x", "a\tb", "a b", "null", "\x00", "", "\ufeff"]
    for recbole in (False, True):
        changed = renamed_ids(raw, recbole=recbole)
        written = [changed.get(text, text) for text in raw]
        assert len(set(written)) == len(raw)
        assert all(text.strip() for text in written)
        assert not any(character in text for text in written for character in "\t\n\r\x00")
        if recbole:
            assert not any(text in MISSING_WORDS or text[0] == '"' for text in written)
        else:
            assert [new for new, old in zip(written, raw, strict=True) if old.isprintable() and old] == [
                old for old in raw if old.isprintable() and old
            ]


def test_nothing_breaks_recboles_reader():
    """What comes back from pandas, read exactly as RecBole does, is what was meant."""
    draw = random.Random(0)
    pieces = [
        '"',
        '""',
        "'",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\x00",
        ",",
        "NA",
        "None",
        " ",
        "a",
        "é",
        "😀",
        "\u2028",
        "\\",
        "&quot;",
    ]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(1, 7))) for _ in range(3000)]
    texts += [*MISSING_WORDS, '"unclosed', '"closed" and on', "x" * 300_000]
    sequences = [clean_sequence(text) for text in texts]
    tokens = [clean_token(text) for text in texts]
    lines = ["id:token\tname:token_seq\ttag:token"]
    lines += [f"i{n}\t{a}\t{b}" for n, (a, b) in enumerate(zip(sequences, tokens, strict=True))]
    frame = pd.read_csv(
        io.StringIO("\n".join(lines) + "\n"), delimiter="\t", dtype=str, encoding="utf-8", engine="python"
    )
    assert len(frame) == len(texts)
    for text, sequence, name, token, tag in zip(
        texts, sequences, frame["name:token_seq"], tokens, frame["tag:token"], strict=True
    ):
        # RecBole splits at blanks and drops empty words: the guarding blank is gone, the text is whole.
        words = [] if pd.isna(name) else [word for word in name.split(" ") if word]
        assert words == clean_text(text).split()
        assert (name if isinstance(name, str) else "") == sequence
        assert (tag if isinstance(tag, str) else "") == token
