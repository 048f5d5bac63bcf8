import numpy as np
import pytest
import torch

from recbole_llm.evaluator.topk import top_k, top_k_of_products


def expected(scores, k):
    """Columns by falling score, equal scores by rising column; those without a score are not listed."""
    return [
        [
            column
            for column in sorted(range(len(row)), key=lambda column: (-row[column], column))
            if row[column] > -np.inf
        ][:k]
        for row in scores.tolist()
    ]


def listed(values, columns):
    return [
        [column for column, value in zip(*row, strict=True) if value > -np.inf]
        for row in zip(columns.tolist(), values.tolist(), strict=True)
    ]


def draw(kind, rows=40, columns=57, seed=0):
    generator = np.random.default_rng(seed)
    scores = {
        "distinct": lambda: generator.random((rows, columns)),
        "ties": lambda: generator.integers(0, 3, (rows, columns)),
        "constant": lambda: np.zeros((rows, columns)),
        "masked": lambda: np.where(
            generator.random((rows, columns)) < 0.9, -np.inf, generator.integers(0, 3, (rows, columns))
        ),
    }[kind]()
    return torch.from_numpy(scores.astype(np.float32))


@pytest.mark.parametrize("kind", ["distinct", "ties", "constant", "masked"])
@pytest.mark.parametrize("k", [1, 5, 56, 57, 80])
def test_top_k_is_one_order(kind, k):
    scores = draw(kind)
    values, columns = top_k(scores, k)
    assert values.shape == columns.shape == (40, min(k, 57))
    assert listed(values, columns) == expected(scores, k)
    assert torch.equal(values, scores.gather(1, columns))


@pytest.mark.parametrize("kind", ["distinct", "ties", "constant", "rising"])
@pytest.mark.parametrize("at_once", [1, 40 * 7, 40 * 20, 10**6])
@pytest.mark.parametrize("k", [1, 6, 80])
def test_blocks_give_the_list_of_the_whole_table(kind, at_once, k):
    # Small whole numbers, and 64ths of them: products are exact, whatever the block.
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randint(-2, 3, (rows, 3), generator=generator).float() for rows in (40, 57))
    if kind == "distinct":
        users, items = torch.randn(40, 3, generator=generator).mul(64).round() / 64, items + torch.arange(57)[:, None]
    elif kind == "constant":
        items = torch.ones(57, 3)
    elif kind == "rising":  # every block beats all before it
        users, items = torch.ones(40, 3), torch.arange(57.0)[:, None].expand(57, 3).contiguous()
    excluded = torch.rand(40, 57, generator=generator) < 0.5
    excluded[0] = True
    scores = users @ items.T
    values, columns = top_k_of_products(users, items, k, scores_at_once=at_once)
    assert listed(values, columns) == expected(scores, k)
    rows, places = excluded.nonzero(as_tuple=True)
    order = torch.randperm(len(rows), generator=generator)
    values, columns = top_k_of_products(users, items, k, (rows[order], places[order]), at_once)
    assert listed(values, columns) == expected(scores.masked_fill(excluded, -torch.inf), k)
    assert values.shape == (40, min(k, 57))


@pytest.mark.parametrize("spread", [2, 50, 10**6])
@pytest.mark.parametrize("at_once", [7 * 64, 7 * 64 * 4, 7 * 100 * 5])
def test_lists_out_of_many_blocks(spread, at_once):
    """Groups and blocks of several sizes, the last of them not full; few scores, many, and one who has had all."""
    generator = torch.Generator().manual_seed(2)
    users = torch.randint(-spread, spread, (7, 1), generator=generator).float()
    items = torch.randint(-spread, spread, (3001, 1), generator=generator).float()
    excluded = torch.rand(7, 3001, generator=generator) < 0.1
    excluded[3] = True
    values, columns = top_k_of_products(users, items, 20, excluded.nonzero(as_tuple=True), at_once)
    assert listed(values, columns) == expected((users @ items.T).masked_fill(excluded, -torch.inf), 20)
    assert columns.max() < 3001


def test_nobody_gets_no_list():
    values, columns = top_k_of_products(torch.empty(0, 4), torch.randn(300, 4), 10, scores_at_once=64)
    assert values.shape == columns.shape == (0, 10)


def test_blocks_never_hold_the_whole_table(monkeypatch):
    products, sizes = [], set()
    multiply = torch.mm

    def watched(left, right, out):
        products.append(out.numel())
        sizes.add(out.untyped_storage().nbytes() // 4)
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    top_k_of_products(torch.randn(50, 4), torch.randn(3000, 4), 10, scores_at_once=5000)
    # A hundred items for each of 50 users, in whole groups of 64.
    assert sum(products) == 50 * 3000
    assert sizes == {50 * 128}
    sizes.clear()
    top_k_of_products(torch.randn(50, 4), torch.randn(30000, 4), 10, scores_at_once=50000)
    assert sizes == {50 * 1024}
