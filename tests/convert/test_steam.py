import json

import pytest
from convert_helpers import read_rows, write

from recbole_llm.convert import convert
from recbole_llm.errors import ConfigError, DataError

REVIEWS = (
    "{u'username': u'Ann', u'product_id': u'10', u'date': u'2017-12-17', u'text': u\"it's fun\", u'hours': 4.5}\n"
    "{u'username': u'Bob', u'user_id': u'765', u'product_id': u'10', u'date': u'2017-12-16', u'text': u'\\u2764'}\n"
    "{u'username': u'Ann', u'product_id': u'20', u'date': u'2017-12-17', u'text': u'', u'early_access': False}\n"
    "{u'username': u'Ann', u'product_id': u'10', u'date': u'2018-01-01', u'text': u'again'}\n"
    "{u'username': u'null', u'product_id': u'30', u'date': u'2018-01-01', u'text': u'x'}\n"
)
GAMES = [
    {"id": "10", "title": "Counter-Strike", "genres": ["Action"], "tags": ["FPS", "Team-Based"], "developer": "Valve",
     "release_date": "2000-11-01", "price": 9.99},
    {"id": "20", "app_name": '"Half"-Life', "tags": ["FPS"], "release_date": "Soon.."},
    {"title": "no id"},
    {"id": "40", "title": "Never reviewed", "genres": ["Indie"], "tags": []},
]  # fmt: skip


@pytest.fixture
def steam(tmp_path):
    write(tmp_path / "in" / "steam_reviews.json.gz", REVIEWS)
    write(tmp_path / "in" / "steam_games.json.gz", "".join(f"{game!r}\n" for game in GAMES))
    return tmp_path / "in"


def test_reviews_by_name(tmp_path, steam):
    report = convert("steam", steam, tmp_path / "set")
    assert read_rows(tmp_path / "set/set.inter") == (
        ["user_id:token", "item_id:token", "timestamp:float"],
        [
            ["Bob", "10", "1513382400"],
            ["Ann", "10", "1513468800"],
            ["Ann", "20", "1513468800"],
            ["Ann", "10", "1514764800"],
            ["null", "30", "1514764800"],
        ],
    )
    header, rows = read_rows(tmp_path / "set/set.item")
    assert header[:5] == [
        "item_id:token",
        "title:token_seq",
        "genres:token_seq",
        "tags:token_seq",
        "developer:token_seq",
    ]
    assert rows[0] == ["10", "Counter-Strike", "Action", "FPS, Team-Based", "Valve", "", "2000", "9.99", ""]
    assert rows[1][1:4] == [' "Half"-Life', "", "FPS"]
    assert rows[2] == ["30"] + [""] * 8
    assert report.skipped == {"a game without id": 1} and report.renamed_ids == 0
    assert convert("steam", steam, tmp_path / "set2", dedup="first").counts.interactions == 4


def test_recipe_needs_complete_games(tmp_path, steam):
    report = convert("steam", steam, tmp_path / "set", untitled="drop", complete_games=True)
    assert (report.counts.items, report.counts.interactions) == (1, 3)
    assert "DIFFERENT" in report.text() and "279,290 / " in report.text()
    assert "not tried" in convert("steam", steam, tmp_path / "set2").text()


def test_user_ids_are_missing_in_places(tmp_path, steam):
    report = convert("steam", steam, tmp_path / "set", user_key="user_id")
    assert report.counts.interactions == 1 and report.skipped["a review without user_id"] == 4
    with pytest.raises(ConfigError, match="invalid value for user_key: 'name'"):
        convert("steam", steam, tmp_path / "set2", user_key="name")


def test_reencoded_games_with_nan(tmp_path, steam):
    missing = '{"title": NaN, "app_name": NaN, "id": NaN, "genres": NaN}\n'
    kept = '{"title": NaN, "app_name": "CS", "id": "10", "genres": ["Action"], "tags": NaN, "price": NaN}\n'
    write(steam / "steam_games.json.gz", missing * 3 + kept)
    report = convert("steam", steam, tmp_path / "set")
    assert report.skipped == {"a game without id": 3}
    assert read_rows(tmp_path / "set/set.item")[1][0][1:4] == ["CS", "Action", ""]


def test_bad_lines(tmp_path, steam):
    write(steam / "steam_reviews.json.gz", REVIEWS + REVIEWS.splitlines()[0].replace("12-17", "17-12") + "\n")
    with pytest.raises(DataError, match=r"steam_reviews\.json\.gz, line 6: the date '2017-17-12' is not YYYY-MM-DD"):
        convert("steam", steam, tmp_path / "set")
    write(steam / "steam_reviews.json.gz", REVIEWS[:-30])
    with pytest.raises(DataError, match=r"steam_reviews\.json\.gz, line 5: not JSON and not a"):
        convert("steam", steam, tmp_path / "set")
    (steam / "steam_games.json.gz").unlink()
    with pytest.raises(DataError, match="no steam_games.json.gz beside the reviews"):
        convert("steam", steam, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_australian_reviews(tmp_path, steam):
    record = {
        "user_id": "js41637",
        "reviews": [
            {"item_id": "10", "posted": "Posted November 5, 2011.", "recommend": True},
            {"item_id": "20", "posted": "Posted February 3.", "recommend": True},
            {"item_id": "20", "posted": "Posted July 15, 2011.", "recommend": False},
        ],
    }
    write(steam / "australian_user_reviews.json.gz", f"{record!r}\n")
    report = convert("steam-au", steam, tmp_path / "set")
    assert read_rows(tmp_path / "set/set.inter") == (
        ["user_id:token", "item_id:token", "recommend:float", "timestamp:float"],
        [["js41637", "20", "0", "1310688000"], ["js41637", "10", "1", "1320451200"]],
    )
    assert list(report.skipped.values()) == [1, 1]


def test_real_games_file(tmp_path, shared_raw, steam):
    (steam / "steam_games.json.gz").unlink()
    review = {"username": "a", "product_id": "761140", "date": "2018-01-04"}
    write(steam / "steam_reviews.json.gz", json.dumps(review) + "\n")
    games = shared_raw / "steam_games.json.gz"
    report = convert("steam", steam, tmp_path / "set", metadata=games, items="all")
    # 120,445 lines of which 32,133 carry an id (one of them twice).
    assert report.skipped["a game without id"] == 120_445 - 32_133
    assert report.listed_items == 32_132
