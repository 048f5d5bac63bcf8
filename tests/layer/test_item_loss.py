"""The three losses against their definitions, and what a full softmax over a large catalogue may hold in memory."""

import inspect
import re

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recbole_llm.config import Config
from recbole_llm.config.registry import own_models, property_file, props_dir
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.layer.cross_entropy import linear_cross_entropy
from recbole_llm.layer.item_loss import ItemLoss, scores_of
from tests.worlds import write_cycle

ITEMS, ROWS, WIDTH = 41, 23, 5
COUNTS = np.arange(ITEMS) % 7  # some items are no target


@pytest.fixture
def problem():
    torch.manual_seed(1)
    hidden, table, bias = (
        torch.randn(*size, dtype=torch.float64) for size in ((ROWS, WIDTH), (ITEMS, WIDTH), (ITEMS,))
    )
    target = torch.randint(1, ITEMS, (ROWS,))
    return [tensor.requires_grad_() for tensor in (hidden, table, bias)], target


def value_and_gradients(loss, tensors, target):
    hidden, table, bias = tensors
    value = loss(hidden, table, target, bias)
    return value, *torch.autograd.grad(value, tensors)


def softmax_without_padding(hidden, table, target, bias):
    return functional.cross_entropy(functional.linear(hidden, table[1:], bias[1:]), target - 1)


# ---- cross-entropy


@pytest.mark.parametrize("pad_class", [True, False])
def test_cross_entropy_with_and_without_padding(problem, pad_class):
    tensors, target = problem

    def whole(hidden, table, target, bias):
        if not pad_class:
            return softmax_without_padding(hidden, table, target, bias)
        return functional.cross_entropy(functional.linear(hidden, table, bias), target)

    expected = value_and_gradients(whole, tensors, target)
    torch.testing.assert_close(value_and_gradients(ItemLoss(ITEMS, pad_class=pad_class), tensors, target), expected)


def test_without_a_bias(problem):
    (hidden, table, _), target = problem
    found = torch.autograd.grad(ItemLoss(ITEMS)(hidden, table, target), (hidden, table))
    expected = torch.autograd.grad(functional.cross_entropy(hidden @ table[1:].T, target - 1), (hidden, table))
    torch.testing.assert_close(found, expected)


