"""Prompts from cached words equal prompts tokenised whole; whole-word ids equal the authors'."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from recbole_llm.errors import ConfigError
from recbole_llm.llm.tiny import tiny_tokenizer
from recbole_llm.prompt.p5 import PromptTable, entity_marks, whole_word_ids, word_marks

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "pod" / "whole_word.json").read_text())
VOCABULARY = Path(__file__).parents[3] / "shared" / "tokenizers" / "t5-small"
TEMPLATES = [
    "Shopper {user}: {history}, what is next?",
    "{user} {history}",
    "Seen: {history}. Now for {user}, please.",
]
ITEMS = ["", *(f"item_{number}" for number in (7, 10, 345, 901, 1001, 12))]
USERS = ["", *(f"user_{number}" for number in (1, 23, 456))]


def pieces_tokenizer():
    """A small unigram tokenizer in T5's manner: blanks become a mark at the start of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "\u2581",
        "\u2581item",
        "\u2581user",
        "_",
        *"0123456789",
        "10",
        "90",
        "1,",
        "0,",
    ]
    letters = sorted(set("".join(TEMPLATES)) | set("itemusrbo->,.?:#[]") - {" "})
    scored = [(piece, -1.0 - 0.01 * place) for place, piece in enumerate(pieces)]
    scored += [(letter, -9.0) for letter in letters if letter not in pieces]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"bytes": tiny_tokenizer, "pieces": pieces_tokenizer}


def batch():
    history = torch.tensor([[1, 4, 5, 0], [2, 0, 0, 0], [3, 6, 1, 5], [4, 2, 0, 0]])
    return torch.tensor([1, 2, 3, 1]), history, torch.tensor([3, 1, 4, 2]), torch.tensor([0, 1, 2, 0])


def whole(tokenizer, user, history, length, template, separator):
    texts = []
    for u, h, n, t in zip(user, history, length, template, strict=True):
        items = separator.join(ITEMS[i] for i in h[:n])
        texts.append(TEMPLATES[t].replace("{user}", USERS[u]).replace("{history}", items))
    return [tokenizer(text).input_ids for text in texts]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("separator", [" ", " -> "])
def test_prompts_from_words_equal_prompts_tokenised_whole(kind, separator):
    tokenizer = TOKENIZERS[kind]()
    table = PromptTable(tokenizer, TEMPLATES, ITEMS, USERS, [separator])
    prompts = table.build(*batch(), max_tokens=500)
    expected = whole(tokenizer, *batch(), separator)
    lengths = prompts.attention_mask.sum(1).tolist()
    assert [row[:n] for row, n in zip(prompts.input_ids.tolist(), lengths, strict=True)] == expected
    assert prompts.dropped == 0 and not prompts.input_ids[prompts.attention_mask == 0].any()


@pytest.mark.parametrize(("rule", "marks"), [("entity", entity_marks), ("word", word_marks)])
def test_whole_word_ids_of_a_prompt_are_those_of_its_pieces(rule, marks):
    tokenizer = pieces_tokenizer()
    prompts = PromptTable(tokenizer, TEMPLATES, ITEMS, USERS, rule=rule).build(*batch(), max_tokens=500)
    for row, ids in enumerate(whole(tokenizer, *batch(), " ")):
        starts, inside = marks(tokenizer.convert_ids_to_tokens(ids[:-1]))
        expected = whole_word_ids(torch.tensor(starts), torch.tensor(inside)).tolist()
        assert prompts.whole_word_ids[row, : len(ids)].tolist() == [*expected, 0]


@pytest.mark.parametrize(("authors", "marks"), [("pod", entity_marks), ("p5", word_marks)])
def test_golden_pod_whole_word_ids(authors, marks):
    assert len(GOLDEN[authors]) >= 5
    for example in GOLDEN[authors]:
        starts, inside = marks(example["pieces"])
        ids = whole_word_ids(torch.tensor(starts), torch.tensor(inside)).tolist()
        assert [*ids, 0] == example["whole_word_ids"], example["text"]


