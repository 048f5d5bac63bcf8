"""LLM2SASRec, LLM2BERT4Rec and LLM2GRU4Rec against RecBole's models, and every switch they share."""

import random

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
from recbole_llm.layer.packing import Packing
from recbole_llm.quick_start import load_run, run
from recbole_llm.text.reduction import fit_reduction, normalize_rows
from tests.worlds import WORDS, write_cycle, write_twins

MODELS = ["LLM2SASRec", "LLM2BERT4Rec", "LLM2GRU4Rec"]
every_model = pytest.mark.parametrize("name", MODELS)
SMALL = {"llm": "tiny-random-bert", "train_batch_size": 16, "show_progress": False, "use_gpu": False}
WIDTH = {"LLM2SASRec": "hidden_size", "LLM2BERT4Rec": "hidden_size", "LLM2GRU4Rec": "embedding_size"}


@pytest.fixture
def build(tmp_path):
    write_cycle(tmp_path / "data")

    def _build(name, **more):
        settings = {**SMALL, WIDTH.get(name, "hidden_size"): 16, "MAX_ITEM_LIST_LENGTH": 11, **more}
        settings |= {"data_path": str(tmp_path / "data"), "embedding_cache_dir": str(tmp_path / "cache")}
        config = Config(name, "cycle", config_dict=settings)
        train, _, test = prepare_data(config, HistoryDataset(config))
        torch.manual_seed(7)
        return config.model_class(config, train.dataset), train, test

    return _build


def batch_of(loader):
    batch = next(iter(loader))
    return batch[0] if isinstance(batch, tuple) else batch


def scores(model, interaction):
    with torch.no_grad():
        return model.eval().full_sort_predict(interaction)


def table_of(model):
    return model.item_embedding().detach()[: model.n_items].clone()


# ---- the vanilla twin


