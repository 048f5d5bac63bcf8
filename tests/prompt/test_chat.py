"""Prompts and answers of titles: joined pieces are the whole text's tokens, and lists are read as they are written."""

import random

import pytest
import torch

from recbole_llm.errors import ConfigError
from recbole_llm.prompt.chat import (
    BEGIN,
    END,
    INTRODUCTION,
    ChatPrompt,
    TitlePrompts,
    parse_list,
    parse_title,
)
from tests.answers import list_lines
from tests.toy_tokenizers import by_name

TITLES = [
    "",
    "Toy Story (1995)",
    "1. FC Köln: A History",
    "12 Monkeys",
    '"Quoted" & more',
    "M*A*S*H",
    "(500) Days",
    "it's",
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def tokenizer_of(kind, template=None):
    texts = [f"{i}. {title}\n" for i, title in enumerate(TITLES)] * 5
    tokenizer = by_name(kind, [*texts, INTRODUCTION, "Purchases of the customer, oldest first:\n"])
    if template:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
    return tokenizer


def prompts_of(tokenizer, variant="genitem", style="chat", list_length=0, max_history=5, **more):
    prompt = ChatPrompt.read(f"llmseqprompt_{variant}", with_candidates=variant in ("classify", "rank"))
    return TitlePrompts(tokenizer, prompt, TITLES, style, list_length, max_history, **more)


def whole(tokenizer, text):
    """Token ids of a text as a tokenizer makes them at once."""
    bos = tokenizer.bos_token_id
    begins = bos is not None and tokenizer("a")["input_ids"][0] == bos
    return [bos] * begins + tokenizer(text, add_special_tokens=False)["input_ids"]


HISTORY, LENGTH = torch.tensor([[1, 2, 3, 4], [6, 0, 0, 0]]), torch.tensor([4, 1])
POOL = torch.tensor([[5, 6, 7], [1, 2, 0]])


@pytest.mark.parametrize("template", [None, CHATML, NO_SYSTEM])
@pytest.mark.parametrize("kind", ["llama2", "llama3", "bytes"])
def test_pieces_are_the_tokens_of_the_whole_text(kind, template):
    tokenizer = tokenizer_of(kind, template)
    for variant, list_length in (("genitem", 0), ("genlist", 3), ("rank", 3)):
        prompts = prompts_of(tokenizer, variant, list_length=list_length)
        pool = POOL if variant == "rank" else None
        answers = POOL if list_length else POOL[:, :1]
        made, sizes = prompts.with_answers(HISTORY, LENGTH, pool, answers)
        alone = prompts(HISTORY, LENGTH, pool)
        for row in range(2):
            lines = "\n".join(TITLES[i] for i in HISTORY[row] if i)
            text = prompts.example.replace("{history}", lines)
            text = text.replace("{candidates}", "\n".join(TITLES[i] for i in POOL[row] if i))
            titles = [TITLES[i] for i in answers[row] if i]
            answer = list_lines(titles) if list_length else titles[0]
            size = int(sizes[row])
            ids = made.ids[row][made.mask[row] == 1].tolist()
            assert ids == whole(tokenizer, text + answer) + [prompts.end]
            assert ids[:-size] == alone.ids[row][alone.mask[row] == 1].tolist() == whole(tokenizer, text)
        assert prompts.inexact == 0
        assert prompts.answer_sizes(answers).tolist() == sizes.tolist()
        assert prompts.longest_answer() >= int(sizes.max())


def test_an_answer_ends_with_the_end_of_the_turn():
    tokenizer = tokenizer_of("llama3", CHATML)
    assert prompts_of(tokenizer).end == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompts_of(tokenizer_of("llama3")).end == tokenizer.eos_token_id


def test_no_system_in_the_template():
    text = prompts_of(tokenizer_of("llama3", NO_SYSTEM)).example
    assert text.startswith("<|im_start|>user\nYou recommend products.")


def test_the_completion_style_numbers_the_history():
    tokenizer = tokenizer_of("bytes")
    made = prompts_of(tokenizer, "completion", style="completion")(HISTORY, LENGTH)
    text = tokenizer.decode(made.ids[0], skip_special_tokens=True)
    assert text == '1. Toy Story (1995)\n2. 1. FC Köln: A History\n3. 12 Monkeys\n4. "Quoted" & more\n###\n'


@pytest.mark.parametrize("style", ["chat", "completion"])
def test_the_oldest_titles_go_first(style):
    tokenizer = tokenizer_of("bytes")
    variant = "completion" if style == "completion" else "genitem"
    full = prompts_of(tokenizer, variant, style=style)
    size = int(full(HISTORY, LENGTH).length[0])
    for missing in range(3):
        shown = tokenizer.batch_decode(full(HISTORY, LENGTH).ids, skip_special_tokens=True)[0]
        assert [title in shown for title in TITLES[1:5]] == [i >= missing for i in range(4)]
        full.max_length = size - 1
        size = int(full(HISTORY, LENGTH).length[0])
    recent = prompts_of(tokenizer, max_history=2)(HISTORY, LENGTH)
    shown = tokenizer.batch_decode(recent.ids, skip_special_tokens=True)[0]
    assert TITLES[2] not in shown and TITLES[3] in shown
    full.max_length = int(full.pieces.sizes("opening").sum() + full.pieces.sizes("after history").sum()) + 1
    with pytest.raises(ConfigError, match="max_prompt_tokens=.* is too small"):
        full(HISTORY, LENGTH)


def test_lists_are_read_as_they_are_written():
    draw = random.Random(0)
    for _ in range(300):
        titles = ["".join(draw.choices("a1. ():\"'-[]#", k=draw.randint(1, 12))).strip() or "x" for _ in range(5)]
        titles += draw.sample(["1. FC", "END", BEGIN, END, "2) two", INTRODUCTION], 2)
        assert parse_list(list_lines(titles), 9) == titles
    assert parse_list(list_lines(TITLES[1:]), 3) == TITLES[1:4]


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("", []),
        ("\n \n", []),
        (INTRODUCTION, []),
        ("1. a\n2) b\n 3.  c d ", ["a", "b", "c d"]),
        (f"{INTRODUCTION}\n1. a\n2. b", ["a", "b"]),
        (f"Sure!\n{BEGIN}\n1. a\n{END}\n2. b", ["a"]),
        ("a\nb\n", ["a", "b"]),
        ("1. a\nwell\n2.", ["a", ""]),
        ("1.5 hours", ["1.5 hours"]),
    ],
)
def test_lists_that_are_not_as_asked_for(text, titles):
    assert parse_list(text, 20) == titles


