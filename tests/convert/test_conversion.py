"""Filters against plain Python, atomic output, recipes, and reading without orjson."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from convert_helpers import make_zip, read_rows, write

import recbole_llm.convert.conversion as conversion
import recbole_llm.convert.output as output
from recbole_llm.convert import convert
from recbole_llm.convert.report import all_recipes
from recbole_llm.convert.sources import Source
from recbole_llm.errors import ConfigError, DataError


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dedup": "all"}, r"invalid value for dedup: 'all' .choose from 'none', 'first', 'last'.\."),
        ({"k_core": -1}, r"invalid value for k_core: -1 .give a whole number of at least 0.\."),
        ({"k_core": True}, "for k_core: True"),
        ({"min_rating": float("nan")}, "for min_rating: nan"),
        ({"min_rating": "x"}, "for min_rating: 'x' .give a number or"),
        ({"movie_tags": -1}, "for movie_tags: -1 .give a whole number of at least 1"),
        ({"movie_tags": 1.5}, "for movie_tags: 1.5"),
        ({"ids": "x"}, r"invalid value for ids: 'x' .choose from 'exact', 'recbole'.\."),
        ({"text_fields": ["genre", "genre"]}, "two fields would be named 'genre'"),
        ({"workers": 2}, "ml-1m has no option 'workers'"),
        ({"untitled": "x"}, "for untitled: 'x'"),
        ({"order": "x"}, "for order: 'x'"),
        ({"items": "x"}, "for items: 'x'"),
        ({"on_error": "x"}, "for on_error: 'x'"),
        ({"recipe": "x"}, "recipe 'x' does not exist; the recipes for ml-1m are: ml-1m-litellm4rec, ml-1m-5core"),
        ({"recipe": "steam-dh-r"}, "recipe 'steam-dh-r' is for steam"),
        ({"text_fields": ["x"]}, "no field 'x'; there are movie_title, release_year"),
        ({"output": "a b"}, "must not contain spaces"),
    ],
)
def test_settings_are_checked(tmp_path, settings, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive = small(tmp_path)
    with pytest.raises(ConfigError, match=message):
        convert("ml-1m", archive, **{"output": "set", **settings})
    assert [path.name for path in tmp_path.iterdir()] == ["ml-1m.zip"]


def small(tmp_path, n=2):
    ratings = "".join(f"{user}::{item}::5::{user * item}\n" for user in range(1, n + 1) for item in range(1, n + 1))
    movies = "".join(f"{item}::Title, The (1999)::Drama\n" for item in range(1, n + 1))
    return make_zip(tmp_path / "ml-1m.zip", {"ml-1m/ratings.dat": ratings, "ml-1m/movies.dat": movies})


def test_output_is_not_overwritten_by_accident(tmp_path):
    archive = small(tmp_path)
    convert("ml-1m", archive, tmp_path / "set")
    (tmp_path / "set" / "mine.txt").write_text("kept")
    (tmp_path / "set" / "set.user").write_text("of an earlier conversion")
    before = (tmp_path / "set" / "set.inter").read_bytes()
    with pytest.raises(
        DataError, match=r"holds set\.inter, set\.item, set\.user, set\.conversion\.json already; pass --over"
    ):
        convert("ml-1m", archive, tmp_path / "set", k_core=2)
    convert("ml-1m", small(tmp_path, 3), tmp_path / "set", overwrite=True)
    assert (tmp_path / "set" / "set.inter").read_bytes() != before
    assert (tmp_path / "set" / "mine.txt").read_text() == "kept"
    assert not (tmp_path / "set" / "set.user").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file; the output must be a folder"):
        convert("ml-1m", archive, tmp_path / "file")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_interruption_leaves_what_was_there(tmp_path, monkeypatch, error):
    archive = small(tmp_path)
    convert("ml-1m", archive, tmp_path / "set")
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}

    def interrupted(*_):
        raise error

    monkeypatch.setattr(output.Output, "write_json", interrupted)
    for target in ("set", "new"):
        with pytest.raises(error):
            convert("ml-1m", archive, tmp_path / target, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ml-1m.zip", "set"]


def test_sidecar(tmp_path):
    report = convert("ml-1m", small(tmp_path), tmp_path / "set", min_rating=3)
    text = (tmp_path / "set/set.conversion.json").read_text()
    sidecar = json.loads(text)
    assert str(tmp_path) not in text
    assert sidecar["read"][0]["file"] == "ml-1m.zip"
    assert sidecar["read"][0]["sha256"] == sha256(tmp_path / "ml-1m.zip")
    for name, digest in sidecar["written"].items():
        assert sha256(tmp_path / "set" / name) == digest
    assert sidecar["counts"]["interactions"] == report.counts.interactions == 4
    assert sidecar["settings"]["min_rating"] == 3


def test_recipes_are_complete():
    names = conversion.source_names()
    for recipe in all_recipes().values():
        assert recipe.source in names or conversion.amazon.NAME.fullmatch(recipe.source)
        assert set(recipe.published) <= {"users", "items", "interactions", "mean_length"}
        assert {"users", "items"} <= set(recipe.published)
        assert set(recipe.options) <= conversion.source_options(recipe.source)
        assert recipe.counted in ("interactions", "targets")


def test_blocks_cut_anywhere(tmp_path):
    data = "".join(f"line {n} {'x' * (n % 50)}\n" for n in range(300))
    for text in (data, data[:-1], "\n\n" + data, "one"):
        path = write(tmp_path / "a.txt", text)
        for size in (1, 7, 64, 1 << 20):
            blocks = list(Source(path).blocks(size=size))
            assert b"\n".join(line for _, lines in blocks for line in lines) == text.removesuffix("\n").encode()
            place = 1
            for number, lines in blocks:
                assert number == place
                place += len(lines)


def test_ties_keep_file_order_for_any_block_size(tmp_path):
    n = 5000
    ratings = "".join(f"{k % 7}::{k % 11 + 1}::5::{k % 3}\n" for k in range(n))
    archive = make_zip(tmp_path / "a.zip", {"ratings.dat": ratings, "movies.dat": "1::A (1999)::Drama\n"})
    convert("ml-1m", archive, tmp_path / "set")
    rows = [(int(t), int(u), int(i)) for u, i, _, t in read_rows(tmp_path / "set/set.inter")[1]]
    wanted = sorted(range(n), key=lambda k: (k % 3, k))
    assert rows == [(k % 3, k % 7, k % 11 + 1) for k in wanted]


def test_without_orjson_and_pyarrow_the_same_bytes(tmp_path):
    """The standard library gives what orjson gives; a fresh process, as the choice is made at import."""
    awkward = {"asin": "B1", "title": "é \\ud83d\\ude00 NaN", "price": 1e22, "categories": [["a\tb", "c"]]}
    reviews = '{"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 86400}\n' * 3
    write(tmp_path / "in" / "reviews_Beauty_5.json.gz", reviews)
    write(tmp_path / "in" / "meta_Beauty.json.gz", json.dumps(awkward) + "\n" + json.dumps({"asin": "B2"}) + "\n")
    convert("amazon-beauty-2014", tmp_path / "in", tmp_path / "a" / "set")
    code = (
        "import sys; sys.modules['orjson'] = None; sys.modules['pyarrow'] = None\n"
        "from recbole_llm.convert import convert\n"
        "from recbole_llm.convert.records import fast_loads\n"
        "assert fast_loads.__name__ == 'standard_loads'\n"
        f"convert('amazon-beauty-2014', {str(tmp_path / 'in')!r}, {str(tmp_path / 'b' / 'set')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
    for name in ("set.inter", "set.item", "set.conversion.json"):
        assert (tmp_path / "a/set" / name).read_bytes() == (tmp_path / "b/set" / name).read_bytes()
