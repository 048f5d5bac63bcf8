"""Fixtures that every test module may use: an isolated working folder and made-up data."""

import csv
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """Empty current folder, caches of its own, no network, and a logger without handlers of other tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models: more threads only wait for each other
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread():
    """One torch thread for a whole module, fixtures of module scope included."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def recbole_ml100k():
    """The folder of ml-100k inside RecBole."""
    return Path(find_spec("recbole").submodule_search_locations[0]) / "dataset_example" / "ml-100k"


def write_dataset(folder, name="shop", users=14, items=12, per_user=8, seed=0):
    """Write made-up atomic files with item text; every user has ``per_user`` distinct items at distinct times."""
    draw = random.Random(seed)
    target = Path(folder) / name
    target.mkdir(parents=True)
    rows = []
    for user in range(users):
        chosen = draw.sample(range(items), per_user)
        rows += [(f"u{user}", f"i{item}", 1000 + 10 * step + user) for step, item in enumerate(chosen)]
    _write(target / f"{name}.inter", ["user_id:token", "item_id:token", "timestamp:float"], rows)
    kinds = ["red", "green", "blue"]
    texts = [(f"i{item}", f"thing number {item}", kinds[item % 3]) for item in range(items)]
    _write(target / f"{name}.item", ["item_id:token", "title:token_seq", "kind:token_seq"], texts)
    return target


def _write(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])


@pytest.fixture
def shop(isolated):
    """``dataset/shop`` in the current folder: 14 users, 12 items with title and kind, 8 interactions each."""
    return write_dataset(isolated / "dataset")


@pytest.fixture(scope="session")
def tiny():
    """Settings that make any model small and quick."""
    return {
        "epochs": 1,
        "train_batch_size": 64,
        "MAX_ITEM_LIST_LENGTH": 5,
        "show_progress": False,
        "use_gpu": False,
        "topk": [5],
        "valid_metric": "NDCG@5",
    }
