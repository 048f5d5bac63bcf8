"""LRURec against the released code (Yueeeeeeee/LRURec at b33df55), and every switch of its property file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.data.rows import NEXT
from recbole_llm.errors import ConfigError
from recbole_llm.model.lrurec import LRURec
from recbole_llm.quick_start import run
from recbole_llm.trainer.trainer import RunTrainer
from tests.worlds import write_cycle

GOLDEN = Path(__file__).parents[1] / "golden" / "lrurec"
CASES = {"authors_init_f32": torch.float32, "strong_f64": torch.float64}


@pytest.fixture
def build(tmp_path):
    write_cycle(tmp_path / "data")

    def _build(**more):
        settings = {
            "train_batch_size": 16,
            "show_progress": False,
            "use_gpu": False,
            "data_path": str(tmp_path / "data"),
            **more,
        }
        config = Config("LRURec", "cycle", config_dict=settings)
        train, _, test = prepare_data(config, HistoryDataset(config))
        torch.manual_seed(0)
        return LRURec(config, train.dataset), train, test

    return _build


# ---- the authors' code


def named(model, of=lambda parameter: parameter):
    """Parameters, or what ``of`` makes of them, by the names and in the shapes of the golden files (as views)."""
    tensors = {"item_embedding": of(model.item_embedding.weight), "item_bias": of(model.item_bias)}
    norms = {"emb_ln": model.norm}
    for k, block in enumerate(model.blocks, 1):
        lru, name = block.lru, f"block{k}_"
        tensors |= {name + log: of(getattr(lru, log)) for log in ("nu_log", "theta_log", "gamma_log")}
        for part, side in enumerate(("real", "imag")):
            tensors[f"{name}B_{side}"] = of(lru.B.weight)[part::2]
            tensors[f"{name}B_bias_{side}"] = of(lru.B.bias)[part::2]
            tensors[f"{name}C_{side}"] = of(lru.C.weight)[:, part::2]
        tensors[f"{name}C_bias_real"] = of(lru.C.bias)
        for i, linear in enumerate((block.inner, block.outer), 1):
            tensors |= {f"{name}ffn_W{i}": of(linear.weight), f"{name}ffn_b{i}": of(linear.bias)}
        norms |= {f"{name}lru_ln": block.lru_norm, f"{name}ffn_ln": block.outer_norm}
    for name, norm in norms.items():
        tensors |= {f"{name}_gain": of(norm.weight), f"{name}_bias": of(norm.bias)}
    return tensors


def as_ours(golden, kind, dtype):
    """Arrays of one kind by name. We store -Im C; the imaginary bias of C reaches nothing and we have none."""
    arrays = {key.split("/")[1]: torch.tensor(golden[key]).to(dtype) for key in golden if key.startswith(f"{kind}/")}
    for name in [name for name in arrays if name.endswith("C_bias_imag")]:
        unused = arrays.pop(name)
        assert kind in ("param", "after") or not unused.any()
    return {name: -array if name.endswith("C_imag") else array for name, array in arrays.items()}


@pytest.fixture(params=CASES)
def authors(request, build):
    """A model with the golden parameters, its training batch, and what the authors' code made of them."""
    golden = np.load(GOLDEN / f"{request.param}.npz")
    dtype = CASES[request.param]

    def _authors(**more):
        model, train, _ = build(
            hidden_size=16, state_size=32, inner_size=64, MAX_ITEM_LIST_LENGTH=12, dropout=0.0, **more
        )
        model.to(dtype)
        with torch.no_grad():
            ours = named(model)
            parameters = as_ours(golden, "param", dtype)
            assert ours.keys() == parameters.keys()
            for name, value in parameters.items():
                ours[name].copy_(value)
        tokens, labels = (torch.tensor(golden[f"{kind}_right"]).long() for kind in ("tokens", "labels"))
        batch = Interaction(
            {model.ITEM_SEQ: tokens, NEXT + model.ITEM_SEQ: labels, model.ITEM_SEQ_LEN: (tokens > 0).sum(1)}
        )
        return model, batch, golden, dtype, train.config

    return _authors


