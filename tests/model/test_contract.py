"""What every model of this package promises, on tiny data with a tiny random language model."""

import numpy as np
import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.config.registry import own_models, property_file, props_dir
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.quick_start import load_run, run
from recbole_llm.trainer.checkpoint import load_weights, save_weights
from tests.worlds import write_cycle

TINY = {
    "llm": "tiny-random-t5",
    "rec_llm": "tiny-random-t5",
    "train_batch_size": 16,
    "epochs": 2,
    "show_progress": False,
    "use_gpu": False,
    "worker": 0,
}
# What a model cannot do without.
NEEDED = {
    "ScoreEnsemble": {"members": ["LLMSeqSim", {"model": "LLMSeqSim", "dim_reduction": "none"}]},
    "LLMSeqSimSequential": {"popular_model": "VSKNN"},
    "LlamaRec": {"n_candidates": 5},
}
pytestmark = pytest.mark.parametrize("name", own_models())


@pytest.fixture
def settings(name, tmp_path):
    write_cycle(tmp_path / "data")
    own = property_file(props_dir() / "model" / f"{name}.yaml")
    # A model that is not trained keeps its own epochs: 0.
    tiny = {key: value for key, value in TINY.items() if key != "epochs" or own.get("epochs") != 0}
    # A model may need another tiny language model than most, and less of it.
    shrunk = {key: value for key, value in own.get("smoke_settings", {}).items() if key not in TINY or "llm" in key}
    return {
        **tiny,
        **NEEDED.get(name, {}),
        **shrunk,
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "embedding_cache_dir": str(tmp_path / "cache"),
    }


def build(name, settings, **more):
    config = Config(name, "cycle", config_dict={**settings, **more})
    dataset = HistoryDataset(config)
    train, valid, test = prepare_data(config, dataset)
    torch.manual_seed(1)
    return config.model_class(config, train.dataset), train, test


def skip_untrained(model):
    if not any(parameter.requires_grad for parameter in model.parameters()):
        pytest.skip(f"{type(model).__name__} has no trainable parameters")


def test_scores_have_the_shape_of_the_catalogue_and_no_padding_is_recommended(name, settings):
    model, _, test = build(name, settings)
    interaction, *_ = next(iter(test))
    scores = model.eval().full_sort_predict(interaction).view(len(interaction), -1)
    assert scores.shape == (len(interaction), model.n_items)
    assert (scores.argmax(1) != 0).all()
    assert torch.isfinite(scores[:, 1:]).all()


def test_predict_is_a_column_of_full_sort_predict(name, settings):
    model, _, test = build(name, settings)
    interaction, *_ = next(iter(test))
    with torch.no_grad():
        scores = model.eval().full_sort_predict(interaction).view(len(interaction), -1)
        single = model.predict(interaction)
    expected = scores[torch.arange(len(interaction)), interaction[model.ITEM_ID]]
    torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_scores_like_its_rows_one_by_one(name, settings):
    model, _, test = build(name, settings)
    interaction, *_ = next(iter(test))
    model.eval()
    with torch.no_grad():
        together = model.full_sort_predict(interaction).view(len(interaction), -1)
        alone = torch.cat([model.full_sort_predict(interaction[[i]]).view(1, -1) for i in range(len(interaction))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_scores_ignore_what_stands_behind_the_history(name, settings):
    model, _, test = build(name, settings)
    interaction, *_ = next(iter(test))
    model.eval()
    with torch.no_grad():
        before = model.full_sort_predict(interaction)
        interaction[model.ITEM_SEQ] = torch.nn.functional.pad(interaction[model.ITEM_SEQ], (0, 3))
        after = model.full_sort_predict(interaction)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_the_target_of_an_evaluation_row_is_not_read(name, settings):
    model, _, test = build(name, settings)
    interaction, *_ = next(iter(test))
    model.eval()
    with torch.no_grad():
        before = model.full_sort_predict(interaction)
        interaction[model.ITEM_ID] = torch.ones_like(interaction[model.ITEM_ID])
        assert torch.equal(before, model.full_sort_predict(interaction))


def test_a_step_lowers_the_loss_and_the_loss_is_a_finite_scalar(name, settings):
    model, train, _ = build(name, settings)
    skip_untrained(model)
    batch = next(iter(train))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(15):
        loss = model.calculate_loss(batch)
        assert loss.ndim == 0 and torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_saved_weights_score_the_same_after_loading(name, settings, tmp_path):
    model, _, test = build(name, settings)
    interaction, *_ = next(iter(test))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
        expected = model.eval().full_sort_predict(interaction)
    save_weights(model, tmp_path / "w.safetensors")
    other, *_ = build(name, settings)
    load_weights(other, tmp_path / "w.safetensors")
    with torch.no_grad():
        assert torch.equal(other.eval().full_sort_predict(interaction), expected)


def test_products_of_its_vectors_are_the_scores(name, settings):
    model, _, test = build(name, settings)
    if not model.scores_are_products:
        pytest.skip(f"{name} does not score by vectors")
    interaction, *_ = next(iter(test))
    with torch.no_grad():
        scores = model.eval().full_sort_predict(interaction)
        products = model.user_vectors(interaction) @ model.catalogue_vectors().T
        if model.catalogue_bias() is not None:
            products = products + model.catalogue_bias()
    torch.testing.assert_close(products[:, 1:], scores[:, 1:], rtol=1e-4, atol=1e-5)


def test_new_items_change_no_score_of_the_others(name, settings):
    model, _, test = build(name, settings, **({"head_init": "items"} if name == "LiteLLM4Rec" else {}))
    if not model.accepts_new_items:
        pytest.skip(f"{name} knows items by their ids only")
    interaction, *_ = next(iter(test))
    known = model.n_items
    with torch.no_grad():
        before = model.eval().full_sort_predict(interaction)
        model.append_items(["apple volume 0", "an unheard-of thing"])
        after = model.full_sort_predict(interaction)
        torch.testing.assert_close(after[:, :known], before, rtol=1e-4, atol=1e-5)
        assert after.shape == (len(interaction), known + 2)
        assert torch.isfinite(after[:, known:]).all()
        # A history may hold them from then on.
        interaction[model.ITEM_SEQ][:, 0] = known + 1
        assert not torch.equal(model.full_sort_predict(interaction), after)


def test_a_loaded_run_repeats_its_test_result(name, settings):
    result = run(name, "cycle", config_dict=settings)
    again = load_run(result["run_dir"])
    assert again.trainer.evaluate(again.test_data, load_best_model=False) == result["test_result"]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(name, settings):
    first, second = (run(name, "cycle", config_dict=settings, saved=False) for _ in range(2))
    assert first["test_result"] == second["test_result"]
    skip_untrained(build(name, settings)[0])
    ranks = []
    for seed in (1, 2):
        result = run(name, "cycle", config_dict={**settings, "seed": seed})
        ranks.append(np.load(f"{result['run_dir']}/test_ranks.npz")["rank_unmasked"])
    assert not np.array_equal(*ranks)
