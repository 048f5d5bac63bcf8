"""Leaderboards: run comparison plans, record them, and write pages from the records alone.

``recbole-llm leaderboard ml-100k`` runs what ``props/leaderboard/ml-100k.yaml`` defines and ``docs/results/records``
does not hold yet, and writes ``docs/results/ml-100k.md``, ``.csv`` and ``.html``. ``--check`` makes every page again
from its records and says where it differs.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from recbole_llm.compare.analysis import Comparison
from recbole_llm.compare.board import TESTED
from recbole_llm.compare.claims import tests_of_board
from recbole_llm.compare.datastats import statistics_of
from recbole_llm.compare.execution import Outcome, execute, find_finished, is_same_run
from recbole_llm.compare.pairs import families, pairs_of
from recbole_llm.compare.plan import Job, Plan, make_plan
from recbole_llm.compare.publish import check, write_pages
from recbole_llm.compare.records import (
    BOARD,
    FORMAT,
    RecordedComparison,
    hashes_of,
    load_record,
    read_json,
    record_name,
    record_of,
    stored_pairs,
    tests_of,
)
from recbole_llm.compare.runs import FinishedRun, Row, check_same_test, load_finished, mark_baselines
from recbole_llm.compare.searches import with_settings_found
from recbole_llm.config.arguments import split_arguments
from recbole_llm.config.registry import props_dir
from recbole_llm.config.values import as_list, nearest, refuse_others
from recbole_llm.errors import ConfigError
from recbole_llm.files import write_json
from recbole_llm.run.folder import run_lock
from recbole_llm.run.identity import CIRCUMSTANCES
from recbole_llm.run.logging import log_to_console

HELP = """\
Tables of many models under one protocol, reproducible by command.

  recbole-llm leaderboard [PLAN ...] [--models=ROW,ROW] [--seeds=1,2] [--data_path=FOLDER] [--key=value ...]
  recbole-llm leaderboard --check | --rebuild

  PLAN             a file, or a name in props/leaderboard/ (default: all of them): rows, seeds and protocol as in
                   props/compare.yaml. Runs jobs without a record; the same command continues after an interruption
  --models, --seeds
                   run only these rows and seeds of the plan; the page says what is missing. A list for names with a
                   comma: --models="[LRURec, 'A, B']"
  --results=DIR    where pages and records go (default: docs/results)
  --check          make every page again from its records, the tables inside README.md and docs/ and claims.md
                   included; exit status 1 if one differs
  --rebuild        the same, and write them; runs nothing
  --key=value      where and how runs are executed (data_path, checkpoint_dir, use_gpu, show_progress, ...);
                   all other settings are in the plan

Writes <PLAN>.md, .csv, .html and claims.md, and a small JSON record per run in records/<PLAN>/.
"""
RESULTS = Path("docs") / "results"


def leaderboard_main(arguments: Sequence[str]) -> int:
    """Run ``recbole-llm leaderboard``; return 1 for failed runs or pages that differ, else 0."""
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(HELP)
        return 0
    given, names = split_arguments(arguments)
    results = Path(str(given.pop("results", RESULTS))).expanduser()
    for switch in ("check", "rebuild"):
        if given.pop(switch, False) is not False:
            if names or given:
                raise ConfigError(f"--{switch} is about every page of --results and takes no plan or setting.")
            return _check(results) if switch == "check" else _rebuild(results)
    rows, seeds = (as_list(given.pop(key, None)) or None for key in ("models", "seeds"))
    failed = False
    for plan in [find_plan(name) for name in names] or plans():
        comparison = leaderboard(plan, results, given, rows, seeds)
        failed |= any(row.failures for row in comparison.all_rows)
    return int(failed)


def _check(results: Path) -> int:
    differing = check(results)
    for file in differing:
        sys.stdout.write(f"{file} is not what its records say: run `recbole-llm leaderboard --rebuild`.\n")
    return int(bool(differing))


def _rebuild(results: Path) -> int:
    write_pages(results)
    return 0


def plans() -> list[Path]:
    """Return the plans that ship with the package, sorted by name."""
    return sorted((props_dir() / "leaderboard").glob("*.yaml"))


def find_plan(name: str) -> Path:
    """Find the file of a plan by path or by name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if Path(name).is_file():
        return Path(name)
    known = {plan.stem: plan for plan in plans()}
    if name not in known:
        raise ConfigError(f"There is no plan {name!r}.{nearest(name, known)} Plans: {', '.join(known) or 'none'}.")
    return known[name]


