"""The temporal session split, against a straightforward reference over lists of events."""

import csv
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.data.sessions import split_sessions
from recbole_llm.data.times import are_ranks
from recbole_llm.errors import ConfigError, DataError
from recbole_llm.quick_start import load_run, run

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
TEMPORAL = {"protocol": "temporal_session"}


def write_sessions(folder, name="visits", users=60, items=90, seed=3):
    """Sessions of 1 to 9 events at colliding times, some items only in late sessions; rows in no order."""
    draw = random.Random(seed)
    rows = []
    for user in range(users):
        start = draw.randrange(40) * 10
        for _ in range(1 + user % 9):
            item = draw.randrange(items) if start < 250 else draw.randrange(items + 25)
            rows.append((f"u{user}", f"i{item}", start + draw.randrange(12) * 5))
    draw.shuffle(rows)
    target = Path(folder) / name
    target.mkdir(parents=True)
    lines = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    (target / f"{name}.inter").write_text(HEADER + lines, encoding="utf-8")
    texts = "".join(f"i{i}\tthing {i}\n" for i in range(items + 25))
    (target / f"{name}.item").write_text("item_id:token\ttitle:token_seq\n" + texts, encoding="utf-8")
    return rows


def reference(rows, valid_users=(), ratio=0.2):
    """{user: items} of training, and {user: (prompt, target)} of validation and test, in plain Python."""
    sessions = {}
    for user, item, time in rows:
        sessions.setdefault(user, []).append((time, item))
    ordered = []
    for user, events in sessions.items():
        events.sort(key=lambda event: event[0])
        if len(events) > 1:
            ordered.append((events[-1][0], user))
    ordered.sort(key=lambda session: session[0])
    n_test = math.ceil(ratio * len(ordered))
    early, late = ([user for _, user in part] for part in (ordered[:-n_test], ordered[-n_test:]))
    histories = {user: [item for _, item in sessions[user]] for user in sessions}
    train = {user: histories[user] for user in early if user not in valid_users}
    trained = {item for items in train.values() for item in items}
    seen = trained | {item for user in early for item in histories[user]}

    def tasks(users, known):
        left = {user: [item for item in histories[user] if item in known] for user in users}
        return {user: (items[:-1], items[-1]) for user, items in left.items() if len(items) > 1}

    return train, tasks([user for user in early if user in valid_users], trained), tasks(late, seen)


def tasks_of(split):
    """What a split holds: {user: (whole prompt, target)}, read through histories and rows."""
    users = split.id2token("user_id", split.inter_feat["user_id"]).tolist()
    targets = split.id2token("item_id", split.inter_feat["item_id"]).tolist()
    prompts = []
    for row in range(len(split)):
        user = int(split.inter_feat["user_id"][row])
        position = int(split.inter_feat["history_position"][row])
        items = split.flat["item_id"][split.offsets[user] : position]
        prompts.append(np.atleast_1d(split.id2token("item_id", items)).tolist())
    return {user: (prompt, target) for user, prompt, target in zip(users, prompts, targets, strict=True)}


def sequences_of(train):
    """{user: items} of a training split; every prefix must be there once."""
    rows = {}
    for user, position in zip(train.inter_feat["user_id"], train.inter_feat["history_position"], strict=True):
        rows.setdefault(int(user), []).append(int(position - train.offsets[user]))
    result = {}
    for user, depths in rows.items():
        first, last = train.offsets[user], train.offsets[user + 1]
        assert sorted(depths) == list(range(1, last - first))
        result[train.id2token("user_id", user)] = train.id2token("item_id", train.flat["item_id"][first:last]).tolist()
    return result


@pytest.fixture
def visits(tmp_path):
    return write_sessions(tmp_path)


def make(tmp_path, model="SASRec", **settings):
    settings = {"data_path": str(tmp_path), "MAX_ITEM_LIST_LENGTH": 5, **TEMPORAL, **settings}
    return HistoryDataset(Config(model, "visits", config_dict=settings))


# ---- the split


