"""Calibration: the bias of each letter, measured on prompts that decide nothing."""

import pytest
import torch

from recbole_llm.llm.backbone import load_tokenizer
from recbole_llm.quick_start import load_run, run
from tests.llamarec import K, batch_of, prepare


@pytest.mark.parametrize("calibration", ["content_free", "shuffled"])
def test_calibration_takes_off_what_a_letter_has_by_itself(settings, calibration, monkeypatch):
    """Scores are those of a model without the constant that each letter has more or less of here."""
    model, _, _, test = prepare(settings, calibration=calibration, calibration_prompts=5)
    plain, *_ = prepare(settings)
    plain.ranker = model.ranker
    batch = batch_of(test)
    before, uncalibrated = model.full_sort_predict(batch), plain.full_sort_predict(batch)
    assert torch.isfinite(model.reader.bias).all()
    assert model.reader.bias.exp().sum() <= 1 + 1e-5
    original = type(model.reader).letters

    def leaning(self, lm, ids, mask, count, kept=None):
        return original(self, lm, ids, mask, count, kept) + torch.linspace(3, -3, K)[:count]

    monkeypatch.setattr(type(model.reader), "letters", leaning)
    assert not torch.equal(plain.full_sort_predict(batch).argsort(1), uncalibrated.argsort(1))
    model.reader.forget_bias()
    torch.testing.assert_close(model.full_sort_predict(batch), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("calibration", ["content_free", "shuffled"])
def test_the_bias_is_that_of_the_weights_and_kept_with_them(settings, calibration):
    given = {**settings, "calibration": calibration, "calibration_prompts": 3, "save_state": True}
    result = run("LlamaRec", "cycle", config_dict=given)
    loaded = load_run(result["run_dir"])
    kept = loaded.model.reader.bias.clone()
    assert torch.isfinite(kept).all()
    batch = batch_of(loaded.test_data)
    scores = loaded.model.full_sort_predict(batch)
    assert torch.equal(loaded.model.reader.bias, kept)
    loaded.model.reader.forget_bias()
    torch.testing.assert_close(loaded.model.full_sort_predict(batch), scores)
    torch.testing.assert_close(loaded.model.reader.bias, kept)
    model, train, *_ = prepare(given)
    assert model.reader.needs_bias
    model.full_sort_predict(batch)
    assert not model.reader.needs_bias
    model.calculate_loss(batch_of(train))
    assert model.reader.needs_bias


def test_calibration_prompts(settings, monkeypatch):
    """Without content: one title everywhere. Shuffled: training prefixes, candidates in an order of their own."""
    model, *_ = prepare(settings, calibration="content_free")
    texts = [model.composer.text([], [1]), *map(tokens_of(model), model._calibration_prompts())]
    assert [text.count("N/A") for text in texts] == [0, 4 + K, 0, 0]
    model, train, *_ = prepare(settings, calibration="shuffled", calibration_prompts=7)
    (prompts,) = model._calibration_prompts()
    assert len(prompts.ids) == 7
    rows = model._calibration_rows
    assert (rows["item_length"] > 0).all()
    monkeypatch.setattr("recbole_llm.model.llamarec.shuffled", lambda items, *_: torch.arange(K).expand_as(items))
    (ordered,) = model._calibration_prompts()
    assert (ordered.ids[:, -1] == prompts.ids[:, -1]).all() and not torch.equal(ordered.ids, prompts.ids)


def tokens_of(model):
    tokenizer = load_tokenizer(model.resolved)
    return lambda prompts: tokenizer.decode(prompts.ids[0], skip_special_tokens=True)
