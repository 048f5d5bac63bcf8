"""Optional packages: what is said where one is missing or does not fit."""

import sys

import pytest

from recbole_llm.errors import MissingExtraError
from recbole_llm.extras import optional


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(MissingExtraError, match=r"^reading parquet needs no_such_package; .*\[convert\]"):
        optional("no_such_package.parquet", "convert", "reading parquet")


def test_a_package_that_does_not_fit_says_why(tmp_path, monkeypatch):
    (tmp_path / "unfit_package.py").write_text("raise ImportError('unfit needs NumPy 2.0 or newer')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"which is installed but cannot be imported: unfit needs NumPy 2.0"):
        optional("unfit_package", "convert", "reading parquet")


def test_the_module_itself_is_returned():
    assert optional("xml.dom", "convert", "this test") is sys.modules["xml.dom"]
