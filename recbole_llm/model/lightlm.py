"""LightLM (Mei and Zhang, arXiv 2310.17488): a deep and narrow T5 that generates item codes along a trie.

The inner width of the feed-forward networks shrinks to 16 (Sec. 3.1), items and users have codes of spectral (SCI) or
collaborative (GCI) indexing (Sec. 3.2), and decoding never leaves the catalogue (Sec. 3.3). As released the prompt
names the user only; with ``with_history`` the templates of ``history_templates`` show the history, too.
"""

from recbole_llm.config import Config
from recbole_llm.model.generative import GenerativeRecommender


class LightLM(GenerativeRecommender):
    """A narrow T5 over users, decoding along a trie; keys in ``props/model/LightLM.yaml``."""

    train_view = "prefix"

    def templates_of(self, config: Config) -> dict[str, list[str]]:
        """Return the templates of users, or of users and their histories."""
        templates = super().templates_of(config)
        if config["with_history"] and "sequential" in templates:
            templates["sequential"] = list(config["history_templates"])
        return templates

    def test_template_of(self, config: Config, key: str) -> int | str:
        """Return the template that is used in evaluation, of the list that training draws from."""
        with_history = config["with_history"] and key == "test_template"
        return config["history_test_template"] if with_history else config[key]
