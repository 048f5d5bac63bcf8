"""LLMSeqPrompt: each variant learns what is known, writes what it may, and every item gets a score of its own."""

import json

import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.llm.title_prompts import list_lines
from recbole_llm.quick_start import run
from recbole_llm.submodel import build
from recbole_llm.trainer.trainer import RunTrainer
from tests.toy_llms import save_llama
from tests.worlds import WORDS, write_cycle, write_dataset

VARIANTS = ["genitem", "genlist", "classify", "rank"]
SHORT = {"classify": "[user]\n{history}\nof\n{candidates}\n", "rank": "[user]\n{history}\nof\n{candidates}\n"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A language model of few tokens."""
    text = "".join(f"{i}. {word}\n{word}\n {word} volume {i}\n" for i, word in enumerate(WORDS))
    lines = f"{list_lines(WORDS)}\n### User:\nof\n### Assistant:\n{text}"
    return save_llama(tmp_path_factory.mktemp("llm") / "small", "llama3", [lines] * 9)


@pytest.fixture
def settings(tmp_path, small):
    write_cycle(tmp_path / "data", users=12, items=20, length=8)
    return {
        "llm": "tiny-random-t5",
        "rec_llm": small,
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "embedding_cache_dir": str(tmp_path / "cache"),
        "list_length": 5,
        "clusters": 6,
        "n_samples": 4,
        "max_history": 3,
        "max_new_tokens": 30,
        "lora_r": 2,
        "gradient_checkpointing": False,
        "show_progress": False,
        "use_gpu": False,
    }


def prepare(settings, dataset="cycle", **more):
    config = Config("LLMSeqPrompt", dataset, config_dict={**settings, **more})
    train, valid, test = prepare_data(config, HistoryDataset(config))
    torch.manual_seed(0)
    return build(config, train.dataset).eval(), train, valid, test


def evaluated(model, train, test):
    trainer = RunTrainer(model.config, model, None, train.dataset.train_counts, finished=True)
    return trainer.evaluate(test, load_best_model=False), trainer


# ---- known answers


@pytest.mark.parametrize("variant", VARIANTS)
def test_learns_a_cycle(variant, settings, tmp_path):
    titles = {f"i{k}": word for k, word in enumerate(WORDS)}
    n = len(titles)
    write_dataset(
        tmp_path / "words", "words", {f"u{u}": [f"i{(u + i) % n}" for i in range(6)] for u in range(24)}, titles
    )
    (tmp_path / "short.txt").write_text(SHORT.get(variant, "[user]\n{history}\n"), encoding="utf-8")
    more = {
        "data_path": str(tmp_path / "words"),
        "variant": variant,
        "prompt": str(tmp_path / "short.txt"),
        "rec_llm_init": "scratch",
        "tuning": "full",
        "max_history": 1,
        "MAX_ITEM_LIST_LENGTH": 1,
        "max_train_rows_per_user": None,
        "length_bucketing": False,
        # With as many clusters and candidates as items nothing is out of reach.
        "clusters": n,
        "list_length": {"rank": n, "genlist": 3, "classify": 3}.get(variant, 5),
        "mask_history": False,
        "temperature": 0.0 if variant != "genitem" else 0.25,
        "max_new_tokens": 80,
        "epochs": 12 if variant == "genitem" else 25,
        "eval_step": 100,
        "learning_rate": 5e-3,
        "lr_schedule": "constant",
        "train_batch_size": 24,
        "topk": [1, 5],
        "valid_metric": "Recall@1",
    }
    result = run("LLMSeqPrompt", "words", config_dict={**settings, **more})
    report = json.loads((tmp_path / "saved" / result["run_dir"] / "results.json").read_text())["model_report"]
    assert result["test_result"]["recall@1"] > 0.9
    assert report["exact_rate"] > 0.9


# ---- answers


def oracle(model):
    """Let the model answer with the target, at the first place of a list, whatever it would say itself."""

    def generate(interaction, candidates=None):
        answers = []
        for row, target in enumerate(interaction["item_id"].tolist()):
            items = [target] if candidates is None else [target, *candidates[row].tolist()]
            titles = [model.titles[item] for item in dict.fromkeys(items) if item and model.titles[item]]
            answers.append([model.titles[target]] if model.single else [list_lines(titles[: model.k])])
        return answers

    model.generate = generate


@pytest.mark.parametrize("variant", ["genitem", "genlist"])
def test_an_oracle_is_always_right(settings, variant):
    model, train, _, test = prepare(settings, variant=variant, topk=[1, 5], valid_metric="NDCG@5")
    oracle(model)
    result, trainer = evaluated(model, train, test)
    assert result["recall@1"] == 1 == trainer.unmasked_result["recall@1"]
    assert trainer.model_report["exact_rate"] == 1 and trainer.model_report["hallucination_rate"] == 0


@pytest.mark.parametrize("mask_history", [True, False])
def test_no_ranking_of_candidates_finds_more_than_llmseqsim(settings, mask_history):
    more = {"topk": [5], "valid_metric": "Recall@5", "mask_history": mask_history}
    model, train, _, test = prepare(settings, variant="rank", **more)
    trainer = RunTrainer(model.config, model.seqsim, None, train.dataset.train_counts, finished=True)
    similar = trainer.evaluate(test, load_best_model=False)["recall@5"]
    assert 0 < similar < 1
    oracle(model)
    result, trainer = evaluated(model, train, test)
    assert result["recall@5"] == similar == trainer.model_report["reachable_rate"]
