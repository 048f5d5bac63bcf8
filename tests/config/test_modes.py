"""Which phase is ranked how, and that the label says it for both."""

import pytest

from recbole_llm.config import Config
from recbole_llm.run.protocol import evaluation_text

FULL, SAMPLED = "full ranking", "ranked among 5 distinct items sampled uniformly outside the history"


@pytest.mark.parametrize(
    ("mode", "valid", "test", "said"),
    [
        ("uni5", SAMPLED, SAMPLED, False),
        ({"valid": "uni5", "test": "full"}, SAMPLED, FULL, False),
        ({"valid": "full", "test": "uni5"}, FULL, SAMPLED, False),
        ({"valid": "uni5"}, SAMPLED, SAMPLED, True),  # RecBole's rule: the other phase is as the one that is named
        ({"test": "uni5"}, SAMPLED, SAMPLED, True),
        ({"valid": "full"}, FULL, FULL, False),
        ({}, FULL, FULL, False),
    ],
)
def test_a_phase_without_a_mode_has_that_of_the_other(mode, valid, test, said, isolated):
    config = Config("SASRec", "ml-100k", config_dict={"eval_args": {"mode": mode}, "train_neg_sample_args": None})
    label = evaluation_text(config)
    if valid == test:
        assert f", {test}" in label and "validation:" not in label
    else:
        assert f"test: {test}" in label and f"validation: {valid}" in label
    assert any("as in RecBole" in notice for notice in config.notices) == said
