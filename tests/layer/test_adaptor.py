import pytest
import torch
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.config.schema.blocks import Adaptor
from recbole_llm.errors import ConfigError
from recbole_llm.layer.adaptor import build_adaptor


def settings(kind, hidden_size=None):
    return Adaptor(
        adaptor=kind, adaptor_hidden_size=hidden_size, adaptor_experts=3, adaptor_dropout=0.0, residual_id=False
    )


@pytest.mark.parametrize("kind", ["linear", "mlp", "moe"])
def test_widths_and_gradients(kind):
    adaptor = build_adaptor(settings(kind), 12, 5)
    y = adaptor(torch.randn(7, 12))
    assert y.shape == (7, 5)
    y.square().sum().backward()
    unused = {name for name, parameter in adaptor.named_parameters() if not parameter.grad.abs().sum() > 0}
    assert not unused
    assert build_adaptor(settings("none"), 12, 5) is None


def test_inner_width_of_the_mlp():
    adaptor = build_adaptor(settings("mlp", 9), 12, 5)
    assert adaptor.inner.weight.shape == (9, 12)
    x = torch.randn(3, 12)
    expected = functional.gelu(x @ adaptor.inner.weight.T + adaptor.inner.bias) @ adaptor.outer.weight.T
    torch.testing.assert_close(adaptor(x), expected + adaptor.outer.bias)


def test_moe_is_a_gated_sum_of_whitenings_with_noise_in_training_only():
    torch.manual_seed(0)
    adaptor = build_adaptor(settings("moe"), 12, 5)
    with torch.no_grad():
        for parameter in adaptor.parameters():
            parameter.normal_()
    x = torch.randn(4, 12)
    gate = (x @ adaptor.gate.T).softmax(-1)
    expected = sum(gate[:, k, None] * ((x - adaptor.shift[k]) @ adaptor.weight[k].T) for k in range(3))
    torch.testing.assert_close(adaptor.eval()(x), expected)
    assert not torch.equal(adaptor.train()(x), adaptor(x))


@pytest.mark.parametrize(
    "change", [{"adaptor": "cnn"}, {"adaptor": "moe", "adaptor_experts": 0}, {"adaptor": "mlp", "adaptor_dropout": 1}]
)
def test_settings_that_are_not_allowed(change):
    with pytest.raises(ConfigError, match=list(change)[-1]):
        Config("LiteLLM4Rec", "ml-100k", config_dict=change)
