"""Sampling that belongs to a row: the right distribution, and the same draws in any company."""

import torch

from recbole_llm.prompt.sampling import SeededSampling, row_keys, shuffled

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])


def drawn(n=20000, temperature=1.0, top_p=1.0, step=0):
    keys = torch.arange(n)[:, None]
    scores = SeededSampling(keys, 3, temperature, top_p)(
        torch.zeros(n, 3 + step, dtype=torch.long), LOGITS.expand(n, 5)
    )
    assert (scores > -torch.inf).sum(1).eq(1).all()
    return scores.argmax(1)


def test_tokens_are_drawn_with_their_probabilities():
    for temperature in (0.5, 1.0):
        counts = torch.bincount(drawn(temperature=temperature), minlength=5) / 20000
        torch.testing.assert_close(counts, (LOGITS / temperature).softmax(0), rtol=0, atol=0.012)


def test_top_p_leaves_the_likeliest():
    assert set(drawn(top_p=0.7).tolist()) == {0, 1}


def test_another_step_is_another_draw():
    first, second = drawn(), drawn(step=1)
    together = ((first == 0) & (second == 0)).float().mean()
    expected = (first == 0).float().mean() * (second == 0).float().mean()
    assert abs(together - expected) < 0.012


def test_keys_and_orders_do_not_depend_on_padding_or_company():
    history = torch.tensor([[1, 2, 0], [2, 1, 3]])
    wider = torch.nn.functional.pad(history, (0, 4))
    assert torch.equal(row_keys(history, 7), row_keys(wider, 7))
    assert row_keys(history, 7)[0] != row_keys(history[:, [1, 0, 2]], 7)[0]
    items = torch.tensor([[4, 5, 6, 7, 0], [4, 5, 6, 7, 8]])
    order = shuffled(items, history, 1)
    assert torch.equal(order[1:], shuffled(items[1:], wider[1:], 1))
    assert order.sort(dim=1).values.tolist() == [[0, 1, 2, 3, 4]] * 2 and order[0, 4] == 4
