"""The command line as settings."""

import re
import sys

import pytest

from recbole_llm.config.arguments import parse_arguments, split_arguments
from recbole_llm.errors import ConfigError
from tests.configs import sasrec

pytestmark = pytest.mark.usefixtures("isolated")


def test_arguments():
    assert parse_arguments(["--epochs=3", "--smoke", "--item_text={a}=1", "--llm=None", "--dataset=2020"]) == {
        "epochs": 3,
        "smoke": True,
        "item_text": "{a}=1",
        "llm": None,
        "dataset": "2020",
    }
    assert parse_arguments(["--note=a=b=c"]) == {"note": "a=b=c"}
    assert parse_arguments(["--seed=1", "--seed=1"]) == {"seed": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model"], "--model needs a value: write --model=VALUE"),
        (["--model", "--dataset=ml-100k"], "--model needs a value: write --model=VALUE"),
        (["--epochs"], "--epochs needs a value"),
        (["--epochs", "=3"], "--epochs needs a value: write --epochs=VALUE, without spaces"),
        (["SASRec"], "'SASRec' is not understood: write --key=value"),
        (["-x=SASRec"], "--key=value"),
        (["--=3"], "--key=value"),
        (["--"], "--key=value"),
        (["--seed=1", "--seed=2"], "--seed is given twice: 1 and 2"),
        (["--smoke", "yes"], "'yes' is not understood"),
    ],
)
def test_arguments_that_are_not_understood(arguments, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_arguments(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "-m",
            "SASRec",
            "-d",
            "ml-100k",
            "--epochs",
            "3",
            "--config_files",
            "a.yaml b.yaml",
            "--smoke",
            "--topk",
            "[5]",
        ],
        [
            "--model=SASRec",
            "-d=ml-100k",
            "--epochs=3",
            "--config_files=a.yaml b.yaml",
            "--smoke",
            "True",
            "--topk=[5]",
        ],
        ["--smoke", "--topk", "[5]", "--model", "SASRec", "--dataset", "ml-100k", "--config_files=a.yaml b.yaml"]
        + ["--epochs", "3"],
    ],
)
def test_recboles_habits(arguments):
    """On d0eece4 only the second form without -d was understood."""
    expected = {"model": "SASRec", "dataset": "ml-100k", "epochs": 3, "config_files": "a.yaml b.yaml"}
    assert parse_arguments(arguments) == {**expected, "smoke": True, "topk": [5]}


def test_what_follows_a_switch_is_not_its_value():
    assert split_arguments(["--smoke", "saved/a", "--resume", "--topk", "5", "saved/b"]) == (
        {"smoke": True, "resume": True, "topk": 5},
        ["saved/a", "saved/b"],
    )
    assert parse_arguments(["--resume", "saved/a", "--n_facet_window", "-2"]) == {
        "resume": "saved/a",
        "n_facet_window": -2,
    }
    assert parse_arguments(["--SASRec.llm_revision=123", "--LLM2SASRec.epochs", "4"]) == {
        "SASRec.llm_revision": "123",
        "LLM2SASRec.epochs": 4,
    }


def test_sys_argv_is_never_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--epochs=77", "--seed=abc", "-x", "nonsense", "--model=Pop"])
    config = sasrec()
    assert (config["epochs"], config["seed"], config["model"]) == (300, 2020, "SASRec")
    assert sys.argv[1] == "--epochs=77"
