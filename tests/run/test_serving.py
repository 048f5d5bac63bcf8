"""A run on data files that have changed since: rows reordered, files grown, moved, cut."""

import json
import logging
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from recbole_llm.cli import main
from recbole_llm.data.trained import FILE, TrainedData
from recbole_llm.errors import CheckpointError, DataError
from recbole_llm.quick_start import load_run, run
from recbole_llm.recommend import Recommender
from tests.properties import examples

USERS, ITEMS, LENGTH = 12, 15, 8


def write_shop(folder: Path, seed: int = 0) -> Path:
    """Made-up ids that look like numbers, and times of which many are equal."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for user in range(USERS):
        for step, item in enumerate(draw.sample(range(ITEMS), LENGTH)):
            rows.append(f"{user:03d}\t{item:02d}\t{1000 + step // 3}")
    draw.shuffle(rows)
    write_rows(folder, rows)
    texts = [f"{item:02d}\tthing number {item}" for item in range(ITEMS)]
    (folder / "shop.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *texts]) + "\n", encoding="utf-8")
    return folder


def write_rows(folder: Path, rows: list[str]) -> None:
    text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n"
    (folder / "shop.inter").write_text(text, encoding="utf-8")


def read_rows(folder: Path) -> list[str]:
    return (folder / "shop.inter").read_text(encoding="utf-8").splitlines()[1:]


def lists(run_dir: Path, **options) -> dict[str, list[tuple[str, float]]]:
    frame = pd.concat(Recommender.load(run_dir, use_gpu=False).recommend_users(k=6, **options))
    return {user: list(zip(part["item_id"], part["score"], strict=True)) for user, part in frame.groupby("user_id")}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for user, pairs in expected.items():
        assert [item for item, _ in found[user]] == [item for item, _ in pairs]
        np.testing.assert_allclose([s for _, s in found[user]], [s for _, s in pairs], rtol=1e-5, atol=1e-6)


@pytest.fixture
def shop(isolated):
    return write_shop(isolated / "dataset" / "shop")


MODELS = {
    "SASRec": {},
    "LRURec": {},
    "FPMC": {},  # learns a vector per user
    "MostPopular": {},  # counts training interactions
    "VSKNN": {},  # searches training histories
    "LLMSeqSim": {"llm": "tiny-random-bert", "dim_reduction": "none"},
}


@pytest.mark.parametrize("model", MODELS)
def test_rows_in_another_order_and_place_change_nothing(model, shop, tiny, isolated):
    run_dir = Path(run(model, "shop", config_dict={**tiny, **MODELS[model]})["run_dir"])
    figures = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["test_result"]
    expected = {history: lists(run_dir, history=history) for history in ("all", "valid", "test")}
    rows = read_rows(shop)
    for seed in (1, 2):
        random.Random(seed).shuffle(rows)
        write_rows(shop, rows)
        (isolated / "elsewhere").mkdir(exist_ok=True)
        moved = isolated / "elsewhere" / "shop"
        shop.rename(moved)
        loaded = load_run(run_dir, {"data_path": str(isolated / "elsewhere")})
        assert loaded.trainer.evaluate(loaded.test_data, load_best_model=False) == pytest.approx(figures)
        moved.rename(shop)
        for history, before in expected.items():
            assert_same(lists(run_dir, history=history), before)


def test_serving_imports_no_compiler(shop, tiny):
    """torch imports its compiler, which takes longer than reading a small run, for the first optimizer."""
    run_dir = run("LRURec", "shop", config_dict={**tiny})["run_dir"]
    code = (
        "import sys; from recbole_llm.recommend import Recommender; "
        f"Recommender.load({run_dir!r}, use_gpu=False).recommend_users(k=2); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@examples(15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_places_find_every_interaction_again(data):
    """The ids that any order of rows gives, with new rows among them, lead back to the histories of the run."""
    users, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    histories = [data.draw(st.lists(st.integers(1, width), max_size=8)) for _ in range(users)]
    items = np.array([item for history in histories for item in history], dtype=np.int64)
    lengths = np.array([0, *map(len, histories)])
    trained = TrainedData({}, items, lengths, 0.0)
    new = [data.draw(st.lists(st.integers(1, width + 2), max_size=3)) for _ in range(users + 1)]
    grown = [(history if number < users else []) for number, history in enumerate([*histories, []])]
    owners = np.array([u for u, h in enumerate(grown, 1) for _ in [*h, *new[u - 1]]], dtype=np.int64)
    flat = np.array([item for u, h in enumerate(grown) for item in [*h, *new[u]]], dtype=np.int64)
    places = trained.places(owners, flat)
    assert sorted(places[places >= 0]) == list(range(len(items)))
    assert (flat[places >= 0] == items[places[places >= 0]]).all()
    assert (owners[places < 0] > 0).all() and (places >= 0).sum() == len(items)


def test_ids_survive_the_file(tmp_path):
    words = ["[PAD]", "007", "7", "", " a ", "日本", "\ud800", "1e5", "x" * 300, "a\x00b"]
    shared = np.array(words, dtype=object)
    trained = TrainedData(
        {"user_id": shared, "item_id": np.array(["[PAD]", "1"], dtype=object), "user_id_list": shared},
        np.array([1, 1, 1]),
        np.array([0, 3] + [0] * 8),
        12.5,
        np.array([1, 2], dtype=np.uint64),
    )
    trained.save(tmp_path)
    again = TrainedData.load(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, "SHA256SUMS"}
    for field, values in trained.tokens.items():
        assert again.tokens[field].tolist() == values.tolist()
    assert again.items.tolist() == [1, 1, 1] and again.newest == 12.5 and again.texts.tolist() == [1, 2]
    whole = (tmp_path / FILE).read_bytes()
    for place in range(40, len(whole), 97):
        (tmp_path / FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = TrainedData.load(tmp_path)
        except CheckpointError as error:
            assert "damaged" in str(error)  # noqa: PT017 - a byte that no reader uses may change
        else:
            assert found.tokens["user_id"].tolist() == words and found.items.tolist() == [1, 1, 1]


def test_new_interactions_of_known_users_are_history(shop, tiny, caplog):
    run_dir = Path(run("LRURec", "shop", config_dict=tiny)["run_dir"])
    before, tested = lists(run_dir), lists(run_dir, history="test")
    had = {row.split("\t")[1] for row in read_rows(shop) if row.startswith("003\t")}
    new = sorted({f"{item:02d}" for item in range(ITEMS)} - had)[:2]
    more = [f"003\t{new[0]}\t2000", f"003\t{new[1]}\t2001", "003\tunknown\t2002", "900\t05\t2000", "900\t06\t2001"]
    write_rows(shop, [*more, *read_rows(shop)])
    caplog.clear()
    recommender = Recommender.load(run_dir)
    assert "1 interactions with 1 items that the run does not know are left out" in caplog.text
    assert "4 interactions are new since the run was trained, 1 users among them" in caplog.text
    now = lists(run_dir)
    assert set(now) == {*before, "900"}
    assert_same({user: now[user] for user in before if user != "003"}, {u: v for u, v in before.items() if u != "003"})
    assert not {item for item, _ in now["003"]} & set(new)  # masked
    history = [row.split("\t") for row in read_rows(shop)]
    own = recommender.recommend([["05", "06"]], k=6)[0]
    assert [item for item, _ in now["900"]] == [item for item, _ in own]
    assert len(history) == USERS * LENGTH + 5
    assert_same(lists(run_dir, history="test"), tested)  # what the evaluator ranked


def test_new_users_of_a_model_that_learns_users(shop, tiny, caplog):
    run_dir = Path(run("FPMC", "shop", config_dict=tiny)["run_dir"])
    before = lists(run_dir)
    write_rows(shop, [*read_rows(shop), "900\t05\t2000", "900\t06\t2001"])
    assert_same(lists(run_dir), before)
    assert "1 users have no interactions and are left out" in caplog.text
    with pytest.raises(DataError, match="'900'"):
        list(Recommender.load(run_dir).recommend_users(["900"]))


def test_files_that_lost_interactions_stop(shop, tiny):
    run_dir = Path(run("SASRec", "shop", config_dict=tiny)["run_dir"])
    rows = read_rows(shop)
    write_rows(shop, rows[:-3])
    with pytest.raises(CheckpointError, match="3 of the 96 interactions that the run was trained on are no longer in"):
        load_run(run_dir)
    user, item, _ = rows[0].split("\t")
    write_rows(shop, [f"{user}\t{item}\t0" if row == rows[0] else row for row in rows])
    first = min((row.split("\t")[2], row) for row in rows if row.startswith(user))[1]
    if first != rows[0]:
        with pytest.raises(CheckpointError, match=f"the interactions of user_id '{user}' have other times"):
            load_run(run_dir)
    (run_dir / FILE).unlink()
    with pytest.raises(CheckpointError, match=f"has no {FILE}"):
        load_run(run_dir)
    write_rows(shop, rows)
    load_run(run_dir)  # the very files need none


def test_a_smoke_run_keeps_to_what_it_read(shop, tiny):
    small = {**tiny, "smoke": True, "smoke_users": 5, "smoke_interactions": 6}
    run_dir = Path(run("SASRec", "shop", config_dict=small)["run_dir"])
    before = lists(run_dir)
    assert len(before) == 5
    rows = read_rows(shop)
    random.Random(3).shuffle(rows)
    write_rows(shop, rows)
    assert_same(lists(run_dir), before)
    user = next(iter(before))
    had = {row.split("\t")[1] for row in rows if row.startswith(user)}
    new = next(item for item in (item for item, _ in before[user]) if item not in had)
    write_rows(shop, [f"{user}\t{new}\t5000", *rows])
    now = lists(run_dir)
    assert now.keys() == before.keys() and new not in {item for item, _ in now[user]}


@pytest.mark.parametrize(
    "changed",
    [
        {"user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[5,inf)"},
        {"eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}}},
        {"cold_items": 0.2},
        {"protocol": "temporal_session", "allow_rank_times": True, "temporal_session_valid_ratio": 0.3},
    ],
    ids=["k-core", "shares", "cold", "sessions"],
)
def test_under_filters_and_other_splits(changed, shop, tiny):
    if changed.get("protocol"):  # sessions end at different times
        rows = [row.split("\t") for row in read_rows(shop)]
        write_rows(shop, [f"{user}\t{item}\t{int(time) + 100 * int(user)}" for user, item, time in rows])
    run_dir = Path(run("SASRec", "shop", config_dict={**tiny, **changed})["run_dir"])
    figures = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["test_result"]
    before = {history: lists(run_dir, history=history) for history in ("all", "test")}
    rows = read_rows(shop)
    random.Random(5).shuffle(rows)
    write_rows(shop, rows)
    loaded = load_run(run_dir)
    assert loaded.trainer.evaluate(loaded.test_data, load_best_model=False) == pytest.approx(figures)
    for history, expected in before.items():
        assert_same(lists(run_dir, history=history), expected)


def test_changed_texts_are_said_and_missing_ones_stop(shop, tiny, caplog):
    options = {**tiny, "llm": "tiny-random-bert", "dim_reduction": "none"}
    run_dir = Path(run("LLMSeqSim", "shop", config_dict=options)["run_dir"])
    file = shop / "shop.item"
    whole = file.read_text(encoding="utf-8")
    lines = whole.splitlines()
    file.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")
    load_run(run_dir)
    assert "item texts differ" not in caplog.text  # only another order
    file.write_text(whole.replace("thing number 3", "something else"), encoding="utf-8")
    load_run(run_dir)
    assert "1 of 15 item texts differ from those that" in caplog.text and "('03')" in caplog.text
    file.write_text(whole.replace("03\tthing number 3\n", ""), encoding="utf-8")
    with pytest.raises(CheckpointError, match="1 items of .* have no text any more, '03' for one"):
        load_run(run_dir)


def test_exports_on_reordered_rows(shop, tiny):
    run_dir = Path(run("SASRec", "shop", config_dict=tiny)["run_dir"])
    assert main(["export", str(run_dir), "--out=before"]) == 0
    rows = read_rows(shop)
    rows.reverse()
    write_rows(shop, rows)
    assert main(["export", str(run_dir), "--out=after"]) == 0
    for name in ("items.txt", "users.txt"):
        assert (Path("before") / name).read_bytes() == (Path("after") / name).read_bytes()
    for name in ("item_vectors.npy", "user_vectors.npy"):
        np.testing.assert_allclose(np.load(Path("before") / name), np.load(Path("after") / name), rtol=1e-5, atol=1e-6)


def test_a_hybrid_of_runs_on_reordered_rows(shop, tiny):
    members = [run(model, "shop", config_dict=tiny)["run_dir"] for model in ("SASRec", "MostPopular")]
    with torch.random.fork_rng():
        result = run("ScoreEnsemble", "shop", config_dict={**tiny, "epochs": 0, "members": members})
    run_dir = Path(result["run_dir"])
    before = lists(run_dir)
    rows = read_rows(shop)
    rows.reverse()
    write_rows(shop, [*rows, "001\tunknown\t9000"])
    assert_same(lists(run_dir), before)


@pytest.fixture(autouse=True)
def _log_level(caplog):
    caplog.set_level(logging.INFO)


def test_weights_do_not_start_a_run_that_numbers_items_in_another_way(shop, tiny):
    first = run("SASRec", "shop", config_dict=tiny)["run_dir"]
    again = run("SASRec", "shop", config_dict={**tiny, "epochs": 0, "init_from": first})
    assert again["test_result"]
    rows = read_rows(shop)
    rows.reverse()
    write_rows(shop, rows)
    with pytest.raises(CheckpointError, match="init_from=.*numbers its item_id differently"):
        run("SASRec", "shop", config_dict={**tiny, "epochs": 0, "init_from": first})
