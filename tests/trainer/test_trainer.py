"""RunTrainer: schedules, accumulation, precision, stages, resuming, what it reports."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.quick_start import run
from recbole_llm.trainer.accumulation import DivergedError
from recbole_llm.trainer.trainer import RunTrainer
from tests.worlds import write_cycle

SMALL = {"hidden_size": 8, "inner_size": 8, "n_heads": 1, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 8}


@pytest.fixture
def settings(tmp_path):
    write_cycle(tmp_path / "data")
    return {
        "llm": "tiny-random-t5",
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "embedding_cache_dir": str(tmp_path / "cache"),
        "train_batch_size": 64,
        "show_progress": False,
        "use_gpu": False,
        "epochs": 2,
    }


def prepare(settings, model="SASRec", **more):
    config = Config(model, "cycle", config_dict={**settings, **(SMALL if model == "SASRec" else {}), **more})
    train, valid, test = prepare_data(config, HistoryDataset(config))
    torch.manual_seed(0)
    return config, config.model_class(config, train.dataset), train, valid, test


def test_accumulating_batches_equals_one_large_batch(settings):
    weights = []
    for size, accumulate in ((32, 1), (8, 4)):
        config, model, train, *_ = prepare(
            settings,
            train_batch_size=size,
            accumulate_grad_batches=accumulate,
            hidden_dropout_prob=0.0,
            attn_dropout_prob=0.0,
            shuffle=False,
            epochs=1,
            learner="sgd",
            learning_rate=0.1,
        )
        trainer = RunTrainer(config, model)
        trainer.steps.total = 100
        # Whole groups only: with a shorter last batch the two means weigh rows differently.
        rows = (len(train.rows) // 32) * 32
        train.rows._position, train.rows._length = train.rows._position[:rows], train.rows._length[:rows]
        train.sample_size = rows
        trainer._train_epoch(train, 0)
        assert trainer.updates == rows // 32
        weights.append(model.item_embedding.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_follows_warm_up_and_decay(settings):
    config, model, train, valid, _ = prepare(
        settings, lr_schedule="linear", warmup_ratio=0.5, learning_rate=0.01, epochs=4, train_batch_size=1024
    )
    trainer = RunTrainer(config, model)
    trainer.fit(train, valid, saved=False)
    assert [row["learning_rate"] for row in trainer.curve] == pytest.approx([0.005, 0.01, 0.01, 0.005])


def test_warm_up_as_a_number_of_updates(settings):
    config, model, train, valid, _ = prepare(
        settings, lr_schedule="linear", warmup_updates=1, learning_rate=0.01, train_batch_size=1024
    )
    trainer = RunTrainer(config, model)
    trainer.fit(train, valid, saved=False)
    assert [row["learning_rate"] for row in trainer.curve] == pytest.approx([0.01, 0.01])
    assert config.notices == []


def test_a_warm_up_as_long_as_the_training_is_said(settings):
    """On d0eece4 the learning rate just never arrived."""
    config, model, train, valid, _ = prepare(settings, warmup_updates=100, train_batch_size=1024)
    RunTrainer(config, model).fit(train, valid, saved=False)
    (notice,) = config.notices
    assert "warm-up of 100 updates" in notice and "the training of 2 or longer" in notice


def test_validation_inside_an_epoch(settings):
    config, model, train, valid, _ = prepare(settings, eval_updates=2, epochs=2)
    batches = len(train)
    assert batches > 4
    seen = []
    trainer = RunTrainer(config, model)
    trainer.fit(train, valid, saved=False, callback_fn=lambda epoch, score: seen.append(trainer.updates))
    expected = sorted({*range(2, 2 * batches + 1, 2), batches, 2 * batches})  # and at the end of each epoch, once
    assert seen == expected
    rows = [row["updates"] for row in trainer.curve if "valid_score" in row]
    assert rows == expected
    # The loss of an epoch is that of all its batches.
    whole = [row["train_loss"] for row in trainer.curve if "train_seconds" in row]
    config, model, train, valid, _ = prepare(settings, epochs=2)
    trainer = RunTrainer(config, model)
    trainer.fit(train, valid, saved=False)
    assert [row["train_loss"] for row in trainer.curve] == whole


def test_patience_ends_training_inside_an_epoch(settings, monkeypatch):
    config, model, train, valid, _ = prepare(settings, eval_updates=1, epochs=3, stopping_step=1)
    trainer = RunTrainer(config, model)
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(trainer, "_valid_epoch", lambda *_, **__: (next(scores), {}))
    trainer.fit(train, valid, saved=False)
    assert trainer.updates == 2 < len(train)
    assert trainer.best_valid_score == 0.5 and trainer.curve[-1]["updates"] == 2


def test_gradients_are_unscaled_before_they_are_clipped(settings, monkeypatch):
    order = []
    config, model, train, *_ = prepare(settings, clip_grad_norm={"max_norm": 1.0}, epochs=1)
    trainer = RunTrainer(config, model)
    monkeypatch.setattr(trainer.steps.scaler, "unscale_", lambda optimizer: order.append("unscale"))
    monkeypatch.setattr(
        "recbole_llm.trainer.steps.clip_gradients", lambda parameters, max_norm: order.append(f"clip {max_norm}")
    )
    monkeypatch.setattr(trainer.steps.scaler, "step", lambda optimizer: order.append("step"))
    trainer._train_epoch(train, 0)
    assert order[:3] == ["unscale", "clip 1.0", "step"]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_is_for_training_and_evaluation_in_full_precision(settings, amp, monkeypatch):
    config, model, train, valid, _ = prepare(settings, amp=amp, epochs=1)
    trainer = RunTrainer(config, model)
    assert trainer.steps.scaler.is_enabled() is (amp == "fp16")
    seen = set()
    original = model.forward

    def forward(*arguments):
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return original(*arguments)

    monkeypatch.setattr(model, "forward", forward)
    trainer.fit(train, valid, saved=False)
    assert seen == {torch.bfloat16 if amp == "bf16" else torch.float16, None}
    assert trainer.evaluation.ranks.tied < 0.01


def test_training_reads_nothing_from_the_device_before_the_epoch_ends(settings, monkeypatch):
    config, model, train, *_ = prepare(settings, epochs=1)
    trainer = RunTrainer(config, model)
    reads = []
    for name in ("item", "tolist"):
        original = getattr(torch.Tensor, name)

        def counted(tensor, *arguments, _original=original, _name=name):
            if tensor.requires_grad or tensor.is_floating_point():
                reads.append(_name)
            return _original(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    trainer._train_epoch(train, 0)
    assert reads == ["tolist"]


def test_a_diverged_loss_is_an_error_with_remedies(settings, monkeypatch):
    config, model, train, *_ = prepare(settings)
    monkeypatch.setattr(model, "calculate_loss", lambda batch: model.item_embedding.weight.sum() * float("nan"))
    with pytest.raises(DivergedError, match="learning_rate"):
        RunTrainer(config, model)._train_epoch(train, 0)


def test_early_stopping_compares_unrounded_scores(settings, monkeypatch):
    config, model, train, valid, _ = prepare(settings, epochs=20, stopping_step=2, metric_decimal_place=1)
    trainer = RunTrainer(config, model)
    scores = iter([0.11, 0.12, 0.119, 0.118, 0.117, 0.2])
    monkeypatch.setattr(trainer, "_valid_epoch", lambda *_, **__: (next(scores), {"ndcg@10": 0.0}))
    trainer.fit(train, valid, saved=False)
    assert trainer.best_epoch == 2 and len(trainer.curve) == 4


def test_the_best_weights_are_evaluated_not_the_last(settings, monkeypatch):
    config, model, train, valid, test = prepare(settings, epochs=3)
    trainer = RunTrainer(config, model)
    scores = iter([0.1, 0.9, 0.2])
    kept = []

    def fake(*_, **__):
        kept.append(model.item_embedding.weight.detach().clone())
        return next(scores), {"ndcg@10": 0.0}

    monkeypatch.setattr(trainer, "_valid_epoch", fake)
    trainer.fit(train, valid, saved=False)
    trainer.evaluate(test)
    assert torch.equal(model.item_embedding.weight, kept[1])


def test_masked_and_unmasked_metrics_come_from_one_pass(settings):
    for masked in (True, False):
        config, model, train, valid, test = prepare(settings, mask_history=masked, epochs=1)
        trainer = RunTrainer(config, model)
        result = trainer.evaluate(test, load_best_model=False)
        assert (trainer.evaluation.ranks.masked <= trainer.evaluation.ranks.unmasked).all()
        assert result == (trainer.evaluation.masked if masked else trainer.evaluation.unmasked)
    assert (trainer.evaluation.ranks.masked < trainer.evaluation.ranks.unmasked).any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"learner": "adamm"}, "adam"),
        ({"lr_schedule": "linaer"}, "linear"),
        ({"decay_groups": "some"}, "no_bias_norm"),
        ({"amp": "int8"}, "bf16"),
        ({"accumulate_grad_batches": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_named(settings, wrong, words):
    with pytest.raises(ConfigError, match=words):
        config, model, *_ = prepare(settings, **wrong)
        RunTrainer(config, model)


class Stop(Exception):
    """Stands for a killed process."""


@pytest.mark.parametrize(
    ("model", "more", "stop_at"),
    [
        ("SASRec", SMALL, 3),
        ("BERT4Rec", {**SMALL, "learner": "adamw"}, 2),  # Python's and NumPy's random numbers
        ("LiteLLM4Rec", {"lr_schedule": "linear", "warmup_ratio": 0.2, "amp": "bf16"}, 2),
        ("LiteLLM4Rec", {"item_llm_mode": "two_stage"}, 5),  # in the first epoch of the second stage
        ("LiteLLM4Rec", {"item_llm_mode": "two_stage"}, 6),
        ("LiteLLM4Rec", {"item_llm_mode": "joint", "learning_rate": 0.01}, 3),
        ("GRU4Rec", {"loss_type": "BPR", "worker": 0}, 3),  # negatives of RecBole's sampler
        ("LRURec", {"loss": "sampled_softmax", "num_negatives": 5, "negatives": "per_target"}, 3),  # and of the loss
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(settings, model, more, stop_at, monkeypatch):
    settings = {**settings, "epochs": 4, **more}
    whole = run(model, "cycle", config_dict=settings)

    calls = []
    original = RunTrainer._train_epoch

    def interrupted(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) == stop_at:
            raise Stop
        return original(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "_train_epoch", interrupted)
        with pytest.raises(Stop):
            run(model, "cycle", config_dict={**settings, "checkpoint_dir": settings["checkpoint_dir"] + "2"})
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - RecBole draws from it
    epochs = []
    monkeypatch.setattr(RunTrainer, "_train_epoch", lambda self, *a, **k: epochs.append(1) or original(self, *a, **k))
    again = run(
        model, "cycle", config_dict={**settings, "checkpoint_dir": settings["checkpoint_dir"] + "2", "resume": True}
    )
    assert len(list(Path(settings["checkpoint_dir"] + "2").iterdir())) == 1
    curve_lines = (Path(whole["run_dir"]) / "history.csv").read_text().splitlines()
    assert len(epochs) == len(curve_lines) - 1 - (stop_at - 1)
    assert again["test_result"] == whole["test_result"]
    assert again["test_result_unmasked"] == whole["test_result_unmasked"]
    assert again["stages"] == whole["stages"]
    curves = []
    for result in (whole, again):
        with open(Path(result["run_dir"]) / "history.csv", newline="") as file:
            curves.append([{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)])
    assert curves[0] == curves[1]
    weights = [(Path(result["run_dir"]) / "model.safetensors").read_bytes() for result in (whole, again)]
    assert weights[0] == weights[1]


def test_s3rec_runs_both_stages_and_reports_the_time_of_each(settings):
    result = run(
        "S3Rec",
        "cycle",
        config_dict={
            **settings,
            **SMALL,
            "item_attribute": "title",
            "pretrain_epochs": 1,
            "epochs": 1,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        },
    )
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text())
    assert report["seconds"]["pretrain"] > 0
    assert (Path(result["run_dir"]) / "pretrained.pth").is_file()


def test_equal_scores_end_training_and_keep_the_first_weights(settings, monkeypatch):
    config, model, train, valid, _ = prepare(settings, epochs=20, stopping_step=3)
    trainer = RunTrainer(config, model)
    kept = []

    def same(*_, **__):
        kept.append(model.item_embedding.weight.detach().clone())
        return 0.5, {"ndcg@10": 0.5}

    monkeypatch.setattr(trainer, "_valid_epoch", same)
    trainer.fit(train, valid, saved=False)
    assert len(trainer.curve) == 1 + 3 and trainer.best_epoch == 1
    trainer.best_weights.restore()
    assert torch.equal(model.item_embedding.weight, kept[0]) and not torch.equal(kept[0], kept[-1])


def test_a_run_that_had_stopped_does_not_go_on(settings, monkeypatch):
    given = {**settings, **SMALL, "epochs": 9, "stopping_step": 1}
    scores = iter([0.5, 0.4])
    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "_valid_epoch", lambda *_, **__: (next(scores), {"ndcg@10": 0.0}))
        patch.setattr(RunTrainer, "evaluate", lambda *_, **__: 1 / 0)  # dies before the test
        with pytest.raises(ZeroDivisionError):
            run("SASRec", "cycle", config_dict=given)
    (run_dir,) = Path(settings["checkpoint_dir"]).iterdir()
    epochs = []
    monkeypatch.setattr(RunTrainer, "_train_epoch", lambda *a, **k: epochs.append(1))
    run("SASRec", "cycle", config_dict={**given, "resume": str(run_dir)})
    assert not epochs and json.loads((run_dir / "results.json").read_text())["stages"][0]["best_epoch"] == 1


def test_an_evaluation_cannot_be_changed_and_the_model_stays_the_trainer_s(settings):
    config, model, train, _, test = prepare(settings, "ScoreEnsemble", members=["LLMSeqSim", "MostPopular"])
    trainer = RunTrainer(config, model, train_counts=train.dataset.train_counts)
    trainer.evaluate(test, load_best_model=False)
    before = trainer.evaluation
    members = trainer.evaluator.evaluate_members(model.members, test)
    assert trainer.model is model and trainer.evaluation is before
    assert [member["member"] for member in members] == ["LLMSeqSim", "MostPopular"]
    assert before.metrics == (before.masked if config["mask_history"] else before.unmasked)
    with pytest.raises(AttributeError):
        before.masked = {}
