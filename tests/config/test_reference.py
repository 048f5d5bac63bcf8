"""What is said about settings."""

from pathlib import Path

import pytest

from recbole_llm.config.reference import comments, explain, models_table, settings_page
from recbole_llm.config.registry import known_models, model_file, property_file, props_dir, recbole_root
from recbole_llm.config.schema import types_by_key
from recbole_llm.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == settings_page(), (
        "run `python -m recbole_llm.config.reference docs/settings.md`"
    )


def test_comments_of_ours_and_of_recboles(tmp_path):
    ours = comments(props_dir() / "overall.yaml")
    assert "the last item is the target" in ours["protocol"]  # from a continuation line
    assert comments(recbole_root() / "properties" / "overall.yaml")["learning_rate"] == "Learning rate."
    file = tmp_path / "a.yaml"
    file.write_text(
        "a: 1   # (int) One.\n       # More.\n# no comment of a\nb: {x: 1}  # (dict) Two.\nc: 3\n", encoding="utf-8"
    )
    assert comments(file) == {"a": "One. More.", "b": "Two."}


@pytest.mark.parametrize("name", known_models())
def test_every_model_is_explained(name):
    text = explain(name)
    assert text.startswith(f"{name}\n") and all(f"  {key} = " in text for key in property_file(model_file(name)))


def test_every_setting_is_explained_in_lines_that_fit():
    for key in types_by_key():
        text = explain(key)
        assert text.startswith(f"{key}\n") and max(map(len, text.splitlines())) <= 120, key


def test_what_is_unknown_is_said_with_the_nearest():
    with pytest.raises(ConfigError, match="'LRURek' is neither a setting nor a model. Did you mean 'LRURec'?"):
        explain("LRURek")


def test_the_table_of_models_fits_a_terminal():
    assert max(map(len, models_table().splitlines())) <= 120
