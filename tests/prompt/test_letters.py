"""Prompts of a ranker: the authors' text and token ids, composed from parts."""

import json
import random

import pytest
import torch

from recbole_llm.errors import ConfigError
from recbole_llm.prompt.letters import PromptComposer, PromptTemplate
from recbole_llm.prompt.pieces import cut_titles
from recbole_llm.prompt.verbalizer import ids_alone, ids_in_context, label_words
from tests.toy_tokenizers import GOLDEN, by_name, llama2

WORDS = label_words(None, 20)


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def template():
    return PromptTemplate.read("llamarec")


def rows(examples):
    """Histories, right padded, their lengths, and candidates."""
    histories = [example["history_items"] for example in examples]
    width = max(map(len, histories))
    return (
        torch.tensor([row + [0] * (width - len(row)) for row in histories]),
        torch.tensor([len(row) for row in histories]),
        torch.tensor([example["candidate_items"] for example in examples]),
    )


def unpadded(prompts):
    return [ids[mask.bool()].tolist() for ids, mask in zip(prompts.ids, prompts.mask, strict=True)]


def compose_everything(tokenizer, template, titles, seed=0, **options):
    """A composer, random rows over all titles, and the ids of the whole texts."""
    options = {"max_history": 20, "max_length": 10**6, **options}
    composer = PromptComposer(tokenizer, template, titles, WORDS, **options)
    draw = random.Random(seed)
    n = len(titles) - 1
    examples = []
    for _ in range(40):
        examples.append(
            {
                "history_items": [draw.randint(1, n) for _ in range(draw.randint(1, 25))],
                "candidate_items": [draw.randint(1, n) for _ in range(20)],
            }
        )
    texts = [
        composer.text(example["history_items"][-options["max_history"] :], example["candidate_items"])
        for example in examples
    ]
    bos = composer.pieces.ids("opening")[0][:1]
    whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
    has_bos = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    assert not has_bos or bos == [tokenizer.bos_token_id]
    return composer, examples, [bos * has_bos + row for row in whole]


# ---- parity with the authors' code


def test_golden_llamarec_prompt(golden, template):
    titles = ["", *(golden["titles_after_truncation"][str(i)]["truncated"] for i in range(1, 26))]
    composer = PromptComposer(llama2(), template, titles, WORDS, max_history=20, max_length=1536)
    assert composer.inexact == 0
    for split in ("train_examples", "valid_examples", "test_examples"):
        examples = golden[split]
        prompts = composer(*rows(examples))
        for example, ids in zip(examples, unpadded(prompts), strict=True):
            assert (
                composer.text(example["history_items"], example["candidate_items"])
                == (example["prompt_without_label"])
            )
            # Training rows go on with the letter and the end of the text.
            answer = [golden["verbalizer"]["ids_trained_in_context"][example["label_index"]], 2]
            assert ids + answer * (split == "train_examples") == example["input_ids"]
    collated = golden["collated"]["test_max1536"]
    assert prompts.ids.tolist() == collated["input_ids"]
    assert prompts.mask.sum(1).tolist() == collated["attention_mask"]


def test_golden_llamarec_prompt_titles(golden):
    titles = [golden["titles"][str(i)] for i in range(1, 26)]
    expected = [golden["titles_after_truncation"][str(i)]["truncated"] for i in range(1, 26)]
    cut = cut_titles(llama2(), titles, 32)
    different = [i + 1 for i in range(25) if cut[i] != expected[i]]
    # The authors' cut of the Japanese title falls into a character, and every one of its bytes is replaced.
    assert different == [13]
    assert titles[12].startswith(cut[12]) and len(cut[12]) == 10


def test_golden_llamarec_prompt_verbalizer(golden, template):
    tokenizer = llama2()
    prompt = template.text(["a"], ["b", "c"], WORDS)
    assert ids_in_context(tokenizer, prompt, WORDS) == golden["verbalizer"]["ids_trained_in_context"]
    assert ids_alone(tokenizer, WORDS) == golden["verbalizer"]["ids_read_at_evaluation"]


# ---- any tokenizer


@pytest.mark.parametrize("kind", ["llama2", "llama3", "bytes"])
@pytest.mark.parametrize("name", ["llamarec", "other"])
def test_parts_joined_are_the_tokens_of_the_whole_text(kind, name, golden, tmp_path):
    titles = [
        "",
        *golden["titles"].values(),
        "(500) Days of Summer",
        "¡Átame!",
        "...And Justice for All",
        "M*A*S*H",
        "K-9",
    ]
    (tmp_path / "other.txt").write_text(
        "Read:\n{history}. Choose among {candidates} now.\nAnswer:\n", encoding="utf-8"
    )
    template = PromptTemplate.read(name if name == "llamarec" else str(tmp_path / "other.txt"))
    texts = [template.text(titles[1:4], titles[4:9], WORDS)] * 3 + titles
    tokenizer = by_name(kind, texts)
    composer, examples, whole = compose_everything(tokenizer, template, titles, max_title_tokens=12)
    assert composer.inexact == 0
    assert unpadded(composer(*rows(examples))) == whole


def test_entries_that_a_tokenizer_joins_are_counted(golden, template, caplog):
    titles = ["", "plain", "with\nbreak "]  # no title that we read has a line break in it
    template = PromptTemplate("x", "H:{history}", ";{candidates}", ".")
    tokenizer = by_name("llama3", ["a:b;c.(1)d;(A)e." * 3])
    composer = PromptComposer(tokenizer, template, titles, WORDS, 3, 100)
    assert (composer.inexact > 0) == ("joins" in caplog.text)


