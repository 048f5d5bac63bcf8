"""ScoreEnsemble: norms, weights, members from run directories, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.model.hybrid import Member
from recbole_llm.model.scoreensemble import ScoreEnsemble, normalize_scores
from recbole_llm.quick_start import load_run, run
from tests.configs import choices_of
from tests.worlds import write_cycle

SMALL = {"hidden_size": 8, "inner_size": 8, "n_heads": 1, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 6}
TEXT = {"model": "LLMSeqSim", "dim_reduction": "none"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Settings of a small world, and the run directory of a model trained on it."""
    folder = tmp_path_factory.mktemp("world")
    write_cycle(folder / "data")
    settings = {
        "data_path": str(folder / "data"),
        "checkpoint_dir": str(folder / "saved"),
        "embedding_cache_dir": str(folder / "cache"),
        "llm": "tiny-random-t5",
        "show_progress": False,
        "use_gpu": False,
        "topk": [5],
        "valid_metric": "NDCG@5",
    }
    trained = {**settings, **SMALL, "epochs": 3, "learning_rate": 0.01}
    trained.pop("llm")
    return settings, run("SASRec", "cycle", config_dict=trained)


def ensemble(world, members, **more):
    return run("ScoreEnsemble", "cycle", config_dict={**world[0], "members": members, **more})


def build(world, **more):
    config = Config("ScoreEnsemble", "cycle", config_dict={**world[0], **more})
    train, _, test = prepare_data(config, HistoryDataset(config))
    return ScoreEnsemble(config, train.dataset), next(iter(test))[0]


# ---- norms


def rows_by_hand(norm, scores, allowed, temperature, constant):
    """One row at a time, in Python."""
    result = []
    for row, mask in zip(scores.tolist(), allowed.tolist(), strict=True):
        known = [s for s, ok in zip(row, mask, strict=True) if ok and s > -math.inf]
        mean = sum(known) / len(known)
        deviation = math.sqrt(sum((s - mean) ** 2 for s in known) / len(known))
        total = sum(math.exp(s / temperature) for s in known)
        values = []
        for s in row:
            if s == -math.inf:
                values.append(0.0 if norm == "rank" else -math.inf)
            elif norm == "zscore":
                values.append((s - mean) / deviation)
            elif norm == "minmax":
                values.append((s - min(known)) / (max(known) - min(known)))
            elif norm == "softmax":
                values.append(math.log(math.exp(s / temperature) / total))
            elif norm == "rank":
                values.append(1 / (constant + 1 + sum(other > s for other in known)))
            else:
                values.append(s)
        result.append(values)
    return torch.tensor(result)


@pytest.mark.parametrize("norm", choices_of("score_norm", "ScoreEnsemble"))
def test_norms_by_hand(norm):
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    scores[1, 4] = -torch.inf
    allowed = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) < 0.7
    expected = rows_by_hand(norm, scores, allowed, 0.7, 20)
    found = normalize_scores(scores, allowed, norm, 0.7, 20)
    torch.testing.assert_close(found[allowed], expected[allowed])
    if norm == "rank":  # an item that cannot be recommended stands between its neighbours
        assert torch.equal(found.argsort(descending=True)[0], scores.argsort(descending=True)[0])
    else:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("norm", choices_of("score_norm", "ScoreEnsemble"))
def test_equal_scores_and_nothing_to_recommend_are_no_nan(norm):
    scores = torch.tensor([[3.0, 3.0, 3.0], [1.0, 2.0, 3.0], [-torch.inf, 1.0, 1.0]])
    allowed = torch.tensor([[False, True, True], [False, False, False], [False, True, False]])
    assert not normalize_scores(scores, allowed, norm).isnan().any()


# ---- identities


@pytest.mark.parametrize("norm", choices_of("score_norm", "ScoreEnsemble"))
def test_a_model_with_itself_is_the_model(world, norm):
    trained = world[1]
    result = ensemble(world, [trained["run_dir"], trained["run_dir"]], score_norm=norm)
    assert result["test_result"] == pytest.approx(trained["test_result"], abs=1e-9)
    assert result["test_result_unmasked"] == pytest.approx(trained["test_result_unmasked"], abs=1e-9)
    for member in result["members"]:
        assert member["test_masked"] == pytest.approx(trained["test_result"], abs=1e-12)


@pytest.mark.parametrize("norm", choices_of("score_norm", "ScoreEnsemble"))
def test_all_weight_on_one_member_is_that_member(world, norm):
    trained = world[1]
    result = ensemble(world, [trained["run_dir"], TEXT], score_norm=norm, weights=[1, 0])
    assert result["test_result"] == trained["test_result"]
    other = ensemble(world, [trained["run_dir"], TEXT], score_norm=norm, weights=[0, 2.5])
    assert other["test_result"] == result["members"][1]["test_masked"] != result["test_result"]


