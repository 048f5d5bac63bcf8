"""LlamaRec against the numbers of the authors' code."""

import json

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_llm.data.candidates import CANDIDATES
from tests.llamarec import prepare
from tests.toy_tokenizers import GOLDEN, llama2
from tests.worlds import write_dataset


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden_llm(tmp_path_factory):
    """The golden set's tiny Llama as a model folder."""
    folder = tmp_path_factory.mktemp("golden") / "llama"
    shape = json.loads((GOLDEN / "tiny_llama.json").read_text(encoding="utf-8"))["config"]
    arrays = np.load(GOLDEN / "tiny_llama.npz")
    llm = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    weights = {name[7:]: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("weight/")}
    llm.load_state_dict(weights)
    llm.save_pretrained(folder)
    llama2().save_pretrained(folder)
    return str(folder)


def test_golden_llamarec_prompt_model(golden, golden_llm, tmp_path, settings):
    titles = {str(i): golden["titles_after_truncation"][str(i)]["truncated"] for i in range(1, 26)}
    # The whole catalogue in order of its numbers, so that internal ids are the golden set's.
    write_dataset(tmp_path / "toy", "toy", {"u": list(titles)}, titles)
    more = {"llm": golden_llm, "data_path": str(tmp_path / "toy"), "tuning": "full", "n_candidates": 20}
    more |= {"max_history": 20, "max_title_tokens": None, "max_train_rows_per_user": None}
    model, *_ = prepare(settings, dataset="toy", **more)
    expected = json.loads((GOLDEN / "tiny_llama.json").read_text(encoding="utf-8"))
    arrays = np.load(GOLDEN / "tiny_llama.npz")

    def batch(examples):
        histories = [torch.tensor(example["history_items"]) for example in examples]
        return Interaction(
            {
                "item_id_list": torch.nn.utils.rnn.pad_sequence(histories, batch_first=True),
                "item_length": torch.tensor([len(history) for history in histories]),
                CANDIDATES: torch.tensor([example["candidate_items"] for example in examples]),
                "item_id": torch.tensor([example["target_item"] for example in examples]),
            }
        )

    # A candidate may stand twice among the released code's random ones: hand over the label itself.
    train = golden["train_examples"][:3]
    interaction = batch(train)
    prompts = model.composer(interaction["item_id_list"], interaction["item_length"], interaction[CANDIDATES])
    label = torch.tensor([example["label_index"] for example in train])
    model.train()
    loss = model.answer_loss(prompts.ids, prompts.mask, label, interaction[CANDIDATES] > 0)
    loss.backward()
    assert loss.item() == pytest.approx(expected["train_loss"], abs=1e-4)
    norms = {name: parameter.grad.norm().item() for name, parameter in model.ranker.named_parameters()}
    assert norms == pytest.approx(expected["grad_norm"], rel=1e-4)

    test = batch(golden["test_examples"])
    model.eval()
    (logits,) = model._letter_logits(test["item_id_list"], test["item_length"], [test[CANDIDATES]])
    trained = [int(i) for i in golden["verbalizer"]["ids_trained_in_context"]]
    torch.testing.assert_close(
        logits, torch.from_numpy(arrays["test_last_position_logits"])[:, trained], rtol=0, atol=1e-4
    )
    model.reader.letter_ids = torch.tensor(golden["verbalizer"]["ids_read_at_evaluation"])
    (logits,) = model._letter_logits(test["item_id_list"], test["item_length"], [test[CANDIDATES]])
    torch.testing.assert_close(logits, torch.from_numpy(arrays["test_letter_scores"]), rtol=0, atol=1e-4)