class Largest(TorchDispatchMode):
    """Number of entries of the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.entries = max([self.entries, *made])
        return result


def entries_held(loss, rows=400, items=5000, width=8):
    """Largest tensor of forward and backward pass, and the entries that forward keeps for backward."""
    torch.manual_seed(0)
    hidden, table = torch.randn(rows, width, requires_grad=True), torch.randn(items, width, requires_grad=True)
    kept = []
    with (
        Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
    ):
        loss(hidden, table, torch.randint(1, items, (rows,))).backward()
    return largest.entries, sum(kept)


def test_no_table_of_all_scores_is_ever_held(monkeypatch):
    rows, items, width = 400, 5000, 8
    monkeypatch.setattr("recbole_llm.layer.cross_entropy.AT_ONCE", {"cpu": 2**16})
    largest, kept = entries_held(ItemLoss(items), rows, items, width)
    assert largest <= 2**16 < rows * items / 30
    assert kept <= (rows + items) * width
    largest, kept = entries_held(lambda h, t, y: functional.cross_entropy(h @ t.T, y), rows, items, width)
    assert largest == rows * items <= kept  # what the instrument says where there is one


@pytest.mark.parametrize(("negatives", "whole"), [("shared", 0), ("per_target", 0), ("per_target", 10**9)])
def test_sampled_losses_hold_only_the_sampled_scores(monkeypatch, negatives, whole):
    rows, items, width, k = 400, 5000, 8, 50
    monkeypatch.setattr("recbole_llm.layer.item_loss.WHOLE_TABLE", whole)
    monkeypatch.setattr("recbole_llm.layer.cross_entropy.AT_ONCE", {"cpu": 2**12})
    loss = ItemLoss(items, loss="sampled_softmax", num_negatives=k, negatives=negatives)
    largest, kept = entries_held(loss, rows, items, width)
    assert largest <= max(items * width, rows * (k + 1)) < rows * k * width
    assert kept < rows * items / 5


def test_a_piece_has_as_many_rows_as_the_table_has_columns(monkeypatch):
    """Otherwise the gradient of a table of a million items would be passed through once for every single row."""
    monkeypatch.setattr("recbole_llm.layer.cross_entropy.AT_ONCE", {"cpu": 1})
    pieces = []
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda self, a, b: pieces.append(a.shape[1]))
    linear_cross_entropy(torch.randn(20, 8, requires_grad=True), torch.randn(50, 8), None, torch.arange(20))
    assert pieces == [8, 8, 4]


# ---- sampled softmax


def test_with_all_items_as_negatives_it_is_cross_entropy(problem):
    tensors, target = problem
    expected = value_and_gradients(softmax_without_padding, tensors, target)
    for number in (ITEMS - 1, 10 * ITEMS):
        loss = ItemLoss(ITEMS, loss="sampled_softmax", num_negatives=number)
        torch.testing.assert_close(value_and_gradients(loss, tensors, target), expected)


WAYS = [("uniform", "shared"), ("uniform", "per_target"), ("popularity", "shared"), ("popularity", "per_target")]


def sampled(distribution, negatives, **more):
    settings = {"loss": "sampled_softmax", "negative_distribution": distribution, "negatives": negatives, **more}
    return ItemLoss(ITEMS, target_counts=COUNTS, **settings)


@pytest.mark.parametrize(("distribution", "negatives"), WAYS)
def test_the_corrected_normaliser_is_unbiased(problem, distribution, negatives):
    """Mean over many draws of sum_j exp(s_j) / m_j against the sum over all items but the target."""
    (hidden, table, _), target = problem
    loss = sampled(distribution, negatives, num_negatives=8, negative_alpha=0.7)
    likelihood = (hidden @ table.T).detach().exp()
    exact = likelihood[:, 1:].sum(1) - likelihood.gather(1, target[:, None])[:, 0]
    torch.manual_seed(3)
    found = []
    for _ in range(6000):
        items, expected = loss.draw(target)
        ratio = likelihood.gather(1, items.expand(ROWS, -1)) / expected
        found.append(ratio.masked_fill(items == target[:, None], 0).sum(1))
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() < 4.5 * error).all()
    assert (error / exact < 0.05).all()  # the test would see a bias of a fifth


@pytest.mark.parametrize(("distribution", "negatives"), WAYS)
def test_with_many_draws_it_tends_to_cross_entropy(problem, distribution, negatives):
    tensors, target = problem
    loss = sampled(distribution, negatives, num_negatives=200_000 if negatives == "shared" else 20_000)
    torch.manual_seed(0)
    found = value_and_gradients(loss, tensors, target)
    torch.testing.assert_close(
        found, value_and_gradients(softmax_without_padding, tensors, target), rtol=0.05, atol=0.01
    )


def test_in_batch_negatives_are_the_targets_of_other_rows(problem):
    """By hand: every other target, corrected by its share of training targets."""
    tensors, target = problem
    hidden, table, bias = tensors
    share = np.maximum(COUNTS, 1.0)
    share = torch.from_numpy(share / share[1:].sum())
    scores = functional.linear(hidden, table, bias)
    expected = 0
    for row, item in enumerate(target):
        others = target[target != item]
        normaliser = scores[row, item].exp() + (scores[row, others].exp() / (ROWS * share[others])).sum()
        expected = expected + (normaliser.log() - scores[row, item]) / ROWS
    loss = sampled("in_batch", "shared", num_negatives=500)
    torch.testing.assert_close(value_and_gradients(loss, tensors, target)[0], expected)
    items, often = sampled("in_batch", "shared", num_negatives=7).draw(target)
    assert len(items) == 7 and np.isin(items, target).all()
    torch.testing.assert_close(often, 7 * share[items])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_in_batch_negatives_are_corrected_by_how_often_targets_come(alpha):
    """They come from the batch, whose targets follow the counts: negative_alpha has no part in it."""
    torch.manual_seed(0)
    share = torch.from_numpy(np.maximum(COUNTS, 1.0)[1:] / np.maximum(COUNTS, 1.0)[1:].sum())
    loss = sampled("in_batch", "shared", num_negatives=40, negative_alpha=alpha)
    found = torch.zeros(ITEMS, dtype=torch.float64)
    often = torch.zeros(ITEMS, dtype=torch.float64)
    for _ in range(200):
        target = 1 + torch.multinomial(share, 400, replacement=True)
        items, expected = loss.draw(target)
        found += torch.bincount(items, minlength=ITEMS) / 200
        often[items] = expected
    seen = often > 0
    torch.testing.assert_close(found[seen], often[seen], rtol=0.25, atol=0.25)


def test_without_correction_the_scores_stand_as_they_are(problem):
    tensors, target = problem
    hidden, table, bias = tensors
    torch.manual_seed(5)
    found = sampled("popularity", "shared", num_negatives=9, logq=False)(hidden, table, target, bias)
    torch.manual_seed(5)
    items, _ = sampled("popularity", "shared", num_negatives=9).draw(target)
    logits = functional.linear(hidden, table[items], bias[items]).masked_fill(items == target[:, None], -torch.inf)
    positive = functional.linear(hidden, table, bias).gather(1, target[:, None])
    expected = functional.cross_entropy(torch.cat([positive, logits], 1), torch.zeros(ROWS, dtype=torch.long))
    torch.testing.assert_close(found, expected)


# ---- gBCE


@pytest.mark.parametrize("negatives", ["shared", "per_target"])
@pytest.mark.parametrize("t", [0.0, 0.75, 1.0])
def test_gbce_is_the_formula_of_the_paper(problem, negatives, t):
    tensors, target = problem
    hidden, table, bias = tensors
    loss = ItemLoss(ITEMS, loss="gbce", num_negatives=6, negatives=negatives, gbce_t=t)
    torch.manual_seed(7)
    found = loss(hidden, table, target, bias)
    torch.manual_seed(7)
    items = loss.draw(target)[0].expand(ROWS, -1)
    assert loss.per_target == (negatives == "per_target")
    alpha = 6 / (ITEMS - 2)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    probability = torch.sigmoid(functional.linear(hidden, table, bias))
    total = 0
    for row, item in enumerate(target):
        others = items[row][items[row] != item]
        total = total + (probability[row, item] ** beta).log() + (1 - probability[row, others]).log().sum()
    torch.testing.assert_close(found, -total / (7 * ROWS))


def test_gbce_without_calibration_is_binary_cross_entropy(problem):
    tensors, target = problem
    hidden, table, bias = tensors
    loss = ItemLoss(ITEMS, loss="gbce", num_negatives=6, negatives="per_target", gbce_t=0.0)
    torch.manual_seed(7)
    found = value_and_gradients(loss, tensors, target)
    torch.manual_seed(7)
    items = torch.cat([target[:, None], loss.draw(target)[0]], dim=1)
    truth = torch.zeros(items.shape, dtype=torch.float64)
    truth[:, 0] = 1
    scores = functional.linear(hidden, table, bias).gather(1, items)
    expected = functional.binary_cross_entropy_with_logits(scores, truth)
    torch.testing.assert_close(found, (expected, *torch.autograd.grad(expected, tensors)))


def test_gbce_has_negatives_of_each_target_unless_told_otherwise():
    assert ItemLoss(ITEMS, loss="gbce").per_target and not ItemLoss(ITEMS, loss="sampled_softmax").per_target


def test_beta_lies_between_the_sampling_rate_and_one():
    def beta(t, k=256):
        return ItemLoss(12102, loss="gbce", num_negatives=k, gbce_t=t).beta

    assert beta(0) == pytest.approx(1)
    assert beta(1) == pytest.approx(256 / 12100)
    assert beta(0.75) == pytest.approx(0.25 + 0.75 * 256 / 12100)
    assert beta(1, k=10**6) == 1


# ---- what is drawn


@pytest.mark.parametrize(("distribution", "negatives"), WAYS)
def test_padding_and_unknown_items_are_never_drawn_and_all_others_are(distribution, negatives):
    target = torch.randint(1, ITEMS, (200,))
    torch.manual_seed(0)
    loss = sampled(distribution, negatives, num_negatives=30)
    drawn = torch.cat([loss.draw(target)[0].flatten() for _ in range(60)])
    assert drawn.unique().tolist() == list(range(1, ITEMS))


def test_shares_of_what_is_drawn():
    torch.manual_seed(0)
    loss = sampled("popularity", "shared", num_negatives=200_000, negative_alpha=0.5)
    drawn = torch.bincount(loss.draw(torch.tensor([1]))[0], minlength=ITEMS) / 200_000
    weight = np.maximum(COUNTS, 1.0) ** 0.5
    weight[0] = 0
    np.testing.assert_allclose(drawn, weight / weight.sum(), atol=0.003)


def test_uniform_shared_negatives_are_distinct_and_a_target_is_never_its_own_negative():
    target = torch.randint(1, ITEMS, (50,))
    items, _ = sampled("uniform", "shared", num_negatives=25).draw(target)
    assert len(items.unique()) == 25
    items, _ = sampled("uniform", "per_target", num_negatives=500).draw(target)
    assert not (items == target[:, None]).any()


@pytest.mark.parametrize(("distribution", "negatives"), [*WAYS, ("in_batch", "shared")])
def test_draws_follow_the_global_generator(problem, distribution, negatives):
    tensors, target = problem
    loss = sampled(distribution, negatives, num_negatives=9)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(value_and_gradients(loss, tensors, target)[0].item())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("whole", [0, 64])
def test_scores_of_some_items_and_their_gradients(problem, monkeypatch, whole):
    monkeypatch.setattr("recbole_llm.layer.item_loss.WHOLE_TABLE", whole)
    (hidden, table, _), _ = problem
    items = torch.randint(0, ITEMS, (ROWS, 4))
    expected = (hidden[:, None] * table[items]).sum(-1)
    weight = torch.randn(ROWS, 4)
    wanted = torch.autograd.grad((expected * weight).sum(), (hidden, table))
    for at_once in (1, 60, 10**9):
        monkeypatch.setattr("recbole_llm.layer.cross_entropy.AT_ONCE", {"cpu": at_once})
        found = scores_of(hidden, table, items)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), (hidden, table)), wanted)


@pytest.mark.parametrize("loss", ["ce", "sampled_softmax", "gbce"])
@pytest.mark.parametrize("negatives", ["shared", "per_target"])
def test_autocast(problem, loss, negatives):
    tensors, target = problem
    hidden, table, bias = (tensor.detach().float().requires_grad_() for tensor in tensors)
    objective = ItemLoss(ITEMS, loss=loss, negatives=negatives, num_negatives=20)
    torch.manual_seed(0)
    expected = value_and_gradients(objective, (hidden, table, bias), target)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden16 = functional.linear(hidden, torch.eye(WIDTH))
        assert hidden16.dtype == torch.bfloat16
        value = objective(hidden16, table, target, bias)
    assert value.dtype == torch.float32
    gradients = torch.autograd.grad(value, (hidden, table, bias))
    torch.testing.assert_close((value, *gradients), expected, rtol=0.1, atol=0.03)


# ---- settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "bpr"}, "invalid value for loss: 'bpr' (choose from 'ce', 'sampled_softmax', 'gbce'"),
        ({"negatives": "each"}, "invalid value for negatives: 'each'"),
        ({"negative_distribution": "pop"}, "invalid value for negative_distribution: 'pop'"),
        ({"num_negatives": 0}, "num_negatives=0 is too small"),
        ({"gbce_t": 1.5}, "gbce_t=1.5 must lie between 0"),
        ({"loss": "gbce", "negative_distribution": "popularity"}, "contradicts loss='gbce'"),
        (
            {"loss": "sampled_softmax", "negative_distribution": "in_batch", "negatives": "per_target"},
            "drop negatives=per_target",
        ),
        ({"loss": "sampled_softmax", "negative_distribution": "popularity"}, "needs counts of training targets"),
    ],
)
def test_errors_name_the_key(settings, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        ItemLoss(ITEMS, **settings)


def test_property_files_have_the_defaults_of_the_class():
    block = property_file(props_dir() / "common" / "item_loss.yaml")
    parameters = inspect.signature(ItemLoss).parameters
    of_configuration = {"loss_type", "sparse_item_gradients"}  # RecBole's, and what depends on model and data
    assert {key: parameters[key].default for key in block.keys() - of_configuration} == {
        key: value for key, value in block.items() if key not in of_configuration
    }
    files = {name: property_file(props_dir() / "model" / f"{name}.yaml") for name in own_models()}
    with_loss = {name: keys for name, keys in files.items() if "loss" in keys}
    assert {"LRURec", "LiteLLM4Rec"} <= set(with_loss)
    assert all(block.items() <= keys.items() for keys in with_loss.values())


@pytest.mark.parametrize("wrong", ["BPR", "gbce", "sampled_softmax"])
def test_the_key_of_recbole_is_told_apart(wrong):
    with pytest.raises(ConfigError, match=f"loss_type: '{wrong}'.*key is RecBole's; the loss .* is set by `loss`"):
        Config("LRURec", "ml-100k", config_dict={"loss_type": wrong})
    assert "belongs to" in Config("SASRec", "ml-100k", config_dict={"loss": "gbce"}).notices[0]


def test_from_config_counts_the_targets_of_training(tmp_path):
    write_cycle(tmp_path / "data")
    settings = {"data_path": str(tmp_path / "data"), "loss": "sampled_softmax", "negative_distribution": "popularity"}
    config = Config("LRURec", "cycle", config_dict=settings)
    dataset = prepare_data(config, HistoryDataset(config))[0].dataset
    loss = ItemLoss.from_config(config, dataset)
    targets = []
    for user in range(1, dataset.user_num):
        targets += dataset.flat["item_id"][dataset.offsets[user] : dataset.offsets[user + 1]][1:-2].tolist()
    counts = np.maximum(np.bincount(targets, minlength=dataset.item_num), 1.0)[1:]
    np.testing.assert_allclose(loss.share[1:], counts / counts.sum())
    assert loss.state_dict() == {}
