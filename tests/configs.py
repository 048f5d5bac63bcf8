"""Configurations for tests."""

from typing import get_args

from recbole_llm.config import Config
from recbole_llm.config.schema import types_of
from recbole_llm.config.types import members, unwrap


def sasrec(**settings):
    """SASRec on ml-100k, with ``settings`` as a caller's dictionary."""
    return Config("SASRec", "ml-100k", config_dict=settings)


def choices_of(key, model=None):
    """What a setting may be, if it is a choice."""
    return [option for member in members(types_of(model)[key]) for option in get_args(unwrap(member)[0])]
