import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from recbole_llm.errors import DataError
from recbole_llm.files import remove_left_overs, whole, work_folder


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "a.txt"
    with whole(file) as partial:
        partial.write_text("one", encoding="utf-8")
        assert not file.exists()
    assert file.read_text(encoding="utf-8") == "one"
    with pytest.raises(KeyError), whole(file) as partial:
        partial.write_text("two", encoding="utf-8")
        raise KeyError
    assert file.read_text(encoding="utf-8") == "one"
    with pytest.raises(DataError, match=r"a\.txt cannot be written"), whole(file):
        raise OSError(28, "No space left on device")
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]


def _write_and_wait(file: Path, ready, kind) -> None:
    with (whole if kind == "file" else work_folder)(file) as partial:
        (partial if kind == "file" else partial / "inside").write_text("half", encoding="utf-8")
        ready.set()
        signal.pause()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(kind, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, file = context.Event(), tmp_path / "a.txt"
    suffix = ".partial" if kind == "file" else ".part"
    process = context.Process(target=_write_and_wait, args=(file, ready, kind))
    process.start()
    assert ready.wait(60)
    other = tmp_path / f".b.txt.00000000{suffix}"  # of another file
    other.mkdir() if kind == "folder" else other.write_text("", encoding="utf-8")
    assert remove_left_overs(file, suffix) == []
    unfinished = [path for path in tmp_path.iterdir() if path.name.startswith(".a.txt.")]
    assert len(unfinished) == 2  # and its lock
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert all(path.exists() for path in unfinished)
    if kind == "file":
        with whole(file) as partial:
            partial.write_text("done", encoding="utf-8")
        assert {path.name for path in tmp_path.iterdir()} == {"a.txt", other.name}
    else:
        with work_folder(file):
            pass
        assert {path.name for path in tmp_path.iterdir()} == {other.name}
