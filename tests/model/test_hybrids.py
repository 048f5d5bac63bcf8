"""EmbeddingEnsemble, LLMSeqSimSequential and LLMSeqSimPopularity against lists that are put together item by item."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.config.registry import get_model
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.model.hybrid import TopList, compose
from recbole_llm.quick_start import load_run, run
from tests.worlds import write_cycle

RAW = {"dim_reduction": "none", "similarity": "cosine"}
SMALL = {"hidden_size": 8, "inner_size": 8, "n_heads": 1, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 6}
K = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_cycle(folder / "data", users=60, items=40, length=14)
    settings = {
        "data_path": str(folder / "data"),
        "checkpoint_dir": str(folder / "saved"),
        "embedding_cache_dir": str(folder / "cache"),
        "llm": "tiny-random-t5",
        "show_progress": False,
        "use_gpu": False,
        "topk": [K],
        "valid_metric": f"NDCG@{K}",
    }
    trained = {**settings, **SMALL, "epochs": 2, "learning_rate": 0.01}
    trained.pop("llm")
    return settings, run("SASRec", "cycle", config_dict=trained)


def build(world, name, **more):
    config = Config(name, "cycle", config_dict={**world[0], **more})
    train, valid, test = prepare_data(config, HistoryDataset(config))
    return get_model(name)(config, train.dataset).eval(), train.dataset, next(iter(test))[0]


def ranking(scores, batch, row, k=K, history=True):
    """The first items of a row, equal scores by smaller id, as the evaluation has them."""
    scores = scores[row].clone()
    if history:
        scores[batch["item_id_list"][row]] = -torch.inf
    scores[0] = -torch.inf
    order = torch.argsort(scores, descending=True, stable=True)
    return [int(item) for item in order[:k] if scores[item] > -torch.inf]


def result_of(world, name, **more):
    return run(name, "cycle", config_dict={**world[0], **more})


# ---- composing


def test_composed_lists_keep_the_order_below():
    base = torch.tensor([[-torch.inf, 5.0, 3.0, 4.0, 1.0], [-torch.inf, 1e4, -1e4, 0.0, 1.0]])
    items = torch.tensor([[4, 2, 1], [2, 3, 4]])
    chosen = torch.tensor([[True, False, True], [True, True, False]])
    scores = compose(
        TopList(items, torch.zeros(2, 3), torch.zeros(2, 1).long(), torch.zeros(2, 1)), items, chosen, base
    )
    assert scores.argsort(descending=True, stable=True).tolist() == [[4, 1, 3, 2, 0], [2, 3, 1, 4, 0]]
    assert base[0, 4] == 1.0  # not changed


def test_history_items_stand_where_the_model_has_them():
    base = torch.tensor([[-torch.inf, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    items, scores = torch.tensor([[6, 2, 5]]), torch.tensor([[9.0, 8.0, 7.0]])
    history, chosen = torch.tensor([[1, 3, 4, 0]]), torch.tensor([[True, False, True]])
    # 1 is better than 6, 3 stands between 6 and 5, 4 below both; 2 was not chosen.
    top = TopList(items, scores, history, torch.tensor([[9.5, 8.5, 1.0, -torch.inf]]))
    found = compose(top, items, chosen, base)
    assert found.argsort(descending=True, stable=True).tolist() == [[1, 6, 3, 5, 4, 2, 0]]


# ---- EmbeddingEnsemble


@pytest.mark.parametrize("cutoff", [0, 1, 3, K])
@pytest.mark.parametrize("mask", [True, False])
def test_rank_lists(world, cutoff, mask):
    model, _, batch = build(world, "EmbeddingEnsemble", cutoff=cutoff, list_length=K, mask_history=mask)
    first, second = (member.full_sort_predict(batch) for member in model.members)
    scores = model.full_sort_predict(batch)
    for row in range(len(batch)):
        heads = ranking(first, batch, row, history=mask)[:cutoff]
        expected = heads + [item for item in ranking(second, batch, row, 99, mask) if item not in heads]
        found = ranking(scores, batch, row, history=mask)
        assert found == expected[:K]
        assert len(set(found)) == K


@pytest.mark.parametrize("bound", [0.5, 0.97, 0.995])
def test_confident_lists(world, bound):
    settings = {"ensemble_mode": "confidence", "confidence": bound, "list_length": K}
    model, _, batch = build(world, "EmbeddingEnsemble", **settings)
    first, second = (member.full_sort_predict(batch) for member in model.members)
    scores = model.full_sort_predict(batch)
    taken = []
    for row in range(len(batch)):
        heads = [item for item in ranking(first, batch, row) if first[row, item] >= bound]
        expected = heads + [item for item in ranking(second, batch, row, 99) if item not in heads]
        assert ranking(scores, batch, row) == expected[:K]
        taken.append(len(heads))
    if bound == 0.97:
        assert min(taken) > 0 or 0 < np.mean(taken) < K


def test_the_ends_are_the_models_themselves(world):
    alone = [result_of(world, "LLMSeqSim", MAX_ITEM_LIST_LENGTH=1000, **settings) for settings in (RAW, {})]
    first, second = ((result["test_result"], result["test_result_unmasked"]) for result in alone)
    assert first[0] != second[0]
    quantile = {"ensemble_mode": "confidence", "confidence_kind": "quantile", "list_length": K}
    for settings, expected in (
        ({"cutoff": K, "list_length": K}, first),
        ({"cutoff": 0}, second),
        ({**quantile, "confidence": 0.0}, first),
        ({**quantile, "confidence": 1}, second),
    ):
        result = result_of(world, "EmbeddingEnsemble", **settings)
        assert (result["test_result"], result["test_result_unmasked"]) == expected
        assert [(member["test_masked"], member["test_unmasked"]) for member in result["members"]] == [first, second]


def test_quantiles_are_shares_of_the_first_lists(world):
    settings = {"ensemble_mode": "confidence", "confidence_kind": "quantile", "list_length": K}
    model, train, _ = build(world, "EmbeddingEnsemble", **settings, confidence=0.75)
    # The same lists, row by row: every training session's longest history.
    position = torch.tensor(sorted(last_rows(train).values()))
    users = train.flat["user_id"][position]
    batch = train.rows_at(position, position - torch.from_numpy(train.offsets)[users])
    scores = model.members[0].full_sort_predict(batch)
    best = [scores[row, item].item() for row in range(len(batch)) for item in ranking(scores, batch, row)]
    assert model.setting.item() == pytest.approx(np.quantile(best, 0.75), abs=1e-6)
    assert model.describe(model.setting) == {"confidence": pytest.approx(model.setting.item()), "quantile": 0.75}


def test_a_cutoff_is_chosen_on_validation(world):
    result = result_of(world, "EmbeddingEnsemble", cutoff_grid=[0, 2, 5], list_length=K)
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    tried = {entry["cutoff"]: entry[f"ndcg@{K}"] for entry in report["chosen_from"]}
    assert set(tried) == {0, 2, 5}
    best = max(tried, key=lambda cutoff: tried[cutoff])
    assert report["language_models"]["setting"] == {"cutoff": best}
    assert report["best_valid_score"] == pytest.approx(tried[best])
    single = result_of(world, "EmbeddingEnsemble", cutoff=best, list_length=K)
    assert result["test_result"] == single["test_result"]
    again = load_run(result["run_dir"])
    assert again.trainer.evaluate(again.test_data, load_best_model=False) == result["test_result"]


# ---- LLMSeqSimSequential


def last_rows(train):
    """{user: position of the last training item}."""
    rows = (train.inter_feat[field].tolist() for field in ("user_id", "history_position"))
    last = {}
    for user, position in zip(*rows, strict=True):
        last[user] = max(position, last.get(user, 0))
    return last


def popularity_of(train):
    """Share of the training sessions that hold each item, by sets."""
    sessions = {}
    for user, position in last_rows(train).items():
        sessions[user] = set(train.flat["item_id"][int(train.offsets[user]) : position + 1].tolist())
    shares = np.zeros(train.item_num)
    for items in sessions.values():
        shares[list(items)] += 1 / len(sessions)
    return shares


def test_the_last_item_decides(world):
    model, train, batch = build(
        world, "LLMSeqSimSequential", popular_model=world[1]["run_dir"], popularity_quantile=0.5
    )
    popularity = popularity_of(train)
    bound = np.quantile(popularity[popularity > 0], 0.5)
    sequential, similar = (member.full_sort_predict(batch) for member in model.members)
    scores = model.full_sort_predict(batch)
    chosen = []
    for row in range(len(batch)):
        last = int(batch["item_id_list"][row, batch["item_length"][row] - 1])
        chosen.append(popularity[last] >= bound)
        torch.testing.assert_close(scores[row], (sequential if chosen[-1] else similar)[row])
    assert 0 < sum(chosen) < len(chosen)
    assert model.evaluation_report(model.evaluation_counts()) == {
        "users_of_popular_model": sum(chosen),
        "users_of_unpopular_model": len(chosen) - sum(chosen),
    }
    torch.testing.assert_close(next(iter(model.full_sort_choices(batch))), scores)


def test_the_ends_are_the_sequential_model_and_llmseqsim(world):
    trained = world[1]
    similar = result_of(world, "LLMSeqSim", MAX_ITEM_LIST_LENGTH=1000)["test_result"]
    for quantile, expected, served in ((0, trained["test_result"], (60, 0)), (1, similar, (0, 60))):
        result = result_of(
            world, "LLMSeqSimSequential", popular_model=trained["run_dir"], popularity_quantile=quantile
        )
        assert result["test_result"] == expected
        report = json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))
        assert tuple(report["model_report"].values()) == served


def test_an_item_without_training_is_not_popular(world):
    model, _, batch = build(world, "LLMSeqSimSequential", popular_model=world[1]["run_dir"], popularity_quantile=0.1)
    model.popularity.fill_(0.2)
    assert model.after_popular(batch, model.setting).all()
    last = int(batch["item_id_list"][0, batch["item_length"][0] - 1])
    model.popularity[last] = 0
    assert not model.after_popular(batch, model.setting)[0]


# ---- LLMSeqSimPopularity


def filtered(candidates, popularity, bound, keep):
    """Remove the least popular below the bound, of equals the lowest in the list, while more than `keep` remain."""
    left = list(candidates)
    while len(left) > keep:
        item = min(left, key=lambda item: (popularity[item], -left.index(item)))
        if popularity[item] >= bound:
            break
        left.remove(item)
    return left


def varied(items, vectors, bound):
    """Greedily take items that are less similar than the bound to all taken; the others behind them."""
    taken = []
    for item in items:
        if all(float(vectors[item] @ vectors[other]) < bound for other in taken):
            taken.append(item)
    return taken + [item for item in items if item not in taken]


@pytest.mark.parametrize("quantile", [0, 0.3, 0.9, 1])
@pytest.mark.parametrize("diversity", [None, 0.6])
def test_unpopular_and_similar_items_go(world, quantile, diversity):
    settings = {"candidates": 14, "list_length": K, "popularity_quantile": quantile, "diversity_quantile": diversity}
    model, train, batch = build(world, "LLMSeqSimPopularity", **settings)
    popularity = popularity_of(train)
    bound = {0: 0.0, 1: np.inf}.get(quantile, np.quantile(popularity[popularity > 0], quantile))
    similar = model.members[0].full_sort_predict(batch)
    scores = model.full_sort_predict(batch)
    changed = 0
    for row in range(len(batch)):
        candidates = ranking(similar, batch, row, 14)
        expected = filtered(candidates, popularity.round(12), bound - 1e-9, K)
        if diversity is not None:
            vectors = torch.nn.functional.normalize(model.members[0].model.item_vectors, dim=1)
            expected = varied(expected, vectors, model.diversity)
        changed += expected[:K] != candidates[:K]
        expected += [item for item in ranking(similar, batch, row, 99) if item not in expected]
        assert ranking(scores, batch, row, 99) == expected
    assert (changed > 0) == (quantile > 0 or diversity is not None)


def test_the_similarity_of_the_diversity_step_is_a_quantile_of_all_pairs(world, monkeypatch):
    model, _, _ = build(world, "LLMSeqSimPopularity", diversity_quantile=0.8)
    vectors = torch.nn.functional.normalize(model.members[0].model.item_vectors[1:], dim=1)
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    assert model.diversity == pytest.approx(float(np.quantile(cosines, 0.8)), abs=1e-5)
    monkeypatch.setattr("recbole_llm.model.llmseqsimpopularity.PAIRS", 700)  # of 780: a sample
    sampled, _, _ = build(world, "LLMSeqSimPopularity", diversity_quantile=0.8)
    assert sampled.diversity != model.diversity
    assert sampled.diversity == pytest.approx(model.diversity, abs=0.15)


def test_without_a_filter_it_is_llmseqsim(world):
    similar = result_of(world, "LLMSeqSim", MAX_ITEM_LIST_LENGTH=1000)
    result = result_of(world, "LLMSeqSimPopularity", popularity_quantile=0)
    assert result["test_result"] == similar["test_result"]
    assert result["test_result_unmasked"] == similar["test_result_unmasked"]


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "settings", "error", "says"),
    [
        ("EmbeddingEnsemble", {"ensemble_mode": "both"}, ConfigError, "invalid value for ensemble_mode: 'both'"),
        ("EmbeddingEnsemble", {"cutoff": 21}, ConfigError, "cutoff=21: 21 is not a whole number between 0 and 20"),
        ("EmbeddingEnsemble", {"cutoff_grid": [1, 0.5]}, ConfigError, r"invalid value for cutoff_grid\[1\]: 0.5"),
        ("EmbeddingEnsemble", {"cutoff_grid": []}, ConfigError, "give a non-empty list"),
        (
            "EmbeddingEnsemble",
            {"ensemble_mode": "confidence", "first_model": {}},
            ConfigError,
            "needs scores between -1 and 1 .* confidence_kind=quantile",
        ),
        ("EmbeddingEnsemble", {"first_model": {"decay": "x"}}, ConfigError, "invalid value for decay: 'x'"),
        ("EmbeddingEnsemble", {"first_model": "here"}, ConfigError, "'here' is neither a run directory"),
        ("LLMSeqSimSequential", {}, ConfigError, "needs popular_model, the run directory"),
        (
            "LLMSeqSimSequential",
            {"popular_model": "VSKNN", "popularity_quantile": 2},
            ConfigError,
            "from 0 to 1",
        ),
        (
            "LLMSeqSimSequential",
            {"popular_model": "RUN", "time_order": "recbole"},
            CheckpointError,
            "another time_order",
        ),
        ("LLMSeqSimPopularity", {"candidates": 0}, ConfigError, "invalid value for candidates: 0"),
        ("LLMSeqSimPopularity", {"diversity_quantile": 1.5}, ConfigError, "invalid value for diversity_quantile: 1.5"),
        (
            "LLMSeqSimPopularity",
            {"similar_model": {"model": "VSKNN"}, "diversity_quantile": 0.5},
            ConfigError,
            "needs the item vectors of LLMSeqSim",
        ),
    ],
)
def test_what_is_refused(world, name, settings, error, says):
    if settings.get("popular_model") == "RUN":
        settings = {**settings, "popular_model": world[1]["run_dir"]}
    with pytest.raises(error, match=says):
        build(world, name, **settings)