def leaderboard(
    plan_file: str | Path,
    results: str | Path = RESULTS,
    circumstances: Mapping[str, Any] | None = None,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> RecordedComparison:
    """Run the jobs of a plan that have no record, record them, and write the pages.

    >>> from recbole_llm.compare.leaderboard import leaderboard
    >>> leaderboard("props/leaderboard/ml-100k.yaml", "docs/results")  # doctest: +SKIP

    Parameters
    ----------
    plan_file : str or pathlib.Path
        As a file of :func:`recbole_llm.compare.compare`; its name is the board's.
    results : str or pathlib.Path
        Folder of pages and records.
    circumstances : dict, optional
        Where and how runs are executed, such as ``data_path``; other settings are in the plan.
    rows, seeds : list, optional
        Run only these of the plan.

    Raises
    ------
    ConfigError
        For a plan that cannot be carried out, a setting that is part of it, or rows and seeds that it does not have.
    """
    log_to_console()
    plan_file, results, given = Path(plan_file), Path(results), dict(circumstances or {})
    what = f"belongs in the plan {plan_file}, which defines the leaderboard"
    refuse_others(given, CIRCUMSTANCES, what, f"Allowed here: {', '.join(sorted(CIRCUMSTANCES))}.")
    make = partial(make_plan, None, None, [plan_file], None, given)
    plan = make()
    wanted = _wanted(plan, rows, seeds)
    folder = results / "records" / plan_file.stem
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        known_studies, labels = _old_board(folder).get("studies"), {label for label, _ in wanted}
        plan, studies = with_settings_found(plan, make, known_studies, labels)
        untuned = plan.searches.keys() - studies.keys()
        # A run on this machine comes first: only with its ranks can rows be tested against each other.
        known = {(job.label, job.seed): None if job.label in untuned else _known(job, folder) for job in plan.jobs}
        missing = [job for job in plan.jobs if known[job.label, job.seed] is None]
        chosen = [job for job in missing if (job.label, job.seed) in wanted]
        logging.getLogger().info(
            f"{plan_file.stem}: {len(missing)} of {len(plan.jobs)} runs are missing, {len(chosen)} are made now."
        )

        data = statistics_of(plan.jobs[0].config)

        def write(outcomes: Sequence[Outcome]) -> None:
            if any(known.values()) or any(outcome.run_dir for outcome in outcomes):
                _write_board(plan, folder, known, outcomes, data, studies)
                write_pages(results)

        write(execute(replace(plan, jobs=chosen), write))
        return RecordedComparison(folder, results)


def _wanted(plan: Plan, rows: Sequence[str] | None, seeds: Sequence[int] | None) -> set[tuple[str, int]]:
    """Return label and seed of the jobs asked for."""
    has: dict[str, list[Any]] = {"models": plan.labels, "seeds": list(dict.fromkeys(job.seed for job in plan.jobs))}
    for key, values in (("models", rows), ("seeds", seeds)):
        for value in values or ():
            if value not in has[key]:
                listed = ", ".join(map(str, has[key]))
                raise ConfigError(f"--{key}: {value!r} is not in the plan, which has {listed}.")
    return {
        (job.label, job.seed)
        for job in plan.jobs
        if (rows is None or job.label in rows) and (seeds is None or job.seed in seeds)
    }


def _known(job: Job, folder: Path) -> FinishedRun | None:
    """Return the finished run of a job, else its record, else None."""
    run_dir = find_finished(job)
    if run_dir is not None:
        return load_finished(run_dir)
    file = folder / record_name(job.label, job.seed)
    record = load_record(file) if file.is_file() else None
    return record if record is not None and is_same_run(job, record.results) else None


def _write_board(
    plan: Plan,
    folder: Path,
    known: Mapping[tuple[str, int], FinishedRun | None],
    outcomes: Sequence[Outcome],
    data: Mapping[str, object],
    studies: Mapping[str, Mapping[str, object]],
) -> None:
    """Write the records of all runs and the file that lists them; remove records of rows no longer in the plan."""
    rows = _rows_of(plan, known, outcomes)
    records = {record_name(row.label, run.seed): run for row in rows for run in row.runs}
    for name, run in records.items():
        if run.ranks:
            write_json(folder / name, record_of(run))
    hashes = hashes_of(rows)
    board = {
        "format": FORMAT,
        "rows": [
            {
                "label": row.label,
                "model": row.model,
                "seeds": [run.seed for run in row.runs],
                "failures": [list(failure) for failure in row.failures],
            }
            for row in rows
        ],
        "options": {key: plan.options[key] for key in ("baselines", "significance_test", "significance_level")},
        "warnings": plan.warnings,
        "seeds": list(dict.fromkeys(job.seed for job in plan.jobs)),
        "data": data,
        "studies": studies,
        "ranks": hashes,
        **_tests(plan, rows, hashes, folder),
    }
    write_json(folder / BOARD, board)
    for file in folder.glob("*.json"):
        if file.name != BOARD and file.name not in records:
            file.unlink()


def _rows_of(
    plan: Plan, known: Mapping[tuple[str, int], FinishedRun | None], outcomes: Sequence[Outcome]
) -> list[Row]:
    """Return the rows of a plan: the run of a job is the one that has just ended, else the known one."""
    rows = {job.label: Row(job.label, str(job.config["model"])) for job in plan.jobs}
    ended = {(outcome.label, outcome.seed): outcome for outcome in outcomes}
    for job in plan.jobs:
        run, outcome = known[job.label, job.seed], ended.get((job.label, job.seed))
        if outcome is not None and outcome.run_dir is not None:
            run = load_finished(outcome.run_dir)
        if run is not None:
            rows[job.label].runs.append(run)
        elif outcome is not None:
            rows[job.label].failures.append((job.seed, (outcome.error or "unknown").splitlines()[0]))
    return [rows[label] for label in plan.labels]


def _tests(plan: Plan, rows: Sequence[Row], hashes: Mapping[str, list[str]], folder: Path) -> dict[str, Any]:
    """Return paired tests: computed if all runs are present, else stored ones of the same ranks, else none."""
    runs = [run for row in rows for run in row.runs]
    if all(run.ranks for run in runs):
        check_same_test(runs)
        mark_baselines(rows, plan.options["baselines"])
        comparison = Comparison(rows, plan.options, plan.directory)
        claimed = tests_of_board(folder.name)
        wanted = [(row.label, twin.label) for twin, others in families(rows) for row in others]
        wanted += [(test.row, test.against) for test in claimed]
        metrics = dict.fromkeys([*TESTED, *(test.metric for test in claimed)])
        pairs = pairs_of(comparison, wanted, list(metrics))
        return {"tests": tests_of(comparison), "pairs": stored_pairs(pairs)}
    old = _old_board(folder)
    same = old.get("ranks") == hashes
    return {key: old[key] if same else [] for key in ("tests", "pairs")}


def _old_board(folder: Path) -> dict[str, Any]:
    """Return the board of an earlier call; empty if there is none."""
    return read_json(folder / BOARD) if (folder / BOARD).is_file() else {}