@every_model
@pytest.mark.parametrize("more", [{}, {"n_layers": 1, "num_layers": 2}])
def test_without_the_text_it_is_recboles_model_weight_by_weight(build, name, more):
    sizes = {"embedding_size": 16, "hidden_size": 24} if "GRU" in name else {"hidden_size": 16}
    stock, _, test = build(name.removeprefix("LLM2"), **sizes, **more)
    ours, _, _ = build(name, llm_init=False, **sizes, **more)
    theirs = dict(stock.named_parameters())
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.items()}
    for n, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[n]), n
    ours.load_state_dict(stock.state_dict())  # RecBole's checkpoints stay readable
    interaction = batch_of(test)
    assert interaction[ours.ITEM_SEQ_LEN].unique().numel() > 1
    expected = scores(stock, interaction)
    if "BERT" in name:
        # RecBole's BERT4Rec leaves out the oldest item of every history.
        interaction[ours.ITEM_SEQ] = interaction[ours.ITEM_SEQ][:, 1:]
        interaction[ours.ITEM_SEQ_LEN] = interaction[ours.ITEM_SEQ_LEN] - 1
    torch.testing.assert_close(scores(ours, interaction)[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-6)


@every_model
@pytest.mark.parametrize("backbone", ["recbole", "paper"])
def test_the_twin_differs_in_the_item_table_and_in_nothing_else(build, name, backbone):
    ours, train, _ = build(name, backbone=backbone)
    twin, other, _ = build(name, backbone=backbone, llm_init=False)
    differ = {n for (n, p), q in zip(ours.named_parameters(), twin.parameters(), strict=True) if not torch.equal(p, q)}
    assert differ == {"item_embedding.weight"}
    # What comes after the items, the mask token's row, is the same; so are batches, views and sizes.
    assert torch.equal(ours.item_embedding.weight[ours.n_items :], twin.item_embedding.weight[twin.n_items :])
    assert ours.train_view == twin.train_view == "sequence"
    batch, same = batch_of(train), batch_of(other)
    for field, values in batch.interaction.items():
        assert torch.equal(values, same[field])


# ---- the item table


@every_model
def test_rows_are_the_reduced_vectors_of_the_items_text(build, name):
    model, *_ = build(name)
    from recbole_llm.text.encoder import encode_items
    from recbole_llm.text.item_text import item_text_of

    _, train, _ = build(name)
    found, found_info = encode_items(
        item_text_of(train.dataset, train.config).texts, _resolved(train.config), show_progress=False
    )
    table = table_of(model)
    expected = torch.from_numpy(fit_reduction(found[1:], "pca", 16)(found[1:])).float()
    torch.testing.assert_close(table[1:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-5)
    assert (table[0, : expected.shape[1]] == 0).all()


def _resolved(config):
    from recbole_llm.llm.resolve import resolve_llm
    from recbole_llm.llm.spec import LLMSpec

    return resolve_llm(LLMSpec.from_config(config, key="llm"))


def test_rows_go_with_item_tokens_whatever_the_order_of_the_file(build, tmp_path):
    model, train, _ = build("LLM2SASRec", dim_reduction="none", hidden_size=64)
    before = dict(zip(train.dataset.field2id_token["item_id"], table_of(model), strict=True))
    for kind in ("inter", "item"):
        file = tmp_path / "data" / "cycle" / f"cycle.{kind}"
        head, *lines = file.read_text(encoding="utf-8").splitlines()
        random.Random(3).shuffle(lines)
        file.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    model, train, _ = build("LLM2SASRec", dim_reduction="none", hidden_size=64)
    tokens = train.dataset.field2id_token["item_id"]
    assert list(tokens) != list(before)
    width = model.text.provenance["item_vectors"]["reduced_dim"]
    assert width == 64 - model.text.provenance["item_vectors"]["columns_without_text"]
    for token, row in zip(tokens[1:], table_of(model)[1:], strict=True):
        torch.testing.assert_close(row[:width], before[token][:width])


@every_model
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"freeze_item_embedding": True},
        {"residual_id": True},
        {"freeze_item_embedding": True, "residual_id": True},
        {"adaptor": "linear", "dim_reduction": "none"},
        {"adaptor": "mlp", "freeze_item_embedding": True, "dim_reduction": "none"},
        {"adaptor": "moe", "freeze_item_embedding": True, "residual_id": True, "reduced_dim": 7},
    ],
)
def test_one_step_moves_the_text_vectors_iff_they_are_not_frozen(build, name, more):
    model, train, _ = build(name, **more)
    text = model.item_embedding.vectors if model.item_embedding.vectors is not None else model.item_embedding.weight
    text_before, table_before = text.detach().clone(), table_of(model)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.calculate_loss(batch_of(train)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    optimizer.step()
    assert torch.equal(text, text_before) == more.get("freeze_item_embedding", False)
    moves = {"adaptor", "residual_id"} & more.keys() or not more.get("freeze_item_embedding")
    assert torch.equal(table_of(model.eval()), table_before) != bool(moves) or "adaptor" in more
    ids = model.item_embedding.weight
    kept = model.n_items if more.get("residual_id") or not more else 0
    extra = int(name == "LLM2BERT4Rec")
    assert (0 if ids is None else len(ids)) == kept + extra


def test_residual_id_is_a_sum_and_starts_from_the_twins_vectors(build):
    text, *_ = build("LLM2SASRec", freeze_item_embedding=True)
    ids, *_ = build("LLM2SASRec", llm_init=False)
    both, *_ = build("LLM2SASRec", freeze_item_embedding=True, residual_id=True)
    torch.testing.assert_close(table_of(both), table_of(text) + table_of(ids))


@every_model
@pytest.mark.parametrize("method", ["pca", "random_projection", "autoencoder"])
def test_match_base_gives_the_table_the_twins_standard_deviation(build, name, method):
    twin, *_ = build(name, llm_init=False)
    model, *_ = build(name, init_scale="match_base", dim_reduction=method)
    plain, *_ = build(name, dim_reduction=method)
    width = model.text.provenance["item_vectors"]["reduced_dim"]
    assert width == 16
    torch.testing.assert_close(table_of(model)[1:].std(), table_of(twin)[1:].std())
    ratio = table_of(plain)[1:] / table_of(model)[1:]
    torch.testing.assert_close(ratio, ratio.median().expand_as(ratio), rtol=1e-3, atol=1e-6)


def test_whiten_and_normalize(build):
    white, *_ = build("LLM2SASRec", whiten=True, hidden_size=8)
    rows = table_of(white)[1:]
    torch.testing.assert_close(rows.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(8), rtol=0, atol=1e-4)
    plain, *_ = build("LLM2SASRec", hidden_size=8)
    unit, *_ = build("LLM2SASRec", normalize=True, hidden_size=8)
    expected = normalize_rows(table_of(plain)[1:].double().numpy())
    np.testing.assert_allclose(table_of(unit)[1:].numpy(), expected, atol=1e-5)


def test_reduction_fitted_on_training_items_only(build, tmp_path):
    # Item i29 is moved out of every training row: with reduction_fit=train it must not shape the components.
    everything, train, _ = build("LLM2SASRec")
    counts = train.dataset.train_counts
    assert (counts[1:] > 0).all()
    file = tmp_path / "data" / "cycle" / "cycle.item"
    with file.open("a", encoding="utf-8") as handle:
        handle.write("i30\ta far away and very long title about nothing that the others are about\n")
    with (tmp_path / "data" / "cycle" / "cycle.inter").open("a", encoding="utf-8") as handle:
        handle.write("u0\ti30\t999\n")
    with_all, train, _ = build("LLM2SASRec")
    with_train, train, _ = build("LLM2SASRec", reduction_fit="train")
    assert (train.dataset.train_counts[1:] == 0).sum() == 1
    known = len(everything.item_embedding.weight)
    torch.testing.assert_close(table_of(with_train)[1:known], table_of(everything)[1:known], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(table_of(with_all)[1:known], table_of(everything)[1:known], rtol=1e-3, atol=1e-4)
    assert with_train.text.provenance["items_not_in_training"] == 1


# ---- training on every position


@pytest.mark.parametrize("name", ["LLM2SASRec", "LLM2GRU4Rec"])
@pytest.mark.parametrize("more", [{}, {"backbone": "paper"}, {"backbone": "paper", "output_bias": "item"}])
def test_loss_is_the_mean_cross_entropy_over_every_target(build, name, more):
    rates = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}
    model, train, _ = build(name, **rates, **more)
    if more.get("output_bias"):
        torch.nn.init.normal_(model.output_bias)
    batch = batch_of(train)
    losses = []
    for row in range(len(batch)):
        for t in range(int(batch[model.ITEM_SEQ_LEN][row])):
            prefix = Interaction(
                {model.ITEM_SEQ: batch[model.ITEM_SEQ][[row]], model.ITEM_SEQ_LEN: torch.tensor([t + 1])}
            )
            if more and name == "LLM2SASRec":
                # The authors count positions from the end: a prefix stands where its sequence does.
                continue
            logits = model.full_sort_predict(prefix)[:, 1:]
            target = batch[NEXT + model.ITEM_SEQ][row, t] - 1
            losses.append(functional.cross_entropy(logits, target[None]))
    if losses:
        torch.testing.assert_close(model.calculate_loss(batch), torch.stack(losses).mean())
    else:
        length, order = batch[model.ITEM_SEQ_LEN].sort(descending=True)
        packing, table = Packing.of(length), model.item_embedding()
        hidden = model.encode(table, packing.pack(batch[model.ITEM_SEQ][order]), packing)
        logits = model.output(hidden) @ table.T
        logits = logits if model.output_bias is None else logits + model.output_bias
        target = packing.pack(batch[NEXT + model.ITEM_SEQ][order])
        torch.testing.assert_close(
            model.calculate_loss(batch), functional.cross_entropy(logits[:, 1:], target - 1), rtol=1e-5, atol=1e-6
        )


@every_model
def test_other_views_have_one_target_a_row(build, name):
    model, train, _ = build(name, train_view="prefix", n_mask_copies=0)
    model.eval()
    batch = batch_of(train)
    assert NEXT + model.ITEM_SEQ not in batch
    expected = functional.cross_entropy(model.full_sort_predict(batch)[:, 1:], batch[model.ITEM_ID] - 1)
    torch.testing.assert_close(model.calculate_loss(batch), expected)


@every_model
def test_sampled_losses_are_taken(build, name):
    model, train, _ = build(name, loss="sampled_softmax", num_negatives=4)
    model.eval()  # no dropout
    full, *_ = build(name)
    losses = {model.calculate_loss(batch_of(train)).item() for _ in range(3)}
    assert len(losses) == 3 and full.eval().calculate_loss(batch_of(train)).item() not in losses


# ---- BERT4Rec's masks


def test_masks(build):
    model, train, _ = build("LLM2BERT4Rec", mask_ratio=0.3)
    length = torch.randint(1, 30, (4000,))
    packing = Packing.of(length)
    last_only = torch.arange(4000) % 2 == 0
    masked = model.draw_masks(packing, None, last_only)
    per_row = torch.zeros(4000).index_add_(0, packing.row(), masked.float())
    assert (per_row >= 1).all()
    assert (per_row[last_only] == 1).all()
    assert masked[packing.last()[last_only]].all()
    long = ~last_only & (length > 12)
    rate = (per_row[long].sum() / length[long].sum()).item()
    assert abs(rate - 0.3) < 0.01
    assert not torch.equal(masked, model.draw_masks(packing, None, last_only))


def test_loss_of_masked_sequences(build):
    """With everything masked the model sees positions only; with the last item masked it is what it predicts with."""
    rates = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
    model, train, _ = build("LLM2BERT4Rec", n_mask_copies=0, n_last_copies=2, **rates)
    batch = batch_of(train)
    expected = functional.cross_entropy(model.full_sort_predict(batch)[:, 1:], batch[model.ITEM_ID] - 1)
    torch.testing.assert_close(model.calculate_loss(batch), expected)
    model, train, _ = build("LLM2BERT4Rec", n_mask_copies=1, n_last_copies=0, mask_ratio=1.0, **rates)
    whole, length = model.appended(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN], batch[model.ITEM_ID])
    packing, table = Packing.of(length), model.item_embedding()
    target = packing.pack(whole)
    hidden = model.encode(table, torch.full_like(target, model.mask_token), packing)
    logits = model.output(hidden) @ table[: model.n_items].T + model.output_bias
    torch.testing.assert_close(model.calculate_loss(batch), functional.cross_entropy(logits[:, 1:], target - 1))


