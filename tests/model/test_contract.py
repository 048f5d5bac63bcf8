"""What every model of this package promises, on tiny data with a tiny random language model."""

import pytest

from recbole_llm.config.registry import own_models
from recbole_llm.testing import CHECKS, check_model

# What a model cannot do without.
NEEDED = {
    "ScoreEnsemble": {"members": ["LLMSeqSim", {"model": "LLMSeqSim", "dim_reduction": "none"}]},
    "LLMSeqSimSequential": {"popular_model": "VSKNN"},
    "LlamaRec": {"n_candidates": 5},
}


# tests/evaluator/test_mask.py compares the lists themselves, of every model.
@pytest.mark.parametrize("check", [check for check in CHECKS if check != "recommending"])
@pytest.mark.parametrize("name", own_models())
def test_contract(name, check):
    settings = dict(NEEDED.get(name, {}))
    if (name, check) == ("LiteLLM4Rec", "new_items"):
        settings["head_init"] = "items"
    outcome = check_model(name, settings, [check])[check]
    if outcome != "passed":
        pytest.skip(f"{name}: {outcome}")
