"""``llm: auto``: what it stands for is part of the experiment."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from recbole_llm.compare.execution import find_finished
from recbole_llm.compare.plan import Job
from recbole_llm.config import Config
from recbole_llm.errors import CheckpointError
from recbole_llm.llm import resolve
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.quick_start import load_run, run
from recbole_llm.run import identity
from recbole_llm.text.pooling import pooling_of
from tests.test_quick_start import interrupt_in_epoch


@pytest.fixture
def auto(monkeypatch):
    """Let ``auto`` stand for a tiny model; call it with another name to change that."""

    def stands_for(name):
        def found(spec, logger, weights):
            return replace(resolve._resolve_exactly(replace(spec, name=name), logger, weights), requested="auto")

        monkeypatch.setattr(resolve, "_auto_encoder", found)
        identity._resolved.cache_clear()

    stands_for("tiny-random-bert")
    yield stands_for
    identity._resolved.cache_clear()


@pytest.fixture
def settings(shop, tiny):
    return {**tiny, "llm": "auto", "dim_reduction": "none"}


def test_a_finished_run_names_it_and_is_not_loaded_with_another(settings, auto):
    run_dir = Path(run("LLMSeqSim", "shop", config_dict=settings)["run_dir"])
    report = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    (chosen,) = report["auto"]
    assert chosen["name"] == "tiny-random-bert" and chosen["preferred"] == "sentence-transformers/all-MiniLM-L6-v2"
    load_run(run_dir)
    auto("tiny-random-t5")
    with pytest.raises(CheckpointError, match="was trained with llm=tiny-random-bert.*would now get tiny-random-t5"):
        load_run(run_dir)


def test_an_unfinished_run_is_not_resumed_with_another(settings, auto, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    settings = {**settings, "epochs": 2}
    undo = interrupt_in_epoch(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run("LLM2SASRec", "shop", config_dict=settings)
    undo()
    (interrupted,) = Path("saved").iterdir()
    auto("tiny-random-t5")
    with pytest.raises(CheckpointError, match="auto was tiny-random-bert and is tiny-random-t5"):
        run("LLM2SASRec", "shop", config_dict={**settings, "resume": str(interrupted)})
    other = run("LLM2SASRec", "shop", config_dict={**settings, "resume": True})
    assert Path(other["run_dir"]) != interrupted
    assert "is unfinished, but auto was tiny-random-bert" in caplog.text
    auto("tiny-random-bert")
    assert Path(run("LLM2SASRec", "shop", config_dict={**settings, "resume": True})["run_dir"]) == interrupted


def test_a_comparison_does_not_reuse_a_run_with_another(settings, auto):
    found = run("LLMSeqSim", "shop", config_dict=settings)
    report = json.loads((Path(found["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    job = Job("LLMSeqSim", 2020, "LLMSeqSim", Config("LLMSeqSim", "shop", config_dict=settings), {}, {}, {})
    assert identity.changed_language_models(report["auto"], job.config) == []
    assert find_finished(job) == Path(found["run_dir"])
    auto("tiny-random-t5")
    assert identity.changed_language_models(report["auto"], job.config) == [
        "auto was tiny-random-bert and is tiny-random-t5 now"
    ]
    assert find_finished(job) is None


@pytest.mark.parametrize(
    ("found", "asked", "gradient", "expected"),
    [
        ("tiny-random-bert", "mean_no_eos", False, "mean"),
        ("tiny-random-bert", "mean", False, "mean"),
        ("tiny-random-llama", "mean", False, "last"),
        ("tiny-random-t5", "mean_no_eos", False, "mean_no_eos"),
        ("tiny-random-bert", "cls", False, "cls"),
    ],
)
def test_the_pooling_of_a_t5_goes_with_the_t5(found, asked, gradient, expected, shop, tiny):
    config = Config("LiteLLM4Rec", "shop", config_dict={**tiny, "item_pooling": asked})
    spec = LLMSpec(name="auto", preferred="google-t5/t5-small")
    resolved = replace(resolve.resolve_llm(replace(spec, name=found)), requested="auto", spec=spec)
    assert pooling_of(config, resolved, gradient) == expected
    said = [notice for notice in config.notices if "item_pooling" in notice]
    assert bool(said) is (expected != asked)
    if said:
        assert f"item_pooling={asked} is meant for a T5 and became {expected}" in said[0]
    named = replace(resolved, requested=found)
    assert pooling_of(config, named, gradient) == asked
    pipeline = replace(resolved, is_sentence_transformer=True, family="bert")
    if asked != "cls":
        assert pooling_of(config, pipeline) == "sentence"
        assert pooling_of(config, pipeline, gradient=True) == "mean"


def test_what_auto_meant_is_asked_again_with_its_own_revision(isolated, monkeypatch):
    """``llm_revision`` belongs to ``llm``; ``rec_llm: auto`` of the same run was asked for without one."""
    asked = []
    monkeypatch.setattr(identity, "_resolved", lambda spec, causal, weights: asked.append(spec.revision))
    config = Config("LLMSeqSim", "ml-100k", config_dict={"llm": "tiny-random-t5", "llm_revision": "abc"})
    entry = {"preferred": "tiny-random-llama", "causal": True, "weights": True, "name": "x", "revision": "y"}
    for revision in (None, "main"):
        assert identity.changed_language_models([{**entry, "asked_revision": revision}], config)
    assert asked == [None, "main"]