def test_a_title_is_tokenised_in_three_places_only(golden, template, monkeypatch):
    tokenizer = by_name("llama2", [])
    seen = []
    original = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, text, **more: seen.append(text) or original(self, text, **more)
    )
    titles = ["", *golden["titles"].values()]
    composer = PromptComposer(tokenizer, template, titles, WORDS, 20, 1536)
    before = len(seen)
    composer(*rows(golden["train_examples"]))
    composer(*rows(golden["test_examples"]))
    assert len(seen) == before
    assert sum(len(texts) for texts in seen if isinstance(texts, list)) < 3 * len(titles) + 60


def test_the_oldest_history_goes_first_and_nothing_else(golden, template):
    tokenizer = llama2()
    titles = ["", *(golden["titles_after_truncation"][str(i)]["truncated"] for i in range(1, 26))]
    composer, examples, whole = compose_everything(tokenizer, template, titles)
    empty = [composer.text([], example["candidate_items"]) for example in examples]
    limit = 1 + max(map(len, tokenizer(empty, add_special_tokens=False)["input_ids"]))
    short = PromptComposer(tokenizer, template, titles, WORDS, max_history=20, max_length=limit)
    cut = unpadded(short(*rows(examples)))
    assert sum(len(ids) < len(before) for ids, before in zip(cut, whole, strict=True)) > 20
    for example, ids, before in zip(examples, cut, whole, strict=True):
        assert len(ids) <= limit
        history = example["history_items"][-20:]
        texts = [composer.text(history[k:], example["candidate_items"]) for k in range(len(history) + 1)]
        options = [[1, *row] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        assert ids == next(option for option in options if len(option) <= limit)  # as much history as fits
        assert len(before) > limit or ids == before


def test_a_prompt_without_history(golden, template):
    tokenizer = llama2()
    composer = PromptComposer(tokenizer, template, ["", "A b", "C d"], WORDS, max_history=20, max_length=136)
    prompts = composer(torch.zeros(1, 3, dtype=torch.long), torch.tensor([0]), torch.tensor([[2, 1]]))
    assert unpadded(prompts) == [[1, *tokenizer(composer.text([], [2, 1]), add_special_tokens=False)["input_ids"]]]
    assert "User history: ; \n Candidate pool: (A) C d \n (B) A b\n" in composer.text([], [2, 1])


def test_candidates_that_do_not_fit_are_an_error(golden, template):
    titles = ["", *golden["titles"].values()]
    composer = PromptComposer(llama2(), template, titles, WORDS, max_history=20, max_length=300)
    with pytest.raises(ConfigError, match=r"max_prompt_length=300 is too small: .* history has \d+ tokens"):
        composer(*rows(golden["test_examples"]))


def test_fewer_candidates_are_fewer_entries(golden, template):
    titles = ["", *golden["titles"].values()]
    composer = PromptComposer(llama2(), template, titles, WORDS, max_history=20, max_length=1536)
    history, length, candidates = rows(golden["test_examples"])
    whole = unpadded(composer(history, length, candidates))
    candidates[0, 7:] = 0
    composed = unpadded(composer(history, length, candidates))
    text = composer.text(golden["test_examples"][0]["history_items"], candidates[0, :7].tolist())
    assert composed[0] == [1, *llama2()(text, add_special_tokens=False)["input_ids"]]
    assert composed[1] == whole[1]


def test_prompt_files(tmp_path):
    with pytest.raises(ConfigError, match=r"prompt='lama' is neither one of ours \(.*llamarec"):
        PromptTemplate.read("lama")
    file = tmp_path / "mine.txt"
    file.write_text("{candidates} then {history}", encoding="utf-8")
    (tmp_path / "typo.txt").write_text('{"as": 1} {history} {candidate} {candidates}')
    with pytest.raises(ConfigError, match=r"holds \{candidate\}, which nothing replaces: \{history\}, \{candidates\}"):
        PromptTemplate.read(str(tmp_path / "typo.txt"))
    with pytest.raises(ConfigError, match=r"must hold \{history\} once and, after it, \{candidates\}"):
        PromptTemplate.read(str(file))
    file.write_text("a {history} b {candidates} c", encoding="utf-8")
    assert PromptTemplate.read(str(file)).between == " b "


# ---- words


def test_words_that_are_not_one_token():
    tokenizer = by_name("llama3", ["abc"])
    assert len(ids_in_context(tokenizer, "x:\n", WORDS)) == 20
    with pytest.raises(ConfigError, match="'AB' is not one token of its own behind the prompt"):
        ids_in_context(tokenizer, "x:\n", ["A", "AB"])
    joined = by_name("llama3", [" A B C"] * 9)
    with pytest.raises(ConfigError, match="let the prompt end with a line break"):
        ids_in_context(joined, "x: ", ["A", "B"])
    with pytest.raises(ConfigError, match="verbalizer=original: '10' has 2 tokens"):
        ids_alone(tokenizer, ["A", "10"])


def test_more_candidates_than_letters():
    with pytest.raises(ConfigError, match="n_candidates=27 is too many: there are 26 letters"):
        label_words(None, 27)
    assert label_words([*range(40)], 30)[-1] == "29"
    with pytest.raises(ConfigError, match="holds a word twice"):
        label_words(["A", "A"], 2)


def test_two_words_with_one_token():
    class Lower:
        name_or_path = "lower"

        def __call__(self, texts, add_special_tokens):
            if isinstance(texts, str):
                return {"input_ids": [ord(c) for c in texts.lower()]}
            return {"input_ids": [[ord(c) for c in text.lower()] for text in texts]}

    with pytest.raises(ConfigError, match="'A' and 'a' are the same token for lower"):
        ids_in_context(Lower(), "x", ["A", "b", "a"])