def test_a_full_history_loses_its_oldest_item_to_the_mask(build):
    model, *_ = build("LLM2BERT4Rec", MAX_ITEM_LIST_LENGTH=4)
    item_seq, length = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([4, 2])
    items, longer = model.appended(item_seq, length, torch.tensor([9, 9]))
    assert items[0].tolist() == [2, 3, 4, 9]
    assert items[1, :3].tolist() == [5, 6, 9]
    assert longer.tolist() == [4, 3]


# ---- the authors' network


@every_model
def test_padding_counts_only_where_it_is_asked_for(build, name):
    model, _, test = build(name, backbone="paper", MAX_ITEM_LIST_LENGTH=12)
    same, *_ = build(name, backbone="paper", MAX_ITEM_LIST_LENGTH=12, paper_unmasked_padding=True)
    parameters = dict(same.named_parameters())
    with torch.no_grad():
        for n, p in model.named_parameters():
            target = parameters[n][: len(p)] if n == "item_embedding.weight" else parameters[n]
            target.copy_(p)
        same.item_embedding.weight[-1] *= 30
    interaction = batch_of(test)
    short = interaction[model.ITEM_SEQ_LEN] < 11
    assert short.any()
    masked, unmasked = scores(model, interaction)[:, 1:], scores(same, interaction)[:, 1:]
    full = interaction[model.ITEM_SEQ_LEN] == 12
    torch.testing.assert_close(masked[full], unmasked[full], rtol=1e-4, atol=1e-5)
    assert (masked - unmasked)[short].abs().amax(1).min() > 1e-4
    with pytest.raises(ConfigError, match="backbone=paper"):
        build(name, paper_unmasked_padding=True)


