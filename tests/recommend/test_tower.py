"""User towers as ONNX graphs: the model's own vectors, for any history, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recbole_llm import Recommender
from recbole_llm.cli import main
from recbole_llm.errors import UnsupportedError
from recbole_llm.layer.packing import static_shapes
from recbole_llm.quick_start import run

SERVE = Path(__file__).parents[2] / "examples" / "serve_onnx.py"
HISTORIES = [["i3"], ["i1", "i2", "i5"], ["i4", "i9", "i1", "i2", "i3", "i6", "i7"]]
BERT = {"llm": "tiny-random-bert"}


@pytest.fixture(autouse=True)
def _shop(shop):
    pass


@pytest.fixture
def onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


@pytest.mark.parametrize("model", ["LRURec", "LLM2SASRec", "LLM2BERT4Rec", "LLM2GRU4Rec", "LLMSeqSim"])
def test_whole_padded_batches_give_the_same_vectors(model, tiny):
    recommender = Recommender.load(run(model, "shop", config_dict={**tiny, "llm": "tiny-random-bert"})["run_dir"])
    expected = recommender.user_vectors(HISTORIES)
    with static_shapes():
        found = recommender.user_vectors(HISTORIES)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("SASRec", {}),
        ("LRURec", {}),
        ("LLM2SASRec", BERT),
        ("LLM2GRU4Rec", BERT),
        ("LLMSeqSim", {**BERT, "dim_reduction": "none"}),
        ("LiteLLM4Rec", {"llm": "tiny-random-t5"}),
    ],
)
def test_the_graph_gives_the_lists_of_the_model(model, settings, tiny, onnx):
    run_dir = run(model, "shop", config_dict={**tiny, **settings})["run_dir"]
    assert main(["export", run_dir, "--out=served", "--users=none", "--onnx"]) == 0
    about = json.loads(Path("served/export.json").read_text(encoding="utf-8"))["user_tower"]
    assert about["file"] == "user_tower.onnx" and about["inputs"]["item_id_list"] == ["batch", 5]
    recommender = Recommender.load(run_dir)
    for history in HISTORIES:
        expected = recommender.recommend([history], k=3)[0]
        found = served(history)[:3]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-4)
        if np.diff([score for _, score in expected]).max() < -1e-3:  # no near ties
            assert [item for item, _ in found] == [item for item, _ in expected]


def served(history):
    """What the example prints, in a process where torch and recbole_llm cannot be imported."""
    code = (
        "import sys, runpy; sys.modules.update(torch=None, recbole=None, recbole_llm=None); "
        f"sys.argv = ['serve', 'served', *{history!r}]; runpy.run_path({str(SERVE)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [(item, float(score)) for item, score in (line.split("\t") for line in done.stdout.splitlines())]


def test_models_without_products_or_a_graph_say_so(tiny, onnx, monkeypatch, capsys):
    run_dir = run("VSKNN", "shop", config_dict=tiny)["run_dir"]
    assert main(["export", run_dir, "--out=served", "--onnx"]) == 2
    assert "not known to be products" in capsys.readouterr().err
    from recbole_llm.recommend import tower

    recommender = Recommender.load(run("SASRec", "shop", config_dict=tiny)["run_dir"])
    monkeypatch.setattr(tower, "TOLERANCE", -1.0)
    with pytest.raises(UnsupportedError, match="gives other vectors than the model"):
        tower.write_tower(recommender, Path("tower.onnx"))
    assert not Path("tower.onnx").exists()
    monkeypatch.setattr(tower._Tower, "forward", lambda *_: 1 / 0)
    with pytest.raises(UnsupportedError, match="cannot be written as an ONNX graph"):
        tower.write_tower(recommender, Path("tower.onnx"))


def test_without_the_packages_the_message_names_the_extra(tiny, monkeypatch, capsys):
    run_dir = run("SASRec", "shop", config_dict=tiny)["run_dir"]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", run_dir, "--out=served", "--onnx"]) == 2
    assert "recbole-llm[onnx]" in capsys.readouterr().err