def test_weights_add_normalised_scores(world):
    model, batch = build(world, members=[world[1]["run_dir"], TEXT], weights=[0.3, 0.7])
    first, second = model.parts(batch)
    torch.testing.assert_close(
        model.full_sort_predict(batch)[:, 1:], (0.3 * first + 0.7 * second)[:, 1:], rtol=1e-5, atol=1e-6
    )
    allowed = model.recommendable(batch)
    assert not allowed.gather(1, batch["item_id_list"]).any()
    for part in (first, second):
        kept = part.masked_fill(~allowed, 0)
        torch.testing.assert_close(kept.sum(1) / allowed.sum(1), torch.zeros(len(batch)), atol=1e-4, rtol=0)
        torch.testing.assert_close(kept.square().sum(1) / allowed.sum(1), torch.ones(len(batch)))


def test_softmax_is_the_mixture_of_distributions(world):
    model, batch = build(world, members=[world[1]["run_dir"], TEXT], weights=[0.25, 0.75], score_norm="softmax")
    allowed = model.recommendable(batch)
    probabilities = [
        member.full_sort_predict(batch).masked_fill(~allowed, -torch.inf).softmax(1) for member in model.members
    ]
    mixture = 0.25 * probabilities[0] + 0.75 * probabilities[1]
    found = model.full_sort_predict(batch).exp().masked_fill(~allowed, 0)
    torch.testing.assert_close(found, mixture, rtol=1e-4, atol=1e-7)


# ---- members


def test_a_member_with_another_item_order_gives_the_same_scores(world):
    model, batch = build(world, members=[world[1]["run_dir"], TEXT])
    member = model.members[0]
    expected = member.full_sort_predict(batch)
    # The same network, with the items renumbered inside.
    order = torch.cat([torch.zeros(1, dtype=torch.long), torch.randperm(model.n_items - 1) + 1])
    embedding = member.model.item_embedding.weight.data
    member.model.item_embedding.weight.data = embedding[order]
    tokens = member.model.item_tokens
    own = tokens[order.numpy()]
    member._own_id = member._translate(own, tokens)
    assert member._own_id is not None
    torch.testing.assert_close(member.full_sort_predict(batch), expected)
    with pytest.raises(CheckpointError, match="does not know 1 items of this run, such as 'i"):
        member._translate(own[:-1], tokens)


def test_a_member_sees_as_much_history_as_in_its_own_run(world):
    member = build(world, members=[world[1]["run_dir"], TEXT])[0].members[0]
    config = Config("SASRec", "cycle", config_dict={**world[0], **SMALL})
    own = next(iter(prepare_data(config, HistoryDataset(config))[2]))[0]
    config = Config("ScoreEnsemble", "cycle", config_dict=world[0])
    longer = next(iter(prepare_data(config, HistoryDataset(config))[2]))[0]
    assert longer["item_length"].max() > own["item_length"].max()
    torch.testing.assert_close(member.full_sort_predict(longer), member.full_sort_predict(own))


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"members": None}, ConfigError, "members=None must be a list of two or more run directories"),
        ({"members": ["LLMSeqSim"]}, ConfigError, "two or more"),
        ({"members": ["LLMSeqSim", "nowhere"]}, ConfigError, "'nowhere' is neither a run directory .* nor a model"),
        ({"members": ["LLMSeqSim", "LLMSeqSym"]}, ConfigError, "Did you mean 'LLMSeqSim'"),
        ({"members": ["LLMSeqSim", "SASRec"]}, ConfigError, "'SASRec' has to be trained: run --model=SASRec"),
        ({"members": ["LLMSeqSim", "ScoreEnsemble"]}, ConfigError, "cannot be a member of itself"),
        ({"members": [TEXT, {"model": "RUN", "seed": 3}]}, ConfigError, r"its settings \(seed\) cannot be changed"),
        ({"score_norm": "z"}, ConfigError, "invalid value for score_norm: 'z'"),
        ({"weights": [1]}, ConfigError, r"\[1\] is not a list of 2 weights"),
        ({"weights": [1, -1]}, ConfigError, r"weights\[1\]: -1 .*at least 0"),
        ({"weights": [0, 0]}, ConfigError, "not all 0"),
        ({"weights_grid": [[1, 0], 3]}, ConfigError, "weights_grid=.*: 3 is not a list of 2 weights"),
        ({"weights": [1, 1], "weights_grid": 4}, ConfigError, "drop one of them"),
        ({"weights_grid": 5000}, ConfigError, "more than 2000 weightings"),
        ({"softmax_temperature": 0}, ConfigError, "softmax_temperature: 0 .*above 0"),
        ({"time_order": "recbole"}, CheckpointError, "was trained with another time_order"),
        ({"eval_args": {"split": {"LS": "test_only"}}}, CheckpointError, "another eval_args.split"),
        ({"MAX_ITEM_LIST_LENGTH": 5}, CheckpointError, "set MAX_ITEM_LIST_LENGTH to the same"),
    ],
)
def test_what_is_refused(world, settings, error, says):
    def with_run(member):
        return {**member, "model": world[1]["run_dir"]} if member == {"model": "RUN", "seed": 3} else member

    settings = {"members": [world[1]["run_dir"], TEXT], **settings}
    settings["members"] = settings["members"] and [with_run(member) for member in settings["members"]]
    with pytest.raises(error, match=says):
        build(world, **settings)


