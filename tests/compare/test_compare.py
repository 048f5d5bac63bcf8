import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recbole_llm.cli import main
from recbole_llm.compare import NothingToCompareError, compare, compare_runs, execution, worker
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.run.folder import is_running
from tests.run.test_kill import in_a_child, points
from tests.worlds import write_cycle

ROOT = Path(__file__).parent.parent.parent
QUICK = [
    *("--dataset=cycle", "--data_path=data", "--epochs=1", "--train_batch_size=64", "--MAX_ITEM_LIST_LENGTH=5"),
    *("--show_progress=False", "--use_gpu=False", "--hidden_size=8", "--inner_size=16"),
]


@pytest.fixture(autouse=True)
def _isolated(isolated):
    write_cycle(isolated / "data")


@pytest.fixture
def here(monkeypatch):
    """Runs take place in this process: importing torch in each would take most of the time. Returns what was run."""
    run = []

    def in_this_process(task):
        run.append(task)
        return worker.run_task(json.loads(json.dumps(task)))

    monkeypatch.setattr(execution, "in_own_process", in_this_process)
    return run


def run_dirs():
    return sorted(path.parent for path in Path("saved").glob("*/config.yaml"))


def folder():
    (report,) = Path("saved").glob("compare-*/report.html")
    return report.parent


def test_from_the_command_line(here, caplog):
    caplog.set_level(logging.INFO)
    assert main(["--model=SASRec,LRURec", "--seeds=1,2", "--LRURec.epochs=2", *QUICK]) == 0
    assert len(here) == 4
    names = {path.name for path in folder().iterdir()}
    assert names == {"report.html", "table.txt", "table.md", "table.tex", "table.csv", "runs.csv"}
    text = (folder() / "table.txt").read_text(encoding="utf-8")
    assert text in caplog.text
    assert "seeds 1, 2" in text
    epochs = {json.loads((path / "results.json").read_text())["epochs"] for path in run_dirs()}
    assert epochs == {1, 2}

    # The same again: nothing is run; with another seed only that is.
    before = {path.name: path.read_bytes() for path in folder().glob("table.*")}
    assert main(["--model=SASRec,LRURec", "--seeds=1,2", "--LRURec.epochs=2", *QUICK]) == 0
    assert len(here) == 4
    assert {path.name: path.read_bytes() for path in folder().glob("table.*")} == before
    assert main(["--model=SASRec,LRURec", "--seeds=1,3", "--LRURec.epochs=2", *QUICK]) == 0
    assert [task["arguments"]["seed"] for task in here[4:]] == [3, 3]
    assert main(["--model=SASRec", "--seeds=1", "--reuse=False", *QUICK]) == 0
    assert len(here) == 7


