"""Adam over rows: Adam's numbers where every batch reads a row, nothing where none does, and a run around it."""

import copy

import pytest
import torch
from torch import nn

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.layer.gathering import gather_rows
from recbole_llm.layer.item_loss import ItemLoss, distinct_items
from recbole_llm.quick_start import run
from recbole_llm.trainer.gradients import clip_gradients, gradient_values
from recbole_llm.trainer.optimizer import LazyAdam, LazyAdamW
from recbole_llm.trainer.trainer import RunTrainer
from tests.worlds import write_cycle

pytestmark = pytest.mark.usefixtures("one_thread")
PAIRS = [(LazyAdam, torch.optim.Adam), (LazyAdamW, torch.optim.AdamW)]


def table_and_head():
    torch.manual_seed(3)
    return nn.Parameter(torch.randn(40, 6)), nn.Parameter(torch.randn(6))


def backward(table, head, ids, sparse):
    (gather_rows(table, ids, sparse) @ head).square().sum().backward()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("lazy", "dense"), PAIRS)
def test_rows_that_every_batch_reads_are_trained_as_by_adam(lazy, dense, decay):
    results = []
    for kind, sparse in ((lazy, True), (dense, False)):
        parameters = table_and_head()
        optimizer = kind(parameters, lr=0.05, weight_decay=decay, fused=True)
        for _ in range(7):
            backward(*parameters, torch.tensor([3, 8, 3, 21]), sparse)
            assert parameters[0].grad.is_sparse == sparse
            optimizer.step()
            optimizer.zero_grad()
        results.append(parameters)
    (table, head), (same, same_head) = results
    torch.testing.assert_close(table[[3, 8, 21]], same[[3, 8, 21]])
    torch.testing.assert_close(head, same_head)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("lazy", [LazyAdam, LazyAdamW])
def test_a_row_that_a_batch_does_not_read_waits(lazy, decay):
    table, head = table_and_head()
    optimizer = lazy([table, head], lr=0.05, weight_decay=decay)
    backward(table, head, torch.tensor([1, 2]), True)
    optimizer.step()
    optimizer.zero_grad()
    before = {name: value.clone() for name, value in {"w": table.data, **optimizer.state[table]}.items()}
    backward(table, head, torch.tensor([2, 5]), True)
    optimizer.step()
    after = {"w": table.data, **optimizer.state[table]}
    others = [row for row in range(40) if row not in (2, 5)]
    for name in ("w", "exp_avg", "exp_avg_sq"):
        assert torch.equal(after[name][others], before[name][others]), name
        assert not torch.equal(after[name][2], before[name][2]), name
    assert float(after["step"]) == 2


def test_it_is_torchs_sparse_adam():
    results = []
    for kind in (LazyAdam, torch.optim.SparseAdam):
        table, head = table_and_head()
        optimizer = kind([table], lr=0.05)
        for step in range(9):
            backward(table, head.detach(), torch.tensor([step, 2 * step, 7]), True)
            optimizer.step()
            optimizer.zero_grad()
        results.append(table)
    torch.testing.assert_close(*results)


def test_clipping_is_that_of_the_same_dense_gradients():
    clipped = []
    for sparse in (True, False):
        table, head = table_and_head()
        for ids in ([1, 2, 2], [2, 9, 4]):  # two batches of a step
            backward(table, head, torch.tensor(ids), sparse)
        clip_gradients([table, head], max_norm=0.5)
        clipped.append((table.grad.to_dense(), head.grad))
    torch.testing.assert_close(*clipped)
    norm = torch.cat([part.flatten() for part in clipped[0]]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-5)


