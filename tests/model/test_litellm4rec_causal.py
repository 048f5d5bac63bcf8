"""LiteLLM4Rec beyond the paper: causal attention, fewer layers, and a head tied to the item vectors."""

import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.model.litellm4rec import LiteLLM4Rec
from recbole_llm.quick_start import load_run, run
from recbole_llm.testing import check_model
from tests.worlds import write_cycle, write_twins

FAMILIES = ["tiny-random-t5", "tiny-random-bert", "tiny-random-llama"]
CAUSAL = {"rec_llm_attention": "causal", "train_strategy": "all", "item_llm_mode": "frozen", "dropout": 0.0}


@pytest.fixture
def build(tmp_path):
    write_cycle(tmp_path / "data")

    def _build(**more):
        settings = {
            **{"llm": "tiny-random-t5", "train_batch_size": 16, "show_progress": False, "use_gpu": False},
            **{"data_path": str(tmp_path / "data"), "embedding_cache_dir": str(tmp_path / "cache")},
            **more,
        }
        config = Config("LiteLLM4Rec", "cycle", config_dict=settings)
        train, _, test = prepare_data(config, HistoryDataset(config))
        torch.manual_seed(0)
        return LiteLLM4Rec(config, train.dataset).eval(), train, next(iter(test))[0]

    return _build


@pytest.mark.parametrize("seq_pool", ["last", "mean"])
@pytest.mark.parametrize("rec_llm", FAMILIES)
def test_one_pass_gives_the_vectors_of_all_prefixes(build, rec_llm, seq_pool):
    model, _, batch = build(**CAUSAL, rec_llm=rec_llm, seq_pool=seq_pool, input_scale="rms")
    items, length = batch["item_id_list"], batch["item_length"]
    with torch.no_grad():
        together = model.prefix_vectors(items)
        for end in range(1, int(length.max()) + 1):
            rows = length >= end
            alone = model(items[rows, :end], torch.full((int(rows.sum()),), end))
            torch.testing.assert_close(together[rows, end - 1], alone, rtol=1e-4, atol=1e-5)
        # A later item changes nothing before it, and without the mask of an encoder it does.
        other = items.clone()
        other[torch.arange(len(items)), length - 1] = other[torch.arange(len(items)), length - 1] % 30 + 1
        before = torch.arange(items.shape[1]) < length[:, None] - 1
        assert torch.equal(model.prefix_vectors(other)[before], together[before])
        assert not torch.allclose(model.prefix_vectors(other)[~before], together[~before])


@pytest.mark.parametrize("head", ["projection", "tied"])
def test_sequence_rows_and_prefix_rows_are_the_same_training_set(build, head):
    model, sequences, _ = build(**CAUSAL, seq_pool="last", head=head)
    _, prefixes, _ = build(**CAUSAL, seq_pool="last", head=head, train_view="prefix")
    assert (sequences.rows.view, prefixes.rows.view) == ("sequence", "prefix")
    assert len(sequences.rows) < len(prefixes.rows)
    sums = []
    with torch.no_grad():
        for loader in (sequences, prefixes):
            parts = [(model.calculate_loss(batch), model.loss_weight(batch)) for batch in loader]
            sums.append((sum(float(loss) * int(weight) for loss, weight in parts), sum(int(w) for _, w in parts)))
    assert sums[0][1] == sums[1][1] == len(prefixes.rows)
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)


def test_views_follow_attention_and_strategy(build):
    for attention, strategy, view in (
        *(("causal", "all", "sequence"), ("causal", "sampling", "segment")),
        *(("bidirectional", "all", "prefix"), ("bidirectional", "sampling", "segment")),
    ):
        _, train, _ = build(rec_llm_attention=attention, train_strategy=strategy)
        assert train.rows.view == view


@pytest.mark.parametrize("rec_llm", FAMILIES)
def test_only_the_first_layers_are_kept(build, rec_llm):
    whole, *_ = build(**CAUSAL, rec_llm=rec_llm)
    total = whole.rec_llm.config.num_hidden_layers
    assert total > 1
    short, _, batch = build(**CAUSAL, rec_llm=rec_llm, rec_llm_layers=1)
    kept = {name for name, _ in short.rec_llm.named_parameters()}
    assert kept < {name for name, _ in whole.rec_llm.named_parameters()}
    assert torch.isfinite(short.full_sort_predict(batch)[:, 1:]).all()
    every, *_ = build(**CAUSAL, rec_llm=rec_llm, rec_llm_layers=total)
    torch.testing.assert_close(every.full_sort_predict(batch), whole.full_sort_predict(batch))
    with pytest.raises(ConfigError, match=f"rec_llm_layers={total + 1}: .* has {total} layers"):
        build(**CAUSAL, rec_llm=rec_llm, rec_llm_layers=total + 1)


def test_a_tied_head_is_the_item_vectors(build):
    model, train, batch = build(**CAUSAL, head="tied", adaptor="linear")
    assert model.W_proj is None
    with torch.no_grad():
        expected = model.user_vectors(batch) @ model.item_source.catalogue().T
        torch.testing.assert_close(model.full_sort_predict(batch)[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)
    model.train()
    model.calculate_loss(next(iter(train))).backward()
    assert model.item_source.adapt.weight.grad.abs().sum() > 0
    plain, *_ = build(**CAUSAL, adaptor="linear")
    sizes = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (plain, model)]
    assert sizes[0] - sizes[1] == model.n_items * model.hidden_size


