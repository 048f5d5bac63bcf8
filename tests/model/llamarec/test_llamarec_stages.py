"""LlamaRec's two stages from one call: retrievers, resuming, what is written."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from recbole_llm.errors import CheckpointError
from recbole_llm.evaluator.evaluator import Evaluator
from recbole_llm.llm.resolve import resolve_llm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.quick_start import load_run, run
from recbole_llm.run import submodel
from recbole_llm.trainer.trainer import RunTrainer
from tests.llamarec import K, prepare


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_both_stages_from_one_call(settings, llama, tmp_path):
    result = run(
        "LlamaRec", "cycle", config_dict={**settings, "llm": llama, "retriever_epochs": 10, "eval_updates": 2}
    )
    assert [stage["stage"] for stage in result["stages"]] == ["retriever", "ranker"]
    report = json.loads((tmp_path / "saved" / result["run_dir"] / "results.json").read_text(encoding="utf-8"))
    assert report["retrieval"]["retriever_masked"]["recall@10"] > 0.5
    assert report["language_models"]["retriever"] == "LRURec"
    assert report["test_masked"] == result["test_result"]
    assert report["seconds"]["retrieve"] > 0
    # The adapter is PEFT's, the weights are what was learned here: no base weights in either.
    from peft import PeftModel

    run_dir = tmp_path / "saved" / result["run_dir"]
    adapter = json.loads((run_dir / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == llama.rpartition("/")[2]
    names = set(load_file(run_dir / "model.safetensors"))
    assert {name.partition(".")[0] for name in names} == {"retriever", "ranker"}
    assert all("lora_" in name for name in names if name.startswith("ranker"))
    assert all("lora_" in name for name in load_file(run_dir / "adapter" / "adapter_model.safetensors"))

    loaded = load_run(result["run_dir"])
    assert loaded.trainer.evaluate(loaded.test_data, load_best_model=False) == result["test_result"]
    base = LlamaForCausalLM.from_pretrained(llama)
    plain = PeftModel.from_pretrained(base, run_dir / "adapter").eval()
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, loaded.model.ranker(ids).logits)

    # The base model is named by its revision, and has to be the same again.
    assert report["language_models"]["llm_revision"] == resolve_llm(LLMSpec(llama)).revision
    report["language_models"]["llm_revision"] = "another"
    (run_dir / "results.json").write_text(json.dumps(report), encoding="utf-8")
    (run_dir / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"revision another, and .* is now at \w+"):
        load_run(result["run_dir"])


@pytest.mark.parametrize("retriever", ["SASRec", "LLMSeqSim"])
def test_another_retriever_by_name(settings, retriever):
    own = (
        {"llm": "tiny-random-bert"} if retriever == "LLMSeqSim" else {"hidden_size": 8, "inner_size": 8, "n_heads": 1}
    )
    more = {"retriever": retriever, "retriever_settings": own, "retriever_epochs": None if own.get("llm") else 1}
    more["embedding_cache_dir"] = settings["checkpoint_dir"] + "-cache"
    result = run("LlamaRec", "cycle", config_dict={**settings, **more})
    assert [stage["stage"] for stage in result["stages"]] == ["retriever", "ranker"]


def test_a_finished_run_as_retriever(settings, tmp_path):
    shared = {key: settings[key] for key in ("data_path", "checkpoint_dir", "show_progress", "use_gpu")}
    first = run("LRURec", "cycle", config_dict={**shared, "epochs": 15, "train_batch_size": 8, "learning_rate": 0.01})
    more = {key: value for key, value in settings.items() if not key.startswith("retriever")}
    result = run("LlamaRec", "cycle", config_dict={**more, "retriever": first["run_dir"]})
    assert [stage["stage"] for stage in result["stages"]] == ["ranker"]
    run_dir = tmp_path / "saved" / result["run_dir"]
    report = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    for kind, expected in (("masked", first["test_result"]), ("unmasked", first["test_result_unmasked"])):
        assert report["retrieval"][f"retriever_{kind}"] == expected
    assert all(name.startswith("ranker.") for name in load_file(run_dir / "model.safetensors"))
    again = load_run(result["run_dir"])
    assert again.trainer.evaluate(again.test_data, load_best_model=False) == result["test_result"]


def test_a_retriever_with_other_item_numbers_is_refused(settings, monkeypatch):
    shared = {key: settings[key] for key in ("data_path", "checkpoint_dir", "show_progress", "use_gpu")}
    first = run("LRURec", "cycle", config_dict={**shared, "epochs": 1})
    original = submodel.load_trained

    def renumbered(*arguments):
        model = original(*arguments)
        model.item_tokens = model.item_tokens[::-1]
        return model

    monkeypatch.setattr(submodel, "load_trained", renumbered)
    more = {key: value for key, value in settings.items() if not key.startswith("retriever")}
    with pytest.raises(CheckpointError, match="numbers its items differently"):
        prepare(more, "retriever", retriever=first["run_dir"])


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.parametrize("negatives", ["random", "retrieved"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(negatives, settings, monkeypatch, caplog):
    """Killed in the first stage, between the two, and inside an epoch of the second one."""
    settings = {**settings, "train_negatives": negatives, "n_candidates": 16 if negatives == "retrieved" else K}
    tries = {"retriever_epochs": 2, "epochs": 2, "eval_updates": 2, "train_batch_size": 16, "lora_dropout": 0.5}
    given = {**settings, **tries, "topk": [1, K], "valid_metric": f"NDCG@{K}", "save_state": True}
    whole = run("LlamaRec", "cycle", config_dict=given)
    weights = load_file(f"{whole['run_dir']}/model.safetensors")
    original = RunTrainer._save_training_state
    caplog.set_level("INFO")
    for after, place in ((1, "epoch 2 comes"), (3, "epoch 1 comes next."), (4, "epoch 1 comes next, after 2 of its")):
        saved = []

        def dying(self, *arguments, after=after, saved=saved):
            original(self, *arguments)
            saved.append(arguments)
            if len(saved) == after:
                raise Killed

        elsewhere = {**given, "checkpoint_dir": f"{settings['checkpoint_dir']}-{after}"}
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(RunTrainer, "_save_training_state", dying)
            run("LlamaRec", "cycle", config_dict=elsewhere)
        caplog.clear()
        resumed = run("LlamaRec", "cycle", config_dict={**elsewhere, "resume": True})
        assert f"Resuming {resumed['run_dir']}" in caplog.text and place in caplog.text
        assert resumed["test_result"] == whole["test_result"]
        assert resumed["stages"] == whole["stages"]
        again = load_file(f"{resumed['run_dir']}/model.safetensors")
        assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


def test_candidates_are_computed_once_per_split(settings, monkeypatch, tmp_path):
    calls = []
    original = Evaluator._collect

    def counted(self, data, scores_of, length, label, *others):
        calls.append(label) if label.startswith("Retrieve") else None
        return original(self, data, scores_of, length, label, *others)

    monkeypatch.setattr(Evaluator, "_collect", counted)
    given = {**settings, "eval_updates": 1, "train_negatives": "retriever", "negative_pool": 8}
    result = run("LlamaRec", "cycle", config_dict=given)
    assert sorted(calls) == ["Retrieve test", "Retrieve train", "Retrieve valid"]
    kept = sorted(path.name for path in (tmp_path / "saved" / result["run_dir"] / "candidates").iterdir())
    assert kept == ["test.safetensors", "train.safetensors", "valid.safetensors"]


def test_the_tiny_model_of_smoke_runs(settings, isolated):
    result = run(
        "LlamaRec", "cycle", config_dict={"data_path": settings["data_path"], "smoke": True, "use_gpu": False}
    )
    report = json.loads((isolated / result["run_dir"] / "results.json").read_text(encoding="utf-8"))
    assert report["language_models"]["llm"] == "tiny-random-llama (random)"


def test_nothing_to_train(settings):
    noted = run("LlamaRec", "cycle", config_dict={**settings, "tuning": "none"})
    report = json.loads((Path(noted["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    assert any("LlamaRec has nothing to train in stage" in notice for notice in report["notices"])
    result = run("LlamaRec", "cycle", config_dict={**settings, "tuning": "none", "epochs": 0})
    assert result["stages"][1]["updates"] == 0


def test_a_stage_with_as_many_updates_as_the_one_before_is_validated(settings):
    result = run("LlamaRec", "cycle", config_dict=settings)
    assert [stage["updates"] for stage in result["stages"]] == [2, 2]
    with open(f"{result['run_dir']}/history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["retriever", "retriever", "ranker"]
    assert all(float(row["valid_score"]) > 0 for row in rows)
