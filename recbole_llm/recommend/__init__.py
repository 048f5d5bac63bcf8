"""A finished run put to use: lists for users and for new histories, similar items, new items, exported vectors."""

from recbole_llm.recommend.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender"]
