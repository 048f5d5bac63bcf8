"""Converters from official downloads and own logs to RecBole's atomic files, and a check of atomic files."""

from recbole_llm.convert.check import check
from recbole_llm.convert.conversion import convert, source_names
from recbole_llm.convert.report import CheckReport, Report

__all__ = ["CheckReport", "Report", "check", "convert", "source_names"]
