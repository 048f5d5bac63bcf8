import pytest
import torch
from torch import nn

from recbole_llm.precision import autocast_dtype
from recbole_llm.trainer.schedule import learning_rate_factor, parameter_groups
from tests.configs import choices_of


@pytest.mark.parametrize("name", choices_of("lr_schedule"))
def test_warm_up_rises_linearly_to_one(name):
    factors = [learning_rate_factor(step, name, 10, 100) for step in range(11)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1.0)


def test_shapes_after_the_warm_up():
    assert learning_rate_factor(55, "constant", 10, 100) == 1.0
    assert learning_rate_factor(55, "linear", 10, 100) == pytest.approx(0.5)
    assert learning_rate_factor(55, "cosine", 10, 100) == pytest.approx(0.5)
    assert learning_rate_factor(100, "linear", 10, 100) == 0.0
    assert learning_rate_factor(1000, "cosine", 0, 100) == pytest.approx(0.0)
    assert learning_rate_factor(0, "linear", 0, 100) == 1.0


def test_decay_spares_biases_and_norms_of_t5_and_bert():
    from recbole_llm.llm.backbone import load_encoder
    from recbole_llm.llm.resolve import resolve_llm
    from recbole_llm.llm.spec import LLMSpec

    for name in ("tiny-random-t5", "tiny-random-bert"):
        model = load_encoder(resolve_llm(LLMSpec(name=name)))
        decayed, spared = parameter_groups(model, "no_bias_norm", 0.1)
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        spared_names = {names[id(parameter)] for parameter in spared["params"]}
        expected = {key for key in names.values() if "norm" in key.lower() or "bias" in key}
        assert spared_names == expected and expected
        assert len(decayed["params"]) + len(spared["params"]) == len(names)
        assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_and_shared_ones():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    (group,) = parameter_groups(model, "all", 0.1)
    assert [id(p) for p in group["params"]] == [id(model[0].weight), id(model[0].bias)]


def test_autocast_dtype():
    cpu = torch.device("cpu")
    assert autocast_dtype(None, False, cpu) is None
    assert autocast_dtype(None, True, cpu) is torch.bfloat16
    assert autocast_dtype("fp16", False, cpu) is torch.float16