def test_other_data_is_refused_with_both_hashes(world, tmp_path):
    write_cycle(tmp_path, length=11)
    with pytest.raises(CheckpointError, match="another cycle.inter .*SHA-256 [0-9a-f]{64} there, [0-9a-f]{64} here"):
        build(world, members=[world[1]["run_dir"], TEXT], data_path=str(tmp_path))


# ---- whole runs


def test_weights_are_chosen_on_validation_and_kept(world):
    trained = world[1]
    result = ensemble(world, [trained["run_dir"], TEXT], weights_grid=4)
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    tried = {tuple(entry["weights"]): entry["ndcg@5"] for entry in report["chosen_from"]}
    assert set(tried) == {(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)}
    best = max(tried, key=lambda weights: tried[weights])
    assert report["language_models"]["setting"] == {"weights": list(best)}
    assert report["best_valid_score"] == pytest.approx(tried[best], abs=1e-12)
    assert tried[1.0, 0.0] == pytest.approx(trained["best_valid_score"], abs=1e-9)
    for weights, score in tried.items():  # each as in a run of its own
        alone = ensemble(world, [trained["run_dir"], TEXT], weights=list(weights))
        assert alone["best_valid_score"] == pytest.approx(score, abs=1e-9)

    (first, second) = report["language_models"]["members"]
    assert first["run_dir"] == trained["run_dir"] and first["run_seconds"] > 0
    assert second["settings"] == {"dim_reduction": "none"} and "tiny-random" in second["language_models"]["llm"]
    assert report["parameters"] == {"trained": 0, "all": 0}
    assert "cycle.item" in report["dataset"]["files"]
    assert (Path(result["run_dir"]) / "model.safetensors").stat().st_size < 1000  # no weights of members
    ranks = np.load(Path(result["run_dir"]) / "test_ranks.npz")
    assert np.mean(ranks["rank_masked"] <= 5) == pytest.approx(result["test_result"]["recall@5"])

    again = load_run(result["run_dir"])
    assert again.model.setting.tolist() == list(best)
    assert again.trainer.evaluate(again.test_data, load_best_model=False) == result["test_result"]


def test_grids_need_validation(world):
    settings = {key: value for key, value in world[0].items() if key != "llm"}
    split = {"eval_args": {"split": {"LS": "test_only"}}}
    other = run("SASRec", "cycle", config_dict={**settings, **SMALL, **split, "epochs": 1})["run_dir"]
    assert ensemble(world, [other, other], **split)["test_result"]
    with pytest.raises(ConfigError, match="chooses among 3 settings by validation: that needs a validation split"):
        ensemble(world, [other, other], weights_grid=2, **split)


def test_members_that_have_changed_are_refused(world, tmp_path):
    settings = {key: value for key, value in world[0].items() if key != "llm"}
    member = run("SASRec", "cycle", config_dict={**settings, **SMALL, "epochs": 1})["run_dir"]
    result = ensemble(world, [member, TEXT])
    other = run("SASRec", "cycle", config_dict={**settings, **SMALL, "epochs": 1, "seed": 9})["run_dir"]
    shutil.copy(Path(other) / "model.safetensors", member)
    with pytest.raises(CheckpointError, match="model.safetensors is damaged or was replaced"):
        load_run(result["run_dir"])
    shutil.rmtree(member)
    Path(other).rename(member)  # a whole run in the member's place
    with pytest.raises(CheckpointError, match="no longer those .*SHA-256 [0-9a-f]{64} then, [0-9a-f]{64} now"):
        load_run(result["run_dir"])


def test_under_the_temporal_session_split(tmp_path):
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{u}\ti{(3 * u + t) % 20}\t{100 * u + 7 * t}" for u in range(30) for t in range(6)]
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "late.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "show_progress": False}
    settings |= {"use_gpu": False, "protocol": "temporal_session"}
    trained = run("SASRec", "late", config_dict={**settings, **SMALL, "epochs": 1})
    pair = [trained["run_dir"], trained["run_dir"]]
    result = run("ScoreEnsemble", "late", config_dict={**settings, "members": pair})
    assert result["test_result"] == pytest.approx(trained["test_result"], abs=1e-9)
    for change in ({"temporal_session_seed": 1}, {"temporal_session_fold": 1}, {"protocol": "loo"}):
        with pytest.raises(CheckpointError, match=f"another {next(iter(change))}"):
            run("ScoreEnsemble", "late", config_dict={**settings, "members": pair, **change})


def test_an_ensemble_can_be_a_member(world):
    trained = world[1]["run_dir"]
    inner = ensemble(world, [trained, TEXT], weights=[1, 0])["run_dir"]
    outer = ensemble(world, [inner, trained])
    assert outer["test_result"] == pytest.approx(world[1]["test_result"], abs=1e-9)
    config = Config("ScoreEnsemble", "cycle", config_dict=world[0])
    dataset = prepare_data(config, HistoryDataset(config))[0].dataset
    assert Member(inner, config, dataset).needs_item_text
