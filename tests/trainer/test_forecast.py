"""The forecast of a language model that reads prompts: its numbers are those of the work, and nothing changes."""

import re

import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.run.submodel import build
from recbole_llm.trainer import forecast as module
from recbole_llm.trainer.forecast import forecast
from recbole_llm.trainer.trainer import RunTrainer
from tests.toy_llms import save_llama
from tests.worlds import write_cycle

SETTINGS = {
    "LlamaRec": {"n_candidates": 6, "retriever": "LRURec", "calibration": "content_free", "lora_dropout": 0.5},
    "LLMSeqPrompt": {"llm": "tiny-random-t5", "list_length": 5, "n_samples": 2, "max_new_tokens": 6},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llm") / "small", "llama3")


@pytest.fixture
def trainer_of(tmp_path, small):
    write_cycle(tmp_path / "data", users=12, items=20, length=8)

    def make(name, **more):
        key = "llm" if name == "LlamaRec" else "rec_llm"
        shared = {"data_path": str(tmp_path / "data"), "use_gpu": False, "show_progress": False, "max_history": 3}
        given = {**shared, "embedding_cache_dir": str(tmp_path), key: small, f"{key}_dtype": "float32", "epochs": 2}
        config = Config(name, "cycle", config_dict={**given, "train_batch_size": 4, **SETTINGS.get(name, {}), **more})
        train, valid, _ = prepare_data(config, HistoryDataset(config))
        torch.manual_seed(0)
        model = build(config, train.dataset)
        trainer = RunTrainer(config, model, None, train.dataset.train_counts, finished=name == "LlamaRec")
        if name == "LlamaRec":
            model.start_stage("ranker")
            trainer = RunTrainer(config, model, None, train.dataset.train_counts, finished=True)
        return trainer, train, valid

    return make


@pytest.mark.parametrize("name", ["LlamaRec", "LLMSeqPrompt"])
def test_counts_what_will_be_read(name, trainer_of, monkeypatch):
    trainer, train, valid = trainer_of(name)
    monkeypatch.setattr(module, "_seconds", lambda call, device: 60.0)
    monkeypatch.setattr(module, "COMPOSED", 10_000)
    line = forecast(trainer.steps, trainer.evaluator, train, valid)
    rows, mean, longest, count, epoch = re.match(
        r"Forecast: ([\d,]+) training prompts of about (\d+) tokens \(up to (\d+) of (\d+)\), ([\d.]+) million", line
    ).groups()
    model = trainer.model
    train.set_epoch(0)
    before = model.tokens_read
    lengths = torch.cat([model.training_tokens(batch)[0] for batch in train])
    for batch in train:
        model.calculate_loss(batch)
    assert int(rows) == int(count) == len(lengths) == train.sample_size
    assert float(mean) == pytest.approx(float(lengths.float().mean()), rel=0.05)
    assert int(longest) >= lengths.max() or name == "LlamaRec"  # draws of candidates differ
    assert float(epoch) == pytest.approx(float(lengths.sum()) / 1e6, abs=0.01)
    # What the model reads, but for the first of an answer of two tokens.
    assert abs(model.tokens_read - before - int(lengths.sum())) <= len(lengths)
    assert f"to rank {len(valid.dataset):,} users" in line and "GiB for weights and activations" in line


@pytest.mark.parametrize("name", ["LlamaRec", "LLMSeqPrompt"])
def test_changes_nothing(name, trainer_of):
    trainer, train, valid = trainer_of(name)
    model = trainer.model.train()
    weights = {key: value.clone() for key, value in model.state_dict().items() if key != "reader.bias"}
    random, epoch = torch.get_rng_state(), train.epoch
    assert forecast(trainer.steps, trainer.evaluator, train, valid)
    assert torch.equal(torch.get_rng_state(), random) and train.epoch == epoch and model.training
    assert model.tokens_read == 0 and not any(model.evaluation_counts().values())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items() if key in weights)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_says_what_there_is(trainer_of):
    trainer, train, valid = trainer_of("LlamaRec", epochs=0)
    line = forecast(trainer.steps, trainer.evaluator, train, valid)
    assert re.fullmatch(r"Forecast: [\d.]+ (s|min|h) to rank 12 users", line)
    assert forecast(trainer.steps, trainer.evaluator, train, None) is None
    trainer, train, valid = trainer_of("LlamaRec")
    trainer.model.reads_prompts = False
    assert forecast(trainer.steps, trainer.evaluator, train, valid) is None


def test_users_that_are_left_to_the_retriever_cost_nothing(trainer_of):
    trainer, train, valid = trainer_of("LlamaRec", epochs=0, skip_users_without_target="valid")
    line = forecast(trainer.steps, trainer.evaluator, train, valid)
    trainer.evaluator.evaluate(trainer.model, valid)
    ranked = int((valid.retrieved > 0).any(1).sum())
    assert 0 < ranked < len(valid.dataset) and f"to rank {ranked} users" in line
