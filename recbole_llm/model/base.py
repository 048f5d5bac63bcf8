"""The model contract: where models and their authors find the base classes; :mod:`recbole_llm.contract` has them."""

from recbole_llm.contract import LLMRecommender, Reranker

__all__ = ["LLMRecommender", "Reranker"]
