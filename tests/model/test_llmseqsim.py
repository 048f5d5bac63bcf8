"""LLMSeqSim: the authors' lists and scores, and what every key of its property file does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.model.llmseqsim import DECAYS, LLMSeqSim, decay_weights, session_vectors, similarity
from recbole_llm.quick_start import load_run, run
from recbole_llm.text.reduction import fit_reduction, normalize_rows
from tests.conftest import write_dataset as write_shop
from tests.worlds import WORDS, write_cycle, write_dataset

# Made by the released code of the papers (dh-r/LLM-Sequential-Recommendation at 6464b39, BSD-3) on random vectors.
GOLDEN = Path(__file__).parents[1] / "golden" / "llmseqsim" / "llmseqsim.npz"
# In the order of the arrays; the authors call no decay None.
GOLDEN_DECAYS = list(DECAYS)
GOLDEN_WAYS = [*(("mean", decay) for decay in GOLDEN_DECAYS), ("last", "none")]
GOLDEN_SIMILARITIES = ("cosine", "dot", "euclidean")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture
def build(tmp_path):
    write_cycle(tmp_path / "data")

    def _build(dataset="cycle", **more):
        settings = {
            "llm": "tiny-random-bert",
            "show_progress": False,
            "use_gpu": False,
            "data_path": str(tmp_path / "data"),
            "embedding_cache_dir": str(tmp_path / "cache"),
            **more,
        }
        config = Config("LLMSeqSim", dataset, config_dict=settings)
        train, _, test = prepare_data(config, HistoryDataset(config))
        return LLMSeqSim(config, train.dataset), next(iter(test))[0]

    return _build


# ---- the authors' figures


def _sessions(golden):
    """Histories as internal ids, 1 = first row of the table, right padded with 0; and their lengths."""
    row_of = {item: row + 1 for row, item in enumerate(golden["item_ids"].tolist())}
    rows = [[row_of.get(item, 0) for item in session] for session in golden["sessions"].tolist()]
    return torch.tensor(rows), torch.from_numpy(golden["session_lengths"].astype(np.int64))


def _table(golden, kind):
    vectors = golden["item_embeddings"]
    if kind == "pca8":
        vectors = normalize_rows(fit_reduction(vectors, "pca", 8)(vectors))
    return torch.from_numpy(np.concatenate([np.zeros((1, vectors.shape[1])), vectors]))


def _top10(scores, seen, golden):
    """Raw ids and scores of the best ten unseen items of each session."""
    scores = scores.clone()
    scores[:, 0] = -torch.inf
    scores.scatter_(1, seen, -torch.inf)
    best = scores.topk(10)
    return golden["item_ids"][best.indices.numpy() - 1], best.values.numpy()


@pytest.mark.parametrize("kind", ["raw", "pca8"])
def test_golden_llmseqsim(golden, kind):
    """Session vectors, lists and scores of every decay, way to combine and similarity; to 1e-6."""
    table = _table(golden, kind)
    item_seq, length = _sessions(golden)
    for number, (combine, decay) in enumerate(GOLDEN_WAYS):
        sessions = session_vectors(table, item_seq, length, combine, decay)
        if kind == "raw":
            np.testing.assert_allclose(sessions, golden["session_vectors_raw"][number], rtol=0, atol=1e-6)
        for which, name in enumerate(GOLDEN_SIMILARITIES):
            items, scores = _top10(similarity(sessions, table, name), item_seq, golden)
            case = f"{combine} {decay} {name}"
            np.testing.assert_array_equal(items, golden[f"top10_items_{kind}"][number, which], case)
            np.testing.assert_allclose(
                scores, golden[f"top10_scores_{kind}"][number, which], rtol=0, atol=1e-6, err_msg=case
            )


def test_golden_reduction_and_decays(golden):
    found = fit_reduction(golden["item_embeddings"], "pca", 8)(golden["item_embeddings"])
    # The signs of principal components are arbitrary.
    np.testing.assert_allclose(np.abs(found), np.abs(golden["pca8"]), rtol=0, atol=1e-6)
    for length in (1, 2, 5, 15):
        for decay, expected in zip(GOLDEN_DECAYS, golden[f"decay_L{length}"], strict=True):
            weights = decay_weights(decay, torch.tensor([length]), length, torch.float64)[0]
            np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["raw", "pca8"])
@pytest.mark.parametrize("name", GOLDEN_SIMILARITIES)
def test_the_model_in_single_precision_gives_the_authors_lists(golden, tmp_path, kind, name):
    """From atomic files, a file of vectors and settings to scores."""
    ids = [str(item) for item in golden["item_ids"]]
    write_dataset(tmp_path, "golden", {"u1": ids, "u2": ids}, {})
    np.savez(tmp_path / "vectors.npz", ids=np.array(ids), vectors=golden["item_embeddings"])
    settings = {"data_path": str(tmp_path), "item_vectors": str(tmp_path / "vectors.npz"), "use_gpu": False}
    settings |= {"similarity": name, "dim_reduction": "pca" if kind == "pca8" else "none", "reduced_dim": 8}
    dataset = HistoryDataset(Config("LLMSeqSim", "golden", config_dict=settings))
    tokens = dataset.field2id_token["item_id"]
    # The dataset's ids follow its file, which has the order of the table.
    item_seq, length = _sessions(golden)
    assert tokens[1:].tolist() == ids
    for number, (combine, decay) in enumerate(GOLDEN_WAYS):
        config = Config("LLMSeqSim", "golden", config_dict={**settings, "combine": combine, "decay": decay})
        model = LLMSeqSim(config, dataset)
        scores = model.full_sort_predict(Interaction({model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: length}))
        items, scores = _top10(scores, item_seq, golden)
        which = GOLDEN_SIMILARITIES.index(name)
        np.testing.assert_array_equal(items, golden[f"top10_items_{kind}"][number, which])
        np.testing.assert_allclose(scores, golden[f"top10_scores_{kind}"][number, which], rtol=1e-5, atol=1e-6)


# ---- decays


@pytest.mark.parametrize("length", [1, 2, 50])
def test_decays_are_their_closed_forms(length):
    r = np.arange(length, 0, -1, dtype=float)  # oldest first
    scaled = np.maximum(1e-5, 1 - (r - 1) / length)
    expected = {
        "none": np.ones(length),
        "constant_linear": np.maximum(1e-5, 1 - 0.1 * (r - 1)),
        "scaling_linear": scaled,
        "scaling_quadratic": scaled**2,
        "scaling_cubic": scaled**3,
        "log": 1 / (1 + np.log(r)),
        "harmonic": 1 / r,
        "harmonic_squared": 1 / r**2,
    }
    assert list(expected) == list(DECAYS)
    for decay, weights in expected.items():
        found = decay_weights(decay, torch.tensor([length]), 60)[0]
        np.testing.assert_allclose(found[:length], weights, rtol=1e-5)
        assert (found[length:] == 0).all()


@pytest.mark.parametrize("decay", DECAYS)
def test_last_is_the_mean_of_a_history_of_one(decay):
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(9, 4, generator=draw)
    item_seq = torch.tensor([[3, 0, 0], [5, 0, 0], [7, 8, 0]])
    length = torch.tensor([1, 1, 2])
    mean = session_vectors(vectors, item_seq, length, "mean", decay)
    last = session_vectors(vectors, item_seq, length, "last", decay)
    torch.testing.assert_close(mean[:2], last[:2])
    assert not torch.allclose(mean[2], last[2])


# ---- similarities


def test_similarities_rank_alike_between_vectors_of_length_one():
    draw = torch.Generator().manual_seed(0)
    items = torch.nn.functional.normalize(torch.randn(200, 8, dtype=torch.float64, generator=draw), dim=-1)
    sessions = torch.randn(20, 8, dtype=torch.float64, generator=draw)
    orders = [similarity(sessions, items, kind).argsort(1) for kind in GOLDEN_SIMILARITIES]
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])


def test_similarity_by_hand():
    session, items = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    assert similarity(session, items, "dot").tolist() == [[0, 25, 32]]
    torch.testing.assert_close(similarity(session, items, "cosine"), torch.tensor([[0.0, 1.0, 0.8]]))
    torch.testing.assert_close(similarity(session, items, "euclidean"), torch.tensor([[1 / 6, 1.0, 1 / 6]]))


def test_euclidean_keeps_small_distances_in_single_precision():
    item = torch.full((1, 64), 30.0)
    near = item.clone()
    near[0, 0] += 1e-3
    distance = (near - item).norm()
    torch.testing.assert_close(similarity(item, near, "euclidean"), 1 / (1 + distance)[None, None], rtol=1e-6, atol=0)


# ---- the model


def test_nothing_is_trained_and_nothing_is_stored(build):
    model, interaction = build()
    assert list(model.parameters()) == []
    assert model.state_dict() == {}
    with pytest.raises(ConfigError, match="set epochs=0"):
        model.calculate_loss(interaction)


def test_vectors_have_length_one_and_padding_none(build):
    model, _ = build(reduced_dim=7)
    lengths = model.item_vectors.norm(dim=1)
    assert model.item_vectors.shape == (model.n_items, 7)
    assert lengths[0] == 0
    torch.testing.assert_close(lengths[1:], torch.ones(model.n_items - 1))
    loose, _ = build(reduced_dim=7, normalize=False)
    torch.testing.assert_close(
        loose.item_vectors / loose.item_vectors.norm(dim=1).clamp(1e-9)[:, None], model.item_vectors
    )
    raw, _ = build(dim_reduction="none")
    assert not raw.normalized


@pytest.mark.parametrize("way", ["pca", "random_projection", "autoencoder", "lda", "none"])
def test_every_reduction_runs_and_names_itself(build, tmp_path, way):
    write_shop(tmp_path / "data")  # of three kinds
    model, interaction = build("shop", dim_reduction=way, reduced_dim=5, lda_class_field="kind", item_text="{title}")
    assert torch.isfinite(model.full_sort_predict(interaction)[:, 1:]).all()
    info = model.provenance()["item_vectors"]
    assert (info["dim_reduction"], info["normalized"]) == (way, way != "none")
    assert model.item_vectors.shape[1] == {"lda": 2, "none": info["dim"]}.get(way, 5) == info["reduced_dim"]


def test_the_reduction_can_be_fitted_on_the_items_of_training(build, tmp_path):
    histories = {f"u{u}": [f"i{(u + i) % 8}" for i in range(5)] for u in range(12)}
    histories |= {"late": ["i0", "i1", "i2", "new1", "new2"]}
    texts = {f"i{i}": WORDS[i] for i in range(8)} | {"new1": WORDS[10], "new2": WORDS[11]}
    write_dataset(tmp_path / "data", "late", histories, texts)
    whole, _ = build("late", reduced_dim=4)
    train, _ = build("late", reduced_dim=4, reduction_fit="train")
    assert train.provenance()["items_not_in_training"] == 2
    assert not torch.allclose(whole.item_vectors.abs(), train.item_vectors.abs(), atol=1e-3)


def test_vectors_do_not_depend_on_the_order_of_the_files(build, tmp_path):
    texts = {f"i{i}": f"{WORDS[i % 12]} volume {i}" for i in range(30)}
    histories = {f"u{u}": [f"i{(7 * u + i) % 30}" for i in range(8)] for u in range(40)}
    write_dataset(tmp_path / "data", "forwards", histories, texts)
    backwards = {user: histories[user] for user in reversed(histories)}
    write_dataset(tmp_path / "data", "backwards", backwards, {item: texts[item] for item in reversed(texts)})
    (one, _), (two, _) = build("forwards"), build("backwards")
    first, second = (model.item_vectors[1:][np.argsort(model.item_text.texts[1:])] for model in (one, two))
    assert not torch.allclose(one.item_vectors @ one.item_vectors.T, two.item_vectors @ two.item_vectors.T, atol=1e-2)
    torch.testing.assert_close(first @ first.T, second @ second.T, rtol=1e-4, atol=1e-5)


def test_a_title_leads_to_its_second_edition(build, tmp_path):
    """Hand-made neighbours: equal texts are nearest to each other."""
    texts = {f"{edition}{i}": f"the {word} story" for i, word in enumerate(WORDS) for edition in "ab"}
    histories = {f"u{i}": [f"a{i}", f"a{(i + 1) % 12}", f"b{i}", f"a{(i + 3) % 12}"] for i in range(12)}
    write_dataset(tmp_path / "data", "editions", histories, texts)
    model, _ = build("editions", combine="last")
    twins = torch.arange(1, model.n_items)
    scores = model.full_sort_predict(
        Interaction({model.ITEM_SEQ: twins[:, None], model.ITEM_SEQ_LEN: torch.ones_like(twins)})
    )
    scores[torch.arange(len(twins)), twins] = -torch.inf
    assert [model.item_text.texts[i] for i in scores.argmax(1)] == model.item_text.texts[1:]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"decay": "harmonik"}, "invalid value for decay: 'harmonik'.*Did you mean 'harmonic'"),
        ({"combine": "concat"}, "choose from 'mean', 'last'"),
        ({"similarity": "cos"}, "similarity: 'cos'"),
        ({"dim_reduction": "svd"}, "dim_reduction: 'svd'"),
        ({"reduction_fit": "test"}, "reduction_fit: 'test'"),
        ({"reduced_dim": 0}, "invalid value for reduced_dim: 0"),
        ({"dim_reduction": "lda"}, "lda_class_field"),
        ({"dim_reduction": "lda", "lda_class_field": "genre"}, "genre"),
        ({"dim_reduction": "lda", "lda_class_field": "title"}, "gives 30 of 30 items"),
    ],
)
def test_errors_name_the_key(build, settings, says):
    with pytest.raises(ConfigError, match=says):
        build(**settings)


# ---- a run


def test_a_run_without_training(tmp_path):
    write_cycle(tmp_path / "data")
    settings = {
        "llm": "tiny-random-bert",
        "show_progress": False,
        "use_gpu": False,
        "data_path": str(tmp_path / "data"),
        "embedding_cache_dir": str(tmp_path / "cache"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "metrics": ["NDCG", "Serendipity", "Novelty", "CatalogCoverage"],
    }
    result = run("LLMSeqSim", "cycle", config_dict=settings)
    assert {"ndcg@10", "serendipity@10", "novelty@20", "catalogcoverage@20"} <= set(result["test_result"])
    again = load_run(result["run_dir"])
    assert again.trainer.evaluate(again.test_data) == result["test_result"]
    ranks = again.trainer.evaluation.ranks
    users = again.dataset.flat["user_id"].numpy()
    items = again.dataset.flat["item_id"].numpy()
    for user, target, recommended in zip(ranks.user, ranks.target, ranks.masked_lists, strict=True):
        history = set(items[users == user]) - {target}
        assert not history & set(recommended[:10])  # 30 items, at most 11 of them in a history
    assert not (Path(result["run_dir"]) / "history.csv").exists()
    noted = run("LLMSeqSim", "cycle", config_dict={**settings, "epochs": 3})
    assert noted["test_result"] == result["test_result"]
    report = json.loads((Path(noted["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    assert report["notices"] == ["LLMSeqSim has nothing to train: epochs=3 has no effect."]
