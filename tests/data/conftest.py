import random

import pytest

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


@pytest.fixture
def atomic(tmp_path):
    """Write ``<name>/<name>.<suffix>`` for every suffix; text or bytes. Returns the data_path."""

    def write(name="shop", **files):
        (tmp_path / name).mkdir(exist_ok=True)
        for suffix, content in files.items():
            path = tmp_path / name / f"{name}.{suffix}"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return write


@pytest.fixture
def shop(atomic):
    """50 users with 1 to 14 interactions in no order, colliding and large times, repeats, items nobody has."""
    rng = random.Random(7)
    rows = []
    for user in range(50):
        for _ in range(1 + user % 14):
            time = 1_371_945_000 + rng.randrange(40) * 7
            rows.append(f"u{user}\ti{rng.randrange(30)}\t{rng.randint(1, 5)}\t{time}")
    rng.shuffle(rows)
    items = [f"i{i}\t{' '.join(rng.sample(['Drama', 'Comedy', 'War'], i % 4))}\t{i / 4}" for i in range(35)]
    return atomic(
        inter="\n".join([INTER, *rows]) + "\n",
        item="\n".join(["item_id:token\tclass:token_seq\tprice:float", *items]) + "\n",
    )


@pytest.fixture
def make_config(tmp_path):
    """A Config of a data set that ``atomic`` wrote, or of RecBole's ml-100k."""

    def make(dataset="shop", model="SASRec", **settings):
        settings = {"MAX_ITEM_LIST_LENGTH": 6, "seed": 5, **settings}
        if dataset != "ml-100k":
            settings = {"data_path": str(tmp_path), **settings}
        return Config(model, dataset, config_dict=settings)

    return make


@pytest.fixture
def make_dataset(make_config):
    """A HistoryDataset, not yet built."""

    def make(dataset="shop", model="SASRec", **settings):
        return HistoryDataset(make_config(dataset, model, **settings))

    return make
