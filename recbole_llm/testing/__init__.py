"""The contract suite: what every model promises, tried on a tiny made-up dataset with a tiny random language model.

    from recbole_llm.testing import check_model

    def test_my_model():
        check_model("mypackage.mymodel:MyModel")

Each entry of :data:`CHECKS` is one promise; with pytest, one test for each says more about what is wrong::

    @pytest.mark.parametrize("name", CHECKS)
    def test_contract(name):
        check_model(MyModel, checks=[name])
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.errors import ModelError, UnsupportedError
from recbole_llm.evaluator.ranks import ScoreError
from recbole_llm.own_code import explain_own_code
from recbole_llm.testing.case import WORDS, Case, NotApplicable, write_cycle, write_dataset
from recbole_llm.testing.checks import CHECKS, ContractError, scores_of

__all__ = ["CHECKS", "WORDS", "Case", "ContractError", "check_model", "scores_of", "write_cycle", "write_dataset"]


def check_model(
    model: str | type, settings: Mapping[str, Any] | None = None, checks: Sequence[str] | None = None
) -> dict[str, str]:
    """Check that a model keeps every promise of the contract.

    Parameters
    ----------
    model : str or class
        A name, ``package.module:Class``, or a class.
    settings : dict, optional
        What the model cannot do without on 30 items and 40 users.
    checks : sequence of str, optional
        Some of :data:`CHECKS`; default: all.

    Returns
    -------
    dict
        ``"passed"``, or why it does not apply, by check.

    Raises
    ------
    ContractError
        For the first broken promise.

    Examples
    --------
    >>> from recbole_llm.testing import check_model
    >>> check_model("MostPopular", checks=["scores", "predict"])
    {'scores': 'passed', 'predict': 'passed'}
    """
    outcomes = {}
    for name in CHECKS if checks is None else checks:
        with tempfile.TemporaryDirectory(prefix="recbole-llm-check-") as folder:
            try:
                with explain_own_code():
                    CHECKS[name](Case(model, Path(folder), settings))
                outcomes[name] = "passed"
            except NotApplicable as reason:
                outcomes[name] = f"does not apply: {reason}"
            except (ContractError, ModelError, UnsupportedError, ScoreError) as error:
                title = model if isinstance(model, str) else model.__qualname__
                promise = (CHECKS[name].__doc__ or "").partition("\n")[0].removeprefix("Check that ")
                finding = str(error).rstrip(".")
                raise ContractError(f"{title} fails the check {name!r}: {finding}.\nThe promise: {promise}") from error
    return outcomes
