import itertools
import logging

import pytest

from recbole_llm.errors import ConfigError, DataError
from recbole_llm.text.item_text import load_item_text

HEADER = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float"
ROWS = [
    "1\tToy Story\t1995\tAnimation Children's Comedy\t9.5",
    '2\t"Crocodile" Dundee\t1986\tComedy\t',
    "3\tNone\t\t\t3.0",
    "4\tHeat  and   Dust\t1983\t\tnan",
]
TOKENS = ["[PAD]", "3", "1", "2", "4"]


@pytest.fixture
def item_file(tmp_path):
    def write(text=None, name="x.item", **kwargs):
        path = tmp_path / name
        content = "\n".join([HEADER, *ROWS]) + "\n" if text is None else text
        path.write_bytes(content if isinstance(content, bytes) else content.encode(**kwargs))
        return path

    return write


def test_default_template_follows_internal_ids(item_file):
    text = load_item_text(item_file(), TOKENS)
    assert text.template == "{movie_title} ({release_year}), {class}"
    assert text.fields == ("movie_title", "release_year", "class")
    assert text.texts == [
        "",
        "None",  # a film, not a missing value
        "Toy Story (1995), Animation Children's Comedy",
        '"Crocodile" Dundee (1986), Comedy',  # a line that starts with a quotation mark swallows no other
        "Heat  and   Dust (1983)",
    ]
    assert (text.n_missing, text.missing_tokens) == (0, [])
    assert "4 items" in text.describe(k=2)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("item_id:token\tTitle:token\tBrand:token", "{Title}, {Brand}"),
        ("item_id:token\tcategories:token_seq\ttitle:token_seq", "{title}, {categories}"),
        ("item_id:token\tyear:token\tgenre:token", "{genre} ({year})"),
        ("item_id:token\tsynopsis:token_seq\tcode:token", "{synopsis}"),
        ("item_id:token\tname:token\ttags:token_seq\tgenres:token_seq", "{name}, {genres}, {tags}"),
    ],
)
def test_default_template(item_file, header, expected):
    cells = "\t".join("abc" for _ in header.split("\t"))
    assert load_item_text(item_file(f"{header}\n{cells}\n"), ["[PAD]", "abc"]).template == expected


def test_default_template_needs_a_text_field(item_file):
    with pytest.raises(ConfigError, match="no field that looks like text.*price"):
        load_item_text(item_file("item_id:token\tprice:float\n1\t2\n"), ["[PAD]", "1"])


def test_titles_are_title_and_year_only(item_file):
    text = load_item_text(item_file(), TOKENS, title_only=True)
    assert text.template == "{movie_title} ({release_year})"
    assert text.texts[2] == "Toy Story (1995)"
    with pytest.raises(ConfigError, match="item_title: .* no field that looks like a title.*genre"):
        load_item_text(item_file("item_id:token\tgenre:token\n1\t2\n"), ["[PAD]", "1"], title_only=True)
    with pytest.raises(ConfigError, match="item_title: '{name}' uses the field 'name'"):
        load_item_text(item_file(), TOKENS, template="{name}", title_only=True)


def test_template_as_list_and_with_formats(item_file):
    path = item_file()
    assert load_item_text(path, TOKENS, template=["movie_title", "class"]).texts[2] == (
        "Toy Story, Animation Children's Comedy"
    )
    text = load_item_text(path, TOKENS, template="{{{movie_title:.3}}} for {price:.2f} $").texts
    assert text[1:] == ["{Non} for 3.00 $", "{Toy} for 9.50 $", '{"Cr} $', "{Hea} $"]
    assert load_item_text(path, TOKENS, template="{price}").texts == ["", "3", "9.5", "", ""]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{a}, {b}, {c}", "A, B, C|A, B|A, C|A|B, C|B|C|"),
        ("{a} ({b}), {c}", "A (B), C|A (B)|A, C|A|(B), C|(B)|C|"),
        ("{a} ({b}, {c})", "A (B, C)|A (B)|A (C)|A|(B, C)|(B)|(C)|"),
        ('"{a}" by {b} [{c}]', '"A" by B [C]|"A" by B|"A" [C]|"A"|by B [C]|by B|[C]|'),
        (
            "Title: {a}; Genre: {b}. Brand: {c}.",
            "Title: A; Genre: B. Brand: C.|Title: A; Genre: B.|Title: A. Brand: C.|Title: A.|"
            "Genre: B. Brand: C.|Genre: B.|Brand: C.|",
        ),
        ("{a} - {b} / {c}", "A - B / C|A - B|A / C|A|B / C|B|C|"),
    ],
)
def test_empty_fields_leave_nothing_behind(item_file, template, expected):
    combinations = list(itertools.product([True, False], repeat=3))
    rows = [
        f"{i}\t" + "\t".join(v if there else " " for v, there in zip("ABC", c, strict=True))
        for i, c in enumerate(combinations)
    ]
    path = item_file("item_id:token\ta:token\tb:token_seq\tc:token\n" + "\n".join(rows))
    text = load_item_text(path, ["[PAD]", *(str(i) for i in range(8))], template=template)
    assert text.texts[1:] == expected.split("|")
    assert text.n_missing == 1