def test_what_counts_as_the_same_run(here, isolated):
    model = ["--model=SASRec", "--seeds=1"]
    main([*model, *QUICK])
    for circumstances in (["--state=warning"], ["--gpu_id=0"], ["--llm=tiny-random-t5"], ["--log_wandb=False"]):
        main([*model, *QUICK, *circumstances])
    assert len(here) == 1
    main([*model, *QUICK, "--n_layers=1"])
    assert len(here) == 2
    # A run of an older version, which did not have a key that now has a default.
    run_dir = next(path for path in run_dirs() if "n_layers: 2" in (path / "config.yaml").read_text())
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    del results["settings"]["adam_eps"]
    results["environment"]["git"] = {"commit": "0" * 40, "dirty": False}
    (run_dir / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (run_dir / "SHA256SUMS").unlink()
    comparison = compare(arguments=_parsed([*model, *QUICK]))
    assert len(here) == 2
    assert f"1 finished run made by another version of the code ({run_dir.name}) was reused" in comparison.warnings[0]
    # Other data under the same name.
    with (isolated / "data" / "cycle" / "cycle.inter").open("a", encoding="utf-8") as file:
        file.writelines(f"new\ti{item}\t{item}\n" for item in range(6))
    main([*model, *QUICK])
    assert len(here) == 3


def test_one_model_in_several_rows_with_the_time_of_a_batch(here, caplog):
    Path("ladder.yaml").write_text(
        "timing_batches: 1\nmodels:\n"
        "  - &pod {label: POD, model: POD, llm: tiny-random-t5, beams: 20, eval_batch_size: 64}\n"
        "  - {<<: *pod, label: POD w/o_d, head: projection}\n"
    )
    caplog.set_level(logging.INFO)
    with caplog.at_level(logging.INFO):
        main([*QUICK[:-2], "--config_files=ladder.yaml"])
    lines = (folder() / "table.txt").read_text().splitlines()
    start = lines.index(next(line for line in lines if "top-20 list" in line))
    heads, _, pod, without = lines[start + 2 : start + 6]
    assert heads.split()[:5] == ["model", "Recall@20", "NDCG@20", "input", "length"]
    assert pod.startswith("POD  ") and without.startswith("POD w/o_d ")
    assert float(pod.split()[-3]) > float(without.split()[-3]) > 0
    count = len(here)
    main([*QUICK[:-2], "--config_files=ladder.yaml"])
    assert len(here) == count == 2  # finished runs, times included, are taken as they are


def test_a_run_that_fails_is_listed_and_the_others_stay(here):
    assert main(["--model=SASRec,DIEN,FDSA", "--seeds=1", *QUICK]) == 1  # FDSA has no field to read here
    assert len(here) == 3
    text = (folder() / "table.txt").read_text(encoding="utf-8")
    assert [line.count("failed") for line in text.splitlines() if line.startswith(("SASRec ", "DIEN "))] == [
        0,
        6,
        0,
        6,
        0,
    ]
    assert "! DIEN, seed 1 is missing: " in text
    main(["--model=SASRec,DIEN,FDSA", "--seeds=1", *QUICK])
    assert [task["model"] for task in here[3:]] == ["DIEN", "FDSA"]


def test_started_by_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without torchrun"):
        compare(["SASRec"], "cycle", config_dict={"data_path": "data"})


def test_nothing_finished(here, capsys):
    assert main(["--model=DIEN", "--seeds=1", *QUICK]) == 2
    assert "No run finished. DIEN: " in capsys.readouterr().err
    with pytest.raises(NothingToCompareError):
        compare(["DIEN"], "cycle", config_dict={"data_path": "data"})


def test_an_unexpected_error_is_an_answer_too(capfd):
    answer = worker.run_task(
        {"model": "json:JSONDecoder", "dataset": "cycle", "file_settings": {}, "given": {}, "arguments": {"topk": [5]}}
    )
    assert "error" in answer


def test_finished_runs(here, monkeypatch):
    for seed in (1, 2):
        main(["--model=SASRec", f"--seed={seed}", *QUICK])
        main(["--model=LRURec", f"--seed={seed}", *QUICK])
    main(["--model=SASRec", "--seed=1", "--n_layers=1", *QUICK])
    paths = [str(path) for path in run_dirs()]
    assert main(["compare", *paths, "--comparison_dir=out", "--baselines=LRURec"]) == 0
    text = Path("out/table.txt").read_text(encoding="utf-8")
    assert "SASRec (n_layers=1)" in text and "SASRec (n_layers=2)" in text
    assert "The rows have different seeds" in text
    comparison = compare_runs(paths)
    assert {row.label: len(row.runs) for row in comparison.rows} == {
        **{"LRURec": 2, "SASRec (n_layers=2)": 2, "SASRec (n_layers=1)": 1}
    }
    assert [row.baseline for row in comparison.rows] == [row.model == "SASRec" for row in comparison.rows]
    assert "Text of the target (words)" in comparison.breakdowns
    assert set(comparison.text_lengths) == {3}  # "apple volume 7"
    assert comparison.directory.parent == Path("saved")

    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    main(["compare", *paths, "--open"])
    assert opened == [(comparison.directory / "report.html").resolve().as_uri()]

    with pytest.raises(ConfigError, match="--epochs has no effect on finished runs"):
        compare_runs(paths, {"epochs": 3})
    with pytest.raises(ConfigError, match="'LRU' is not a row. Did you mean 'LRURec'"):
        compare_runs(paths, {"baselines": ["LRU"]})
    with pytest.raises(CheckpointError, match="is not a run directory"):
        compare_runs([*paths, "saved"])

    first = Path(paths[0])
    content = (first / "test_ranks.npz").read_bytes()
    directory = content.index(b"PK\x01\x02")  # of the archive: its first entry begins there
    flipped = bytes([*content[: directory + 10], content[directory + 10] ^ 0x42, *content[directory + 11 :]])
    for name, damaged in (
        ("test_ranks.npz", b""),
        ("test_ranks.npz", content[: len(content) // 2]),
        ("test_ranks.npz", flipped),  # the method of compression
        ("history.csv", b"stage,epoch\ntrain,x\n"),
        ("history.csv", b"stage,epoch\ntrain,1,2\n"),
        ("history.csv", b"\xff\n1\n"),
        ("results.json", b"{}"),
        ("results.json", (first / "results.json").read_bytes().replace(b'"dataset"', b'"dbtaset"')),
    ):
        kept = (first / name).read_bytes()
        (first / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{re.escape(name)} is damaged"):
            compare_runs(paths)
        (first / name).write_bytes(kept)


def test_other_targets_are_not_compared(here, isolated):
    main(["--model=SASRec", "--seed=1", *QUICK])
    main(["--model=LRURec", "--seed=1", *QUICK, "--user_inter_num_interval=[11,inf)"])
    with pytest.raises(CheckpointError, match="cannot be compared: they were tested on other users or targets"):
        compare_runs(run_dirs())


def test_a_class_of_ones_own_must_be_importable(here):
    from tests.test_quick_start import LastItem

    settings = {"data_path": "data", "epochs": 1, "show_progress": False, "use_gpu": False, "seeds": [1]}
    comparison = compare([LastItem, {"model": LastItem, "label": "wide", "width": 9}], "cycle", config_dict=settings)
    assert [row.label for row in comparison.rows] == ["LastItem", "wide"]
    assert comparison.parameters(comparison.rows[1]) > comparison.parameters(comparison.rows[0])
    assert here[0]["model"] == "tests.test_quick_start:LastItem"

    class Local(LastItem):
        pass

    with pytest.raises(ConfigError, match="cannot be imported by the process"):
        compare([Local], "cycle", config_dict=settings)


def test_killed_and_started_again(here, caplog):
    """``kill -9`` in the middle of the second run of two; then the same command again."""
    caplog.set_level(logging.INFO)
    arguments = ["--model=LRURec,SASRec", "--seeds=1", "--SASRec.epochs=40", "--stopping_step=99", *QUICK]
    undisturbed = compare(arguments=_parsed([*arguments, "--checkpoint_dir=undisturbed"]))
    # The first run; by itself, and in this process to save the time.
    main(["--model=LRURec", "--seed=1", "--stopping_step=99", "--valid_metric=NDCG@10", *QUICK])
    (finished,) = Path("saved").glob("LRURec-*/results.json")
    before = finished.stat().st_mtime_ns
    here.clear()

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_recbole_llm.py"), *arguments], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        state = _wait_for(lambda: next(Path("saved").glob("SASRec-*/training_state/state.json"), None), process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    unfinished = state.parent.parent
    assert _wait_for(lambda: not is_running(unfinished))  # the run ends with what started it
    assert not (unfinished / "results.json").exists()

    comparison = compare(arguments=_parsed(arguments))
    assert [task["model"] for task in here] == ["SASRec"]
    assert finished.stat().st_mtime_ns == before
    assert run_dirs() == sorted([unfinished, finished.parent])
    assert "Resuming" in (unfinished / "run.log").read_text(encoding="utf-8")
    assert comparison.cells == undisturbed.cells
    assert comparison.tests == undisturbed.tests
    for row, other in zip(comparison.rows, undisturbed.rows, strict=True):
        for name in ("rank_masked", "rank_unmasked", "target_popularity"):
            assert np.array_equal(row.runs[0].ranks[name], other.runs[0].ranks[name])
        assert [line["train_loss"] for line in row.runs[0].curve] == [
            line["train_loss"] for line in other.runs[0].curve
        ]
    tables = [Path(made.directory / "table.txt").read_text(encoding="utf-8") for made in (comparison, undisturbed)]
    assert tables[0].partition("seconds")[0].partition("trained")[0] == tables[1].partition("trained")[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")
def test_killed_before_any_write(here):
    """The same command afterwards gives the comparison of one left alone; RECBOLE_LLM_KILLS tries more points."""
    model = ["--model=SASRec,LRURec,LLMSeqSim", "--llm=tiny-random-bert", "--seeds=1", *QUICK]

    def command(folder):
        return [*model, f"--checkpoint_dir={folder}", f"--embedding_cache_dir=cache-{folder}"]

    status, total = in_a_child(command("whole"))
    assert status == 0
    whole = compare(arguments=_parsed(command("whole")))
    for number, point in enumerate(points(total - 5, seed=1)[1::2]):  # a first run makes more folders
        folder = f"killed{number}"
        assert in_a_child(command(folder), point) == (-signal.SIGKILL, point)
        assert in_a_child(command(folder))[0] == 0
        killed = compare(arguments=_parsed(command(folder)))
        assert killed.cells == whole.cells and killed.tests == whole.tests, f"killed before write {point} of {total}"
        for row, other in zip(killed.rows, whole.rows, strict=True):
            (one,), (two,) = row.runs, other.runs
            assert all(np.array_equal(one.ranks[name], two.ranks[name]) for name in two.ranks)
        for parent in ("whole", folder):
            assert len(list(Path(parent).glob("*/results.json"))) == 3
            assert len(list(Path(parent).iterdir())) == 4  # and the comparison: left-overs are gone


def test_a_process_that_dies_is_an_answer_too(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert execution.in_own_process({}) == {"error": "The process ended with status 1 without an answer."}
    assert "memory" in execution._how_it_ended(-9)


def _parsed(arguments):
    from recbole_llm.config.arguments import parse_arguments

    return parse_arguments(arguments)


def _wait_for(condition, process=None):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        assert process is None or process.poll() is None, "the comparison ended by itself"
        time.sleep(0.005)
    raise AssertionError("waited in vain")
