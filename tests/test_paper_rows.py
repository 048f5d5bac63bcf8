"""Rows of ``props/paper``: every setting says where the paper gives it, or that the paper leaves it open."""

import re
from pathlib import Path

import pytest
import yaml

PROPS = Path(__file__).parents[1] / "props"
ROWS = sorted((PROPS / "paper").glob("*.yaml"))
KEY = re.compile(r"^([A-Za-z_]\w*):")
# A place in the paper, in its code or online material; or that the choice is open, or ours.
SOURCE = re.compile(
    r"#.*(\((open|ours)\)|Sec\. \d|Table \d|Figure \d|Eq\. \d|Algorithm \d|Abstract|online material|\bcode\b)"
)
OPEN_IN_LITELLM4REC = {
    *("MAX_ITEM_LIST_LENGTH", "item_llm_mode", "item_pooling", "share_llm", "seq_pool", "input_scale"),
    *("dropout_place", "head_init", "decay_groups", "lr_schedule", "clip_grad_norm", "epochs", "mask_history"),
    *("weight_decay", "warmup_ratio", "adam_eps"),
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


def test_the_topn_row_is_about_small_k():
    _, values = settings(PROPS / "paper" / "litellm4rec_topn.yaml")
    assert values["topk"][0] == 1 and max(values["topk"]) <= 10
