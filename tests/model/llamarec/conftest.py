"""Tiny language models and the settings of LlamaRec's tests."""

import pytest

from tests.llamarec import K
from tests.toy_llms import save_llama
from tests.worlds import WORDS, write_cycle


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A language model whose prompts are short."""
    return save_llama(tmp_path_factory.mktemp("llm") / "small", "llama2")


@pytest.fixture
def settings(tmp_path, small):
    write_cycle(tmp_path / "data", users=16, items=20)
    return {
        "llm": small,
        "llm_dtype": "float32",
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "n_candidates": K,
        "max_history": 4,
        "max_train_rows_per_user": 2,
        "retriever_epochs": 2,
        "retriever_settings": {"hidden_size": 16, "state_size": 16, "inner_size": 16, "train_batch_size": 16},
        "show_progress": False,
        "use_gpu": False,
        "lora_r": 2,
    }


@pytest.fixture(scope="module", params=["llama2", "llama3"])
def llama(request, tmp_path_factory):
    """A language model of either shape; titles of the cycle have different numbers of tokens."""
    texts = [f" ({i}) {WORDS[i]} volume {i} \n" for i in range(5)] * 9
    return save_llama(tmp_path_factory.mktemp("llm") / request.param, request.param, texts)
