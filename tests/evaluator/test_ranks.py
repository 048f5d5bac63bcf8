import numpy as np
import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.evaluator import metrics
from recbole_llm.evaluator.ranks import NEVER, RankCollector, ScoreError

ROWS, ITEMS = 60, 23


def case(kind, seed=0):
    """Scores, users, targets and distinct history pairs; some targets stand in their own history."""
    draw = np.random.default_rng(seed)
    scores = {
        "distinct": lambda: draw.random((ROWS, ITEMS)),
        "ties": lambda: draw.integers(0, 4, (ROWS, ITEMS)),
        "constant": lambda: np.zeros((ROWS, ITEMS)),
        "infinite": lambda: np.where(draw.random((ROWS, ITEMS)) < 0.4, -np.inf, draw.integers(0, 4, (ROWS, ITEMS))),
    }[kind]()
    target = draw.integers(1, ITEMS, ROWS)
    scores[np.arange(ROWS), target] = np.maximum(scores[np.arange(ROWS), target], -9)
    history = [set(draw.choice(np.arange(1, ITEMS), draw.integers(0, 15), replace=False)) for _ in range(ROWS)]
    return scores.astype(np.float32), np.arange(ROWS) + 5, target, history


def ranking(scores, excluded):
    """Items by falling score, equal scores by rising id; padding and what is excluded come last, in that order."""
    allowed = [item for item in range(1, ITEMS) if item not in excluded]
    return sorted(allowed, key=lambda item: (-scores[item], item))


def collect(scores, user, target, history, chunk=ROWS, list_length=0):
    collector = RankCollector(list_length)
    for start in range(0, ROWS, chunk):
        part = slice(start, start + chunk)
        pairs = [(row, item) for row, items in enumerate(history[part]) for item in sorted(items)]
        rows, items = (torch.tensor([pair[i] for pair in pairs], dtype=torch.long) for i in (0, 1))
        tensors = (torch.from_numpy(values[part].copy()) for values in (scores, user, target))
        collector.collect(*tensors, (rows, items))
    return collector.finish()


@pytest.mark.parametrize("kind", ["distinct", "ties", "constant", "infinite"])
@pytest.mark.parametrize("k", [1, 5, ITEMS + 3])
@pytest.mark.parametrize("at_once", [1, 5 * ITEMS, 10**6])
def test_ranks_and_lists_equal_a_sorted_list(kind, k, at_once, monkeypatch):
    monkeypatch.setattr("recbole_llm.evaluator.ranks.CPU_SCORES", at_once)
    scores, user, target, history = case(kind)
    ranks = collect(scores, user, target, history, list_length=k)
    assert ranks.user.tolist() == user.tolist()
    assert ranks.target.tolist() == target.tolist()
    assert ranks.history_length.tolist() == [len(items) for items in history]
    inside = [target[row] in history[row] for row in range(ROWS)]
    assert 0 < sum(inside) == ranks.targets_in_history
    ties = 0
    for row in range(ROWS):
        whole, left = ranking(scores[row], set()), ranking(scores[row], history[row])
        assert ranks.unmasked[row] == 1 + whole.index(target[row])
        assert ranks.masked[row] == (NEVER if inside[row] else 1 + left.index(target[row]))
        # Lists hold what the ranks say, as far as there is anything finite to recommend.
        finite = sum(np.isfinite(scores[row][item]) for item in whole)
        assert ranks.unmasked_lists[row].tolist()[:finite] == whole[:k][:finite]
        finite = sum(np.isfinite(scores[row][item]) for item in left)
        assert ranks.masked_lists[row].tolist()[:finite] == left[:k][:finite]
        ties += (scores[row][1:] == scores[row][target[row]]).sum() > 1
    assert ranks.tied == pytest.approx(ties / ROWS)
    assert (ranks.tied == 0) == (kind == "distinct")


def test_lists_agree_with_ranks_where_the_end_of_a_list_is_tied():
    # Which of many equal scores torch.topk returns is left open, above all in long rows.
    scores = torch.zeros(8, 5000)
    scores[:, 4000:4003] = 1
    target = torch.tensor([1, 2, 3, 4000, 4002, 7, 8, 4999])
    collector = RankCollector(10)
    none = torch.zeros(0, dtype=torch.long)
    collector.collect(scores, target, target, (none, none))
    ranks = collector.finish()
    assert ranks.unmasked_lists.tolist() == [[4000, 4001, 4002, *range(1, 8)]] * 8
    assert ranks.unmasked.tolist() == [4, 5, 6, 1, 3, 10, 11, 4999]


