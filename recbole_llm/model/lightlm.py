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

    def template_keys(self, config: Config) -> dict[str, str]:
        """Return the setting with the templates of users, or of users and their histories."""
        keys = super().template_keys(config)
        return {**keys, "sequential": "history_templates"} if self._shows_history(config) else keys

    def test_template_key(self, config: Config) -> str:
        """Return the setting with the evaluation template, of the list that training draws from."""
        return "history_test_template" if self._shows_history(config) else super().test_template_key(config)

    def _shows_history(self, config: Config) -> bool:
        return bool(config["with_history"]) and self.task == "sequential"
