"""Causal passes over packed sequences equal passes over each sequence alone."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recbole_llm.layer.packing import Packing
from recbole_llm.layer.rec_llm import causal_states, reads_others

WIDTH = 16
BERT = {
    "vocab_size": 9,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DISTIL = {"vocab_size": 9, "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
T5 = {"vocab_size": 9, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
GPT2 = {"vocab_size": 9, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
FAMILIES = {
    "T5EncoderModel": ("T5Config", T5 | {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 6}),
    "BertModel": ("BertConfig", BERT),
    "RobertaModel": ("RobertaConfig", BERT),
    "MPNetModel": ("MPNetConfig", BERT),
    "DistilBertModel": ("DistilBertConfig", DISTIL),
    "LlamaModel": ("LlamaConfig", BERT | {"num_key_value_heads": 1}),
    "Qwen2Model": ("Qwen2Config", BERT | {"num_key_value_heads": 1}),
    "GPT2Model": ("GPT2Config", GPT2),
}


def make(name):
    torch.manual_seed(0)
    config, options = FAMILIES[name]
    llm = getattr(transformers, name)(getattr(transformers, config)(**options)).eval()
    with torch.no_grad():  # as initialised, positions and biases are too small to matter
        for parameter in llm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return llm


def padded(lengths, width=WIDTH):
    mask = torch.arange(max(lengths) + 1) < torch.tensor(lengths)[:, None]  # one step of padding in every row
    return torch.randn(*mask.shape, width, generator=torch.Generator().manual_seed(1)) * mask[..., None], mask


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_over_packed_sequences_equals_one_over_each(name):
    llm = make(name)
    lengths = [3, 9, 1, 2, 7, 4, 1, 5]
    x, mask = padded(lengths)
    x.requires_grad_()
    z = causal_states(llm, x, mask)
    weight = torch.randn_like(z)
    (together,) = torch.autograd.grad((z * weight).sum(), x)
    assert torch.equal(z[~mask], torch.zeros_like(z[~mask]))
    for row, length in enumerate(lengths):
        # The model's own mask and positions: the last output of every prefix of a decoder, or an encoder's
        # under a triangular mask.
        alone = x[row : row + 1, :length].detach().requires_grad_()
        triangle = torch.full((length, length), torch.finfo(x.dtype).min).triu(1).expand(1, 1, -1, -1)
        expected = llm(inputs_embeds=alone, attention_mask=triangle).last_hidden_state
        torch.testing.assert_close(z[row : row + 1, :length], expected, rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad((expected * weight[row, :length]).sum(), alone)
        torch.testing.assert_close(together[row, :length], gradient[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["LlamaModel", "GPT2Model"])
def test_a_decoder_computes_what_it_does_by_itself(name):
    llm = make(name)
    x, mask = padded([4, 2, 6])
    with torch.no_grad():
        expected = llm(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(causal_states(llm, x, mask)[mask], expected[mask], rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_sequences_are_placed_whole_and_apart(lengths):
    packing = Packing.of(torch.tensor(lengths))
    (rows, width), place = packing.shared_rows()
    assert width == max(lengths) and rows <= len(lengths)
    assert len(place.unique()) == len(place) == sum(lengths) <= rows * width
    for part in place.split(lengths):
        assert part.tolist() == list(range(int(part[0]), int(part[0]) + len(part)))
        assert part[0] // width == part[-1] // width
    # First fit: at most one row is half empty.
    assert sum(count * 2 <= width for count in torch.bincount(place // width).tolist()) <= 1


class Deaf(nn.Module):
    """An encoder that hears no mask, or no position ids."""

    def __init__(self, llm, drop):
        super().__init__()
        self.llm, self.drop, self.device = llm, drop, torch.device("cpu")

    def forward(self, inputs_embeds, attention_mask, position_ids):
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        return self.llm(inputs_embeds=inputs_embeds, **{key: given[key] for key in given if key != self.drop})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_keeps_sequences_apart_passes(name):
    assert not reads_others(make(name), WIDTH)


@pytest.mark.parametrize("drop", ["attention_mask", "position_ids"])
def test_a_model_that_reads_others_is_found(drop):
    assert not reads_others(Deaf(make("BertModel"), None), WIDTH)
    assert reads_others(Deaf(make("BertModel"), drop), WIDTH)
