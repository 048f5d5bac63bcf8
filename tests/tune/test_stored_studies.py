"""What a stored study or a search space says cannot let a model repository run code."""

import json
from pathlib import Path

import pytest

from recbole_llm.errors import ConfigError
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.tune import search
from recbole_llm.tune.search import resume_study, tune
from recbole_llm.tune.space import read_lines


@pytest.mark.parametrize("inside", [False, True])
def test_a_stored_study_cannot_switch_code_on(inside, shop, tiny, monkeypatch):
    tune("SASRec", "shop", params_dict={"choice": {"n_layers": [1]}}, config_dict=tiny, study="saved/mine")
    file = Path("saved/mine/study.json")
    notes = json.loads(file.read_text(encoding="utf-8"))
    code = {"llm_trust_remote_code": True}
    notes["settings"] |= {"retriever_settings": code} if inside else code
    file.write_text(json.dumps(notes), encoding="utf-8")
    seen = []

    def stop(planned):
        seen.append(planned.base)
        return {}

    monkeypatch.setattr(search, "run_study", stop)
    resume_study("saved/mine")
    assert not LLMSpec.from_config(seen[0]).trust_remote_code
    assert "True" not in str(seen[0].merged.get("retriever_settings"))


def test_nor_can_a_search_space():
    line = "retriever_settings choice [{'llm_trust_remote_code': True}, {'epochs': 3}]"
    with pytest.raises(ConfigError, match="mine.test, line 1: llm_trust_remote_code lets a model repository run code"):
        read_lines([line], "mine.test")
    assert read_lines([line.replace("True", "False")], "mine.test")
