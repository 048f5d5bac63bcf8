"""Scores have 32 bits, whatever training and language models compute in."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.evaluator.ranks import ScoreError
from recbole_llm.llm.head import float32_logits
from recbole_llm.precision import product
from recbole_llm.trainer.trainer import RunTrainer
from tests.evaluator.test_mask import folder, settings_of, untrained  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")
NEURAL = ["LRURec", "LLM2SASRec", "LLM2GRU4Rec", "LiteLLM4Rec", "P5", "LLMSeqSim", "SASRec", "GRU4Rec", "FPMC"]


def scores_of(made):
    evaluator, data = made.trainer.evaluator, made.test_data
    parts = [evaluator.scores(made.model, batch[0], data.dataset)[:, 1:] for batch in data]
    return torch.cat(parts)


@pytest.mark.parametrize("name", NEURAL)
def test_mixed_precision_makes_no_ties(name, folder):  # noqa: F811
    more = {"MAX_ITEM_LIST_LENGTH": 5, **({"decoding": "exact"} if name == "P5" else {})}
    exact, mixed = (scores_of(untrained(name, folder, amp=amp, **more)) for amp in (None, "bf16"))
    assert mixed.dtype == torch.float32
    assert [len(row.unique()) for row in mixed] == [len(row.unique()) for row in exact]
    torch.testing.assert_close(mixed, exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))


@pytest.mark.parametrize("more", [{"amp": "bf16"}, {"llm_dtype": "bfloat16"}])
def test_letters_of_a_language_model_of_16_bits_do_not_tie(more, folder):  # noqa: F811
    made = untrained("LlamaRec", folder, n_candidates=20, MAX_ITEM_LIST_LENGTH=5, **more)
    interaction, *_ = next(iter(made.test_data))
    candidates = made.model._candidates(made.model.retriever_scores(interaction), interaction)
    with torch.no_grad(), made.trainer.evaluator.precision(made.model):
        (letters,) = made.model._letter_logits(interaction["item_id_list"], interaction["item_length"], [candidates])
    for row, items in zip(letters, candidates, strict=True):
        assert len(row[items > 0].unique()) == int((items > 0).sum())


def llama(**more):
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **shape, **more)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tokens", [None, torch.tensor([5, 3, 90])])
def test_logits_are_the_products_of_the_stored_weights(dtype, tied, tokens):
    lm = llama(tie_word_embeddings=tied).to(dtype)
    ids = torch.arange(1, 13).view(3, 4)
    with torch.no_grad():
        hidden = lm.model(ids).last_hidden_state
        with float32_logits(lm, tokens), torch.autocast("cpu", dtype=torch.bfloat16):
            found = lm(ids).logits
        expected = hidden.float() @ lm.lm_head.weight.float().T
    assert found.dtype == torch.float32
    # Autocast changes the layers before.
    torch.testing.assert_close(found, expected if tokens is None else expected[..., tokens], rtol=0.05, atol=0.02)
    assert len(found[0, 0].unique()) == len(found[0, 0])
    assert lm.get_output_embeddings() is lm.lm_head and isinstance(lm.lm_head, nn.Linear)


def test_logits_of_a_head_with_an_adapter():
    from peft import LoraConfig, get_peft_model

    lm = get_peft_model(llama(), LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)).eval()
    ids = torch.arange(1, 9).view(2, 4)
    with torch.no_grad():
        expected = lm(input_ids=ids).logits
        with float32_logits(lm):
            found = lm(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_product_is_of_32_bits():
    hidden, items = torch.randn(4, 8).bfloat16(), torch.randn(6, 8).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = product(hidden, items, torch.ones(6))
    torch.testing.assert_close(found, hidden.float() @ items.float().T + 1)


def test_a_model_that_scores_in_16_bits_is_refused(folder, monkeypatch):  # noqa: F811
    made = untrained("LRURec", folder)
    original = made.model.full_sort_predict
    monkeypatch.setattr(made.model, "full_sort_predict", lambda rows: original(rows).bfloat16())
    with pytest.raises(ScoreError, match="bfloat16.*precision.product"):
        made.trainer.evaluate(made.test_data, load_best_model=False)


# ---- weights that learn


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("LlamaRec", {"tuning": "full", "llm_dtype": "bfloat16"}),
        ("LLMSeqPrompt", {"tuning": "full", "rec_llm_dtype": "float16", "epochs": 1}),
        ("LiteLLM4Rec", {"llm_dtype": "bfloat16"}),
        ("P5", {"llm_dtype": "bfloat16"}),
    ],
)
def test_weights_of_16_bits_are_not_trained(name, more, folder):  # noqa: F811
    config = Config(name, "shop", config_dict=settings_of(name, folder, **more))
    train, *_ = prepare_data(config, HistoryDataset(config))
    with pytest.raises(ConfigError, match="llm_dtype='(bfloat16|float16)'.*updates would be lost.*float32"):
        config.model_class(config, train.dataset)


def test_auto_is_float32_where_every_weight_learns(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr("recbole_llm.llm.dtype.native_dtype", lambda device: torch.bfloat16)
    for tuning, expected in (("full", torch.float32), ("lora", torch.bfloat16)):
        made = untrained("LlamaRec", folder, tuning=tuning, llm_dtype="auto")
        assert made.model.ranker.get_input_embeddings().weight.dtype == expected


def test_a_model_of_one_s_own_with_weights_of_16_bits_is_refused(folder):  # noqa: F811
    config = Config("SASRec", "shop", config_dict=settings_of("SASRec", folder))
    train, *_ = prepare_data(config, HistoryDataset(config))
    model = config.model_class(config, train.dataset)
    model.item_embedding.bfloat16()
    with pytest.raises(ConfigError, match="SASRec trains .* weights of type torch.bfloat16"):
        RunTrainer(config, model)
