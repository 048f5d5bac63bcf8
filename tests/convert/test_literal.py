import ast
import random
import time
import tracemalloc

import pytest

from recbole_llm.convert.records import MAX_LITERAL_CHARS, parse_literal, parse_record
from recbole_llm.convert.values import LineError

PIECES = [
    "a",
    "b",
    "'",
    '"',
    "\\",
    "\n",
    "\t",
    "\x07",
    "\x00",
    "\x01",
    "\x7f",
    "é",
    "☃",
    "😀",
    "\u2028",
    ",",
    ":",
    "{",
    "}",
]
PIECES += ["[", "]", "u", " ", "True", "None", "\\x41", "u'", "': '", "\\u0041", "//", "#"]


def any_text(draw):
    return "".join(draw.choices(PIECES, k=draw.randrange(8)))


def any_value(draw, depth=0):
    kind = draw.random()
    if kind < 0.45 or depth > 3:
        return any_text(draw)
    if kind < 0.6:
        return draw.choice([1, -5, 0, 2.5, -1e-7, 1e22, True, False, None, 2**53 + 1])
    if kind < 0.8:
        return [any_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {any_text(draw): any_value(draw, depth + 1) for _ in range(draw.randrange(4))}


@pytest.mark.parametrize("write", [repr, ascii])
def test_same_as_literal_eval_on_whatever_python_writes(write):
    draw = random.Random(7)
    for _ in range(4000):
        line = write({any_text(draw): any_value(draw) for _ in range(draw.randrange(5))})
        assert parse_literal(line) == ast.literal_eval(line), line


@pytest.mark.parametrize(
    "line",
    [
        "{u'a': u'x', 'b': u\"it's\", u\"c\": [u'\\u2764', u'\\xe9', '\\U0001f600', '\\101', '\\q']}",
        "{'a': (1, 2), 'b': {1, 2}}",
        "{'a': 'one' 'two'}",
        "{'a': b'x'}",
        "{'a': '''three'''}",
        "{ 'a' :\t-1.5e3 , 'b':[ ] }",
        "{'a': 'tab\there'}",
        "{1: 'a', 2.5: 'b'}",
        "{'a': 1,}",
        "{'a': '\\N{SNOWMAN}'}",
        "{'a': 'ends in a backslash \\\\', 'b': '\\\\\\'', 'c': \"\\\\\\\"\"}",
    ],
)
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_other_forms_of_literals(line):
    assert parse_literal(line) == ast.literal_eval(line)


def test_nan_is_missing():
    assert parse_literal("{'a': nan, 'b': [1, nan]}") == {"a": None, "b": [1, None]}
    assert parse_record(b'{"a": "half \\ud83d"}') == {"a": "half \ud83d"}
    assert parse_record(b'{"a": NaN, "b": Infinity, "c": "NaN"}') == {"a": None, "b": None, "c": "NaN"}


@pytest.mark.parametrize(
    "line",
    [
        "__import__('os').system('echo hacked')",
        "{'a': __import__('os')}",
        "{'a': open('/etc/passwd').read()}",
        "{'a': (lambda: 1)()}",
        "{'a': 9**9**9}",
        "{'a': 'x' * 1000000000}",
        "{'a': [0] * 1000000000}",
        "{'a': f'{1}'}",
        "{'a': x}",
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        "(" * 150 + "1" + ")" * 150,
        "{'a': " * 5000 + "1" + "}" * 5000,
        "-" * 100_000 + "1",
        "- " * 100_000 + "1",
        "~" * 100_000 + "1",
        "not " * 50_000 + "1",
        "1+" * 100_000 + "1",
        "{'a': 1 if " * 10_000,
        "9" * 1_000_000,
        "{'a': " + "9" * 5000 + "}",
        "(1,) " + "1," * MAX_LITERAL_CHARS,
        "{'a': 'unclosed}",
        "{'a': \"unclosed}",
        "{'a': 'x'",
        "{'a': x" + "\\'" * 100_000,
        "{'a': x" + '\\"' * 100_000,
        "'\\ud800\\",
        "",
        "\x00",
        "{'a': 1}; {'b': 2}",
        "{[]: 1}",
    ],
)
def test_hostile_lines_end_in_a_short_error(line):
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(LineError) as error:
        record = parse_record(line.encode("utf-8", "surrogatepass"))
        raise AssertionError(f"accepted: {str(record)[:80]}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(error.value)) < 300
    assert peak < 200 << 20
    assert time.process_time() - started < 30  # not a timing: only that nothing runs away