def test_the_second_stage_of_a_tied_head_trains_one_table_for_input_and_output(build):
    model, train, batch = build(**{**CAUSAL, "item_llm_mode": "two_stage"}, head="tied")
    before = model.full_sort_predict(batch)
    model.start_stage("stage2")
    torch.testing.assert_close(model.eval().full_sort_predict(batch), before, rtol=1e-4, atol=1e-5)
    model.train()
    model.calculate_loss(next(iter(train))).backward()
    assert model.item_source.rows.weight.grad[1:].abs().sum(1).min() > 0  # every item, as an output


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_view": "sequence"}, "train_view=sequence contradicts rec_llm_attention=bidirectional"),
        ({"rec_llm": "tiny-random-llama"}, "is a decoder"),
        ({"task": "topn", "topn_negatives": 9, "rec_llm_attention": "causal"}, "task=topn"),
        ({"rec_llm_attention": "causal", "rec_llm_attn_implementation": "flash_attention_2"}, "sdpa or eager"),
        ({"head": "tied", "fix_head": True}, "fix_head=True contradicts head=tied"),
        ({"head": "tied", "item_llm_mode": "joint"}, "whole catalogue through the Item LLM"),
        ({"share_llm": True, "item_llm_mode": "joint", "rec_llm_layers": 1}, "rec_llm_layers contradicts share_llm"),
        ({"rec_llm_tuning": "lora", "fix_rec_llm": True}, "rec_llm_tuning=lora contradicts fix_rec_llm=True"),
        ({"rec_llm_tuning": "lora", "rec_llm_init": "scratch"}, "contradicts rec_llm_init=scratch"),
        ({"rec_llm_tuning": "lora", "lora_target_modules": ["nosuch"]}, "nosuch"),
    ],
)
def test_contradictions_are_named(build, settings, words):
    with pytest.raises(ConfigError, match=words):
        build(**settings)


@pytest.mark.parametrize("rec_llm", FAMILIES)
def test_lora_trains_adapters_alone(build, rec_llm):
    whole, *_ = build(**CAUSAL, rec_llm=rec_llm)
    model, train, batch = build(**CAUSAL, rec_llm=rec_llm, rec_llm_tuning="lora")
    model.eval()
    model.W_proj = whole.W_proj  # drawn after the adapters
    torch.testing.assert_close(model.full_sort_predict(batch), whole.full_sort_predict(batch))
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learned if "lora_" not in name} == {"W_proj.weight"}
    assert any("lora_" in name for name in learned)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.calculate_loss(next(iter(train))).backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora_" in name for name in moved) and moved <= learned


@pytest.mark.parametrize("check", ["weights", "loading", "resuming"])
def test_runs_with_lora_are_saved_and_resumed(check):
    settings = {**CAUSAL, "rec_llm_tuning": "lora", "rec_llm": "tiny-random-llama", "llm": "tiny-random-t5"}
    assert check_model("LiteLLM4Rec", settings, [check]) == {check: "passed"}


@pytest.mark.parametrize("check", ["loss", "loss_weight", "batching", "padding", "predict", "vectors", "new_items"])
@pytest.mark.parametrize("rec_llm", FAMILIES)
def test_the_causal_variant_keeps_the_contract(rec_llm, check):
    settings = {**CAUSAL, "head": "tied", "seq_pool": "last", "rec_llm": rec_llm, "llm": "tiny-random-t5"}
    assert check_model("LiteLLM4Rec", settings, [check]) == {check: "passed"}


def test_text_carries_over_to_items_that_were_never_trained_on(tmp_path):
    """Second editions are in no training history: their texts say what comes next."""
    write_twins(tmp_path / "data")
    settings = {
        **{**CAUSAL, "head": "tied", "seq_pool": "last", "adaptor": "linear"},
        **{"llm": "tiny-random-bert", "rec_llm": "tiny-random-bert", "epochs": 40, "eval_step": 40},
        **{"MAX_ITEM_LIST_LENGTH": 4, "learning_rate": 0.003, "train_batch_size": 8, "lr_schedule": "constant"},
        **{"topk": [1, 10], "metrics": ["Recall"], "valid_metric": "Recall@1", "mask_history": False},
        **{key: str(tmp_path / key) for key in ("checkpoint_dir", "embedding_cache_dir")},
        **{"data_path": str(tmp_path / "data"), "show_progress": False, "use_gpu": False},
    }
    loaded = load_run(run("LiteLLM4Rec", "twins", config_dict=settings)["run_dir"])
    loaded.trainer.evaluate(loaded.valid_data, load_best_model=False)
    ranks = loaded.trainer.evaluation.ranks
    second = [str(user).startswith("b") for user in loaded.dataset.id2token("user_id", ranks.user)]
    # Both editions of a title have one score: rank 2 is as good as 1.
    assert (ranks.unmasked[second] <= 2).mean() > 0.9
