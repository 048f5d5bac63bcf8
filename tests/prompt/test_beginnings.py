"""What prompts share is read once, and their letters stay what they are."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from recbole_llm.llm.kept import can_share
from recbole_llm.llm.left_padded import last_logits
from recbole_llm.llm.lora import add_lora
from recbole_llm.llm.spec import LLMSpec, ResolvedLLM
from recbole_llm.prompt.beginnings import SharedBeginnings, part
from recbole_llm.prompt.pieces import Prompts

VOCABULARY = 40


def llama(**more):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, **shape, initializer_range=0.2, tie_word_embeddings=True, **more
    )
    return LlamaForCausalLM(config).eval()


def tuned():
    resolved = ResolvedLLM("toy", "toy", "toy", "", "decoder", False, "folder", LLMSpec("toy"))
    lm = add_lora(llama(), resolved, 4, 8, 0.0, ["q_proj", "v_proj"])
    torch.manual_seed(1)
    for name, weight in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return lm.eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    return GPT2LMHeadModel(config).eval()


def sliding():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, sliding_window=4, **shape)).eval()


def left_padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    length = torch.tensor([len(row) for row in rows])
    return Prompts(ids, (torch.arange(width) >= (width - length)[:, None]).long(), length)


def orders_of(histories, count):
    """Instruction 7 8 9, a row's history, candidates in an order of their own, 5."""
    draw = torch.Generator().manual_seed(2)

    def row(history):
        return [7, 8, 9, *history, *(10 + torch.randperm(6, generator=draw)).tolist(), 5]

    return [left_padded([row(history) for history in histories]) for _ in range(count)]


HISTORIES = [[20, 21, 22, 23], [], [24], [20, 25, 26, 27, 28, 29, 30], [20, 21]]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("make", [llama, tuned, gpt2])
def test_logits_are_those_of_whole_prompts(make, count):
    lm, orders = make(), orders_of(HISTORIES, count)
    plain = [last_logits(lm, prompts.ids, prompts.mask, 1)[:, -1] for prompts in orders]
    read = []
    lm.get_input_embeddings().register_forward_pre_hook(lambda module, ids: read.append(ids[0].numel()))
    beginnings = SharedBeginnings(lm, orders)
    found = [torch.empty_like(each) for each in plain]
    for rows in (torch.tensor([1, 2]), torch.tensor([4, 0, 3])):
        for number, (ids, mask, kept) in enumerate(beginnings.rests(rows)):
            assert kept is not None
            found[number][rows] = last_logits(lm, ids, mask, 1, kept)[:, -1]
    for expected, logits in zip(plain, found, strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    whole = sum(int(prompts.length.sum()) for prompts in orders)
    assert sum(read) < whole  # padding included
    assert read[0] == 3  # the instruction, of one row


def test_models_that_count_places_read_every_prompt_whole():
    lm = sliding()
    assert can_share(llama()) and not can_share(lm)
    orders = orders_of(HISTORIES, 2)
    for number, (ids, mask, kept) in enumerate(SharedBeginnings(lm, orders).rests(torch.arange(len(HISTORIES)))):
        assert kept is None and torch.equal(ids * mask, orders[number].ids * orders[number].mask)


@pytest.mark.parametrize("histories", [[[20, 21]], [[20, 21], [20, 21]]])
def test_equal_prompts_leave_one_token_to_read(histories):
    lm = llama()
    row = left_padded([[7, 8, 9, *history] for history in histories])
    for orders in ([row], [row, row]):
        expected = last_logits(lm, row.ids, row.mask, 1)
        for ids, mask, kept in SharedBeginnings(lm, orders).rests(torch.arange(len(histories))):
            assert ids.shape[1] >= 1
            torch.testing.assert_close(last_logits(lm, ids, mask, 1, kept), expected, rtol=1e-4, atol=1e-4)


def test_parts_are_left_padded():
    prompts = left_padded([[1, 2, 3], [4, 5, 6, 7, 8]])
    ids, mask = part(prompts, torch.tensor([1, 1]), prompts.length, torch.tensor([1, 0]))
    assert (ids * mask).tolist() == [[5, 6, 7, 8], [0, 0, 2, 3]]
    assert mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
