"""FAISS indexes of item vectors: the lists they give, the recall that is said of them, and what they refuse."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_llm.cli import main
from recbole_llm.errors import ConfigError, MissingExtraError
from recbole_llm.quick_start import run
from recbole_llm.recommend import Recommender
from recbole_llm.recommend.index import build_index, recall
from tests.closeness import assert_same_list, pairs
from tests.worlds import write_cycle

SETTINGS = {"epochs": 2, "train_batch_size": 64, "learning_rate": 0.01, "show_progress": False, "use_gpu": False}


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", exc_type=ImportError)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cycle")
    write_cycle(folder / "data")
    places = {"data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
    return Path(run("LRURec", "cycle", config_dict={**SETTINGS, **places})["run_dir"])


def made_up(items=400, users=30, width=8):
    draw = np.random.default_rng(0)
    return draw.standard_normal((items, width), dtype=np.float32), draw.standard_normal((users, width), np.float32)


@pytest.mark.parametrize("factory", ["--faiss", "--faiss=HNSW32"])
def test_an_index_finds_the_lists_of_the_run(factory, trained, faiss):
    assert main(["export", str(trained), "--out=vectors", factory]) == 0
    index = faiss.read_index("vectors/items.faiss")
    items = Path("vectors/items.txt").read_text(encoding="utf-8").splitlines()
    users = Path("vectors/users.txt").read_text(encoding="utf-8").splitlines()
    scores, rows = index.search(np.load("vectors/user_vectors.npy"), 6)
    frame = pd.concat(Recommender.load(trained).recommend_users(k=6, mask_history=False))
    assert sorted(users) == sorted(set(frame["user_id"]))
    for user, row, found in zip(users, rows, scores.tolist(), strict=True):
        expected = pairs(frame[frame["user_id"] == user])
        assert_same_list([(items[i], score) for i, score in zip(row, found, strict=True)], expected)


@pytest.mark.parametrize(("probes", "least", "most"), [(8, 1, 1), (1, 0.05, 0.95)])
@pytest.mark.parametrize("users", ["all", "none"])
def test_the_recall_that_an_export_says_is_that_of_its_files(probes, least, most, users, trained, faiss, caplog):
    """Thirty items in eight cells: probing all of them is exact, one holds a part of a list of ten."""
    given = [f"--users={users}", "--faiss=IVF8,Flat", f"--faiss_search=nprobe={probes}"]
    with caplog.at_level(logging.INFO):
        assert main(["export", str(trained), "--out=vectors", *given]) == 0
    said = json.loads(Path("vectors/export.json").read_text(encoding="utf-8"))["faiss"]
    assert (said["factory"], said["search"], said["users"]) == ("IVF8,Flat", f"nprobe={probes}", 40)
    assert f"IVF8,Flat: recall@10 {said['recall@10']:.4f} of exact lists of 40 users" in caplog.text
    assert least <= said["recall@10"] <= most
    recommender = Recommender.load(trained)
    vectors = recommender.user_vectors([recommender.history(user) for user in recommender.users])
    exact = np.argsort(-(vectors @ np.load("vectors/item_vectors.npy").T), axis=1)[:, :10]
    index = faiss.read_index("vectors/items.faiss")
    assert index.nprobe == probes
    _, found = index.search(vectors, 10)
    by_hand = np.mean(
        [len(set(one) & set(other)) / 10 for one, other in zip(found.tolist(), exact.tolist(), strict=True)]
    )
    assert said["recall@10"] == pytest.approx(by_hand, abs=0.0051)  # two of 400 places may tie up to rounding


def test_recall_of_lists_that_are_known(faiss):
    items, users = made_up()
    exact = np.argsort(-(users @ items.T), axis=1)

    class Found:
        """Seven of the ten best, one that is not among them, and two places left empty."""

        def search(self, vectors, k):
            rows = np.concatenate([exact[:, :7], exact[:, [50]], np.full((len(users), 2), -1)], axis=1)
            return None, rows

    assert recall(Found(), items, users, 10) == pytest.approx(0.7)
    assert recall(build_index(items, "Flat"), items, users, 10) == 1
    assert recall(build_index(items[:4], "Flat"), items[:4], users, 10) == 1


def test_of_equal_scores_any_will_do(faiss):
    items, users = made_up(items=40)
    twice = np.concatenate([items, items])
    assert recall(build_index(twice[::-1].copy(), "Flat"), twice[::-1].copy(), users, 3) == 1

    class Later:
        def search(self, vectors, k):
            return None, np.argsort(-(users @ items.T), axis=1)[:, :1] + 40

    assert recall(Later(), twice, users, 1) == 1


def test_what_faiss_refuses(faiss):
    items, _ = made_up(items=50)
    with pytest.raises(ConfigError, match="faiss='Nonsense' cannot be built for 50 vectors of width 8"):
        build_index(items, "Nonsense")
    for factory, search in (("IVF4,Flat", "probe=4"), ("IVF4,Flat", "nprobe=0"), ("Flat", "nprobe=4")):
        with pytest.raises(ConfigError, match=f"faiss_search='{search}' is nothing that an index '{factory}'"):
            build_index(items, factory, search)


def test_search_without_an_index(trained, capsys):
    assert main(["export", str(trained), "--out=vectors", "--faiss_search=nprobe=4"]) == 2
    assert "--faiss_search=nprobe=4 is for an index: add --faiss=" in capsys.readouterr().err
    assert not Path("vectors").exists()


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError):
        build_index(made_up()[0], "Flat")
