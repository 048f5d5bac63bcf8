"""VSKNN against loops over sessions, for every variant."""

import math
import random

import numpy as np
import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.model.vsknn import VSKNN

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
DECAYS = {"harmonic": lambda r, n: 1 / r, "none": lambda r, n: 1.0, "scaling_linear": lambda r, n: 1 - (r - 1) / n}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """45 users, 25 items, histories of 3 to 9 with some repeats, at distinct times."""
    draw = random.Random(4)
    rows = []
    for user in range(45):
        length = 3 + user % 7
        items = [draw.randrange(25) for _ in range(length)]
        rows += [
            f"u{user}\ti{item}\t{50 * draw.randrange(100) + user + 5000 * step}\n" for step, item in enumerate(items)
        ]
    draw.shuffle(rows)
    target = tmp_path_factory.mktemp("knn")
    (target / "shop").mkdir()
    (target / "shop" / "shop.inter").write_text(HEADER + "".join(rows), encoding="utf-8")
    return target


def build(folder, **settings):
    config = Config("VSKNN", "shop", config_dict={"data_path": str(folder), "use_gpu": False, **settings})
    train, _, test = prepare_data(config, HistoryDataset(config))
    return VSKNN(config, train.dataset), train.dataset, next(iter(test))[0]


def training_sessions(train):
    """{user: [(item, time), ...]} of the training split, in order."""
    last = {}
    rows = (train.inter_feat[field].tolist() for field in ("user_id", "history_position"))
    for user, position in zip(*rows, strict=True):
        last[user] = max(position, last.get(user, 0))
    return {
        user: [
            (int(train.flat["item_id"][at]), float(train.flat["timestamp"][at]))
            for at in range(train.offsets[user], position + 1)
        ]
        for user, position in last.items()
    }


def by_hand(model, sessions, prompt, user, settings):
    """Scores of one history."""
    n = len(prompt)
    weight, recency = {}, {}
    for position, item in enumerate(prompt):  # the newest occurrence wins
        r = n - position
        weight[item], recency[item] = DECAYS[settings.get("decay", "harmonic")](r, n), r
    sets = {u: {item for item, _ in events} for u, events in sessions.items()}
    candidates = [u for u in sets if u != user and sets[u] & set(prompt)]
    candidates.sort(key=lambda u: model.order[u])
    candidates = candidates[: settings["sample_size"]]

    def similarity(u):
        dot = sum(weight[item] for item in sets[u] & set(prompt))
        if settings.get("similarity") == "cosine":
            dot /= math.sqrt(sum(w * w for w in weight.values())) * math.sqrt(len(sets[u]))
        return dot

    nearest = sorted(candidates, key=lambda u: (-round(similarity(u), 12), model.order[u]))[: settings["neighbors"]]
    scores = dict.fromkeys(range(model.n_items), 0.0)
    for u in nearest:
        value = similarity(u)
        if settings.get("sequential_weight"):
            value *= (n - min(recency[item] for item in sets[u] & set(prompt)) + 1) / n
        items = sets[u]
        if settings.get("followers_only"):
            line = [item for item, _ in sessions[u]]
            pairs = [after for before, after in zip(line, line[1:], strict=False) if before == prompt[-1]]
            items = set(pairs[-1:])
        for item in items:
            scores[item] += value
    if settings.get("idf"):
        for item in scores:
            df = sum(item in items for items in sets.values())
            scores[item] *= 1 + math.log(len(sets) / max(df, 1))
    return [scores[item] for item in range(model.n_items)]


@pytest.mark.parametrize(
    "settings",
    [
        {"neighbors": 5, "sample_size": 12},
        {"neighbors": 5, "sample_size": 12, "similarity": "cosine", "decay": "none"},
        {"neighbors": 4, "sample_size": 9, "sampling": "recent", "idf": True},
        {"neighbors": 50, "sample_size": 500, "decay": "scaling_linear", "similarity": "cosine"},
        {"neighbors": 6, "sample_size": 20, "sequential_weight": True},
        {"neighbors": 20, "sample_size": 40, "followers_only": True, "idf": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_scores_by_hand(folder, settings):
    model, train, batch = build(folder, **settings)
    sessions = training_sessions(train)
    expected = []
    for row in range(len(batch)):
        prompt = batch["item_id_list"][row, : batch["item_length"][row]].tolist()
        expected.append(by_hand(model, sessions, prompt, int(batch["user_id"][row]), settings))
    expected = np.array(expected)
    found = model.full_sort_predict(batch).numpy()
    reached = expected > 0
    assert reached.sum() > 60
    np.testing.assert_allclose(found[reached], expected[reached], rtol=1e-5)
    # Nobody's items come last, by popularity.
    assert (found[:, 1:][~reached[:, 1:]] < 0).all()
    counts = train.train_counts[1:]
    for row, other in zip(found[:, 1:], ~reached[:, 1:], strict=True):
        order = np.argsort(-row[other], kind="stable")
        assert (np.diff(counts[other][order]) <= 0).all()


def test_recent_sessions_are_those_that_ended_last(folder):
    model, train, _ = build(folder, sampling="recent")
    ended = {user: events[-1][1] for user, events in training_sessions(train).items()}
    assert sorted(ended, key=lambda user: model.order[user]) == sorted(ended, key=lambda user: -ended[user])


def test_the_random_sample_follows_the_seed(folder):
    orders = [build(folder, seed=seed)[0].order.tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_without_user_ids(folder):
    """A new user's history, as serving has it."""
    model, _, batch = build(folder)
    del batch["user_id"]
    assert torch.isfinite(model.full_sort_predict(batch)[:, 1:]).all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"neighbors": 0}, "invalid value for neighbors: 0"),
        ({"sample_size": 0}, "invalid value for sample_size: 0"),
        ({"sampling": "newest"}, "invalid value for sampling: 'newest'"),
        ({"similarity": "euclidean"}, "invalid value for similarity: 'euclidean'"),
        ({"decay": "half"}, "invalid value for decay: 'half'"),
    ],
)
def test_what_is_refused(folder, settings, says):
    with pytest.raises(ConfigError, match=says):
        build(folder, **settings)
