"""Configurations for tests."""

from recbole_llm.config import Config


def sasrec(**settings):
    """SASRec on ml-100k, with ``settings`` as a caller's dictionary."""
    return Config("SASRec", "ml-100k", config_dict=settings)
