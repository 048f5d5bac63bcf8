import errno
import json
import threading

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from recbole_llm.text import cache as embedding_cache
from recbole_llm.text.cache import EmbeddingCache, default_cache_dir, text_digest

KEY = {"name": "some/model", "revision": "r", "pooling": "mean", "prompt": "", "max_tokens": 8, "dtype": "float32"}


def digests(*texts):
    return [text_digest(text) for text in texts]


def vectors(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 4)).astype(np.float32)


def test_add_and_lookup(tmp_path):
    cache = EmbeddingCache(KEY, tmp_path)
    assert cache.lookup(digests("a")) == {}
    stored = vectors(2)
    path = cache.add(digests("a", "b"), stored)
    assert path.parent == cache.folder and [p.name for p in cache.folder.iterdir()] == [path.name]
    found = EmbeddingCache(KEY, tmp_path).lookup(digests("b", "c", "a"))
    assert set(found) == set(digests("a", "b"))
    np.testing.assert_array_equal(found[text_digest("b")], stored[1])
    assert isinstance(found[text_digest("a")].base, np.memmap)
    with safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["key"])["revision"] == "r"


@pytest.mark.parametrize("field", KEY)
def test_every_part_of_the_key_counts(field, tmp_path):
    EmbeddingCache(KEY, tmp_path).add(digests("a"), vectors(1))
    other = EmbeddingCache({**KEY, field: 9 if field == "max_tokens" else "other"}, tmp_path)
    assert other.lookup(digests("a")) == {}


def test_many_segments_are_merged(tmp_path):
    cache, stored = EmbeddingCache(KEY, tmp_path), vectors(30)
    for i in range(30):
        cache.add(digests(str(i)), stored[i : i + 1])
        assert len(cache.segments()) <= embedding_cache.MAX_SEGMENTS
    found = cache.lookup(digests(*(str(i) for i in range(30))))
    np.testing.assert_array_equal(np.stack([found[text_digest(str(i))] for i in range(30)]), stored)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path):
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


def _rewrite(path, metadata=None, **changes):
    with safe_open(path, framework="numpy") as file:
        old = file.metadata()
    save_file({**load_file(path), **changes}, path, metadata=old if metadata is None else metadata)


DAMAGE = {
    "truncated": _truncate,
    "bit flipped": _flip,
    "garbage": lambda path: path.write_bytes(b"garbage"),
    "empty": lambda path: path.write_bytes(b""),
    "html": lambda path: path.write_bytes(b"<html>not found</html>" * 50),
    "no metadata": lambda path: _rewrite(path, metadata={}),
    "other arrays": lambda path: _rewrite(path, more=np.zeros(3)),
    "other type": lambda path: _rewrite(path, vectors=np.zeros((2, 4), np.float64)),
    "other shape": lambda path: _rewrite(path, vectors=np.zeros((3, 4), np.float32)),
    "no rows": lambda path: _rewrite(path, vectors=np.zeros((0, 4), np.float32)),
    "not finite": lambda path: _rewrite(path, vectors=np.full((2, 4), np.nan, np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_named_and_left_out(damage, tmp_path, logger, caplog):
    cache = EmbeddingCache(KEY, tmp_path, logger)
    bad, good = cache.add(digests("a", "b"), vectors(2)), cache.add(digests("c"), vectors(1))
    DAMAGE[damage](bad)
    assert set(cache.lookup(digests("a", "b", "c"))) == set(digests("c"))
    assert not caplog.records and bad.exists()  # without the lock nothing is said or deleted
    with cache.lock():
        assert set(cache.lookup(digests("a", "b", "c"), locked=True)) == set(digests("c"))
    assert [r.levelname for r in caplog.records] == ["WARNING"] and str(bad) in caplog.text
    assert cache.segments() == [good]


def test_unwritable_folder_is_survived(tmp_path, logger, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = EmbeddingCache(KEY, tmp_path / "file", logger)
    with cache.lock():
        assert cache.lookup(digests("a"), locked=True) == {}
        assert cache.add(digests("a"), vectors(1)) is None
    assert len(caplog.records) == 1 and "embedding_cache_dir" in caplog.text


def test_full_disk_is_survived(tmp_path, logger, caplog, monkeypatch):
    cache = EmbeddingCache(KEY, tmp_path, logger)
    kept = cache.add(digests("a"), vectors(1))

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedding_cache, "save_file", full)
    with cache.lock():
        assert cache.add(digests("b"), vectors(1)) is None
        assert cache.add(digests("c"), vectors(1)) is None
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert sorted(p.name for p in cache.folder.iterdir() if p.name != ".lock") == [kept.name]
    assert set(cache.lookup(digests("a", "b"))) == set(digests("a"))


def test_lock_cleans_up_after_a_killed_writer(tmp_path):
    cache = EmbeddingCache(KEY, tmp_path)
    cache.folder.mkdir()
    (cache.folder / ".writing-1-abc").write_bytes(b"half a file")
    with cache.lock():
        assert not list(cache.folder.glob(".writing-*"))


def test_second_holder_waits(tmp_path, logger, caplog):
    first, second = EmbeddingCache(KEY, tmp_path), EmbeddingCache(KEY, tmp_path, logger)
    order = []

    def wait():
        with second.lock():
            order.append("second")

    with first.lock():
        thread = threading.Thread(target=wait)
        thread.start()
        while "waiting for it" not in caplog.text:
            thread.join(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_lock_passes_errors_on(tmp_path):
    cache = EmbeddingCache(KEY, tmp_path)
    with pytest.raises(OSError, match="mine"), cache.lock():
        raise OSError("mine")
    with cache.lock():
        pass


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "recbole-llm" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "recbole-llm" / "embeddings"
    assert EmbeddingCache(KEY).folder.parent == default_cache_dir()
