import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llm.errors import CheckpointError, ConfigError, DataError, ModelNotFoundError
from recbole_llm.quick_start import load_run, run
from recbole_llm.trainer.trainer import RunTrainer


class LastItem(SequentialRecommender):
    """A user's own model: a bilinear score of the last item."""

    input_type = InputType.POINTWISE
    defaults = {"width": 4}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.table = torch.nn.Embedding(self.n_items, config["width"])

    def _scores(self, interaction):
        last = self.gather_indexes(self.table(interaction[self.ITEM_SEQ]), interaction[self.ITEM_SEQ_LEN] - 1)
        return last @ self.table.weight.T

    def calculate_loss(self, interaction):
        return torch.nn.functional.cross_entropy(self._scores(interaction), interaction[self.POS_ITEM_ID])

    def predict(self, interaction):
        return self._scores(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    def full_sort_predict(self, interaction):
        return self._scores(interaction)


def interrupt_in_epoch(monkeypatch, number):
    """Make training stop as by Ctrl-C while epoch ``number`` runs."""
    original = RunTrainer._train_epoch

    def train(self, data, epoch_idx, *args, **kwargs):
        if epoch_idx == number:
            raise KeyboardInterrupt
        return original(self, data, epoch_idx, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "_train_epoch", train)
    return lambda: monkeypatch.setattr(RunTrainer, "_train_epoch", original)


SMOKE = {
    "smoke": True,
    "smoke_users": 8,
    "smoke_interactions": 8,
    "MAX_ITEM_LIST_LENGTH": 5,
    "show_progress": False,
    "use_gpu": False,
}


@pytest.mark.parametrize("model", ["LiteLLM4Rec", "SASRec", "BERT4Rec", "GRU4Rec", "FDSA", "S3Rec"])
def test_smoke(model, isolated):
    result = run(model, "ml-100k", config_dict=SMOKE)
    assert set(result) >= {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"}
    assert set(result["test_result"]) == {f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (10, 20)}
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    assert report["smoke"] is True
    assert report["dataset"]["users"] == 8
    assert report["dataset"]["train_rows"] == report["dataset"]["interactions"] - 3 * 8
    assert report["notices"] == []
    loaded = load_run(result["run_dir"])
    assert loaded.trainer.evaluate(loaded.test_data) == result["test_result"]
    assert not torch.is_anomaly_enabled()
    assert {path.name for path in isolated.iterdir()} <= {"saved", "xdg", "hf"}


@pytest.mark.parametrize("model", ["SASRec", "S3Rec"])
def test_a_run_that_is_not_saved_writes_nothing(model, shop, tiny, isolated, monkeypatch, tmp_path_factory):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    settings = {**tiny, "smoke": True, "item_attribute": "kind"} if model == "S3Rec" else {**tiny, "smoke": True}
    result = run(model, "shop", config_dict=settings, saved=False)
    assert result["run_dir"] is None
    assert result["test_result"]
    assert os.listdir(isolated) == ["dataset"]
    assert list(temporary.iterdir()) == []


def test_same_seed_same_numbers_other_seed_other_weights(shop, tiny):
    first, second = (run("SASRec", "shop", config_dict=tiny) for _ in range(2))
    assert first["test_result"] == second["test_result"]
    other = run("SASRec", "shop", config_dict={**tiny, "seed": 1})
    weights = [(Path(result["run_dir"]) / "model.safetensors").read_bytes() for result in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]


def test_mask_history_steers_and_both_are_given(shop, tiny):
    masked = run("SASRec", "shop", config_dict=tiny)
    unmasked = run("SASRec", "shop", config_dict={**tiny, "mask_history": False, "epochs": 0})
    masked_too = run("SASRec", "shop", config_dict={**tiny, "epochs": 0})
    assert masked["test_result"] != masked["test_result_unmasked"]
    assert unmasked["test_result"] == masked_too["test_result_unmasked"]


def test_no_training_evaluates_the_initial_weights(shop, tiny):
    result = run("SASRec", "shop", config_dict={**tiny, "epochs": 0})
    text = (Path(result["run_dir"]) / "results.json").read_text(encoding="utf-8")
    report = json.loads(text, parse_constant=pytest.fail)
    assert report["best_valid_score"] == report["best_valid_result"]["ndcg@5"]
    assert report["updates"] == 0


def test_a_smoke_run_trains_nothing_where_there_is_nothing_to_train(shop, tiny):
    settings = {key: value for key, value in tiny.items() if key != "epochs"}
    result = run("LLMSeqSim", "shop", config_dict={**settings, "smoke": True})
    assert result["stages"][0]["updates"] == 0 and result["best_valid_score"] is not None


def test_the_users_own_class(shop, tiny, monkeypatch):
    result = run(LastItem, "shop", config_dict={**tiny, "epochs": 3, "embedding_size": 6})
    assert Path(result["run_dir"]).name.startswith("LastItem-shop-")
    for model in (LastItem, None):  # the run directory names the class
        loaded = load_run(result["run_dir"], model=model)
        assert loaded.trainer.evaluate(loaded.test_data) == result["test_result"]


def test_a_class_that_only_its_own_process_knows(shop, tiny):
    class Local(LastItem):
        pass

    result = run(Local, "shop", config_dict=tiny)
    loaded = load_run(result["run_dir"], model=Local)
    assert loaded.trainer.evaluate(loaded.test_data) == result["test_result"]
    with pytest.raises(ConfigError, match="model='Local' is not known.*package.module:Class"):
        load_run(result["run_dir"])


# ---- errors


def test_missing_dataset_leaves_no_run_directory(isolated, tiny):
    with pytest.raises(DataError, match="nosuch"):
        run("SASRec", "nosuch", config_dict=tiny)
    assert list((isolated / "saved").iterdir()) == []


def test_a_language_model_that_cannot_be_had_stops_before_the_data_is_read(isolated, tiny, monkeypatch):
    monkeypatch.setattr("recbole_llm.run.experiment.HistoryDataset", lambda _: pytest.fail("the data was read"))
    for key in ("llm", "rec_llm"):
        with pytest.raises(ModelNotFoundError, match=r"google-t5/t5-small.*\n.*\n +1\. .*\n +2\. .*\n +3\. "):
            run("LiteLLM4Rec", "ml-100k", config_dict={**tiny, "smoke": True, key: "google-t5/t5-small"})
    assert list((isolated / "saved").iterdir()) == []


def test_what_a_stock_model_says_against_its_settings(shop, tiny, isolated):
    with pytest.raises(ConfigError, match=r"SASRec cannot be built with these settings \(ValueError: The hidden size"):
        run("SASRec", "shop", config_dict={**tiny, "n_heads": 3})
    assert list((isolated / "saved").iterdir()) == []


def test_init_from(shop, tiny, isolated):
    first = run("SASRec", "shop", config_dict=tiny)
    second = run("SASRec", "shop", config_dict={**tiny, "epochs": 0, "init_from": first["run_dir"]})
    assert second["test_result"] == first["test_result"]
    with pytest.raises(CheckpointError, match="init_from='nowhere' is not a run directory"):
        run("SASRec", "shop", config_dict={**tiny, "init_from": "nowhere"})


# ---- interruption


def test_interrupted_and_resumed_equals_uninterrupted(shop, tiny, monkeypatch, caplog):
    settings = {**tiny, "epochs": 4, "stopping_step": 10}
    whole = run("SASRec", "shop", config_dict=settings)
    undo = interrupt_in_epoch(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run("SASRec", "shop", config_dict=settings)
    undo()
    (hint,) = [record.message for record in caplog.records if record.message.startswith("Interrupted")]
    run_dir = re.fullmatch(r"Interrupted\. Continue with: recbole-llm --resume=(\S+)", hint)[1]
    assert not (Path(run_dir) / "results.json").exists()
    with pytest.raises(CheckpointError, match="is not finished"):
        load_run(run_dir)

    resumed = run(config_file_list=[Path(run_dir) / "config.yaml"], config_dict={"resume": run_dir})
    assert resumed["run_dir"] == run_dir
    for key in ("test_result", "test_result_unmasked", "best_valid_score", "stages"):
        assert resumed[key] == whole[key]
    weights = [(Path(result["run_dir"]) / "model.safetensors").read_bytes() for result in (whole, resumed)]
    assert weights[0] == weights[1]


def test_resume_true_takes_the_newest_unfinished_run_with_these_settings(shop, tiny, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    settings = {**tiny, "epochs": 2}
    undo = interrupt_in_epoch(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run("SASRec", "shop", config_dict=settings)
    undo()
    (interrupted,) = Path("saved").iterdir()
    other = run("SASRec", "shop", config_dict={**settings, "seed": 5, "resume": True})
    assert Path(other["run_dir"]) != interrupted
    assert "There is no unfinished run with these settings" in caplog.text
    assert f"{interrupted} is unfinished, but differs in seed." in caplog.text
    resumed = run("SASRec", "shop", config_dict={**settings, "resume": True})
    assert Path(resumed["run_dir"]) == interrupted
    fresh = run("SASRec", "shop", config_dict={**settings, "resume": True})  # finished now
    assert Path(fresh["run_dir"]) != interrupted


def test_resume_refuses(shop, tiny, monkeypatch, isolated):
    settings = {**tiny, "epochs": 2}
    with pytest.raises(CheckpointError, match="nowhere is not a run directory"):
        run("SASRec", "shop", config_dict={**settings, "resume": "nowhere"})
    finished = run("SASRec", "shop", config_dict=settings)["run_dir"]
    with pytest.raises(CheckpointError, match="is finished; its results are in"):
        run("SASRec", "shop", config_dict={**settings, "resume": finished})
    undo = interrupt_in_epoch(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run("SASRec", "shop", config_dict={**settings, "checkpoint_dir": "here"})
    undo()
    (unfinished,) = Path("here").iterdir()
    with pytest.raises(CheckpointError, match=r"was started with other settings \(hidden_size, seed\)"):
        run("SASRec", "shop", config_dict={**settings, "resume": str(unfinished), "seed": 3, "hidden_size": 8})


def test_interrupted_in_the_first_epoch(shop, tiny, monkeypatch, caplog, isolated):
    interrupt_in_epoch(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        run("SASRec", "shop", config_dict=tiny)
    assert "nothing to resume" in caplog.text


def test_s3rec_resumes_after_its_pretraining(shop, tiny, monkeypatch):
    settings = {**tiny, "item_attribute": "kind", "pretrain_epochs": 1, "epochs": 3}
    whole = run("S3Rec", "shop", config_dict=settings)
    undo = interrupt_in_epoch(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run("S3Rec", "shop", config_dict=settings)
    undo()
    resumed = run("S3Rec", "shop", config_dict={**settings, "resume": True})
    assert resumed["test_result"] == whole["test_result"]
    weights = [(Path(result["run_dir"]) / "model.safetensors").read_bytes() for result in (whole, resumed)]
    assert weights[0] == weights[1]


def test_out_of_memory_names_the_remedies(monkeypatch, tmp_path):
    from recbole_llm.quick_start import OutOfMemoryError
    from recbole_llm.trainer.trainer import RunTrainer
    from tests.worlds import write_cycle

    write_cycle(tmp_path / "data")

    def full(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(RunTrainer, "_train_epoch", full)
    settings = {"data_path": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / "saved"), "use_gpu": False}
    with pytest.raises(OutOfMemoryError, match="train_batch_size=2048"):
        run("SASRec", "cycle", config_dict={**settings, "show_progress": False})


def test_wandb_that_is_not_installed_is_named(monkeypatch, tmp_path):
    import sys

    from recbole_llm.errors import MissingExtraError
    from tests.worlds import write_cycle

    write_cycle(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = {"data_path": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / "saved"), "use_gpu": False}
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        run("SASRec", "cycle", config_dict={**settings, "log_wandb": True})
