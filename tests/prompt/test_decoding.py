"""Beam search over item codes against teacher forcing, on a random T5."""

import itertools

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from recbole_llm.errors import ConfigError
from recbole_llm.prompt.decoding import (
    UNREACHED,
    DecodingCounts,
    Trie,
    beam_search,
    count_beams,
    exact_scores,
    item_scores,
)
from tests.closeness import assert_same_list, assert_same_order

VOCABULARY, END = 24, 1
# Codes of one to three digits (tokens 3 .. 12), ended; item 0 is padding.
CODES = [[], *([*digits, END] for digits in itertools.islice(itertools.product(range(3, 10), range(3, 10)), 40))]
CODES += [[3, END], [12, 4, 5, END], [12, END]]


@pytest.fixture(scope="module")
def t5():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # freshly initialised, all tokens are about equally likely
    hidden = torch.randn(3, 6, 16)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return model, hidden, mask


def test_trie_accepts_the_catalogue_and_nothing_else():
    trie = Trie(CODES, VOCABULARY)
    width = trie.max_length
    tokens = torch.tensor([code + [0] * (width - len(code)) for code in CODES[1:]])
    assert trie.item_of[trie.walk(tokens)].tolist() == list(range(1, len(CODES)))
    strangers = torch.tensor([[3, 3, 3, END], [20, END, 0, 0], [3, 0, 0, 0], [12, 4, END, 0]])
    assert trie.item_of[trie.walk(strangers)].tolist() == [0, 0, 0, 0]
    free = torch.isfinite(trie.mask(torch.zeros(2, VOCABULARY), trie.walk(torch.tensor([[3], [12]]))))
    assert free[0].nonzero().flatten().tolist() == [END, *range(3, 10)] and free[1].nonzero().flatten().tolist() == [
        1,
        4,
    ]


def test_enough_beams_find_what_teacher_forcing_finds(t5):
    model, hidden, mask = t5
    trie = Trie(CODES, VOCABULARY)
    with torch.no_grad():
        expected = exact_scores(model, hidden, mask, CODES, chunk=7)
        item, score = beam_search(model, hidden, mask, trie, beams=len(CODES), constrained=True)
    assert expected[:, 1:].std(1).min() > 0.1
    for row in range(3):
        reached = item[row] > 0
        assert sorted(item[row][reached].tolist()) == list(range(1, len(CODES)))
        torch.testing.assert_close(score[row][reached], expected[row, item[row][reached]], atol=1e-4, rtol=1e-4)
        assert_same_order(item[row][reached][None] - 1, expected[[row], 1:])


def test_few_constrained_beams_return_items_only_each_once_with_the_teacher_forced_score(t5):
    model, hidden, mask = t5
    with torch.no_grad():
        expected = exact_scores(model, hidden, mask, CODES)
        item, score = beam_search(model, hidden, mask, Trie(CODES, VOCABULARY), beams=5, constrained=True)
    assert (item > 0).all() and all(len(set(row)) == 5 for row in item.tolist())
    torch.testing.assert_close(score, expected.gather(1, item), atol=1e-4, rtol=1e-4)
    assert (score[:, 1:] <= score[:, :-1]).all()


def test_beams_are_those_of_generate_alone(t5):
    model, hidden, mask = t5
    trie = Trie(CODES, VOCABULARY)
    for more in ({}, {"length_penalty": 1.0, "early_stopping": True}):
        item, score = beam_search(model, hidden, mask, trie, beams=6, constrained=False, **more)
        with torch.no_grad():
            alone = model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=mask,
                max_new_tokens=trie.max_length,
                **{"num_beams": 6, "num_return_sequences": 6, "length_penalty": 0.0, "do_sample": False, **more},
                **{"output_scores": True, "return_dict_in_generate": True},
            )
        reached = alone.sequences_scores.view(3, 6)
        torch.testing.assert_close(score, reached, atol=1e-5, rtol=1e-5)
        found = trie.item_of[trie.walk(alone.sequences[:, 1:])].view(3, 6)
        found = found.masked_fill(reached < -1e8, 0)
        for mine, theirs, scores in zip(item, found, reached, strict=True):
            named = theirs > 0
            assert mine[~named].eq(0).all()
            best = scores[named].tolist()
            assert_same_list(*(list(zip(row[named].tolist(), best, strict=True)) for row in (mine, theirs)))


def test_keys_and_values_of_the_prompt_are_computed_once_a_row(t5, monkeypatch):
    model, hidden, mask = t5
    rows = []
    keys = model.decoder.block[0].layer[1].EncDecAttention.k
    handle = keys.register_forward_hook(lambda module, given, result: rows.append(len(given[0])))
    beam_search(model, hidden, mask, Trie(CODES, VOCABULARY), beams=6, constrained=True)
    handle.remove()
    assert rows == [3]


def test_free_beams_may_be_no_item_and_padding_of_the_input_does_not_count(t5):
    model, hidden, mask = t5
    trie = Trie(CODES, VOCABULARY)
    with torch.no_grad():
        item, score = beam_search(model, hidden, mask, trie, beams=8, constrained=False)
        alone, alone_score = beam_search(model, hidden[1:2, :4], mask[1:2, :4], trie, beams=8, constrained=False)
        forced, _ = beam_search(model, hidden, mask, trie, beams=8, constrained=True)
    assert (item == 0).any() and (forced > 0).all()
    assert item[1].tolist() == alone[0].tolist()
    torch.testing.assert_close(score[1], alone_score[0], atol=1e-4, rtol=1e-4)


def test_unreached_items_follow_without_ties_in_an_order_of_their_own():
    item = torch.tensor([[4, 2, 4, 0], [1, 0, 0, 0]])
    score = torch.tensor([[-1.0, -2.0, -3.0, -0.5], [-7.0, -8.0, -9.0, -10.0]])
    fill = torch.tensor([3, 0, 4, 1, 2])
    scores = item_scores(item, score, fill, torch.tensor([0, 1]))
    assert scores[:, 0].tolist() == [-torch.inf, -torch.inf]
    assert scores[0].argsort(descending=True).tolist()[:2] == [4, 2] and scores[0, 4] == -1
    assert scores[1].argmax() == 1 and scores[1, 1] == -7
    for row in scores:
        assert row[1:].unique().numel() == 5
    assert (scores[0, [1, 3, 5]] <= UNREACHED).all()
    assert scores[0, [3, 5]].argsort().tolist() != scores[1, [3, 5]].argsort().tolist()


@pytest.mark.parametrize(("masked", "filled"), [(False, 3), (True, 4)])
def test_counts_of_invalid_repeated_seen_and_filled(masked, filled):
    counts = DecodingCounts()
    item, history = torch.tensor([[4, 2, 4, 0], [1, 0, 0, 0]]), torch.tensor([[2, 9, 0], [3, 0, 0]])
    count_beams(counts, item, history, history if masked else torch.zeros_like(history), k=3)
    assert counts.rates() == {
        "invalid_rate": 4 / 8,
        "duplicate_rate": 1 / 8,
        "seen_rate": 1 / 8,
        "named_rate": pytest.approx(1 - filled / 6),
        "filled_rate": filled / 6,
    }


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[], [3, 1], [3, 1]], "items 1 and 2 have the same tokens"),
        ([[], [3, 1], []], "item 2 has no tokens"),
        ([[], [3], [3, 1]], "beginning of another"),
    ],
)
def test_codes_that_are_not_unique_are_refused(codes, message):
    with pytest.raises(ConfigError, match=message):
        Trie(codes, VOCABULARY)
