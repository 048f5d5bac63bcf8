import json
from pathlib import Path

import pytest
import yaml

from recbole_llm.config import Config
from recbole_llm.errors import CheckpointError
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.quick_start import load_run, run


@pytest.fixture
def run_dir(shop, tiny):
    return Path(run("SASRec", "shop", config_dict={**tiny, "epochs": 1})["run_dir"])


@pytest.mark.parametrize("key", ["llm_trust_remote_code", "rec_llm_trust_remote_code"])
def test_a_stored_file_cannot_switch_code_on(key, isolated):
    stored = {"model": "LiteLLM4Rec", "dataset": "ml-100k", key: True}
    Path("config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    for source in ("config.yaml", stored):  # a mapping in the list of files is what such a file holds
        config = Config(config_file_list=[source])
        assert not LLMSpec.from_config(config, key.removesuffix("_trust_remote_code")).trust_remote_code
        assert not config.merged.get(key)
        assert any(f"{key} lets a model repository run code" in notice for notice in config.notices)
    for given in ({"config_dict": {key: True}}, {"arguments": {key: True}}):
        config = Config(config_file_list=["config.yaml"], **given)
        assert LLMSpec.from_config(config, key.removesuffix("_trust_remote_code")).trust_remote_code
        assert config.notices == []


def test_nor_can_settings_inside_a_stored_file(isolated):
    inner = {"llm_trust_remote_code": True, "epochs": 0}
    stored = {"model": "LlamaRec", "dataset": "ml-100k", "retriever_settings": inner}
    config = Config(config_file_list=[stored])
    assert config["retriever_settings"] == {"epochs": 0}
    assert inner["llm_trust_remote_code"] is True  # the caller's own mapping stays as it is


def test_one_flipped_byte_of_the_weights_stops_loading(run_dir):
    file = run_dir / "model.safetensors"
    whole = file.read_bytes()
    assert json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["weights"]["file"] == file.name
    for place in (9, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="is damaged"):
            load_run(run_dir)
    file.write_bytes(whole)
    load_run(run_dir)


def test_weights_of_another_run_stop_loading(run_dir, tiny):
    other = Path(run("SASRec", "shop", config_dict={**tiny, "epochs": 1, "seed": 1})["run_dir"])
    (run_dir / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="was replaced: its SHA-256 is"):
        load_run(run_dir)
