import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_llm.errors import DataError, UnsupportedError
from recbole_llm.evaluator import topk
from recbole_llm.evaluator.ranks import ScoreError
from recbole_llm.quick_start import load_run, run
from recbole_llm.recommend import Recommender
from tests.closeness import assert_same_list, pairs
from tests.worlds import write_dataset

ITEMS, USERS = 30, 24
SETTINGS = {
    "llm": "tiny-random-t5",
    "rec_llm": "tiny-random-t5",
    "hidden_size": 16,
    "epochs": 1,
    "train_batch_size": 64,
    "MAX_ITEM_LIST_LENGTH": 6,
    "show_progress": False,
    "use_gpu": False,
    "metrics": ["Recall", "NDCG"],
    "topk": [5, 10],
    "valid_metric": "NDCG@5",
}


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory):
    """Name -> run directory on a made-up shop; trained when first asked for. Every three items share a text."""
    folder = tmp_path_factory.mktemp("shop")
    draw = np.random.default_rng(0)
    histories = {f"u{u}": [f"i{i}" for i in draw.permutation(ITEMS)[: 6 + u % 9]] for u in range(USERS)}
    write_dataset(folder / "data", "shop", histories, {f"i{i}": f"thing {i // 3} of the shop" for i in range(ITEMS)})
    made = {}

    def get(name, **more):
        key = name + json.dumps(more, sort_keys=True)
        if key not in made:
            places = {"data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
            trained = {} if name != "LLMSeqSim" else {"epochs": 0, "dim_reduction": "pca", "reduced_dim": 4}
            settings = {**SETTINGS, **places, "embedding_cache_dir": str(folder / "cache"), **trained, **more}
            made[key] = run(name, "shop", config_dict=settings)["run_dir"]
        return made[key]

    return get


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """A file with the vectors of the items: the unit vector of their group of three."""
    file = tmp_path_factory.mktemp("groups") / "groups.npz"
    vectors = np.eye(ITEMS // 3, dtype=np.float32).repeat(3, axis=0)
    np.savez(file, ids=np.array([f"i{i}" for i in range(ITEMS)]), vectors=vectors)
    return str(file)


def lists_of(frames, item="item_id"):
    frame = pd.concat(frames)
    return {user: part[item].tolist() for user, part in frame.groupby("user_id", sort=False)}


# ---- what the evaluator saw


@pytest.mark.parametrize("name", ["LLMSeqSim", "LRURec", "SASRec", "BERT4Rec", "FPMC"])
@pytest.mark.parametrize("mask_history", [True, False])
def test_the_run_s_figures_come_back_from_its_lists(name, mask_history, run_dirs, groups):
    # LLMSeqSim counts the items of each group in the history: small whole numbers, which tie on any machine.
    counts = {"item_vectors": groups, "dim_reduction": "none", "decay": "none"}
    run_dir = Path(run_dirs(name, **(counts if name == "LLMSeqSim" else {})))
    report = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    ranks = np.load(run_dir / "test_ranks.npz")
    if name == "LLMSeqSim":
        assert report["tied_targets"] > 0.5  # the order of ties decides these figures
    frame = pd.concat(
        Recommender.load(run_dir).recommend_users(k=10, history="test", mask_history=mask_history)
    ).reset_index(drop=True)
    target = dict(zip(ranks["user"], ranks["target"], strict=True))
    assert frame["target"].tolist() == [target[user] for user in frame["user_id"]]
    hit = frame[frame["item_id"] == frame["target"]].set_index("user_id")["rank"]
    figures = report["test_masked" if mask_history else "test_unmasked"]
    for k in (5, 10):
        assert (hit <= k).sum() / USERS == figures[f"recall@{k}"] > 0
        assert (1 / np.log2(hit[hit <= k] + 1)).sum() / USERS == pytest.approx(figures[f"ndcg@{k}"], abs=1e-12)


def test_valid_lists_know_less_than_test_lists(run_dirs):
    recommender = Recommender.load(run_dirs("LRURec"))
    valid = pd.concat(recommender.recommend_users(history="valid", k=1))
    result = run_dirs("LRURec")
    best = json.loads((Path(result) / "results.json").read_text(encoding="utf-8"))["best_valid_result"]
    lists = pd.concat(recommender.recommend_users(history="valid", k=5))
    assert (lists["item_id"] == lists["target"]).sum() / USERS == best["recall@5"]
    assert set(valid["user_id"]) == {f"u{u}" for u in range(USERS)}


# ---- all interactions


@pytest.mark.parametrize("name", ["LLMSeqSim", "LRURec", "LLM2SASRec", "LiteLLM4Rec", "SASRec", "GRU4Rec"])
def test_products_and_full_scores_give_the_same_lists(name, run_dirs, monkeypatch):
    recommender = Recommender.load(run_dirs(name))
    assert recommender._scorer.products is not None
    monkeypatch.setitem(topk.SCORES_AT_ONCE, "cpu", 24 * 4)  # several blocks
    by_blocks = pd.concat(recommender.recommend_users(k=7))
    monkeypatch.setattr(recommender._scorer, "products", None)
    whole = pd.concat(recommender.recommend_users(k=7))
    assert by_blocks["user_id"].tolist() == whole["user_id"].tolist()
    for user, rows in by_blocks.groupby("user_id"):
        assert_same_list(pairs(rows), pairs(whole[whole["user_id"] == user]))


def test_all_interactions_are_read_and_masked(run_dirs):
    recommender = Recommender.load(run_dirs("LRURec"))
    dataset = recommender.run.dataset
    user = dataset.field2token_id["user_id"]["u8"]
    items = dataset.flat["item_id"][dataset.offsets[user] : dataset.offsets[user + 1]]
    history = dataset.id2token("item_id", items).tolist()
    assert len(history) == 14
    (frame,) = recommender.recommend_users(["u8"], k=ITEMS)
    assert sorted(frame["item_id"]) == sorted(set(recommender.items) - set(history))
    assert frame["rank"].tolist() == list(range(1, ITEMS - 14 + 1))
    assert (np.diff(frame["score"]) <= 0).all()
    # The same list to somebody with the same history whom training has not seen.
    (new,) = recommender.recommend([history], k=ITEMS)
    assert_same_list(new, pairs(frame))
    (everything,) = recommender.recommend([history], k=ITEMS, mask_history=False)
    assert sorted(item for item, _ in everything) == sorted(recommender.items)


def test_users_in_the_order_asked_for(run_dirs):
    recommender = Recommender.load(run_dirs("LRURec"), eval_batch_size=3)
    frames = list(recommender.recommend_users(["u3", "u1", "u3", "u9", "u2"], k=2))
    assert [len(frame) for frame in frames] == [6, 2]
    asked = frames[0][frames[0]["user_id"] == "u3"]
    assert list(lists_of(frames)) == ["u3", "u1", "u9", "u2"]
    assert list(lists_of(recommender.recommend_users(["u3", "u1"], k=2, history="test"))) == ["u3", "u1"]
    everyone = pd.concat(recommender.recommend_users(k=2))
    assert len(everyone) == 2 * USERS
    assert_same_list(pairs(everyone[everyone["user_id"] == "u3"]), pairs(asked))


def test_unknown_users(run_dirs, caplog):
    recommender = Recommender.load(run_dirs("LRURec"))
    with pytest.raises(DataError, match="2 of 3 users are not known: 'nobody', '7'"):
        recommender.recommend_users(["nobody", "u1", "7"])
    assert list(lists_of(recommender.recommend_users(["nobody", "u1"], unknown="skip"))) == ["u1"]
    assert "'nobody'" in caplog.text


# ---- new histories


def test_new_histories(run_dirs):
    recommender = Recommender.load(run_dirs("LRURec"), eval_batch_size=2)
    histories = [["i3", "i4"], ["i9"], [f"i{i}" for i in range(20)], ["i1", "i2", "i3"]]
    together = recommender.recommend(histories, k=4)
    alone = [recommender.recommend([history], k=4)[0] for history in histories]
    for batched, single in zip(together, alone, strict=True):
        assert_same_list(batched, single)
    assert len(together[2]) == 4
    assert not {item for item, _ in together[2]} & set(histories[2])  # masked beyond the six that the model reads
    # Only the newest six are read.
    (newest,) = recommender.recommend([histories[2][-6:]], k=ITEMS, mask_history=False)
    (longer,) = recommender.recommend([histories[2]], k=ITEMS, mask_history=False)
    assert_same_list(newest, longer)


def test_histories_that_cannot_be_read(run_dirs, caplog):
    recommender = Recommender.load(run_dirs("LRURec"))
    with pytest.raises(DataError, match="Item 'i99' of history 1 is not known"):
        recommender.recommend([["i1"], ["i2", "i99"]])
    with pytest.raises(DataError, match="History 0 is empty"):
        recommender.recommend([[]])
    with pytest.raises(DataError, match=r"histories\[0\] is 'i1', not a list"):
        recommender.recommend(["i1", "i2"])
    with caplog.at_level(logging.WARNING):
        first, second, third = recommender.recommend([["i1", "i99"], ["i98"], ["i1"]], unknown="skip", k=3)
    assert "'i98', 'i99'" in caplog.text
    assert second == []
    assert_same_list(first, third)
    assert recommender.recommend([]) == []


def test_models_that_read_the_user_say_so(run_dirs):
    recommender = Recommender.load(run_dirs("FPMC"))
    assert len(lists_of(recommender.recommend_users(k=2))) == USERS
    with pytest.raises(UnsupportedError, match="FPMC reads 'user_id'"):
        recommender.recommend([["i1"]])
    with pytest.raises(UnsupportedError, match="not known to be products"):
        recommender.item_vectors()


def test_the_top_n_task_has_no_lists(run_dirs):
    run_dir = run_dirs("LiteLLM4Rec", task="topn", topn_negatives=5)
    with pytest.raises(UnsupportedError, match="task=topn"):
        Recommender.load(run_dir)


# ---- which items


@pytest.mark.parametrize("products", [True, False])
def test_allow_and_deny(products, run_dirs, monkeypatch, caplog):
    recommender = Recommender.load(run_dirs("LRURec"))
    if not products:
        monkeypatch.setattr(recommender._scorer, "products", None)
    (whole,) = recommender.recommend([["i5"]], k=ITEMS)
    allow, deny = [f"i{i}" for i in range(0, 20, 2)], ["i2", "i4", "i5", "i77"]
    (some,) = recommender.recommend([["i5"]], k=ITEMS, allow=[*allow, "gone"], deny=deny)
    assert_same_list(some, [(item, score) for item, score in whole if item in allow and item not in deny])
    assert "allow: 1 of 11 items are not known to the run: 'gone'" in caplog.text
    assert "deny: 1 of 4" in caplog.text
    (only,) = recommender.recommend([["i5"]], k=3, allow=["i5"])
    assert only == []
    assert [item for item, _ in recommender.recommend([["i5"]], k=3, allow=["i5"], mask_history=False)[0]] == ["i5"]
    assert next(recommender.recommend_users(["u1"], k=3, deny=recommender.items[1:]))["item_id"].tolist() in (
        [],
        [recommender.items[0]],
    )
    with pytest.raises(DataError, match="leave no item"):
        recommender.recommend([["i5"]], allow=["gone"])


def test_similar_items(run_dirs):
    recommender = Recommender.load(run_dirs("LLMSeqSim"))
    found = recommender.similar_items("i4", k=4)
    assert [item for item, _ in found[:2]] == sorted(["i3", "i5"], key=recommender.items.index)
    assert found[0].score == pytest.approx(1, abs=1e-5)
    assert found[2].score < 0.999
    assert [item for item, _ in recommender.similar_items("i4", k=1, deny=["i3"])] == ["i5"]
    assert len(recommender.similar_items("i4", k=99)) == ITEMS - 1
    with pytest.raises(DataError, match="Item 'x'"):
        recommender.similar_items("x")
    stock = Recommender.load(run_dirs("FPMC"))
    with pytest.raises(UnsupportedError, match="FPMC has no vectors of items"):
        stock.similar_items("i4")
    stock = Recommender.load(run_dirs("SASRec"))
    table = stock.model.item_embedding.weight.detach()
    own = stock._catalogue.ids["i4"]
    cosine = torch.nn.functional.cosine_similarity(table[own], table, dim=1)
    cosine[[0, own]] = -2
    (best,) = stock.similar_items("i4", k=1)
    assert best.item == stock._catalogue.tokens[int(cosine.argmax())]
    assert best.score == pytest.approx(float(cosine.max()), abs=1e-6)


# ---- vectors


@pytest.mark.parametrize("name", ["LRURec", "LLMSeqSim", "SASRec"])
def test_products_of_the_vectors_are_the_scores(name, run_dirs):
    recommender = Recommender.load(run_dirs(name))
    histories = [["i1", "i2"], ["i7"]]
    scores = recommender.user_vectors(histories) @ recommender.item_vectors().T
    assert recommender.has_item_bias == (name == "LRURec")
    for row, found in zip(scores, recommender.recommend(histories, k=ITEMS, mask_history=False), strict=True):
        by_item = dict(found)
        np.testing.assert_allclose(row, [by_item[item] for item in recommender.items], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"similarity": "cosine"}, {"similarity": "euclidean"}])
