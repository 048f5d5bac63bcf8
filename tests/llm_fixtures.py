import logging

import pytest

from recbole_llm.llm.backbone import LLMSpec, load_encoder, load_tokenizer, resolve_llm


@pytest.fixture(autouse=True)
def _no_network_no_home(monkeypatch, tmp_path):
    """No test may depend on, or write to, the caches of whoever runs it, or reach the hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub_down(monkeypatch):
    """Make every request to the hub fail at once."""

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)


@pytest.fixture(scope="session")
def saved_folder(tmp_path_factory):
    """Return a function that saves a tiny model as a folder, as save_pretrained does."""

    def save(name="tiny-random-bert"):
        folder = tmp_path_factory.mktemp(name) / "my-model"
        resolved = resolve_llm(LLMSpec(name))
        load_encoder(resolved).save_pretrained(folder)
        load_tokenizer(resolved).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def logger(caplog):
    caplog.set_level(logging.INFO)
    return logging.getLogger("test")