@pytest.mark.parametrize("settings", [{}, {"temporal_session_test_ratio": 0.5}, {"temporal_session_valid_max": 2}])
def test_parts_equal_the_reference(visits, tmp_path, settings):
    ratio = settings.get("temporal_session_test_ratio", 0.2)
    train, valid, test = make(tmp_path, **settings).build()
    early = set(reference(visits, ratio=ratio)[0])
    validating = early - set(sequences_of(train))
    assert len(validating) == min(settings.get("temporal_session_valid_max", 500), int(0.1 * len(early)))
    expected = reference(visits, validating, ratio)
    assert sequences_of(train) == expected[0]
    assert tasks_of(valid) == expected[1]
    assert tasks_of(test) == expected[2]
    assert len(expected[2]) > 5 and expected[1]
    assert not set(expected[0]) & set(expected[2])


def test_parts_equal_the_reference_on_ml100k(recbole_ml100k):
    config = Config("SASRec", "ml-100k", config_dict={**TEMPORAL, "MAX_ITEM_LIST_LENGTH": 50})
    train, valid, test = HistoryDataset(config).build()
    with (recbole_ml100k / "ml-100k.inter").open(encoding="utf-8") as file:
        rows = [(row[0], row[1], float(row[3])) for row in list(csv.reader(file, delimiter="\t"))[1:]]
    validating = set(tasks_of(valid))
    expected = reference(rows, validating)
    assert (len(expected[0]), len(expected[1]), len(expected[2])) == (679, 75, 189)
    assert sequences_of(train) == expected[0]
    assert tasks_of(valid) == expected[1]
    assert tasks_of(test) == expected[2]
    counts = np.zeros(train.item_num, dtype=int)
    for items in expected[0].values():
        np.add.at(counts, [train.token2id("item_id", item) for item in items], 1)
    assert np.array_equal(train.train_counts, counts)  # of trained sessions, and of nobody else
    assert np.array_equal(np.asarray(train.inter_matrix().sum(0)).reshape(-1), counts)


def test_no_target_of_the_test_is_older_than_training(visits, tmp_path):
    dataset = make(tmp_path)
    train, valid, test = dataset.build()
    newest = {user: max(time for who, _, time in visits if who == user) for user in {row[0] for row in visits}}
    assert max(newest[user] for user in [*sequences_of(train), *tasks_of(valid)]) <= min(
        newest[user] for user in tasks_of(test)
    )
    counts = dataset.sessions.counts
    assert counts["test_unseen_interactions_dropped"] > 0
    assert counts["test_sessions"] == len(test) and counts["valid_sessions"] == len(valid)
    assert counts["train_interactions"] == train.train_counts.sum()
    assert counts["train_items"] == (train.train_counts > 0).sum()


def test_targets_older_than_training_are_counted(tmp_path):
    folder = tmp_path / "visits"
    folder.mkdir()
    # The last session to end is v's, whose last item training never saw: its target becomes b, from time 2.
    rows = ["u\ta\t1", "u\tb\t5", "u\tc\t6", "v\ta\t1", "v\tb\t2", "v\tnew\t9", "w\ta\t0", "w\tb\t4"]
    (folder / "visits.inter").write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    dataset = make(tmp_path, temporal_session_valid_ratio=0, temporal_session_test_ratio=0.3)
    assert tasks_of(dataset.build()[2]) == {"v": (["a"], "b")}
    assert dataset.sessions.counts["test_targets_before_newest_training_event"] == 1


def test_history_mask_covers_the_whole_prompt_of_known_items(visits, tmp_path):
    _, _, test = make(tmp_path, MAX_ITEM_LIST_LENGTH=2).build()
    tasks = tasks_of(test)
    row, item = test.history(torch.arange(len(test)))
    for number, user in enumerate(test.id2token("user_id", test.inter_feat["user_id"])):
        assert set(np.atleast_1d(test.id2token("item_id", item[row == number])).tolist()) == set(tasks[user][0])
    assert max(len(prompt) for prompt, _ in tasks.values()) > 2


