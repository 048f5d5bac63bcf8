"""Rows of ``props/paper``: every setting says where the paper gives it, or that the paper leaves it open."""

import re
from pathlib import Path

import pytest
import yaml

from recbole_llm.config import Config

PROPS = Path(__file__).parents[1] / "props"
ROWS = sorted((PROPS / "paper").glob("*.yaml"))
KEY = re.compile(r"^([A-Za-z_]\w*):")
# A place in the paper, in its code or online material; or that the choice is open, or ours.
SOURCE = re.compile(
    r"#.*(\((open|ours)\)|(Sec\.|Table|Figure|Eq\.|Algorithm) \d|Abstract|table of ablations|online material|\bcode\b)"
)
OPEN_IN_LITELLM4REC = {
    *("MAX_ITEM_LIST_LENGTH", "item_llm_mode", "item_pooling", "share_llm", "seq_pool", "input_scale"),
    *("dropout_place", "head_init", "decay_groups", "lr_schedule", "clip_grad_norm", "epochs", "mask_history"),
    *("weight_decay", "warmup_ratio", "adam_eps", "item_text"),
}
# What a whole row states itself: the defaults of a model are not its paper's protocol.
PROTOCOL = {"dataset", "MAX_ITEM_LIST_LENGTH", "mask_history"}
TRAINED = {"learning_rate", "weight_decay", "train_batch_size", "epochs", "stopping_step", "valid_metric"}
# What the authors' code fixes, where a row states it or leaves it to the model's defaults.
IN_FORCE = {
    "LRURec": {
        **{"hidden_size": 64, "n_layers": 2, "inner_size": 256, "learner": "adamw", "adam_eps": 1e-9},
        **{"decay_groups": "no_bias_norm", "lr_schedule": "constant", "clip_grad_norm": {"max_norm": 5.0}},
        **{"loss": "ce", "first_item_target": True, "windows": "original"},
    },
    "LlamaRec": {
        **{"lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": ["q_proj", "v_proj"]},
        **{"warmup_updates": 100, "lr_schedule": "linear", "weight_decay": 0.0, "clip_grad_norm": {"max_norm": 1.0}},
        **{"n_candidates": 20, "max_history": 20, "max_title_tokens": 32, "max_prompt_length": 1536},
        **{"ranker_loss": "letter_eos", "train_negatives": "random", "max_train_rows_per_user": None},
        **{"permutations": 1, "shuffle_candidates": False, "retriever_weight": 0.0, "calibration": "none"},
    },
    "LLMSeqSim": {"normalize": True, "reduction_fit": "catalogue", "epochs": 0},
    **{
        f"LLM2{base}": {
            **{"init_scale": "none", "whiten": False, "normalize": False, "reduction_fit": "catalogue"},
            **{"freeze_item_embedding": False, "adaptor": "none", "residual_id": False, "output_bias": "none"},
            **{"lr_schedule": "constant", "warmup_ratio": 0.0, "decay_groups": "all", "learner": "adamw"},
        }
        for base in ("SASRec", "BERT4Rec", "GRU4Rec")
    },
    "LiteLLM4Rec": {"rec_llm_attention": "bidirectional", "head": "projection", "adaptor": None, "fix_head": False},
}
WHOLE = [path for path in ROWS if {"model", "dataset"} <= set(yaml.safe_load(path.read_text()))]
# Online material of arXiv 2402.01339: clipping, rate, decay, batch, width, dropout, layers, heads.
BEAUTY = {
    "llm2bert4rec_beauty_paper": ({"max_norm": 5}, 1.2e-3, 0.0235, 448, 0.45, 2, 1),
    "llm2bert4rec_beauty_paper_vanilla": ({"max_norm": 92}, 2.3e-3, 0.0409, 192, 0.4, 1, 2),
    "llm2sasrec_beauty_paper": ({"max_norm": 43}, 1e-4, 0.086, 448, 0.0, 1, 1),
    "llm2sasrec_beauty_paper_vanilla": (None, 4.8e-3, 0.0962, 48, 0.25, 2, 3),
}
BEAUTY_GRU = {
    "llm2gru4rec_beauty_paper": (None, 1.3e-3, 0.0572, 96, 192, 496),
    "llm2gru4rec_beauty_paper_vanilla": (None, 7.2e-3, 0.0893, 32, 80, 32),
}


