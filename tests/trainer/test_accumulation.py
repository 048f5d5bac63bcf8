"""Batches that share a step, and the loss that is written down: means over targets, not over batches."""

import copy
import csv

import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.quick_start import run
from recbole_llm.trainer.accumulation import GradientMean, LossMean, mean_of
from recbole_llm.trainer.trainer import RunTrainer
from tests.worlds import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"hidden_size": 8, "inner_size": 8, "n_heads": 1, "n_layers": 1}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
MODELS = {
    "SASRec": {**SMALL, **NO_DROPOUT},
    "BERT4Rec": {**SMALL, **NO_DROPOUT, "mask_ratio": 1.0},
    "LRURec": {"hidden_size": 8, "state_size": 8, "inner_size": 8, "n_layers": 1, "dropout": 0.0},
    "LLM2SASRec": {**SMALL, **NO_DROPOUT, "llm_init": False},
    "LightLM": {  # one template for all rows, where each would draw its own
        **{"llm": "tiny-random-t5", "dropout": 0.0, "test_template": 0, "loss_reduction": "token"},
        **{"templates": ["{user} took {history}. What comes next?"], "separators": [", "]},
    },
}


@pytest.fixture
def settings(tmp_path):
    """Histories of 3 to 14 items: batches of as many rows have very different numbers of targets."""
    histories = {f"u{u}": [f"i{(7 * u + i) % 30}" for i in range(3 + u % 12)] for u in range(36)}
    write_dataset(tmp_path / "data", "uneven", histories, {f"i{i}": f"thing {i}" for i in range(30)})
    return {
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "embedding_cache_dir": str(tmp_path / "cache"),
        "show_progress": False,
        "use_gpu": False,
        "learner": "sgd",
        "learning_rate": 0.5,
        "clip_grad_norm": None,
        "lr_schedule": "constant",
        "warmup_updates": 0,
        "weight_decay": 0.0,
        "epochs": 1,
        "worker": 0,
    }


def prepare(settings, name, **more):
    config = Config(name, "uneven", config_dict={**settings, **MODELS[name], **more})
    train, valid, _ = prepare_data(config, HistoryDataset(config))
    torch.manual_seed(0)
    return config, config.model_class(config, train.dataset), train, valid


class Batches(list):
    """Some batches as a loader."""

    step = 24

    def set_epoch(self, epoch, first_batch=0):
        pass


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), (20, 3, 1), (23, 1)])
def test_accumulated_batches_are_the_joined_batch(name, sizes, settings):
    config, model, train, _ = prepare(settings, name, train_batch_size=24)
    joined = next(iter(train))
    start = copy.deepcopy(model.state_dict())
    weights, losses = [], []
    for parts in ((24,), sizes):
        model.load_state_dict(start)
        config["accumulate_grad_batches"] = len(parts)
        trainer = RunTrainer(config, model)
        bounds = torch.tensor([0, *parts]).cumsum(0).tolist()
        batches = Batches(joined[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True))
        losses.append(trainer._train_epoch(batches, 0))
        assert trainer.updates == 1
        weights.append(torch.cat([(p - start[n]).flatten() for n, p in model.named_parameters() if p.requires_grad]))
    assert weights[0].abs().max() > 1e-4
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("name", ["SASRec", "LRURec"])
@pytest.mark.parametrize("eval_updates", [None, 1])
def test_the_loss_that_is_written_down_is_a_mean_over_targets(name, eval_updates, settings):
    """Of one model that does not move: whatever the batches, and from their first to their last."""
    written = []
    for size in (7, 1000):
        more = {"learning_rate": 1e-20, "train_batch_size": size, "shuffle": False, "eval_updates": eval_updates}
        result = run(name, "uneven", config_dict={**settings, **MODELS[name], **more})
        with open(f"{result['run_dir']}/history.csv", encoding="utf-8") as file:
            written.append([float(row["train_loss"]) for row in csv.DictReader(file)])
    (whole,) = {round(loss, 4) for loss in written[1]}
    assert written[0][-1] == pytest.approx(whole, rel=1e-3)
    assert all(loss == pytest.approx(whole, rel=0.1) for loss in written[0])  # not a sum that grows


def test_the_log_prints_the_mean(settings, caplog):
    config, model, train, valid = prepare(settings, "LRURec", train_batch_size=7, learning_rate=1e-20)
    trainer = RunTrainer(config, model)
    with caplog.at_level("INFO"):
        trainer.fit(train, valid, saved=False)
    assert f"{trainer.curve[0]['train_loss']:.4f}" in caplog.text
    assert 2 < trainer.curve[0]["train_loss"] < 5  # log(30) is 3.4


def test_parts_of_a_loss_keep_apart():
    mean = LossMean(torch.device("cpu"))
    mean.add(torch.tensor([1.0, 10.0]), 3)
    mean.add(torch.tensor([5.0, 2.0]), torch.tensor(1))
    assert mean.sums() == [8, 32, 4] and mean_of(mean.sums()) == (2, 8)
    again = LossMean(torch.device("cpu"), mean.sums())
    again.add(torch.tensor([2.0, 8.0]), 4)
    assert mean_of(again.sums()) == (2, 8)
    assert mean_of([]) == (0,) and mean_of([0.0, 0.0]) == (0,)


def test_a_step_without_any_target_has_no_gradient():
    parameter = torch.nn.Parameter(torch.ones(3))
    gradients = GradientMean(2, rows=4)
    for weight in (0, 0):
        (parameter.sum() * gradients.share(weight, torch.device("cpu"))).backward()
    gradients.finish([parameter])
    assert parameter.grad.tolist() == [0, 0, 0]
