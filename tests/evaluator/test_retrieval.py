"""From the retriever's scores to the rows of a two-step result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llm.evaluator.ranks import RankCollector
from recbole_llm.evaluator.retrieval import Retrieved, summary
from recbole_llm.layer.ranking import reorder

GOLDEN = Path(__file__).parent.parent / "golden" / "lru_eval"
CONFIG = {"metrics": ["Recall", "MRR", "NDCG", "ItemCoverage"], "topk": [1, 5, 10, 20, 50], "mask_history": True}


def ranks_of(scores, target, history, k=0):
    collector = RankCollector(k)
    user = torch.arange(1, len(target) + 1)
    collector.collect(scores.clone(), user, target, history)
    return collector.finish()


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "lru_eval.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}, json.loads(
        (GOLDEN / "lru_eval.json").read_text(encoding="utf-8")
    )


def both_steps(golden, phase):
    """Candidates of a split; the authors mask the items of the retriever's input."""
    arrays, _ = golden
    scores, tokens = arrays[f"raw_scores_{phase}"].float(), arrays[f"{phase}_tokens"].long()
    rows, columns = (tokens > 0).nonzero(as_tuple=True)
    pairs = torch.unique(torch.stack([rows, tokens[rows, columns]], 1), dim=0)
    history, target = (pairs[:, 0], pairs[:, 1]), arrays[f"{phase}_targets"].long()
    ranks = ranks_of(scores, target, history, 20)
    return scores, target, history, Retrieved(torch.from_numpy(ranks.masked_lists), ranks.masked, ranks.unmasked)


@pytest.mark.parametrize("phase", ["val", "test"])
def test_golden_lru_eval_candidates(golden, phase):
    arrays, _ = golden
    _, _, _, retrieved = both_steps(golden, phase)
    found = torch.from_numpy(retrieved.masked <= 20)
    assert (found.nonzero()[:, 0] + 1).tolist() == arrays[f"{phase}_users"].tolist()
    assert torch.equal(retrieved.items[found], arrays[f"{phase}_candidates"].long())


def test_golden_lru_eval_metrics(golden):
    arrays, expected = golden
    scores, target, history, retrieved = both_steps(golden, "test")
    found = torch.from_numpy(retrieved.masked <= 20)
    items = retrieved.items.masked_fill(~found[:, None], 0)  # the authors rank the users whose target was found
    letters = torch.zeros(items.shape)
    letters[found] = arrays["letter_scores"].float()
    ranks = ranks_of(reorder(scores, items, letters), target, history)
    rows = summary(CONFIG, retrieved, ranks, int(found.sum()))
    assert (rows["users"], rows["users_retrieved"], rows["users_reranked"]) == (30, 19, 19)

    def same(row, golden_row, up_to=50):
        wanted = {name.removeprefix("test_").lower(): value for name, value in golden_row.items()}
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)

    same(rows["retriever_masked"], expected["retriever_all_users"])
    same(rows["retrieved_users_retriever"], expected["retriever_subset"])
    same(rows["retrieved_users"], expected["ranker_subset"])
    overall = summary(CONFIG, Retrieved(retrieved.items, ranks.masked, ranks.unmasked), ranks, 0)["retriever_masked"]
    same(overall, expected["overall"])
    assert overall["recall@50"] == rows["retriever_masked"]["recall@50"]
    assert rows["retriever_recall@20"] == pytest.approx(19 / 30)


def test_nobody_retrieved():
    retrieved = Retrieved(torch.ones(3, 2, dtype=torch.long), np.array([5, 6, 7]), np.array([5, 6, 7]))
    ranks = ranks_of(torch.zeros(3, 9), torch.tensor([5, 6, 7]), (torch.zeros(0, dtype=torch.long),) * 2)
    rows = summary(CONFIG, retrieved, ranks, 3)
    assert rows["users_retrieved"] == 0 and rows["retrieved_users"] is None


def test_files(tmp_path, caplog):
    retrieved = Retrieved(torch.tensor([[3, 1], [2, 0]]), np.array([4, 2]), np.array([9, 2]))
    retrieved.save(tmp_path, "test", "key")
    same = Retrieved.load(tmp_path, "test", "key")
    assert torch.equal(same.items, retrieved.items) and same.items.dtype == torch.long
    assert same.masked.tolist() == [4, 2] and same.unmasked.tolist() == [9, 2]
    assert Retrieved.load(tmp_path, "test", "another") is None
    assert Retrieved.load(tmp_path, "valid", "key") is None
    (tmp_path / "candidates" / "test.safetensors").write_bytes(b"\x08")
    assert Retrieved.load(tmp_path, "test", "key") is None and "damaged" in caplog.text
