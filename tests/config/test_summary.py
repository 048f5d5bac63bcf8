"""What a run says about its settings."""

import re

import pytest

from recbole_llm.config import Config
from tests.configs import sasrec

pytestmark = pytest.mark.usefixtures("isolated")


def test_secrets_are_not_shown():
    config = Config("LiteLLM4Rec", "ml-100k", config_dict={"llm_token": "hf_secret", "seed": 7})
    assert config["llm_token"] == "hf_secret"
    for text in (str(config), repr(config), config.summary()):
        assert "hf_secret" not in text
    assert "(hidden)" in str(config)


def test_summary_is_short_and_says_what_was_changed():
    summary = re.sub(r"\x1b\[[0-9;]*m", "", sasrec(epochs=3, hidden_size=32).summary())
    first, *rest = summary.split("\n")
    assert first == "Changed: epochs = 3, hidden_size = 32"
    assert [line.partition(":")[0] for line in rest] == ["Model", "Loss", "Training"]
    assert "n_layers = 2" in rest[0] and "learning_rate = 0.001" in rest[2]


def test_summary_groups_settings_by_concern():
    config = Config("LiteLLM4Rec", "ml-100k", config_dict={"llm": "bundled"})
    lines = re.sub(r"\x1b\[[0-9;]*m", "", config.summary()).split("\n")
    shown = {line.partition(":")[0]: line for line in lines}
    assert list(shown)[:3] == ["Changed", "Model", "Item text"] and shown["Changed"] == "Changed: llm = bundled"
    for name, key in (("Item text", "item_pooling"), ("Language model", "rec_llm_init"), ("Training", "learner")):
        assert f"{key} = " in shown[name] and f"{key} = " not in shown["Model"]
