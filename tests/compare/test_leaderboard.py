"""Leaderboards on made-up data: what is run, recorded, written, checked and refused."""

import json
import shutil
from pathlib import Path

import pytest

from recbole_llm.cli import main
from recbole_llm.compare import execution, worker
from recbole_llm.compare.leaderboard import find_plan, leaderboard, plans
from recbole_llm.compare.plan import make_plan
from recbole_llm.compare.publish import check
from recbole_llm.compare.records import RecordedComparison, record_name, record_of
from recbole_llm.compare.runs import load_finished
from recbole_llm.errors import CheckpointError, ConfigError
from tests.worlds import write_cycle

PLAN = """
dataset: cycle
seeds: [1, 2]
epochs: 1
train_batch_size: 64
MAX_ITEM_LIST_LENGTH: 5
hidden_size: 8
inner_size: 16
models:
  - MostPopular
  - {label: "SASRec (n_layers=1)", model: SASRec, n_layers: 1}
  - {model: LRURec, epochs: 2}
baselines: [MostPopular]
"""
HERE = {"data_path": "data", "show_progress": False, "use_gpu": False}
RESULTS = Path("docs/results")
RECORDS = RESULTS / "records/toy"


@pytest.fixture(autouse=True)
def _isolated(isolated):
    write_cycle(isolated / "data")
    Path("toy.yaml").write_text(PLAN, encoding="utf-8")


@pytest.fixture
def here(monkeypatch):
    """Runs take place in this process. Returns what was run."""
    run = []

    def in_this_process(task):
        run.append((task["model"], task["arguments"]["seed"]))
        return worker.run_task(json.loads(json.dumps(task)))

    monkeypatch.setattr(execution, "in_own_process", in_this_process)
    return run


def pages():
    return {path.name: path.read_bytes() for path in Path("docs/results").glob("toy.*")}


def test_a_leaderboard(here, capsys):
    made = leaderboard("toy.yaml", circumstances=HERE)
    assert len(here) == 6 and set(pages()) == {"toy.md", "toy.csv", "toy.html"}
    table, page = (pages()[f"toy.{kind}"].decode() for kind in ("md", "html"))
    for row in made.rows:
        assert [run.seed for run in row.runs] == [1, 2]
        mean = made.cells["masked", row.label, "recall@10"].mean
        assert f"{mean:.4f}" in table and f"{mean:.4f}" in page
        # A record says what the run says, and where it comes from.
        for run in row.runs:
            record = json.loads((RECORDS / record_name(row.label, run.seed)).read_text(encoding="utf-8"))
            results = next(
                results
                for file in Path("saved").glob("*/results.json")
                for results in [json.loads(file.read_text(encoding="utf-8"))]
                if (results["model"], results["protocol"]["seed"]) == (row.model, run.seed)
            )
            for key in ("test_masked", "test_unmasked", "seconds", "phase_peak_memory_mb", "environment", "dataset"):
                assert record[key] == results[key]
            assert len(record["ranks_sha256"]) == 64 and "data_path" not in record["settings"]
            assert (RECORDS / record_name(row.label, run.seed)).stat().st_size < 20_000
    assert made.tests and all(test.baseline == "MostPopular" for test in made.tests.values())
    assert "Provenance" in table and "sha256" in table and "plotly" not in page
    assert str(Path.cwd()) not in table + page

    # The pages come from the records alone, and the same command runs nothing.
    assert main(["leaderboard", "--check"]) == 0 and check(RESULTS) == []
    before = pages()
    shutil.rmtree("saved")
    for name in before:
        (Path("docs/results") / name).unlink()
    assert main(["leaderboard", "--check"]) == 1
    assert capsys.readouterr().out.count("run `recbole-llm leaderboard --rebuild`") == 3
    leaderboard("toy.yaml", circumstances=HERE)
    assert len(here) == 6 and pages() == before and check(RESULTS) == []

    # A figure that was typed.
    file = Path("docs/results/toy.md")
    file.write_text(file.read_text(encoding="utf-8").replace("0.", "1.", 1), encoding="utf-8")
    assert check(RESULTS) == [file]
    file.write_bytes(before["toy.md"])
    record = RECORDS / record_name("LRURec", 1)
    content = json.loads(record.read_text(encoding="utf-8"))
    content["test_masked"]["recall@10"] += 0.01
    record.write_text(json.dumps(content), encoding="utf-8")
    assert [path.name for path in check(RESULTS)] == ["toy.md", "toy.csv", "toy.html"]


