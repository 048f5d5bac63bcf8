"""Joined pieces are the tokens of the whole text, whatever titles there are, or the composer says otherwise."""

import functools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.prompt.chat import ChatPrompt, TitlePrompts
from recbole_llm.prompt.letters import PromptComposer, PromptTemplate
from recbole_llm.prompt.pieces import NONE, PieceTable, split_cut
from recbole_llm.prompt.verbalizer import label_words
from recbole_llm.text.titles import clean_title
from tests.toy_tokenizers import by_name

WORDS = label_words(None, 6)
TITLES = st.lists(st.text(max_size=12).map(clean_title).filter(bool), min_size=2, max_size=6)
KINDS = st.sampled_from(["llama2", "llama3", "bytes"])


@functools.cache
def tokenizer_of(kind):
    return by_name(kind, ["Purchases of the customer, oldest first:\n1. a\n (A) b. \n### User: Candidates:\n"] * 5)


def whole(tokenizer, text, bos):
    return bos + tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=40, deadline=None)
@given(KINDS, TITLES, st.integers(0, 6), st.sampled_from(["letters", "genitem", "rank", "completion"]))
def test_prompts_of_any_titles(kind, titles, length, variant):
    tokenizer = tokenizer_of(kind)
    n = len(titles)
    history = [1 + place % n for place in range(length or (0 if variant == "letters" else 1))]
    candidates = [1 + place % n for place in range(3)] if variant in ("letters", "rank") else []
    if variant == "letters":
        composer = PromptComposer(tokenizer, PromptTemplate.read("llamarec"), ["", *titles], WORDS, 6, 10**6)
    else:
        style = "completion" if variant == "completion" else "chat"
        prompt = ChatPrompt.read(f"llmseqprompt_{variant}", with_candidates=variant == "rank")
        composer = TitlePrompts(tokenizer, prompt, ["", *titles], style, 3 if variant == "rank" else 0, 6)
    made = composer(
        torch.tensor([history + [0] * (7 - len(history))]),
        torch.tensor([len(history)]),
        torch.tensor([candidates]) if candidates else None,
    )
    bos = composer.pieces.ids("opening")[0][:1] if tokenizer.bos_token_id is not None else []
    bos = bos if bos == [tokenizer.bos_token_id] else []
    text = composer.text(history, candidates)
    if not composer.inexact:
        assert made.ids[0].tolist() == whole(tokenizer, text, bos)
    assert int(made.length[0]) == made.ids.shape[1]


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab \n."), max_size=12))
def test_a_cut_loses_nothing_and_stands_before_a_space_or_behind_a_line_break(text):
    head, tail = split_cut(text)
    assert head + tail == text
    assert not tail or head.endswith("\n") or tail.startswith(" ")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=6), st.data())
def test_a_table_joins_pieces_in_order(pieces, data):
    table = PieceTable({"some": pieces, "others": [[7], []]})
    numbers = st.integers(NONE, len(pieces) + 1)
    rows = data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=4))
    made = table.left_padded(torch.tensor(rows), pad=0)
    known = [*pieces, [7], []]
    for row, ids, mask, length in zip(rows, made.ids, made.mask, made.length, strict=True):
        expected = [token for number in row if number != NONE for token in known[number]]
        assert ids[mask == 1].tolist() == expected and int(length) == len(expected)
        assert not ids[mask == 0].any()
    assert table.ids("others") == [[7], []] and table.at("others") == len(pieces)