@every_model
def test_unmasked_padding_trains(build, name):
    model, train, _ = build(name, backbone="paper", paper_unmasked_padding=True)
    loss = model.calculate_loss(batch_of(train))
    loss.backward()
    assert torch.isfinite(loss)
    # The token that padding becomes is learned.
    assert model.item_embedding.weight.grad[model.n_items].abs().sum() > 0


def test_the_authors_count_positions_from_the_end(build):
    for name in ("LLM2SASRec", "LLM2BERT4Rec"):
        model, _, test = build(name, backbone="paper", MAX_ITEM_LIST_LENGTH=20)
        interaction = batch_of(test)
        used = int(interaction[model.ITEM_SEQ_LEN].max()) + int("BERT" in name)
        before = scores(model, interaction)
        with torch.no_grad():
            model.position_embedding.weight[: 20 - used] = 99.0
        assert torch.equal(scores(model, interaction), before)
        with torch.no_grad():
            model.position_embedding.weight[-1] = 99.0
        assert not torch.equal(scores(model, interaction), before)


@every_model
def test_output_layer(build, name):
    bare, train, _ = build(name, output_head=False, hidden_size=16)
    whole, *_ = build(name, output_head=True, hidden_size=16)
    hidden = torch.randn(3, 16)
    assert torch.equal(bare.output(hidden), hidden)
    assert not torch.equal(whole.output(hidden), hidden)
    paper, *_ = build(name, backbone="paper", hidden_act="relu", hidden_size=16)
    layer = next(getattr(paper, key) for key in ("output_dense", "output_ffn", "dense") if hasattr(paper, key))
    torch.testing.assert_close(paper.output(hidden), functional.relu(hidden @ layer.weight.T + layer.bias))