def test_the_split_does_not_follow_the_seed_of_the_run(visits, tmp_path):
    def valid(**settings):
        return sorted(tasks_of(make(tmp_path, **settings).build()[1]))

    assert valid(seed=1) == valid(seed=2)
    assert valid(temporal_session_seed=1) != valid(temporal_session_seed=2)


def test_without_validation(visits, tmp_path):
    dataset = make(tmp_path, temporal_session_valid_ratio=0)
    train, valid, test = prepare_data(dataset.config, dataset)
    assert valid is None
    assert sequences_of(train.dataset) == reference(visits)[0]
    assert tasks_of(test.dataset) == reference(visits)[2]


def test_folds_move_forward_and_never_touch_the_test_sessions(tmp_path):
    visits = write_sessions(tmp_path, users=200)
    late = set(tasks_of(make(tmp_path).build()[2]))
    early = list(reference(visits)[0])  # in the order of their last event
    bins = [part.tolist() for part in np.array_split(early, 4)]
    for fold in (1, 2, 3):
        dataset = make(tmp_path, temporal_session_fold=fold)
        train, valid, test = dataset.build()
        trained = set(sequences_of(train)) | set(tasks_of(valid))
        assert trained <= {user for part in bins[:fold] for user in part}
        assert set(tasks_of(test)) <= set(bins[fold])
        assert not late & (trained | set(tasks_of(test)))
        known = {item for user, item, _ in visits if user in {user for part in bins[:fold] for user in part}}
        assert all({*prompt, target} <= known for prompt, target in tasks_of(test).values())
        # Popularity over all parts must not know the test sessions either.
        users = set(dataset.id2token("user_id", torch.unique(dataset.flat["user_id"])))
        assert not late & users


def test_shares_are_rounded_up_once():
    times = np.arange(60)
    for n, expected in ((10, 2), (11, 3), (15, 3), (20, 4)):
        split = split_sessions(np.ones(2 * n, dtype=int), times[: 2 * n], np.arange(0, 2 * n + 1, 2), valid_ratio=0)
        assert split.counts["test_sessions"] == expected


# ---- times that are ranks


@pytest.mark.parametrize(
    ("times", "starts", "ranks"),
    [
        ([0, 1, 2, 0, 1], [0, 3], True),
        ([1, 2, 3, 1, 2], [0, 3], True),
        ([0, 1, 2, 1, 2], [0, 3], False),
        ([0, 1, 3, 0, 1], [0, 3], False),
        ([5, 6, 7, 5, 6], [0, 3], False),
        ([0], [0], False),
        ([], [], False),
    ],
)
def test_ranks_are_told_from_times(times, starts, ranks):
    assert are_ranks(np.array(times, dtype=float), np.array(starts, dtype=int)) is ranks


def test_rank_times_are_refused_also_after_a_filter(tmp_path):
    (tmp_path / "visits").mkdir()
    draw = random.Random(1)
    rows = [f"u{u}\ti{draw.randrange(12)}\t{t}\n" for u in range(20) for t in range(3 + u % 5)]
    draw.shuffle(rows)
    (tmp_path / "visits" / "visits.inter").write_text(HEADER + "".join(rows), encoding="utf-8")
    for settings in ({}, {"item_inter_num_interval": "[7,inf)"}):
        with pytest.raises(DataError, match=r"'timestamp' is a rank.*protocol=loo.*allow_rank_times=True"):
            make(tmp_path, **settings)
    assert len(make(tmp_path, allow_rank_times=True).build()[2]) > 0
    assert make(tmp_path, protocol="loo").item_num > 1