def close(actual, expected, dtype, stored=torch.float64):
    """1e-5 in float32; 1e-9 in float64, where the authors' value was not rounded to float32 for storage."""
    if dtype == torch.float32:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-7 if stored == torch.float32 else 1e-9, atol=1e-9)


def test_golden_lrurec_scores(authors):
    model, batch, golden, dtype, _ = authors()
    tokens = batch[model.ITEM_SEQ]
    with torch.no_grad():
        hidden, _ = model(tokens)
        close(model.scores(hidden)[tokens > 0][:, 1:], torch.tensor(golden["scores"])[:, 1:], dtype)
        test = torch.tensor(golden["test_tokens"]).long()
        length = (test > 0).sum(1)
        steps = torch.arange(12)
        right = test.gather(1, (steps + 12 - length[:, None]) % 12)
        interaction = Interaction({model.ITEM_SEQ: right, model.ITEM_SEQ_LEN: length})
        scores = model.full_sort_predict(interaction)
        close(scores[:, 1:], torch.tensor(golden["test_scores"])[:, 1:], dtype)
        assert (scores[:, 0] == -torch.inf).all()


@pytest.mark.parametrize("first_item_target", [True, False])
def test_golden_lrurec_loss_and_gradients(authors, first_item_target):
    model, batch, golden, dtype, _ = authors(first_item_target=first_item_target)
    if first_item_target:
        batch = with_the_user_of_one_item(model, batch)
    loss = model.calculate_loss(batch)
    close(loss.detach(), torch.tensor(golden["loss" if first_item_target else "loss_conditional"]).to(dtype), dtype)
    kind = "grad" if first_item_target else "grad_conditional"
    if f"{kind}/item_bias" not in golden:
        return
    loss.backward()
    gradients = named(model, lambda parameter: parameter.grad)
    for name, expected in as_ours(golden, kind, dtype).items():
        close(gradients[name], expected, dtype, stored=torch.float32)


def with_the_user_of_one_item(model, batch):
    """The first golden row is a user's only item: a first-item target and no other. Here the item is in the row."""
    tokens, length = batch[model.ITEM_SEQ].clone(), batch[model.ITEM_SEQ_LEN].clone()
    assert not tokens[0].any()
    tokens[0, 0], length[0] = 16, 1
    batch.update(Interaction({model.ITEM_SEQ: tokens, model.ITEM_SEQ_LEN: length}))
    return batch


def test_golden_lrurec_parameters_after_one_step(authors):
    """Through the plugin's trainer and its defaults for this model: AdamW, eps, decay groups and clipping."""
    model, batch, golden, dtype, config = authors(first_item_target=True)
    before = {name: tensor.detach().clone() for name, tensor in named(model).items()}
    trainer = RunTrainer(config, model)
    loss = model.calculate_loss(with_the_user_of_one_item(model, batch))
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    close(norm, torch.tensor(golden["grad_norm"]).to(dtype), dtype)
    trainer.steps.step()
    after = {name: tensor.detach() for name, tensor in named(model).items()}
    if dtype == torch.float64:
        for name, delta in as_ours(golden, "delta", dtype).items():
            close(after[name] - before[name], delta, dtype)
        return
    gradient = as_ours(golden, "grad", dtype)
    for name, expected in as_ours(golden, "after", dtype).items():
        # Adam's first step is the sign of the gradient, which rounding decides where it is almost 0.
        clear = gradient[name].abs() > 1e-6
        close(after[name][clear], expected[clear], dtype)


# ---- the property file


def batch_of(loader):
    batch = next(iter(loader))
    return batch[0] if isinstance(batch, tuple) else batch


def test_loss_is_the_mean_cross_entropy_over_every_target(build):
    model, train, _ = build(dropout=0.0)
    batch = batch_of(train)
    following = batch[NEXT + model.ITEM_SEQ]
    assert (following > 0).sum() > 3 * len(following)
    logits = model(batch[model.ITEM_SEQ])[0] @ model.item_embedding.weight.T + model.item_bias
    expected = functional.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=0)
    torch.testing.assert_close(model.calculate_loss(batch), expected)