def test_values_are_never_tidied(item_file):
    path = item_file("item_id:token\ttitle:token\tgenre:token\n1\t() , , [ ]  x ,\t\n")
    assert load_item_text(path, ["[PAD]", "1"]).texts[1] == "() , , [ ]  x ,"


def test_other_separators_and_byte_order_mark(item_file):
    path = item_file("item_id:token,title:token,genres:token_seq\r\n1,Été,a|b||c\r\n", encoding="utf-8-sig")
    text = load_item_text(path, ["[PAD]", "1"], field_separator=",", seq_separator="|")
    assert text.texts[1] == "Été, a, b, c"


def test_latin_1(item_file):
    path = item_file("item_id:token\ttitle:token\n1\tok\n2\tÉté\n", encoding="latin-1")
    assert load_item_text(path, ["[PAD]", "2"], encoding="latin-1").texts[1] == "Été"
    with pytest.raises(DataError, match=r"x\.item, line 3: not utf-8 text.*encoding"):
        load_item_text(path, ["[PAD]", "2"])
    with pytest.raises(ConfigError, match="klingon"):
        load_item_text(path, ["[PAD]", "2"], encoding="klingon")


def test_missing_texts_are_warned_of_once(item_file, caplog):
    with caplog.at_level(logging.WARNING):
        text = load_item_text(item_file(), [*TOKENS, "no-row"], template="{class}")
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "3 of 5 items have no text" in message and "1 have no line" in message and "no-row" in message
    assert text.n_missing == 3 and text.missing_tokens == ["3", "4", "no-row"]
    assert text.texts == ["", "", "Animation Children's Comedy", "Comedy", "", ""]
    assert text.names(["[PAD]", *"12345"]) == ["", "Item 1", *text.texts[2:4], "Item 4", "Item 5"]


def test_duplicate_ids_keep_the_first_row(item_file, caplog):
    path = item_file("item_id:token\ttitle:token\n1\tfirst\n1\tsecond\n1\tthird\n")
    assert load_item_text(path, ["[PAD]", "1"]).texts[1] == "first"
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: 2 lines repeat an item id and were ignored (the first one counts), e.g. 1"
    ]


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("", "line 1: '' is not `name:type`"),
        ("item_id\ttitle\n1\tx\n", "line 1: 'item_id' is not `name:type`"),
        ("item_id:token\ttitle:string\n", "'title:string' is not `name:type`"),
        ("item_id:token,title:token\n1,x\n", "field_separator"),
        ("item_id:token\ta:token\ta:token\n", "'a' occurs twice"),
        ("itemid:token\ttitle:token\n1\tx\n", "no column 'item_id'.*Did you mean 'itemid'"),
        ("item_id:token\ttitle:token\n1\tx\n\n2\tx\ty\n", "line 4: 3 fields instead of the 2"),
        ("item_id:token\ttitle:token\n1\n", "line 2: 1 fields"),
        ("item_id:token\ttitle:token\n1\t\n", "no item has a text. 1 of the dataset's 1"),
        ("item_id:token\ttitle:token\n01\tx\n", "no item has a text. 0 of the dataset's 1.*'1', there e.g. '01'"),
    ],
)
def test_bad_files(item_file, content, pattern):
    with pytest.raises(DataError, match=pattern):
        load_item_text(item_file(content), ["[PAD]", "1"])


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="does not exist.*data_path"):
        load_item_text(tmp_path / "x.item", ["[PAD]", "1"])
    with pytest.raises(DataError, match="cannot be read"):
        load_item_text(tmp_path, ["[PAD]", "1"])


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        ("{movie_titel}", "'movie_titel'.*item_id, movie_title, .*Did you mean 'movie_title'"),
        (["movie_title", "zzz"], "'zzz'"),
        ("{movie_title.__class__}", r"'movie_title.__class__'"),
        ("{movie_title[0]}", r"movie_title\[0\]"),
        ("{movie_title!r}", "not a valid template"),
        ("{movie_title:{price}}", "not a valid template"),
        ("{}", "the field ''"),
        ("{movie_title", "not a valid template"),
        ("}", "not a valid template"),
        ("no field", "names no field"),
        ([], "names no field"),
        ("{movie_title:.2f}", "'.2f' does not suit 'movie_title'"),
        ("{price:d}", "'d' does not suit 'price'"),
    ],
)
def test_bad_templates(item_file, template, pattern):
    with pytest.raises(ConfigError, match=pattern):
        load_item_text(item_file(), TOKENS, template=template)


def test_float_seq_is_no_text_and_floats_are_checked(item_file):
    path = item_file("item_id:token\tv:float_seq\tp:float\n1\t1 2\tx\n")
    with pytest.raises(ConfigError, match="'v' is of type float_seq"):
        load_item_text(path, ["[PAD]", "1"], template="{v}")
    with pytest.raises(DataError, match="line 2: p:float holds 'x'"):
        load_item_text(path, ["[PAD]", "1"], template="{p}")


def test_fingerprint(item_file):
    path = item_file()
    base = load_item_text(path, TOKENS, template="{movie_title}")
    assert base.fingerprint() == load_item_text(path, TOKENS, template="{movie_title}").fingerprint()
    others = [
        load_item_text(path, TOKENS, template=" {movie_title}"),
        load_item_text(path, [TOKENS[0], *TOKENS[:0:-1]], template="{movie_title}"),
    ]
    assert len({text.fingerprint() for text in [base, *others]}) == 3
