"""LightLM (Mei and Zhang, arXiv 2310.17488): a deep and narrow T5 that generates item codes along a trie.

The inner width of the feed-forward networks shrinks to 16 (Sec. 3.1), items and users have codes of spectral (SCI) or
collaborative (GCI) indexing (Sec. 3.2), and decoding never leaves the catalogue (Sec. 3.3). As released the prompt
names the user only; the second template list of the property file adds the history.
"""

from recbole_llm.model.generative import GenerativeRecommender


class LightLM(GenerativeRecommender):
    """A narrow T5 over users, decoding along a trie; keys in ``props/model/LightLM.yaml``."""

    train_view = "prefix"
