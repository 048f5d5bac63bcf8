"""Vectors that the user brings: every format, every check, and every model that takes item vectors."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import save_file

from recbole_llm.errors import ConfigError, DataError
from recbole_llm.quick_start import load_run, run
from recbole_llm.text.vector_file import read_item_vectors
from tests.worlds import write_cycle, write_dataset

TOKENS = ["[PAD]", "b", "7", "a"]
IDS = ["a", "b", "unknown", "7"]
VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3) + 1


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


def write(path, ids=IDS, vectors=VECTORS):
    kind = path.suffix
    if kind == ".npz":
        np.savez(path, ids=np.array(ids), vectors=vectors)
    elif kind == ".npy":
        np.save(path, vectors)
        path.with_suffix(".ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    elif kind == ".safetensors":
        save_file({"vectors": torch.from_numpy(vectors).bfloat16()}, path)
        path.with_suffix(".ids.txt").write_text("\n".join(ids), encoding="utf-8")
    elif path.name == "lists.parquet":
        pd.DataFrame({"item_id": ids, "vector": list(vectors)}).to_parquet(path)
    elif path.name == "columns.parquet":
        pd.DataFrame({"id": ids, **{f"v{i}": vectors[:, i] for i in range(vectors.shape[1])}}).to_parquet(path)
    else:
        lines = [f"{item}\t{' '.join(map(str, row))}" for item, row in zip(ids, vectors, strict=True)]
        path.write_text("\n".join(["iid:token\temb:float_seq", *lines]) + "\n", encoding="utf-8")
    return path


FORMATS = ["v.npz", "v.npy", "v.safetensors", "shop.itememb", "lists.parquet", "columns.parquet"]


@pytest.mark.parametrize("name", FORMATS)
def test_vectors_are_found_by_raw_id(tmp_path, name):
    vectors, info = read_item_vectors(write(tmp_path / name), TOKENS)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[0, 0, 0], VECTORS[1], VECTORS[3], VECTORS[0]])
    assert (info["dim"], info["in_file"], info["used"], info["missing"]) == (3, 4, 3, 0)


def test_ids_may_be_numbers(tmp_path):
    np.savez(tmp_path / "n.npz", ids=np.array([30, 7]), vectors=VECTORS[:2])
    np.testing.assert_array_equal(read_item_vectors(tmp_path / "n.npz", ["[PAD]", "7", "30"])[0][1:], VECTORS[[1, 0]])
    save_file({"vectors": torch.tensor(VECTORS[:2]), "ids": torch.tensor([30, 7])}, tmp_path / "n.safetensors")
    found, _ = read_item_vectors(tmp_path / "n.safetensors", ["[PAD]", "7", "30"])
    np.testing.assert_array_equal(found[1:], VECTORS[[1, 0]])


def test_missing_items_are_named_or_zero(tmp_path, caplog):
    file = write(tmp_path / "v.npz", IDS[1:], VECTORS[1:])
    with pytest.raises(DataError, match=r"lacks 1 of 3 items, e\.g\. a\. .*item_vectors_missing=zero"):
        read_item_vectors(file, TOKENS)
    vectors, info = read_item_vectors(file, TOKENS, missing="zero")
    assert not vectors[3].any() and vectors[1].any() and info["missing"] == 1
    assert "lacks 1 of 3 items, e.g. a." in caplog.text


def bad(tmp_path, case):
    file = tmp_path / "v.npz"
    if case == "absent":
        return tmp_path / "nowhere.npz"
    if case == "damaged":
        file.write_bytes(b"PK\x03\x04 nothing")
    elif case == "text":
        file = tmp_path / "v.txt"
        file.write_text("hello\n")
    elif case == "objects":
        np.savez(file, ids=np.array(["a", 7], dtype=object), vectors=VECTORS[:2])
    elif case == "real ids":
        np.savez(file, ids=np.array([1.0, 2.0]), vectors=VECTORS[:2])
    elif case == "names":
        np.savez(file, items=np.array(IDS), vectors=VECTORS)
    elif case == "flat":
        np.savez(file, ids=np.array(IDS), vectors=VECTORS[:, 0])
    elif case == "short":
        np.savez(file, ids=np.array(IDS), vectors=VECTORS[:3])
    elif case == "words":
        np.savez(file, ids=np.array(IDS), vectors=VECTORS.astype(str))
    elif case == "twice":
        write(file, [*IDS[:3], "a"])
    elif case == "strangers":
        write(file, ["p", "q", "r", "s"])
    elif case == "nan":
        write(file, vectors=np.where(VECTORS == 4, np.nan, VECTORS))
    elif case == "no ids":
        file = tmp_path / "v.npy"
        np.save(file, VECTORS)
    elif case == "ragged":
        file = write(tmp_path / "v.itememb")
        file.write_text(file.read_text().replace("4.0 5.0 6.0", "4.0 5.0"))
    elif case == "word":
        file = write(tmp_path / "v.itememb")
        file.write_text(file.read_text().replace("5.0", "five"))
    return file


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("absent", "there is no file"),
        ("damaged", "cannot be read (BadZipFile"),
        ("text", "is none of .npz, .npy, .safetensors, .parquet, or an atomic file"),
        ("objects", "Object arrays cannot be loaded"),
        ("real ids", "the ids of"),
        ("names", "needs the arrays ids, vectors; it has items, vectors"),
        ("flat", "vectors of shape (4,) for 4 ids"),
        ("short", "vectors of shape (3, 3) for 4 ids"),
        ("words", "numbers are needed"),
        ("twice", "has the id 'a' more than once (1 too many)"),
        ("strangers", "there e.g. 'b', here e.g. 'p'"),
        ("nan", "1 vectors of"),
        ("nan", "the first that of item 'b'"),
        ("no ids", "there is no"),
        ("ragged", "line 3: 2 numbers where the first has 3"),
        ("word", "line 3: could not convert string to float"),
    ],
)
def test_errors_name_the_file_and_the_remedy(tmp_path, case, says):
    file = bad(tmp_path, case)
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        read_item_vectors(file, TOKENS)
    assert str(file) in str(caught.value)


# ---- models

MODELS = {
    "LLMSeqSim": {},
    "LLM2SASRec": {"epochs": 1, "reduced_dim": 4},
    "LiteLLM4Rec": {"epochs": 1, "rec_llm": "tiny-random-t5"},
}


def settings(tmp_path, **more):
    return {
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "embedding_cache_dir": str(tmp_path / "cache"),
        "item_vectors": str(tmp_path / "v.npz"),
        "show_progress": False,
        "use_gpu": False,
        **more,
    }


def write_world(tmp_path):
    write_cycle(tmp_path / "data")
    (tmp_path / "data" / "cycle" / "cycle.item").unlink()  # vectors need no texts
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(40, 8))
    write(tmp_path / "v.npz", [f"i{i}" for i in range(40)], vectors)
    return vectors


@pytest.mark.parametrize("model", MODELS)
def test_every_model_with_item_vectors_takes_them_from_the_file(tmp_path, model):
    write_world(tmp_path)
    result = run(model, "cycle", config_dict=settings(tmp_path, llm="no/such-model", **MODELS[model]))
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text())["language_models"]
    assert report["llm"] == f"none: vectors from {tmp_path / 'v.npz'}"
    assert re.fullmatch("sha256:[0-9a-f]{64}", report["llm_revision"])
    assert (report["item_vectors"]["in_file"], report["item_vectors"]["used"]) == (40, 30)
    assert not (tmp_path / "cache").exists()
    again = load_run(result["run_dir"])
    assert again.trainer.evaluate(again.test_data, load_best_model=False) == result["test_result"]


def test_the_vectors_of_the_file_are_those_of_the_model(tmp_path):
    vectors = write_world(tmp_path)
    result = run("LLMSeqSim", "cycle", config_dict=settings(tmp_path, dim_reduction="none"))
    finished = load_run(result["run_dir"])
    ids = finished.dataset.field2token_id["item_id"]
    rows = finished.model.item_vectors[[ids[f"i{i}"] for i in range(30)]]
    np.testing.assert_allclose(rows, vectors[:30], rtol=1e-6)


@pytest.mark.parametrize("control", ["shuffled_text", "random_vectors"])
def test_controls_hold_for_vectors_of_a_file(tmp_path, control):
    vectors = write_world(tmp_path)
    result = run("LLMSeqSim", "cycle", config_dict=settings(tmp_path, dim_reduction="none", control=control))
    finished = load_run(result["run_dir"])
    ids = finished.dataset.field2token_id["item_id"]
    rows = finished.model.item_vectors[[ids[f"i{i}"] for i in range(30)]].numpy()
    assert (np.abs(rows - vectors[:30]).max(axis=1) > 1e-3).all()
    same = np.sort(rows, axis=0) if control == "shuffled_text" else np.linalg.norm(rows, axis=1)
    expected = np.sort(vectors[:30], axis=0) if control == "shuffled_text" else np.linalg.norm(vectors[:30], axis=1)
    np.testing.assert_allclose(same, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("SASRec", {}),
        ("LRURec", {}),
        ("LLM2SASRec", {"llm_init": False}),
    ],
)
def test_vectors_that_nobody_reads_are_an_error(tmp_path, model, more):
    write_world(tmp_path)
    with pytest.raises(
        ConfigError, match=f"item_vectors='.*v.npz' has no effect: {model} does not use precomputed item vectors"
    ):
        run(model, "cycle", config_dict=settings(tmp_path, epochs=0, **more))


def test_an_item_without_a_vector_can_be_told_to_have_none(tmp_path):
    write_dataset(tmp_path / "data", "gap", {f"u{u}": [f"i{(u + k) % 6}" for k in range(5)] for u in range(8)}, {})
    write(tmp_path / "v.npz", [f"i{i}" for i in range(5)], np.eye(5))
    with pytest.raises(DataError, match="lacks 1 of 6 items, e.g. i5"):
        run("LLMSeqSim", "gap", config_dict=settings(tmp_path))
    result = run("LLMSeqSim", "gap", config_dict=settings(tmp_path, item_vectors_missing="zero"))
    report = json.loads((Path(result["run_dir"]) / "results.json").read_text())
    assert report["language_models"]["items_without_text"] == 1


LETTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufeff")
TEXT = st.text(LETTERS, min_size=1, max_size=8)


@examples(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT.filter(str.strip), min_size=1, max_size=5, unique=True), st.sampled_from(FORMATS))
def test_ids_are_text_exactly_as_in_the_file(tmp_path, ids, name):
    ids = [*ids, "01", "1", "1.0", "1e5", "NA", "\u2028x", "a\u0085b"]
    ids = list(dict.fromkeys(ids))
    vectors = np.arange(2.0 * len(ids), dtype=np.float32).reshape(-1, 2)
    file = write(tmp_path / name, ids, vectors)
    found, info = read_item_vectors(file, ["[PAD]", *ids])
    np.testing.assert_array_equal(found[1:], vectors)
    assert info["used"] == len(ids)


def test_ids_that_are_no_text_are_refused(tmp_path):
    for number, column in enumerate(([1.0, 2.0], ["a", None])):
        file = tmp_path / f"{number}.parquet"
        pd.DataFrame({"item_id": column, "vector": [[1.0], [2.0]]}).to_parquet(file)
        with pytest.raises(DataError, match="one text or whole number in every row is needed"):
            read_item_vectors(file, ["[PAD]", "1", "a"])