def test_other_similarities_of_llmseqsim(settings, run_dirs):
    recommender = Recommender.load(run_dirs("LLMSeqSim", **settings))
    if settings["similarity"] == "euclidean":
        assert recommender._scorer.products is None
    else:
        assert np.linalg.norm(recommender.user_vectors([["i1", "i2"]])) == pytest.approx(1, abs=1e-5)
    (found,) = recommender.recommend([["i0", "i1"]], k=1)
    assert found[0].item == "i2"  # the third of that text


def test_vectors_that_are_not_finite_are_an_error(run_dirs):
    recommender = Recommender.load(run_dirs("LRURec"))
    with torch.no_grad():
        recommender.model.item_bias[3] = torch.nan
    with pytest.raises(ScoreError, match="not finite"):
        recommender.recommend([["i1"]])
    recommender = Recommender.load(run_dirs("BERT4Rec"))
    with torch.no_grad():
        recommender.model.output_bias[3] = torch.nan
    with pytest.raises(ScoreError, match="NaN"):
        recommender.recommend([["i1"]])


# ---- new items


NEW = [{"item_id": "n1", "title": "thing 2 of the shop"}, {"item_id": "n2", "title": "something else entirely"}]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("LLMSeqSim", {}),
        ("LLMSeqSim", {"similarity": "euclidean"}),
        ("LLM2SASRec", {"freeze_item_embedding": True}),
        ("LLM2SASRec", {"residual_id": True, "init_scale": "match_base", "whiten": True, "normalize": True}),
        ("LLM2SASRec", {}),
        ("LiteLLM4Rec", {"head_init": "items", "item_llm_mode": "frozen"}),
        ("LiteLLM4Rec", {"head_init": "items", "item_llm_mode": "two_stage"}),
        ("LiteLLM4Rec", {"head_init": "items", "item_llm_mode": "joint"}),
    ],
)
def test_new_items_by_text_alone(name, more, run_dirs):
    # Nothing trained, so that the same text is the same vector.
    recommender = Recommender.load(run_dirs(name, learning_rate=1e-20, **more))
    before = recommender.recommend([["i1", "i2"]], k=ITEMS, mask_history=False)[0]
    recommender.add_items(NEW)
    assert recommender.items[-2:] == ["n1", "n2"]
    after = dict(recommender.recommend([["i1", "i2"]], k=ITEMS + 2, mask_history=False)[0])
    assert len(after) == ITEMS + 2
    np.testing.assert_allclose(
        [after[item] for item, _ in before], [score for _, score in before], rtol=1e-4, atol=1e-6
    )
    if not more.get("residual_id"):  # whose ids are random
        assert after["n1"] == pytest.approx(after["i6"], rel=1e-3, abs=1e-5)
        # And in a history it is that item too.
        old, new = recommender.recommend([["i1", "i6"], ["i1", "n1"]], k=3, deny=["i6", "i7", "i8", "n1"])
        assert_same_list(old, new, rtol=1e-3)
        assert {item for item, _ in recommender.similar_items("n1", k=3)} == {"i6", "i7", "i8"}
    frame = pd.concat(recommender.recommend_users(k=ITEMS))
    assert (frame["item_id"] == "n2").sum() == USERS
    assert len(pd.concat(recommender.recommend_users(k=1, history="test", allow=["n1"]))) == USERS