def test_golden_pod_batches_with_the_real_tokenizer(tmp_path):
    if not (VOCABULARY / "spiece.model").is_file():
        pytest.skip(f"needs T5's vocabulary in {VOCABULARY}")
    pytest.importorskip("sentencepiece")
    from transformers import T5Config, T5Tokenizer

    (tmp_path / "spiece.model").write_bytes((VOCABULARY / "spiece.model").read_bytes())
    T5Config().save_pretrained(tmp_path)
    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    golden = GOLDEN["sequential_batches"]
    users = ["", *(f"user_{name}" for name in golden["users"])]
    names = sorted({item for items in golden["users"].values() for item in items}, key=int)
    number = {name: place for place, name in enumerate(names, start=1)}
    table = PromptTable(tokenizer, ["{user} {history}"], ["", *(f"item_{name}" for name in names)], users)
    for split, held_out in (("validation", 2), ("test", 1)):
        inputs = [[number[item] for item in items][:-held_out][-20:] for items in golden["users"].values()]
        length = torch.tensor([len(row) for row in inputs])
        history = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in inputs], batch_first=True)
        prompts = table.build(torch.arange(1, len(users)), history, length, torch.zeros_like(length), max_tokens=512)
        assert prompts.input_ids.tolist() == golden[split]["input_ids"]
        assert prompts.attention_mask.tolist() == golden[split]["attention_mask"]
        assert prompts.whole_word_ids.tolist() == golden[split]["whole_word_ids"]


def test_too_long_prompts_lose_their_oldest_items_and_keep_the_rest():
    tokenizer = pieces_tokenizer()
    table = PromptTable(tokenizer, TEMPLATES, ITEMS, USERS, [" -> "])
    user, history, length, template = (values[2:3] for values in batch())
    full = whole(tokenizer, user, history, length, template, " -> ")[0]
    newest = whole(tokenizer, user, history[:, 2:], length - 2, template, " -> ")[0]
    prompts = table.build(user, history, length, template, max_tokens=len(newest) + 1)
    assert prompts.input_ids[0].tolist() == newest and prompts.dropped == 2
    right = table.build(user, history, length, template, max_tokens=len(newest), cut="right")
    assert right.input_ids[0].tolist() == [*full[: len(newest) - 1], 1]
    with pytest.raises(ConfigError, match="max_prompt_tokens=5"):
        table.build(user, history, length, template, max_tokens=5)


def test_every_template_comes_with_every_separator():
    tokenizer = pieces_tokenizer()
    table = PromptTable(tokenizer, TEMPLATES, ITEMS, USERS, [" , ", " -> "])
    user, history, length, template = batch()
    prompts = table.build(user, history, length, 2 * template + torch.tensor([0, 1, 1, 0]), max_tokens=500)
    lengths = prompts.attention_mask.sum(1).tolist()
    for row, separator in enumerate([" , ", " -> ", " -> ", " , "]):
        expected = whole(tokenizer, user, history, length, template, separator)[row]
        assert prompts.input_ids[row, : lengths[row]].tolist() == expected


def test_a_prompt_may_do_without_a_history():
    table = PromptTable(pieces_tokenizer(), ["What is {user} to buy?"], ITEMS, USERS)
    user, history, length, template = batch()
    prompts = table.build(user, history, length, 0 * template, max_tokens=500)
    expected = pieces_tokenizer()("What is user_23 to buy?").input_ids
    assert prompts.input_ids[1, : len(expected)].tolist() == expected


def test_titles_are_one_entity_each():
    tokenizer = pieces_tokenizer()
    items = ["", "[is it]", "[no]"]
    table = PromptTable(tokenizer, ["{user} {history}"], items, USERS, items_are_entities=True)
    prompts = table.build(
        torch.tensor([1]), torch.tensor([[1, 2]]), torch.tensor([2]), torch.tensor([0]), max_tokens=100
    )
    ids = prompts.whole_word_ids[0].tolist()
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in ("user_1", "[is it]", "[no]")]
    assert ids == [1] * lengths[0] + [2] * lengths[1] + [3] * lengths[2] + [0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no items", "must hold {user} or {history}"),
        ("{history} and {history}", "must hold {user} or {history}"),
        ("{history} {title}", "only {user}, {history}, {candidates} and {item}"),
        ("{history} {item}{item}", "must hold"),
        ("{candidates} {item}", "must hold {user} or {history}"),
        ("{user}{item}", "one in a word"),
        ("<{history}>", "nothing may stand right before"),
    ],
)
def test_templates_that_cannot_be_filled_are_named(template, message):
    with pytest.raises(ConfigError, match=message):
        PromptTable(tiny_tokenizer(), [template], ITEMS, USERS)
