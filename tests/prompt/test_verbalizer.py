"""Logits of some tokens are those that the whole head gives; ids of letters are tested with LlamaRec's prompts."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

from recbole_llm.prompt.verbalizer import only_logits_of

SMALL = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
WIDE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS = {
    "untied": LlamaConfig(**SMALL, **WIDE, tie_word_embeddings=False),
    "tied": LlamaConfig(**SMALL, **WIDE, tie_word_embeddings=True),
    # Bounds its logits after the head.
    "gemma2": Gemma2Config(
        **SMALL, **WIDE, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, pad_token_id=0
    ),
    "gpt2": GPT2Config(**SMALL, n_embd=16, n_layer=1, n_head=2),
}
IDS, TOKENS = torch.tensor([[3, 9, 20, 4], [5, 6, 7, 8]]), torch.tensor([40, 7, 12])


@pytest.mark.parametrize("adapters", [None, ["q_proj", "c_attn"], ["lm_head"]])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_the_whole_head(name, adapters):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    if adapters:
        found = {module.rpartition(".")[2] for module, _ in lm.named_modules()}
        lm = get_peft_model(lm, LoraConfig(r=2, target_modules=sorted(found & set(adapters)), init_lora_weights=False))
    lm.eval()
    names = [name for name, _ in lm.named_parameters()]
    results = []
    for few in (False, True):
        lm.zero_grad()
        if few:
            with only_logits_of(lm, TOKENS):
                logits = lm(input_ids=IDS, logits_to_keep=1).logits[:, -1]
        else:
            logits = lm(input_ids=IDS).logits[:, -1, TOKENS]
        logits.logsumexp(1).sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in lm.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 1
    for whole, few in zip(*results, strict=True):
        torch.testing.assert_close(few, whole)
    assert [name for name, _ in lm.named_parameters()] == names


def test_the_head_comes_back_after_an_error():
    lm = AutoModelForCausalLM.from_config(CONFIGS["untied"])
    head = lm.get_output_embeddings()
    with pytest.raises(IndexError), only_logits_of(lm, torch.tensor([50])):
        lm(input_ids=IDS)
    assert lm.get_output_embeddings() is head


@pytest.mark.parametrize("amp", [False, True])
def test_logits_of_letters_are_told_apart_in_32_bits_whatever_the_model_computes_in(amp):
    torch.manual_seed(0)
    config = LlamaConfig(**{**SMALL, "vocab_size": 600}, **{**WIDE, "hidden_size": 64}, initializer_range=0.02)
    lm = AutoModelForCausalLM.from_config(config).to(torch.float32 if amp else torch.bfloat16).eval()
    letters = torch.arange(100, 126)
    ids = torch.randint(0, 600, (64, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), only_logits_of(lm, letters), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        logits = lm(input_ids=ids, logits_to_keep=1).logits[:, -1]
    assert logits.dtype == torch.float32
    assert sum(len(row.unique()) == len(letters) for row in logits) >= 62
