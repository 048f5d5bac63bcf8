"""Text of a command line or a file as a value, and back."""

import math

import pytest
import yaml

from recbole_llm.config.values import ParameterDumper, ParameterLoader, load_yaml, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("~", None),
        ("null", None),
        ("", None),
        ("(0,1)", (0, 1)),
        ("['a', 'b']", ["a", "b"]),
        ("[a, b]", ["a", "b"]),
        ("{'LS': 'valid_and_test'}", {"LS": "valid_and_test"}),
        ("{LS: valid_and_test}", {"LS": "valid_and_test"}),
        ("{}", {}),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("1_000", 1000),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("'quoted'", "quoted"),
    ],
)
def test_parse_value_reads_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "{movie_title}",
        "{movie_title}, {genre}",
        "{title} ({year})",
        "[0,inf)",
        "__import__('os').system('true')",
        "open('x','w')",
        "key",
        "self",
        "!!python/object/apply:os.system [true]",
        "no",
        "off",
        "Yes",
        "12:30:45",
        "2001-01-01",
        "2001-12-14 21:59:43",
        "010",
        "08",
        "a: b",
        "- a",
        "title # 1",
        "# 1",
        "...",
        "---",
        "&a x",
        "1 2",
        "b'bytes'",
        "1j",
        "a=b",
        "google-t5/t5-small",
        "saved/SASRec-ml-100k-2025-01-01_00-00-00",
        "[" * 1500,
        "\0",
    ],
)
def test_parse_value_leaves_text_alone(text):
    assert parse_value(text) == text


def test_yaml_has_no_dates_no_norway_no_base_60(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: no\nb: 12:30:45\nc: 2001-01-01\nd: 1e-3\ne: None\nf: 010\ng: on\nh: 1e5\n", encoding="utf-8")
    assert load_yaml(file) == {
        "a": "no",
        "b": "12:30:45",
        "c": "2001-01-01",
        "d": 0.001,
        "e": None,
        "f": "010",
        "g": "on",
        "h": 100000.0,
    }


@pytest.mark.parametrize(
    "value",
    ["None", "1e-3", "10", "010", "no", "true", "", "~", "[0,inf)", "{a}", "a: b", "é\t\n", 1e-12, 1e16, 3, None, True]
    + [[1, 2.5, "x"], {"a": {"b": None}}, math.inf],
)
def test_what_the_dumper_writes_the_loader_reads(value):
    text = yaml.dump({"key": value}, Dumper=ParameterDumper, allow_unicode=True)
    read = yaml.load(text, Loader=ParameterLoader)["key"]  # noqa: S506 - a SafeLoader
    assert read == value
    assert type(read) is type(value)
