"""What a run directory says is what the run wrote: one changed digit is an error that names the file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from recbole_llm import checksums
from recbole_llm.cli import main
from recbole_llm.compare.runs import load_finished
from recbole_llm.errors import CheckpointError
from recbole_llm.quick_start import load_run, run
from recbole_llm.run.evaluate import evaluate_run


@pytest.fixture
def run_dir(shop, tiny):
    return Path(run("SASRec", "shop", config_dict={**tiny, "epochs": 2})["run_dir"])


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_every_file_that_says_something_is_listed(run_dir):
    listed = checksums.read_sums(run_dir)
    present = {path.name for path in run_dir.iterdir() if path.is_file()}
    own_checksum, not_evidence = {"model.safetensors"}, {"run.log", checksums.SUMS}
    assert set(listed) & present == present - own_checksum - not_evidence
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", "--ignore-missing", "-c", checksums.SUMS], cwd=run_dir)
        assert done.returncode == 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("config.yaml", "MAX_ITEM_LIST_LENGTH: ", "MAX_ITEM_LIST_LENGTH: 1"),
        ("config.yaml", "mask_history: true", "mask_history: false"),
        ("results.json", '"test_result": {', '"test_result": {"recall@5": 0.99,'),
        ("history.csv", "0.", "1."),
        ("data.json", "shop.inter", "shop.other"),
    ],
)
def test_a_changed_file_is_refused_everywhere(run_dir, name, old, new):
    change(run_dir / name, old, new)
    for use in (load_run, evaluate_run, load_finished):
        with pytest.raises(CheckpointError, match=f"{name} is damaged or was changed"):
            use(run_dir)
    for command in (["recommend", str(run_dir)], ["evaluate", str(run_dir)], ["export", str(run_dir), "--out=lists"]):
        assert main(command) == 2


def test_changed_ranks_are_refused(run_dir, shop, tiny):
    other = Path(run("SASRec", "shop", config_dict={**tiny, "epochs": 2, "seed": 3})["run_dir"])
    for name in ("test_ranks.npz", "ids.npz"):
        content = (run_dir / name).read_bytes()
        (run_dir / name).write_bytes((other / name).read_bytes() + b"\0")
        with pytest.raises(CheckpointError, match=f"{name} is damaged or was changed"):
            load_finished(run_dir)
        (run_dir / name).write_bytes(content)
    load_finished(run_dir)


def test_a_changed_setting_stops_resuming(shop, tiny, monkeypatch):
    settings = {**tiny, "epochs": 4, "eval_step": 1}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("recbole_llm.run.experiment.write_training_record", stop)
        run("SASRec", "shop", config_dict=settings)
    (run_dir,) = Path("saved").iterdir()
    change(run_dir / "config.yaml", "n_heads: ", "n_heads: 1")
    assert main([f"--resume={run_dir}"]) == 2
    # `--resume` without a name starts anew.
    again = Path(run("SASRec", "shop", config_dict={**settings, "resume": True})["run_dir"])
    assert again != run_dir


def test_a_run_without_the_list_is_said_to_be_unverified(run_dir, caplog):
    (run_dir / checksums.SUMS).unlink()
    load_run(run_dir)
    assert "cannot be verified" in caplog.text


def test_a_damaged_list_is_an_error(run_dir):
    (run_dir / checksums.SUMS).write_text("0123\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="SHA256SUMS is damaged"):
        load_run(run_dir)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_kill_while_a_file_is_replaced_leaves_the_old_or_the_new(tmp_path, monkeypatch, step):
    file, steps = tmp_path / "results.json", []
    for text in ("first", "second"):
        with checksums.recorded(file) as temporary:
            temporary.write_text(text)
        checksums.verify(tmp_path)
        assert len(checksums.read_sums(tmp_path)["results.json"]) == 1
    replace = os.replace

    def killed(source, target):
        steps.append(target)
        if len(steps) == step:
            raise OSError("killed here")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed here"):
        patch.setattr(checksums.os, "replace", killed)
        with checksums.recorded(file) as temporary:
            temporary.write_text("third")
    checksums.verify(tmp_path)
    assert file.read_text() == ("third" if step == 3 else "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == [checksums.SUMS, "results.json"]
    with checksums.recorded(file) as temporary:
        temporary.write_text("fourth")
    checksums.verify(tmp_path)
    assert len(checksums.read_sums(tmp_path)["results.json"]) == 1
    change(file, "fourth", "fifth")
    with pytest.raises(CheckpointError, match="results.json is damaged or was changed"):
        checksums.verify(tmp_path)
