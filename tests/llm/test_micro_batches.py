"""A batch in parts: the loss and the gradient of the whole, in the memory of a part."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

from recbole_llm.llm.backbone import checkpoint_activations
from recbole_llm.llm.lora import add_lora
from recbole_llm.llm.micro_batches import MicroBatches, adapter_bytes, layer_bytes
from recbole_llm.llm.spec import LLMSpec, ResolvedLLM

CONFIG = LlamaConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    bos_token_id=0,
    eos_token_id=1,
)


@pytest.fixture
def lm():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG)


def gradients(lm, tokens, checkpointed=False, amp=False):
    """Loss and gradients of 6 left-padded texts, in parts of ``tokens``; and how many tokens the largest part had."""
    lm.zero_grad()
    length = torch.tensor([9, 3, 7, 9, 2, 5])
    ids = torch.randint(2, 50, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) >= 9 - length[:, None]).long()
    micro, sizes = MicroBatches(lm, tokens, checkpointed), []

    def loss(rows):
        width = int(length[rows].max())
        sizes.append(len(rows) * width)
        part, places = mask[rows, -width:], (mask[rows, -width:].cumsum(1) - 1).clamp(min=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = lm(input_ids=ids[rows, -width:], attention_mask=part, position_ids=places).logits[:, -1].float()
        return torch.nn.functional.cross_entropy(logits, ids[rows, -1], reduction="sum")

    total = micro.total([partial(loss, rows) for rows in micro.parts(length)]) / 6
    (3 * total).backward()
    return total.detach(), [p.grad.clone() for p in lm.parameters()], max(sizes), len(sizes)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_parts_give_the_loss_and_the_gradient_of_the_batch(lm, checkpointed):
    lm.train()
    if checkpointed:
        checkpoint_activations(lm)
    known, expected, _, count = gradients(lm, 1000, checkpointed)
    assert count == 1
    for tokens in (1, 9, 20):
        loss, grads, largest, count = gradients(lm, tokens, checkpointed)
        assert largest <= max(tokens, 9) and count > 1
        torch.testing.assert_close(loss, known)
        for grad, whole in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, whole, atol=1e-5, rtol=1e-4)


def test_autocast_keeps_no_weights_of_a_part_that_is_gone(lm):
    loss, grads, *_ = gradients(lm, 9, amp=True)
    assert torch.isfinite(loss) and all(torch.isfinite(grad).all() for grad in grads)


def test_without_gradients_nothing_is_kept(lm):
    with torch.no_grad():
        micro = MicroBatches(lm, 4, False)
        assert float(micro.total([lambda: torch.tensor(1.0), lambda: torch.tensor(2.0)])) == 3


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_parts_hold_every_row_once_and_no_more_than_fits(lengths, tokens):
    micro = MicroBatches(AutoModelForCausalLM.from_config(CONFIG), tokens, False)
    length = torch.tensor(lengths)
    parts = micro.parts(length)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    for rows in parts:
        assert len(rows) == 1 or len(rows) * int(length[rows].max()) <= tokens


def test_sixteen_smollm2_prompts_take_four_gigabytes_at_most():
    """Of the shapes of the issue: 16 prompts of about 400 tokens; weights take half a gigabyte."""
    smollm2 = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9
    )
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(smollm2)
    micro = MicroBatches(lm, None, False)
    parts = micro.parts(torch.full((16,), 400), 2)
    layer, _ = layer_bytes(smollm2, 4)
    assert max(len(rows) for rows in parts) * 400 * layer * 30 < 2 * 2**30
    halves = MicroBatches(lm.bfloat16(), None, False).parts(torch.full((16,), 400), 2)
    assert len(halves) < 16


@pytest.mark.parametrize(
    ("dtype", "dropout", "each"),
    [(torch.bfloat16, 0.0, 4), (torch.bfloat16, 0.1, 9), (torch.float32, 0.0, 0), (torch.float32, 0.1, 5)],
)
def test_adapters_keep_their_inputs(lm, dtype, dropout, each):
    resolved = ResolvedLLM("toy", "toy", "toy", "", "decoder", False, "folder", LLMSpec("toy"))
    tuned = add_lora(lm.to(dtype), resolved, 2, 4, dropout, ["q_proj", "down_proj"], layers=1)
    assert adapter_bytes(tuned) == each * (CONFIG.hidden_size + CONFIG.intermediate_size)
    plain = layer_bytes(CONFIG, tuned.dtype.itemsize)[0]
    assert MicroBatches(tuned, None, False).bytes[0] == plain + adapter_bytes(tuned)
