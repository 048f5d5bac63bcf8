"""Adapters in the last layers of a language model only: what learns, and what keeps activations."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, LlamaConfig

from recbole_llm.errors import ConfigError
from recbole_llm.llm.lora import add_lora
from recbole_llm.llm.micro_batches import MicroBatches
from recbole_llm.llm.spec import LLMSpec, ResolvedLLM

RESOLVED = ResolvedLLM("toy", "toy", "toy", "1", "decoder", False, "folder", LLMSpec("toy"))
IDS = torch.arange(2, 14).view(2, 6)


def adapted(layers, targets="all-linear", count=4):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
    lm = AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_hidden_layers=count))
    lm.requires_grad_(False)
    return add_lora(lm, RESOLVED, 2, 4.0, 0.0, targets, layers=layers)


def layers_of(lm):
    names = [name for name, parameter in lm.named_parameters() if parameter.requires_grad]
    return sorted({int(name.split(".layers.")[1].split(".")[0]) for name in names})


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_only_the_last_layers_have_adapters(targets):
    assert layers_of(adapted(None, targets)) == [0, 1, 2, 3]
    assert layers_of(adapted(4, targets)) == [0, 1, 2, 3]
    lm = adapted(1, targets)
    assert layers_of(lm) == [3]
    kinds = {name.split(".")[-4] for name, _ in lm.named_parameters() if "lora_" in name}
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert kinds == (every if targets == "all-linear" else set(targets))


def test_the_other_layers_keep_no_activations():
    """Bytes that the backward pass needs grow with the layers that learn, and the estimate of a batch's parts, too."""

    def kept(layers):
        lm, sizes = adapted(layers), {}
        lm.config.use_cache = False
        weights = {parameter.untyped_storage().data_ptr() for parameter in lm.parameters()}

        def keep(tensor):
            if tensor.untyped_storage().data_ptr() not in weights:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            lm(input_ids=IDS, logits_to_keep=1).logits.sum().backward()
        return sum(sizes.values())

    one, two, four = kept(1), kept(2), kept(4)
    assert one < two < four
    assert four - two == pytest.approx(2 * (two - one), rel=0.3)

    def cost(layers):
        return MicroBatches(adapted(layers), None, False).costs[0]

    assert cost(None) == cost(4) == 2 * cost(2) == 4 * cost(1)


def test_layers_that_do_not_exist():
    with pytest.raises(ConfigError, match="lora_layers=5: toy has 4 layers. Set lora_layers=~"):
        adapted(5)
    with pytest.raises(ConfigError, match="no layer lm_head in its last 2 transformer layers. It has down_proj"):
        adapted(2, ["q_proj", "lm_head"])