@every_model
def test_output_bias_is_a_bias_of_each_item(build, name):
    model, _, test = build(name, output_bias="item")
    interaction = batch_of(test)
    before = scores(model, interaction)
    with torch.no_grad():
        model.output_bias[5] += 3.0
    change = scores(model, interaction) - before
    torch.testing.assert_close(change[:, 5], torch.full((len(interaction),), 3.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(change[:, [1, 4, 6]], torch.zeros(len(interaction), 3), rtol=0, atol=1e-5)
    assert build(name, output_bias="none")[0].output_bias is None


# ---- errors


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("LLM2SASRec", {"backbone": "keras"}, "backbone"),
        ("LLM2SASRec", {"llm_init": "yes"}, "llm_init"),
        ("LLM2SASRec", {"hidden_size": 15}, "n_heads"),
        ("LLM2SASRec", {"init_scale": "half"}, "init_scale"),
        ("LLM2SASRec", {"dim_reduction": "none", "hidden_size": 4}, "dim_reduction"),
        ("LLM2SASRec", {"hidden_act": "glu"}, "hidden_act"),
        ("LLM2SASRec", {"output_bias": "scalar"}, "output_bias"),
        ("LLM2SASRec", {"adaptor": "linaer"}, "linear"),
        ("LLM2BERT4Rec", {"mask_ratio": 0.0}, "mask_ratio"),
        ("LLM2BERT4Rec", {"n_mask_copies": 0, "n_last_copies": 0}, "n_last_copies"),
        ("LLM2GRU4Rec", {"output_head": False}, "hidden_size"),
    ],
)
def test_settings_that_are_not_allowed(build, name, change, says):
    with pytest.raises(ConfigError, match=says):
        build(name, **change)


# ---- known answers


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("LLM2SASRec", {}),
        ("LLM2SASRec", {"backbone": "paper", "llm_init": False}),
        # Positions from the end: a mask at a place where training had none says nothing about where it is.
        ("LLM2BERT4Rec", {"backbone": "paper", "init_scale": "none", "mask_ratio": 0.2, "epochs": 60}),
        ("LLM2GRU4Rec", {}),
    ],
)
def test_learns_a_cycle(tmp_path, name, more):
    write_cycle(tmp_path / "data")
    settings = {"data_path": str(tmp_path / "data"), "embedding_cache_dir": str(tmp_path / "cache"), **SMALL}
    settings |= {"train_batch_size": 8, "learning_rate": 1e-2, "epochs": 15, "eval_step": 15, "mask_history": False}
    settings |= {"hidden_size": 32, "init_scale": "match_base", "n_heads": 1, "n_layers": 1}
    settings |= {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}
    result = run(name, "cycle", config_dict={**settings, **more}, saved=False)
    assert result["test_result"]["recall@10"] > 0.95
    assert result["test_result"]["mrr@10"] > 0.8


def second_edition_hits(tmp_path, **more):
    """Share of users whose next title is among the first two, after an item that no history of training holds."""
    settings = {"data_path": str(tmp_path / "data"), "embedding_cache_dir": str(tmp_path / "cache"), **SMALL}
    settings |= {"checkpoint_dir": str(tmp_path / "saved"), "epochs": 40, "eval_step": 40, "learning_rate": 1e-2}
    settings |= {"topk": [2], "metrics": ["Recall"], "valid_metric": "Recall@2", "mask_history": False, "n_heads": 1}
    settings |= {"freeze_item_embedding": True, "reduced_dim": 12, "whiten": True, "hidden_size": 32, "n_layers": 1}
    settings |= {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "train_batch_size": 8}
    result = run("LLM2SASRec", "twins", config_dict={**settings, **more})
    finished = load_run(result["run_dir"])
    finished.trainer.evaluate(finished.valid_data, load_best_model=False)
    ranks = finished.trainer.evaluation.ranks
    tokens = finished.dataset.field2id_token["user_id"][ranks.user]
    second = np.array([token.startswith("b") for token in tokens])
    assert second.sum() == len(WORDS)
    return (ranks.unmasked <= 2)[second].mean(), (ranks.unmasked <= 2)[~second].mean()


@pytest.mark.parametrize("adaptor", ["mlp", "moe"])
def test_frozen_text_carries_over_to_items_that_were_never_in_a_history(tmp_path, adaptor):
    write_twins(tmp_path / "data")
    unseen, seen = second_edition_hits(tmp_path, adaptor=adaptor)
    assert seen > 0.9
    assert unseen > 0.9


def test_without_the_right_text_or_without_any_it_does_not(tmp_path):
    write_twins(tmp_path / "data")
    unseen, seen = second_edition_hits(tmp_path, llm_init=False)
    assert seen > 0.8
    assert unseen < 0.4
    write_twins(tmp_path / "shuffled", shuffled=True)
    unseen, seen = second_edition_hits(tmp_path, adaptor="mlp", data_path=str(tmp_path / "shuffled"))
    assert seen > 0.8
    assert unseen < 0.4