# ---- settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"protocol": "temporal"}, "invalid value for protocol: 'temporal'"),
        ({**TEMPORAL, "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}}}, "leave split out of eval_args"),
        ({"protocol": "loo", "eval_args": {"split": {"LS": "test_only"}}}, "protocol=loo contradicts"),
        (
            {**TEMPORAL, "temporal_session_test_ratio": 0},
            "invalid value for temporal_session_test_ratio: .* above 0 and below 1",
        ),
        (
            {**TEMPORAL, "temporal_session_test_ratio": 1.0},
            "invalid value for temporal_session_test_ratio: .* above 0 and below 1",
        ),
        ({**TEMPORAL, "temporal_session_valid_ratio": 1}, "at least 0 and below 1"),
        ({**TEMPORAL, "temporal_session_fold": 4}, "invalid value for temporal_session_fold: 4.*1 to 3"),
        ({**TEMPORAL, "temporal_session_fold": 0}, "invalid value for temporal_session_fold: 0"),
        ({**TEMPORAL, "temporal_session_valid_max": 0}, "at least 1"),
    ],
)
def test_wrong_combinations_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        Config("SASRec", "ml-100k", config_dict=settings)


def test_settings_without_effect_are_said():
    (notice,) = Config("SASRec", "ml-100k", config_dict={"temporal_session_fold": 1}).notices
    assert notice == "temporal_session_fold has no effect without protocol=temporal_session."


def test_too_little_data_is_said(tmp_path):
    (tmp_path / "visits").mkdir()
    file = tmp_path / "visits" / "visits.inter"
    file.write_text(HEADER + "a\tx\t5\na\ty\t6\nb\tz\t7\nb\tw\t9\n", encoding="utf-8")
    with pytest.raises(DataError, match="leaves no train session of 'visits'.*temporal_session_valid_ratio"):
        make(tmp_path).build()
    with pytest.raises(DataError, match="leaves no test session"):
        make(tmp_path, temporal_session_valid_ratio=0.0).build()


# ---- whole runs


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("LRURec", {}),  # sequence view
        ("LRURec", {"train_view": "segment"}),
        ("GRU4Rec", {}),  # prefix view, RecBole's
        ("LLMSeqSim", {"llm": "tiny-random-t5", "dim_reduction": "none"}),  # nothing trained
    ],
)
def test_runs_under_every_view(visits, tmp_path, model, settings):
    metrics = ["Recall", "NDCG", "Serendipity", "Novelty", "CatalogCoverage"]
    common = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1, "metrics": metrics}
    common |= {"show_progress": False, "use_gpu": False, "MAX_ITEM_LIST_LENGTH": 5, "topk": [5]}
    common |= {"valid_metric": "NDCG@5"}
    if model == "LLMSeqSim":
        common.pop("epochs")
    result = run(model, "visits", config_dict={**common, **TEMPORAL, **settings})
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    assert "temporal session split (last 20% of the sessions tested" in report["protocol"]["text"]
    assert report["protocol"]["name"] == "temporal_session"
    ranks = np.load(Path(result["run_dir"]) / "test_ranks.npz")
    expected = {user: target for user, (_, target) in reference(visits)[2].items()}
    assert dict(zip(ranks["user"], ranks["target"], strict=True)) == expected
    assert report["dataset"]["temporal_session"]["test_sessions"] == len(expected)
    again = load_run(result["run_dir"])
    assert again.trainer.evaluate(again.test_data, load_best_model=False) == result["test_result"]
    popular = again.train_data.dataset.train_counts
    targets = again.dataset.token2id("item_id", ranks["target"])
    assert np.array_equal(ranks["target_popularity"], popular[targets])


def test_coverage_counts_the_items_that_the_split_took_out(visits, tmp_path):
    dataset = make(tmp_path)
    dataset.build()
    assert dataset.catalogue_size == dataset.item_num - 1 == len({item for _, item, _ in visits})
    assert len(torch.unique(dataset.flat["item_id"])) < dataset.catalogue_size


def test_a_model_of_user_ids_is_told_that_it_knows_no_test_user(visits, tmp_path):
    settings = {"data_path": str(tmp_path), "epochs": 0, "show_progress": False, "use_gpu": False, **TEMPORAL}
    result = run("FPMC", "visits", config_dict={**settings, "checkpoint_dir": str(tmp_path / "saved")})
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    (notice,) = [text for text in report["notices"] if "FPMC" in text]
    assert "FPMC learns a vector per user" in notice