@pytest.mark.parametrize("chunk", [1, 7, 59])
def test_chunks_equal_the_whole(chunk):
    inputs = case("ties", seed=3)
    whole, parts = collect(*inputs, list_length=5), collect(*inputs, chunk=chunk, list_length=5)
    for name, value in vars(whole).items():
        assert np.array_equal(value, getattr(parts, name)), name


def test_without_lists_none_are_kept():
    ranks = collect(*case("distinct"))
    assert ranks.masked_lists is None
    assert ranks.unmasked_lists is None


def test_low_precision_scores_are_ranked():
    scores, user, target, history = case("ties")
    expected = collect(scores, user, target, history)
    collector = RankCollector()
    rows = torch.repeat_interleave(torch.arange(ROWS), torch.tensor([len(items) for items in history]))
    items = torch.tensor([item for items in history for item in items])
    collector.collect(
        torch.from_numpy(scores).bfloat16(), torch.from_numpy(user), torch.from_numpy(target), (rows, items)
    )
    assert collector.finish().masked.tolist() == expected.masked.tolist()


def test_nan_scores_are_an_error():
    scores, user, target, history = case("distinct")
    scores[3, 4] = scores[7, 1] = np.nan
    with pytest.raises(ScoreError, match=f"NaN scores for 2 of {ROWS} rows.*learning_rate"):
        collect(scores, user, target, history, chunk=20, list_length=5)
    # Padding is never ranked, so its score may be anything.
    scores[3, 4] = scores[7, 1] = 0
    scores[:, 0] = np.nan
    collect(scores, user, target, history)


def test_most_popular_on_ml100k():
    """A published figure: training counts as scores, exact order, leave-one-out, whole catalogue."""
    config = Config("SASRec", "ml-100k", config_dict={"metrics": ["Recall", "NDCG"], "valid_metric": "NDCG@10"})
    train, _, test = prepare_data(config, HistoryDataset(config))
    counts = torch.from_numpy(train.dataset.train_counts).float()
    assert counts.sum() == 100_000 - 2 * 943
    collector = RankCollector()
    for interaction, history, _, target in test:
        collector.collect(counts.repeat(len(target), 1), interaction["user_id"], target, history)
    ranks = collector.finish()
    results = [metrics.compute(config, rank, None, None) for rank in (ranks.unmasked, ranks.masked)]
    names = ["recall@10", "ndcg@10", "recall@20", "ndcg@20"]
    assert [round(results[0][name], 4) for name in names] == [0.0498, 0.0224, 0.0827, 0.0306]
    assert [round(results[1][name], 4) for name in names] == [0.0859, 0.0449, 0.1273, 0.0552]
    for result in results:
        share = (result["ndcg@20"] - result["ndcg@10"]) / (result["recall@20"] - result["recall@10"])
        assert 0.2277 <= share <= 0.2789


@pytest.mark.parametrize("k", [1, 5, ITEMS - 1, ITEMS, 1000])
def test_a_target_without_a_score_is_no_hit_however_long_the_list(k):
    scores, user, target, history = case("ties", seed=2)
    without = np.arange(ROWS) % 3 == 0
    scores[without, target[without]] = -np.inf
    inside = np.array([target[row] in history[row] for row in range(ROWS)])
    ranks = collect(scores, user, target, history)
    assert not metrics.hit(ranks.unmasked[without], k).any() and not metrics.ndcg(ranks.unmasked[without], k).any()
    assert not metrics.hit(ranks.masked[without | inside], k).any()
    if k >= ITEMS:
        assert (
            metrics.hit(ranks.unmasked[~without], k).all() and metrics.hit(ranks.masked[~without & ~inside], k).all()
        )


def test_nothing_but_minus_infinity_is_all_misses_and_no_tie():
    scores, user, target, history = case("constant")
    ranks = collect(np.full_like(scores, -np.inf), user, target, history, list_length=3)
    assert (ranks.unmasked == NEVER).all() and (ranks.masked == NEVER).all() and ranks.tied == 0
    assert not ranks.unmasked_lists.any()


def test_ranks_among_a_group_know_targets_without_a_score():
    collector = RankCollector(group=torch.tensor([2, 3, 4]))
    scores = torch.tensor([[0.0, 5, 1, 2, 3], [0.0, 5, 1, -torch.inf, 3]])
    target, none = torch.tensor([3, 3]), torch.zeros(0, dtype=torch.long)
    collector.collect(scores, target, target, (none, none))
    assert collector.finish().among.tolist() == [2, NEVER]