def test_values_are_each_row_once_and_the_gradients_own():
    table, head = table_and_head()
    backward(table, head, torch.tensor([4, 4, 6]), True)
    gradient_values(table).zero_()
    assert table.grad.indices().tolist() == [[4, 6]]
    assert not table.grad.to_dense().any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "given",
    [
        {"loss": "sampled_softmax"},
        {"loss": "sampled_softmax", "negatives": "per_target"},
        {"loss": "sampled_softmax", "negative_distribution": "in_batch", "target_counts": range(300)},
        {"loss": "gbce"},
    ],
)
def test_row_sparse_gradients_of_the_losses_are_the_dense_ones(given, bias):
    torch.manual_seed(0)
    hidden, table = torch.randn(9, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    biases = torch.randn(300, requires_grad=True) if bias else None
    target = torch.randint(1, 300, (9,))
    found = []
    for sparse in (True, False):
        torch.manual_seed(1)
        loss = ItemLoss(300, num_negatives=5, sparse=sparse, **given)(hidden, table, target, biases)
        tensors = [hidden, table] + [biases] * bias
        gradients = torch.autograd.grad(loss, tensors)
        assert [each.is_sparse for each in gradients] == [False] + [sparse] * (1 + bias)
        found.append([loss, *(each.to_dense() for each in gradients)])
    torch.testing.assert_close(*found)


def test_a_computed_table_has_dense_gradients():
    weight = torch.randn(300, 4, requires_grad=True)
    hidden, target = torch.randn(3, 4), torch.tensor([1, 2, 3])
    for given in ({"loss": "sampled_softmax"}, {"loss": "gbce"}):
        ItemLoss(300, num_negatives=5, sparse=True, **given)(hidden, weight * 2, target).backward()
    assert not weight.grad.is_sparse


def test_distinct_items_are_drawn_evenly_from_a_large_catalogue():
    torch.manual_seed(0)
    drawn = torch.stack([distinct_items(500, 5, torch.device("cpu")) for _ in range(2000)])
    assert all(len(row.unique()) == 5 for row in drawn)
    counts = drawn.flatten().bincount(minlength=501)
    assert counts[0] == 0
    assert 4 < float(counts[1:].float().std()) < 5  # of 10,000 draws over 500 items: sqrt(20)
    assert int(counts[1:].min()) >= 4


# ---- in a run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lazy")
    write_cycle(folder / "data", users=40, items=60)
    return {
        "data_path": str(folder / "data"),
        "checkpoint_dir": str(folder / "saved"),
        "show_progress": False,
        "use_gpu": False,
        "loss": "sampled_softmax",
        "num_negatives": 3,
        "train_batch_size": 8,
        "hidden_size": 8,
        "inner_size": 8,
        "n_layers": 1,
        "epochs": 2,
        "llm": "tiny-random-t5",
    }


SMALL = {
    "LRURec": {"state_size": 8, "dropout": 0.0},
    "LLM2SASRec": {"n_heads": 1, "llm_init": False, "output_bias": "item"},
    "LLM2BERT4Rec": {"n_heads": 1, "llm_init": False, "mask_ratio": 0.5},
    "LLM2GRU4Rec": {"embedding_size": 8, "llm_init": False},
}


def trainer_of(world, model, **more):
    config = Config(model, "cycle", config_dict={**world, **SMALL.get(model, {}), **more})
    train, *_ = prepare_data(config, HistoryDataset(config))
    torch.manual_seed(0)
    return RunTrainer(config, config.model_class(config, train.dataset)), train


class SGD(torch.optim.SGD):
    """Notes how many gradients of each step are row-sparse."""

    def step(self, closure=None):
        gradients = [each.grad for group in self.param_groups for each in group["params"]]
        self.sparse = {*vars(self).get("sparse", ()), sum(each is not None and each.is_sparse for each in gradients)}
        return super().step(closure)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("model", SMALL)
def test_gradients_of_a_step_are_the_dense_ones(model, accumulate, world):
    """Plain gradient descent tells gradients apart; clipping and accumulation on the way."""
    weights = []
    for sparse in (True, False):
        more = {"accumulate_grad_batches": accumulate, "clip_grad_norm": 0.1, "weight_decay": 0.0}
        trainer, train = trainer_of(world, model, sparse_item_gradients=sparse, **more)
        by_rows = trainer.model.row_sparse_parameters()
        assert len(by_rows) == sparse * (1 if model == "LLM2GRU4Rec" else 2)
        optimizer = trainer.steps.optimizer = SGD(trainer.model.parameters(), lr=0.5)
        torch.manual_seed(7)
        trainer._train_epoch(train, 0)
        assert optimizer.sparse == {len(by_rows)}
        weights.append(copy.deepcopy(trainer.model.state_dict()))
    torch.testing.assert_close(*weights)


def test_large_catalogues_have_them_unasked(world, monkeypatch):
    assert trainer_of(world, "LRURec")[0].model.row_sparse_parameters() == []
    monkeypatch.setattr("recbole_llm.layer.item_loss.SPARSE_FROM", 50)
    trainer, _ = trainer_of(world, "LRURec")
    assert isinstance(trainer.steps.optimizer, LazyAdamW)
    assert len(trainer.model.row_sparse_parameters()) == 2
    for dense in ({"loss": "ce"}, {"learner": "sgd"}, {"sparse_item_gradients": False}):
        assert trainer_of(world, "LRURec", **dense)[0].model.row_sparse_parameters() == [], dense
    trainer, _ = trainer_of(world, "LiteLLM4Rec")  # its head is a layer of its own
    assert trainer.model.row_sparse_parameters() == []


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("LRURec", {"loss": "ce"}),
        ("LRURec", {"learner": "rmsprop"}),
        ("LLM2SASRec", {"llm_init": True, "adaptor": "linear", "residual_id": True}),
        ("LiteLLM4Rec", {}),
    ],
)
def test_asked_for_where_they_are_impossible(model, more, world):
    with pytest.raises(ConfigError, match="sparse_item_gradients=True: training .* loss=sampled_softmax"):
        trainer_of(world, model, sparse_item_gradients=True, **more)


def test_a_resumed_run_equals_an_uninterrupted_one(world, monkeypatch, tmp_path):
    settings = {**world, **SMALL["LRURec"], "sparse_item_gradients": True, "epochs": 3}
    whole = run("LRURec", "cycle", config_dict={**settings, "checkpoint_dir": str(tmp_path / "whole")})
    stopped = {**settings, "checkpoint_dir": str(tmp_path / "stopped")}
    original, epochs = RunTrainer._train_epoch, []

    def stopping(self, *arguments, **keywords):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(RunTrainer, "_train_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        run("LRURec", "cycle", config_dict=stopped)
    monkeypatch.setattr(RunTrainer, "_train_epoch", original)
    again = run("LRURec", "cycle", config_dict={**stopped, "resume": True})
    assert again["test_result"] == whole["test_result"]
    assert again["best_valid_result"] == whole["best_valid_result"]


def test_sparse_adam_trains_any_model(world):
    """RecBole's key once gave an optimizer that refuses dense gradients."""
    result = run(
        "SASRec", "cycle", config_dict={**world, "loss": None, "learner": "sparse_adam"} | {"n_heads": 1}, saved=False
    )
    assert result["test_result"]["ndcg@10"] >= 0
