"""Settings of LlamaRec that are refused, and what the messages say."""

import re

import pytest

from recbole_llm.errors import ConfigError, MissingExtraError, ModelNotFoundError
from tests.llamarec import prepare


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_candidates": 27}, "n_candidates=27 is too many"),
        ({"n_candidates": 1}, "invalid value for n_candidates: 1"),
        ({"ranker_loss": "all"}, "ranker_loss: 'all'"),
        ({"tuning": "full", "load_in_4bit": True}, "weights of 4 bits cannot be trained"),
        ({"retriever_weight": 2.0}, "invalid value for retriever_weight: 2.0"),
        ({"train_negatives": "retriever", "negative_pool": 3}, "negative_pool=3 must be at least n_candidates"),
        ({"eval_args": {"mode": "uni5"}}, "Use mode: full"),
        ({"retriever": "S3Rec", "retriever_settings": {}}, "'S3Rec' is itself trained in stages"),
        (
            {"retriever": "LiteLLM4Rec", "retriever_settings": {"llm": "tiny-random-t5"}},
            "'LiteLLM4Rec' is itself trained in stages",
        ),
        ({"retriever": "LlamaRec", "retriever_settings": {}}, "'LlamaRec' .*(stages|its own retriever)"),
        ({"retriever": "SASrec"}, "retriever='SASrec' is not known.*Did you mean 'SASRec'"),
        ({"retriever": "nosuch"}, "^retriever='nosuch' is not known.*run directory"),
        ({"max_prompt_length": 2047}, "beyond the 2048 positions of small.*set it to 2046"),
        ({"llm": "tiny-random-bert"}, "tiny-random-bert is not a causal language model.*Qwen"),
        ({"verbalizer": "none"}, "verbalizer: 'none'"),
    ],
)
def test_settings_that_are_not_allowed(settings, change, says):
    with pytest.raises(ConfigError) as caught:
        prepare(settings, "retriever", **change)
    assert re.search(says, str(caught.value), re.S), str(caught.value)


def test_layers_that_are_not_there(settings):
    with pytest.raises(ConfigError, match="has no layer q_prj. It has down_proj, .*q_proj"):
        prepare(settings, "retriever", lora_target_modules=["q_prj"])


def test_four_bits_need_their_package(settings, monkeypatch):
    """Said before the retriever is trained."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'bitsandbytes: pip install "recbole-llm\[4bit\]"'):
        prepare(settings, "retriever", load_in_4bit=True)


def test_automatic_choice_offline(settings, isolated, monkeypatch):
    monkeypatch.setattr("recbole_llm.llm.resolve.packaged_smollm2", lambda: None)
    with pytest.raises(ModelNotFoundError, match="auto means meta-llama/Llama-2-7b-hf here.*"):
        prepare(settings, "retriever", llm="auto")


def test_unknown_settings_of_the_retriever_are_reported(settings):
    with pytest.raises(ConfigError, match="LRURec has no parameter 'drpout'. Did you mean 'dropout'"):
        prepare(settings, "retriever", retriever_settings={"drpout": 0.1})
