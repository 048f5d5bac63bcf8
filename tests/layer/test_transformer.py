"""The packed Transformer against RecBole's own forward pass, and the dropout it uses."""

import pytest
import torch
from recbole.model.layers import TransformerEncoder

from recbole_llm.layer.dropout import dropout
from recbole_llm.layer.packing import Packing
from recbole_llm.layer.transformer import run_transformer

LENGTHS = torch.tensor([1, 3, 3, 8, 9, 20, 33])


def encoder(rate):
    torch.manual_seed(0)
    return TransformerEncoder(2, 2, 16, 32, rate, rate, "gelu", 1e-12).double()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("order", [LENGTHS, LENGTHS.flip(0), LENGTHS[[3, 0, 6, 1, 5, 2, 4]]])
@pytest.mark.parametrize("rate", [0.0, 1e-9])
def test_equals_recboles_encoder_at_every_real_position(order, causal, rate):
    # A rate of 1e-9 drops nothing and takes the way of training.
    network, packing = encoder(rate).train(rate > 0), Packing.of(order)
    x = torch.randn(7, 33, 16, dtype=torch.float64)
    real = torch.arange(33) < order[:, None]
    allowed = real[:, None, None, :].expand(-1, -1, 33, -1)
    allowed = allowed.tril() if causal else allowed
    expected = network(x, torch.where(allowed, 0.0, -10000.0).double())[-1][real]
    torch.testing.assert_close(run_transformer(network, packing.pack(x), packing, causal), expected)


def test_groups_hold_every_row_once_in_order_and_little_padding():
    lengths = torch.randint(1, 51, (200,)).sort().values
    groups = Packing.of(lengths).groups()
    assert 1 < len(groups) < 12
    assert torch.equal(torch.cat([group.lengths for group in groups]), lengths)
    for group in groups:
        assert group.steps <= max(4, 1.5 * int(group.lengths.min()))
    assert len(Packing.of(lengths[torch.randperm(200)]).groups()) == 1


def test_dropout_keeps_the_mean_and_drops_in_the_gradient_what_it_drops_in_the_value():
    x = torch.ones(1001, 99, requires_grad=True)
    y = dropout(x, 0.3, True)
    y.sum().backward()
    assert abs((y == 0).float().mean() - 0.3) < 0.005
    torch.testing.assert_close(y[y != 0].detach(), torch.full(((y != 0).sum(),), 1 / 0.7))
    torch.testing.assert_close(x.grad, y.detach())
    assert dropout(x, 0.3, False) is x
    assert dropout(x, 0.0, True) is x


def test_dropout_is_the_seeds_and_decisions_are_independent():
    x = torch.ones(200_000)
    torch.manual_seed(3)
    first = dropout(x, 0.5, True)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.5, True))
    kept = (first > 0).float() - 0.5
    for lag in (1, 2, 3, 4):
        assert abs((kept[lag:] * kept[:-lag]).mean()) < 0.003