def test_new_items_that_cannot_be_added(run_dirs):
    recommender = Recommender.load(run_dirs("LLMSeqSim"))
    for rows, says in (
        ([{"title": "x"}], "Row 0 of the new items has no 'item_id'"),
        ([{"item_id": "i3", "title": "x"}], "'i3' is already in the catalogue"),
        ([NEW[0], NEW[0]], "'n1' is already in the catalogue"),
        ([{"item_id": "n1", "titel": "x"}], "a field 'titel'.*Did you mean 'title'"),
        ([{"item_id": "n1", "title": " "}], "has no text: the template '{title}'"),
    ):
        with pytest.raises(DataError, match=says):
            recommender.add_items([NEW[1], *rows] if "Row" not in says else rows)
        assert len(recommender.items) == ITEMS
    recommender.add_items([])
    with pytest.raises(UnsupportedError, match="LRURec learns items from interactions only"):
        Recommender.load(run_dirs("LRURec")).add_items(NEW)
    with pytest.raises(ValueError, match="head_init=items"):
        Recommender.load(run_dirs("LiteLLM4Rec")).add_items(NEW)


# ---- splits


def test_several_rows_of_a_user(run_dirs):
    run_dir = Path(run_dirs("LRURec", eval_args={"split": {"RS": [0.5, 0.2, 0.3]}}))
    recommender = Recommender.load(run_dir)
    ranks = np.load(run_dir / "test_ranks.npz")
    mine = ranks["target"][ranks["user"] == "u8"].tolist()
    assert len(mine) > 1
    (frame,) = recommender.recommend_users(["u8"], k=2, history="test")
    assert frame.loc[frame["rank"] == 1, "target"].tolist() == mine
    assert recommender.count_users(["u8"], history="test") == len(mine)
    assert recommender.count_users(history="test") == len(ranks["user"])
    run_dir = run_dirs("LRURec", eval_args={"split": {"LS": "test_only"}}, eval_step=0)
    with pytest.raises(DataError, match="history='valid'.*has no such part"):
        Recommender.load(run_dir).recommend_users(history="valid")


def test_a_recommender_from_a_run_in_memory(run_dirs):
    recommender = Recommender(load_run(run_dirs("LRURec")))
    assert len(recommender.recommend([["i1"]], k=2)[0]) == 2
