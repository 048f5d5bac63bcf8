"""kill -9 before any write to disk: the documented command afterwards gives the result of an undisturbed run.

``RECBOLE_LLM_KILLS`` sets how many points of each command are tried (default 3), spread by a seed over all its writes.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from recbole_llm.cli import main
from recbole_llm.run import folder as run_folder
from tests.conftest import write_dataset

KILLS = int(os.environ.get("RECBOLE_LLM_KILLS", "3"))
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
SETTINGS = [
    *("--epochs=3", "--train_batch_size=64", "--MAX_ITEM_LIST_LENGTH=5", "--topk=[5]", "--valid_metric=NDCG@5"),
    *("--use_gpu=False", "--show_progress=False", "--eval_updates=1"),
]

SHORT = ["--max_history=2", "--max_title_tokens=4", "--max_train_rows_per_user=2", "--lora_dropout=0.5"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")


def in_a_child(arguments: list[str], kill_at: int | None = None) -> tuple[int, int]:
    """Run a command in a process that is killed before its ``kill_at``-th write under the current folder.

    Returns its exit status, negative for a signal, and how many writes it had made.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_the_child(arguments, kill_at, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        writes = len(pipe.read())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), writes


def _be_the_child(arguments: list[str], kill_at: int | None, writer: int) -> None:
    status, count, here = 1, 0, str(Path.cwd())
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)

        def watch(event: str, details: tuple) -> None:
            nonlocal count
            if event == "open":
                written = isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            else:
                written = event in WRITES
            path = details[0] if written else None
            if not isinstance(path, (str, bytes, os.PathLike)):
                return
            path = os.path.join(here, os.fsdecode(path))  # noqa: PTH118 - resolves nothing, and so writes nothing
            if path.startswith(here):
                if kill_at is not None and count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                os.write(writer, b".")

        sys.addaudithook(watch)
        status = main(arguments)
    finally:
        os._exit(status)


def points(total: int, seed: int) -> list[int]:
    """First and last write, and random ones between them."""
    draw = random.Random(seed)
    chosen = [total - 1, *draw.sample(range(total), min(total, max(KILLS - 1, 0)))]
    return sorted(set(chosen[: max(KILLS, 1)]))


def results(parent: str) -> dict:
    """Of the newest run; nothing that a killed process left is there, unless it had finished."""
    *finished, run_dir = sorted(Path(parent).iterdir(), key=lambda path: path.stat().st_mtime)
    assert all((path / "results.json").exists() for path in finished)
    leftovers = [path for path in run_dir.rglob("*") if path.name.endswith((".tmp", ".new", ".old", "trained.json"))]
    assert leftovers == [] and not (run_dir / "lock").exists()
    report = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    ranks = np.load(run_dir / "test_ranks.npz")
    keys = ("test_result", "test_unmasked", "best_valid_result", "stages", "updates", "epochs", "notices")
    return {**{key: report[key] for key in keys}, **{name: ranks[name].tolist() for name in ranks.files}}


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    """Import here, once, what every child would import."""
    import recbole_llm.recommend.command
    import recbole_llm.run.evaluate  # noqa: F401
    from recbole_llm.quick_start import run

    folder = tmp_path_factory.mktemp("warm")
    write_dataset(folder)
    places = {"data_path": str(folder), "checkpoint_dir": str(folder), "embedding_cache_dir": str(folder / "cache")}
    small = {**places, "smoke": True, "show_progress": False, "use_gpu": False, "dim_reduction": "none"}
    run("LLM2SASRec", "shop", config_dict=small)


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model=SASRec"],
        ["--model=LLM2SASRec", "--llm=tiny-random-bert", "--dim_reduction=none"],  # encodes texts first
        ["--model=MostPopular"],
        # Two stages; updates of the second one are resumed inside its epoch.
        ["--model=LlamaRec", "--llm=tiny-random-llama", "--retriever_epochs=1", "--n_candidates=4", *SHORT],
    ],
    ids=lambda arguments: arguments[0].removeprefix("--model="),
)
def test_training(arguments, shop):
    command = [*arguments, "--dataset=shop", *SETTINGS, "--resume"]

    def places(name):
        return [f"--checkpoint_dir={name}", f"--embedding_cache_dir=cache-{name}"]

    status, total = in_a_child([*command, *places("whole")])
    assert status == 0
    expected = results("whole")
    for number, point in enumerate(points(total, seed=len(arguments))):
        name = f"killed{number}"
        assert in_a_child([*command, *places(name)], point) == (-signal.SIGKILL, point)
        assert in_a_child([*command, *places(name)])[0] == 0
        assert results(name) == expected, f"killed before write {point} of {total}"
        caches = [sorted(path.name for path in Path(f"cache-{each}").rglob("*")) for each in (name, "whole")]
        assert caches[0] == caches[1]


def test_recommend(shop):
    assert in_a_child(["--model=SASRec", "--dataset=shop", *SETTINGS, "--checkpoint_dir=saved"])[0] == 0
    (run_dir,) = Path("saved").iterdir()
    before = sorted(path.name for path in run_dir.iterdir())
    command = ["recommend", str(run_dir), "--k=3", "--use_gpu=False"]
    status, total = in_a_child([*command, "--out=whole/top.csv"])
    assert status == 0
    expected = Path("whole/top.csv").read_bytes()
    for number, point in enumerate(points(total, seed=1)):
        out = Path(f"killed{number}") / "top.csv"
        assert in_a_child([*command, f"--out={out}"], point)[0] == -signal.SIGKILL
        assert not out.exists() or out.read_bytes() == expected
        assert in_a_child([*command, f"--out={out}"])[0] == 0
        assert out.read_bytes() == expected and [path.name for path in out.parent.iterdir()] == ["top.csv"]
    assert sorted(path.name for path in run_dir.iterdir()) == before


def test_evaluate(shop, monkeypatch):
    monkeypatch.setattr(
        "recbole_llm.run.experiment.write_results", lambda *_: os._exit(9)
    )  # training ends, no results
    assert in_a_child(["--model=SASRec", "--dataset=shop", *SETTINGS, "--checkpoint_dir=saved"])[0] == 9
    monkeypatch.undo()
    os.chdir(shop.parent.parent)
    (run_dir,) = Path("saved").iterdir()
    assert run_folder.is_unfinished(run_dir)
    total = 12  # writes of an evaluation, at least
    for point in points(total, seed=2):
        assert in_a_child(["evaluate", str(run_dir)], point)[0] in (-signal.SIGKILL, 0)
    assert in_a_child(["evaluate", str(run_dir)])[0] == 0
    report = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    assert in_a_child(["--model=SASRec", "--dataset=shop", *SETTINGS, "--checkpoint_dir=whole"])[0] == 0
    (whole,) = Path("whole").iterdir()
    assert report["test_result"] == json.loads((whole / "results.json").read_text(encoding="utf-8"))["test_result"]