def settings(path):
    """Lines of the top-level keys, and the values."""
    lines = {match[1]: line for line in path.read_text().splitlines() if (match := KEY.match(line))}
    return lines, yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_every_setting_has_a_source(path):
    lines, values = settings(path)
    assert set(lines) == set(values)
    assert path.read_text().startswith("# ") and "arXiv" in path.read_text().split("\nmodel:")[0]
    assert [line for key, line in lines.items() if key != "model" and not SOURCE.search(line)] == []


@pytest.mark.parametrize("path", [path for path in ROWS if "model: LiteLLM4Rec\n" in path.read_text()], ids=str)
def test_litellm4rec_rows_state_what_the_paper_leaves_open(path):
    lines, values = settings(path)
    assert set(lines) >= OPEN_IN_LITELLM4REC
    # Sec. 5.1.4 gives these for Movies and Toys only.
    given = {key: values[key] for key in ("weight_decay", "warmup_ratio", "adam_eps")}
    if values["dataset"] == "ml-1m":
        assert all("(open)" in lines[key] for key in given)
    else:
        assert given == {"weight_decay": 0.1, "warmup_ratio": 0.1, "adam_eps": 1e-6}
        assert all("Sec. 5.1.4" in lines[key] for key in given)
    assert values["dropout"] == (0.7 if values["dataset"] == "ml-1m" else 0.8)
    assert (values["learning_rate"], values["train_batch_size"], values["stopping_step"]) == (5e-4, 256, 20)
    for key in ("dropout_place", "input_scale", "head_init", "clip_grad_norm", "lr_schedule", "decay_groups"):
        assert "(open)" in lines[key], key


def test_rows_of_arxiv_2402_01339_use_its_protocol():
    rows = [path for path in ROWS if path.stem.startswith(("llmseqsim", "llm2"))]
    assert len(rows) >= 9
    for path in rows:
        _, values = settings(path)
        assert values["protocol"] == "temporal_session", path.stem
        if values["model"] in ("LLM2SASRec", "LLM2BERT4Rec"):
            assert (values["MAX_ITEM_LIST_LENGTH"], values["windows"]) == (20, "newest"), path.stem
        else:  # whole sessions; the longest of Beauty has 204 items
            assert values["MAX_ITEM_LIST_LENGTH"] >= 204, path.stem


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_whole_rows_state_the_protocol_and_use_what_the_authors_fix(path):
    lines, values = settings(path)
    trained = TRAINED if values["model"] not in ("LLMSeqSim", "LlamaRec") else set()
    assert set(lines) >= PROTOCOL | trained
    config = Config(values["model"], values["dataset"], config_file_list=[str(path)])
    fixed = IN_FORCE[values["model"]]
    assert {key: config[key] for key in fixed} == fixed
    # Who masks the window only says so beside our mask of the whole history.
    assert values["mask_history"] is True and "#" in lines["mask_history"]


@pytest.mark.parametrize("name", [*BEAUTY, *BEAUTY_GRU])
def test_rows_of_beauty_are_those_of_the_online_material(name):
    _, values = settings(PROPS / "paper" / f"{name}.yaml")
    config = Config(values["model"], values["dataset"], config_file_list=[str(PROPS / "paper" / f"{name}.yaml")])
    given = config["clip_grad_norm"], config["learning_rate"], config["weight_decay"]
    if name in BEAUTY:
        given += config["hidden_size"], config["hidden_dropout_prob"], config["n_layers"], config["n_heads"]
    else:
        given += config["train_batch_size"], config["embedding_size"], config["hidden_size"]
    assert given == {**BEAUTY, **BEAUTY_GRU}[name]


@pytest.mark.parametrize("data", ["beauty", "games", "ml-latest-small"])
def test_the_retriever_of_a_llamarec_row_is_trained_by_the_row_of_lrurec(data):
    retriever = f"lrurec_{data}" if data == "ml-latest-small" else f"lrurec_{data}-5core"
    _, row = settings(PROPS / "paper" / f"{retriever}.yaml")
    _, values = settings(PROPS / "paper" / f"llamarec_{data}.yaml")
    own = {"model", "dataset", "MAX_ITEM_LIST_LENGTH", "mask_history"} | {key for key in row if "inter_num" in key}
    assert values["retriever_settings"] == {key: value for key, value in row.items() if key not in own}
    assert all(values[key] == row[key] for key in own - {"model"})


def test_the_topn_row_is_about_small_k():
    _, values = settings(PROPS / "paper" / "litellm4rec_topn.yaml")
    assert values["topk"][0] == 1 and max(values["topk"]) <= 10
