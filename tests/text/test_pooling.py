"""Poolings have one rule, whether vectors are cached or learn along."""

from types import SimpleNamespace

import torch

from recbole_llm.text.pooling import pool_tokens, special_ids
from tests.toy_tokenizers import llama2


def test_mean_no_eos_leaves_out_what_a_tokenizer_adds_and_keeps_the_unknown_token():
    tokenizer = llama2()
    assert special_ids(tokenizer) == {tokenizer.bos_token_id, tokenizer.eos_token_id}
    ids = torch.tensor([[tokenizer.bos_token_id, tokenizer.unk_token_id, 300, tokenizer.eos_token_id]])
    hidden = torch.arange(4.0).view(1, 4, 1)
    found = pool_tokens(
        SimpleNamespace(last_hidden_state=hidden), ids, torch.ones_like(ids), "mean_no_eos", special_ids(tokenizer)
    )
    assert found.tolist() == [[1.5]]
