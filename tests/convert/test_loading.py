"""Converted files in RecBole's own reader and in ours, with every text that could break one."""

import json

import numpy as np
import pandas as pd
import pytest
from convert_helpers import make_zip, write

from recbole_llm.convert import convert

USERS, ITEMS = 24, 40
NASTY = [
    '"Quoted" title',
    '"unclosed',
    "None",
    "NA",
    "null",
    "tab\there",
    "line\nend",
    "&quot;x&quot; &amp; y",
    "😀 ☃",
    "it's",
]


def titles():
    return [NASTY[n] if n < len(NASTY) else f"Plain title {n}" for n in range(ITEMS)]


def movielens(tmp_path):
    ratings = "".join(
        f"{user}::{(user * 7 + step * 3) % ITEMS + 1}::{step % 5 + 1}::{978_300_000 + 10 * step + user}\n"
        for user in range(1, USERS + 1)
        for step in range(9)
    )
    names = [title.replace("\n", " ") for title in titles()]
    movies = "".join(f"{n + 1}::{title} ({1990 + n})::Action|Drama\n" for n, title in enumerate(names))
    archive = make_zip(tmp_path / "ml-10m.zip", {"ratings.dat": ratings, "movies.dat": movies})
    convert("ml-10m", archive, tmp_path / "dataset" / "made-up-movies")
    return "made-up-movies", "movie_title"


def amazon(tmp_path):
    reviews = "".join(
        json.dumps(
            {
                "reviewerID": f"A{user}",
                "asin": f"B{(user * 7 + step * 3) % ITEMS}",
                "overall": 5.0,
                "unixReviewTime": 86_400 * step,
            }
        )
        + "\n"
        for user in range(USERS)
        for step in range(9)
    )
    meta = [
        {"asin": f"B{n}", "title": title, "categories": [["Toys", "Games & more"]]} for n, title in enumerate(titles())
    ]
    write(tmp_path / "in" / "reviews_Toys_and_Games_5.json.gz", reviews)
    write(tmp_path / "in" / "meta_Toys_and_Games.json.gz", "".join(f"{record!r}\n" for record in meta))
    convert("amazon-toys-2014", tmp_path / "in", tmp_path / "dataset" / "made-up-toys")
    return "made-up-toys", "title"


def steam(tmp_path):
    names = ["null", '"q', "a b"] + [f"u{user}" for user in range(3, USERS)]
    reviews = [
        {"username": name, "product_id": f"{(user * 7 + step * 3) % ITEMS}", "date": f"2017-12-{step + 1:02d}"}
        for user, name in enumerate(names)
        for step in range(9)
    ]
    games = [{"id": f"{n}", "title": title, "genres": ["Indie"], "tags": ["NA"]} for n, title in enumerate(titles())]
    write(tmp_path / "in" / "steam_reviews.json.gz", "".join(f"{review!r}\n" for review in reviews))
    write(tmp_path / "in" / "steam_games.json.gz", "".join(f"{game!r}\n" for game in games))
    convert("steam", tmp_path / "in", tmp_path / "dataset" / "made-up-games", ids="recbole")
    return "made-up-games", "title"


def sessions(tmp_path):
    log = "session_id,item_id,timestamp\n" + "".join(
        f"s{user},{(user * 7 + step * 3) % ITEMS},{step}.5\n" for user in range(USERS) for step in range(9)
    )
    products = pd.DataFrame({"item_id": range(ITEMS), "title": titles()})
    products.to_csv(tmp_path / "products.csv", index=False)
    convert(
        "sessions", write(tmp_path / "log.csv", log), tmp_path / "dataset" / "shop", metadata=tmp_path / "products.csv"
    )
    return "shop", "title"


SOURCES = pytest.mark.parametrize("make", [movielens, amazon, steam, sessions])


@SOURCES
def test_stock_recbole_reads_every_row_and_word(tmp_path, make):
    if int(pd.__version__.split(".")[0]) >= 3 or int(np.__version__.split(".")[0]) >= 2:
        pytest.skip("stock RecBole 1.2.1 reads text fields only with pandas < 3 and numpy < 2")
    pytest.importorskip("recbole")
    from recbole.config import Config
    from recbole.data import create_dataset

    from recbole_llm.convert.values import clean_text

    name, title = make(tmp_path)
    config = Config(
        model="SASRec",
        dataset=name,
        config_dict={
            "data_path": str(tmp_path / "dataset"),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", title]},
            "train_neg_sample_args": None,
            "MAX_ITEM_LIST_LENGTH": 20,
        },
    )
    dataset = create_dataset(config)
    assert len(dataset.inter_feat) == USERS * 9 and dataset.user_num == USERS + 1 and dataset.item_num == ITEMS + 1
    words = dataset.field2id_token[title]
    read = {
        " ".join(word for word in words[row.numpy() if hasattr(row, "numpy") else row] if word != "[PAD]")
        for row in dataset.item_feat[title]
    }
    assert read - {""} == {clean_text(text) for text in titles()}


@SOURCES
def test_litellm4rec_trains(tmp_path, make, monkeypatch):
    quick_start = pytest.importorskip("recbole_llm.quick_start")
    monkeypatch.chdir(tmp_path)
    name, _ = make(tmp_path)
    result = quick_start.run(
        model="LiteLLM4Rec",
        dataset=name,
        config_dict={"data_path": str(tmp_path / "dataset"), "smoke": True, "show_progress": False, "use_gpu": False},
        saved=False,
    )
    assert result["test_result"]