@pytest.mark.parametrize("view", ["prefix", "segment"])
def test_other_views_have_one_target_a_row(build, view):
    model, train, _ = build(train_view=view, dropout=0.0)
    batch = batch_of(train)
    hidden = model(batch[model.ITEM_SEQ])[0][torch.arange(len(batch)), batch[model.ITEM_SEQ_LEN] - 1]
    logits = hidden @ model.item_embedding.weight.T + model.item_bias
    torch.testing.assert_close(model.calculate_loss(batch), functional.cross_entropy(logits, batch[model.ITEM_ID]))
    with pytest.raises(ConfigError, match="train_view=sequence"):
        build(train_view=view, first_item_target=True)


def test_first_item_is_a_target_only_where_a_history_begins(build):
    model, train, _ = build(first_item_target=True, MAX_ITEM_LIST_LENGTH=8, dropout=0.0)
    batch = batch_of(train)
    full = batch[model.ITEM_SEQ_LEN] == 8
    assert full.any() and not full.all()
    with_first = model.calculate_loss(batch)
    model.first_item_target = False
    without, targets = model.calculate_loss(batch), (batch[NEXT + model.ITEM_SEQ] > 0).sum()
    first = batch[model.ITEM_SEQ][~full, 0]
    pad = model(torch.zeros(1, 1, dtype=torch.long))[0][0] @ model.item_embedding.weight.T + model.item_bias
    extra = functional.cross_entropy(pad.expand(len(first), -1), first, reduction="sum")
    torch.testing.assert_close(with_first, (without * targets + extra) / (targets + len(first)))


def test_steps_one_by_one_equal_the_whole_sequence(build):
    model, _, test = build()
    batch = batch_of(test)
    item_seq, length = batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN]
    model.eval()
    with torch.no_grad():
        expected = model.full_sort_predict(batch)
        for kept in (0, 3):
            state = model.state_of(item_seq[:, :5], torch.full_like(length, kept))
            scores = torch.zeros_like(expected)
            for t in range(kept, int(length.max())):
                now, after = model.step(item_seq[:, t], state)
                scores = torch.where((length == t + 1)[:, None], now, scores)
                state = after
            torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def test_initial_weights(build):
    model, *_ = build(hidden_size=32, state_size=500)
    for name, parameter in model.named_parameters():
        if "norm" not in name and not name.endswith("_log"):
            assert 0 < parameter.abs().max() <= 0.04, name
    assert 0.016 < model.blocks[0].lru.B.weight.std() < 0.019  # a normal of .02 cut at two standard deviations: .0176
    radius = model.blocks[0].lru.decay().abs()
    assert 0.8 <= radius.min() < 0.82 and 0.97 < radius.max() <= 0.99


def test_optimizer_groups(build):
    model, train, _ = build()
    decayed, rest = RunTrainer(train.config, model).steps.optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.01 and rest["weight_decay"] == 0.0
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {
        "weight", "nu_log", "theta_log", "gamma_log",
    }  # fmt: skip
    assert {names[id(p)] for p in rest["params"]} == {n for n in names.values() if "bias" in n or "norm" in n}


@pytest.mark.parametrize(
    "change", [{"r_min": 0.99, "r_max": 0.8}, {"r_max": 1.0}, {"r_min": 0.0}, {"loss_type": "BPR"}]
)
def test_settings_that_are_not_allowed(build, change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        build(**change)


def test_sizes(build):
    model, *_ = build(hidden_size=8, state_size=12, inner_size=20, n_layers=3, dropout=0.3)
    assert len(model.blocks) == 3
    assert model.blocks[2].lru.B.weight.shape == (24, 8)
    assert model.blocks[2].inner.weight.shape == (20, 8)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"amp": "bf16"},
        {"loss": "sampled_softmax", "num_negatives": 8},
        {"loss": "gbce", "num_negatives": 8, "gbce_t": 0.0, "epochs": 40},
    ],
)
def test_learns_a_cycle(tmp_path, more):
    write_cycle(tmp_path / "data")
    settings = {"data_path": str(tmp_path / "data"), "train_batch_size": 8, "learning_rate": 1e-2, "epochs": 15}
    result = run(
        "LRURec",
        "cycle",
        config_dict={**settings, "use_gpu": False, "show_progress": False, "mask_history": False, **more},
        saved=False,
    )
    assert result["test_result"]["recall@10"] > 0.95
    assert result["test_result"]["mrr@10"] > 0.8
