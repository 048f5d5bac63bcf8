import torch

from recbole_llm.evaluator.ranks import RankCollector
from recbole_llm.evaluator.topk import top_items
from recbole_llm.layer.ranking import reorder

N = 30


def ranked(scores):
    """All items of every row, best first, as the evaluator orders them."""
    scores = scores.clone()
    scores[:, 0] = -torch.inf
    return top_items(scores, N)[:, : N - 1]


def test_a_new_order_and_nothing_else():
    torch.manual_seed(0)
    # Few distinct values: ties among the first, across their border, and behind it.
    for levels in (2, 4, 1000):
        scores = torch.randint(levels, (200, N)).float() / 7
        before = ranked(scores)
        items = before[:, :8]
        ranking = torch.rand(200, 8)
        after = ranked(reorder(scores, items, ranking))
        assert torch.equal(after[:, :8], items.gather(1, ranking.argsort(1, descending=True)))
        assert torch.equal(after[:, 8:], before[:, 8:])


def test_the_same_order_keeps_the_scores():
    torch.manual_seed(0)
    scores = torch.randint(5, (50, N)).float()
    items = ranked(scores)[:, :8]
    for ranking in (-torch.arange(8.0).expand(50, -1), torch.zeros(50, 8)):
        assert torch.equal(reorder(scores, items, ranking), scores)


def test_fewer_items():
    scores = torch.tensor([[9.0, 1.0, 2.0, 3.0, 2.0]])
    after = reorder(scores, torch.tensor([[3, 2, 0, 0]]), torch.tensor([[0.0, 1.0, 5.0, 5.0]]))
    assert top_items(torch.cat([torch.full((1, 1), -torch.inf), after[:, 1:]], 1), 4).tolist() == [[2, 3, 4, 1]]
    assert after[0, 0] == 9.0
    assert torch.equal(reorder(scores, torch.zeros(1, 4, dtype=torch.long), torch.rand(1, 4)), scores)


def test_the_order_that_the_evaluator_sees():
    scores = torch.tensor([[0.0, 5.0, 5.0, 4.0]])
    after = reorder(scores, torch.tensor([[1, 2]]), torch.tensor([[0.0, 1.0]]))
    collector = RankCollector()
    none = torch.zeros(0, dtype=torch.long)
    collector.collect(after, torch.tensor([1]), torch.tensor([2]), (none, none))
    assert collector.finish().unmasked.tolist() == [1]