def test_what_changed_is_run_again_and_what_left_is_dropped(here):
    leaderboard("toy.yaml", circumstances=HERE)
    Path("toy.yaml").write_text(PLAN.replace("epochs: 2", "epochs: 3").replace("  - MostPopular\n", ""))
    Path("toy.yaml").write_text(Path("toy.yaml").read_text().replace("baselines: [MostPopular]", ""))
    shutil.rmtree("saved")
    here.clear()
    made = leaderboard("toy.yaml", circumstances=HERE)
    assert here == [("LRURec", 1), ("LRURec", 2)]
    assert {path.name.partition("-")[0] for path in RECORDS.glob("*-seed*")} == {"SASRec", "LRURec"}
    # Rows whose ranks are elsewhere cannot be tested against the new ones, which is said.
    assert made.tests == {} and "The paired tests are missing" in made.warnings[-1]
    # Other data are other runs.
    with (Path("data") / "cycle" / "cycle.inter").open("a", encoding="utf-8") as file:
        file.writelines(f"new\ti{item}\t{item}\n" for item in range(6))
    here.clear()
    assert leaderboard("toy.yaml", circumstances=HERE).tests
    assert len(here) == 4


def test_a_run_that_fails_is_listed_and_tried_again(here):
    Path("toy.yaml").write_text(PLAN.replace("LRURec, epochs: 2", "DIEN"), encoding="utf-8")
    assert main(["leaderboard", "toy.yaml", "--data_path=data", "--use_gpu=False"]) == 1
    assert "DIEN, seed 1 is missing" in Path("docs/results/toy.md").read_text(encoding="utf-8")
    assert check(RESULTS) == []
    here.clear()
    assert main(["leaderboard", "toy.yaml", "--data_path=data", "--use_gpu=False"]) == 1
    assert here == [("DIEN", 1), ("DIEN", 2)]


def test_stopped_and_started_again(here, monkeypatch):
    one = execution.in_own_process

    def stop(task):
        if len(here) == 3:
            raise KeyboardInterrupt
        return one(task)

    with monkeypatch.context() as patch:
        patch.setattr(execution, "in_own_process", stop)
        with pytest.raises(KeyboardInterrupt):
            leaderboard("toy.yaml", circumstances=HERE)
    assert check(RESULTS) == [] and len(list(RECORDS.glob("*-seed*"))) == 3  # what is finished is shown
    leaderboard("toy.yaml", circumstances=HERE)
    assert len(here) == 6 and len(RecordedComparison(RECORDS, Path("docs/results")).rows) == 3


def test_user_errors(capsys):
    for arguments, says in (
        (["--check"], "There are no records in docs/results/records"),
        (["toi"], "There is no plan 'toi'"),
        (["toy.yaml", "--epochs=3"], "--epochs belongs in the plan toy.yaml"),
        (["toy.yaml", "--check"], "takes no plan or setting"),
    ):
        assert main(["leaderboard", *arguments]) == 2
        assert says in capsys.readouterr().err
    assert main(["leaderboard", "--help"]) == 0
    assert "--check" in capsys.readouterr().out
    RECORDS.mkdir(parents=True)
    for damaged in ("{", "[]", '{"format": 99}'):
        (RECORDS / "board.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="board.json"):
            check(RESULTS)


# ---- the plans that ship


@pytest.mark.parametrize("plan", plans(), ids=lambda plan: plan.stem)
def test_every_plan_can_be_carried_out(plan):
    made = make_plan(config_file_list=[plan])
    assert find_plan(plan.stem) == plan and made.dataset in plan.stem
    assert made.warnings == []
    text = plan.read_text(encoding="utf-8")
    assert text.startswith("# ") and f"recbole-llm leaderboard {plan.stem}" in text
    assert len({job.config["valid_metric"] for job in made.jobs}) == 1


def test_a_plan_for_every_data_set_of_the_results():
    names = {"ml-100k", "ml-1m", "ml-latest-small", "amazon-beauty-2014", "amazon-toys-2014", "steam-au-reviews"}
    assert names <= {plan.stem for plan in plans()}
    with pytest.raises(ConfigError, match="Did you mean 'ml-100k'"):
        find_plan("ml-10k")


@pytest.mark.parametrize("seeds", ["1,2", "1, 2", "[1, 2]"])
def test_seeds_and_rows_on_the_command_line(seeds, here):
    given = ["--models=MostPopular,LRURec", f"--seeds={seeds}", "--data_path=data", "--use_gpu=False"]
    assert main(["leaderboard", "toy.yaml", *given]) == 0
    assert sorted(here) == [("LRURec", 1), ("LRURec", 2), ("MostPopular", 1), ("MostPopular", 2)]


def test_a_record_names_places_of_this_machine_without_their_values(here):
    leaderboard("toy.yaml", circumstances=HERE, rows=["MostPopular"], seeds=[1])
    run = load_finished(next(Path("saved").glob("MostPopular-*")))
    run.results["notices"] += [
        "There is no ml-100k in data_path='/home/me/data'; using RecBole's copy.",
        "MostPopular has nothing to train: epochs=3 has no effect.",
    ]
    assert record_of(run)["notices"][-2:] == [
        "There is no ml-100k in data_path; using RecBole's copy.",
        "MostPopular has nothing to train: epochs=3 has no effect.",
    ]