@pytest.mark.parametrize(
    ("content", "candidates", "says"),
    [
        (None, False, "neither one of ours .*nor a text file"),
        ("{history}", False, r"must have a section \[user\]"),
        ("[user]\nno field", False, "must hold {history}"),
        ("[user]\nbought {history}", False, "on a line of its own"),
        ("[user]\n{history}\n{history}", False, "must hold {history}"),
        ("[user]\nWrite {list_lenght} titles.\n{history}", False, "holds {list_lenght}, which nothing replaces"),
        ("[system]\nThe {candidate} is\n[user]\n{history}\n{candidates}", True, "holds {candidate}, which nothing"),
        ("[user]\n{history}", True, "{history} and, after it, {candidates}"),
        ("[user]\n{candidates}\n{history}", True, "{history} and, after it, {candidates}"),
        ("[user]\n{history}\n{candidates}", False, "no {candidates}"),
        ("[system]\n{history}\n[user]\n{history}", False, "nowhere else"),
    ],
)
def test_prompt_files_that_are_not_allowed(tmp_path, content, candidates, says):
    file = tmp_path / "mine.txt"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        ChatPrompt.read(str(file), candidates)


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = tokenizer_of("llama3")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="has no end token"):
        prompts_of(tokenizer)


def test_an_end_of_turn_that_is_added_but_not_special_ends_an_answer():
    tokenizer = tokenizer_of("llama3")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn not in tokenizer.all_special_ids
    assert prompts_of(tokenizer).end == turn


BLANK_BEFORE_END = CHATML.replace("{{ message['content'] }}<|im_end|>", "{{ message['content'] }}\n<|im_end|>")
DROPS_SYSTEM = (
    "{% for message in messages %}{% if message['role'] != 'system' %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_line_break_may_stand_before_the_end_of_the_turn():
    tokenizer = tokenizer_of("llama3", BLANK_BEFORE_END)
    assert prompts_of(tokenizer).end == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("template", [DROPS_SYSTEM, NO_SYSTEM, CHATML])
def test_no_template_loses_the_instruction(template):
    for variant, list_length in (("genitem", 0), ("genlist", 7)):
        example = prompts_of(tokenizer_of("llama3", template), variant, list_length=list_length).example
        assert example.count("You know the shop's catalogue") == 1
        assert "{list_length}" not in example and (not list_length or "list of 7 different" in example)


def test_a_template_that_loses_the_prompt_is_refused():
    with pytest.raises(ConfigError, match="does not pass the prompt .* on"):
        prompts_of(tokenizer_of("llama3", "{% if add_generation_prompt %}hello{% endif %}"))


@pytest.mark.parametrize(
    ("text", "title"), [("", ""), ("\n\n", ""), ("a b\n", "a b"), (" \n a\nb", "a"), ("a\r\nb", "a")]
)
def test_a_title_is_the_first_line_that_is_not_blank(text, title):
    assert parse_title(text) == title
