"""Finished runs as small JSON records, from which leaderboard tables can be rebuilt anywhere.

``records/<board>/`` holds one file a run and ``board.json``: the rows in order, what failed, and the paired tests,
which need the ranks of all rows and are therefore kept with the hashes of these.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.compare.analysis import Comparison, Test
from recbole_llm.compare.pairs import Pair
from recbole_llm.compare.runs import FinishedRun, Row, mark_baselines
from recbole_llm.errors import CheckpointError
from recbole_llm.run.identity import CIRCUMSTANCES, plain

FORMAT = 2
BOARD = "board.json"
# Keys of results.json that a record keeps; the others describe the machine, or are long.
KEPT = (
    *("model", "model_class", "smoke", "protocol", "best_valid_score", "best_valid_result", "test_masked"),
    *("test_unmasked", "tied_targets", "targets_in_history", "stages", "epochs", "updates", "dataset", "parameters"),
    *("seconds", "cpu_seconds", "inference", "peak_memory_mb", "phase_peak_memory_mb", "environment", "notices"),
    "auto",
)
OF_LANGUAGE_MODELS = ("llm", "llm_revision", "rec_llm", "rec_llm_revision", "item_text", "item_title", "members")


def record_of(run: FinishedRun) -> dict[str, Any]:
    """Build the record of a run: metrics, hash of its ranks, settings, versions, seconds, memory, hardware."""
    results = run.results
    validated = [line for line in run.curve if line.get("valid_score") is not None]
    models = results.get("language_models")
    return {
        "format": FORMAT,
        **{key: results.get(key) for key in KEPT},
        "notices": [_without_places(notice) for notice in results.get("notices") or []],
        "language_models": models and {key: models[key] for key in OF_LANGUAGE_MODELS if models.get(key) is not None},
        "settings": {key: value for key, value in plain(results["settings"]).items() if key not in CIRCUMSTANCES},
        "ranks_sha256": ranks_hash(run),
        "test_rows": len(run.ranks["user"]),
        "tested_users": len(np.unique(run.ranks["user"])),
        "last_validated_epoch": validated[-1]["epoch"] if validated else None,
    }


def _without_places(notice: str) -> str:
    """Name settings that describe the machine, such as ``data_path``, without their values."""
    return re.sub(rf"\b({'|'.join(sorted(CIRCUMSTANCES))})=('[^']*'|\"[^\"]*\")", r"\1", notice)


def ranks_hash(run: FinishedRun) -> str:
    """SHA-256 over users, targets and ranks of a run's test rows."""
    if "ranks_sha256" in run.results:
        return str(run.results["ranks_sha256"])
    digest = hashlib.sha256()
    for name in ("user", "target"):
        digest.update("\n".join(run.ranks[name].tolist()).encode())
    for name in ("rank_masked", "rank_unmasked"):
        digest.update(run.ranks[name].astype("<i8").tobytes())
    return digest.hexdigest()


def record_name(label: str, seed: int) -> str:
    """File name of a record; labels that look alike without their special characters stay apart."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")
    mark = "" if name == label else "-" + hashlib.sha256(label.encode()).hexdigest()[:6]
    return f"{name}{mark}-seed{seed}.json"


def read_json(file: Path) -> dict[str, Any]:
    """Read a record or a board.

    Raises
    ------
    CheckpointError
        If it is missing, damaged or of another version.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"The record {file} cannot be read ({error}).") from error
    except ValueError as error:
        raise CheckpointError(f"The record {file} is damaged ({error}): restore it, or run its plan again.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"The record {file} was written by another version: run its plan again.")
    return content


def load_record(file: Path) -> FinishedRun:
    """Rebuild a run from its record, without ranks and with the last point of its curve only."""
    results = read_json(file)
    epoch = results.get("last_validated_epoch")
    curve = [] if epoch is None else [{"epoch": epoch, "valid_score": results["best_valid_score"]}]
    return FinishedRun(file, results, curve, {})


class RecordedComparison(Comparison):
    """A comparison made from records alone.

    Parameters
    ----------
    folder : pathlib.Path
        ``records/<board>/``.
    directory : pathlib.Path
        Where its pages go.

    Raises
    ------
    CheckpointError
        If a record is missing or damaged.
    """

    def __init__(self, folder: Path, directory: Path) -> None:
        board = read_json(folder / BOARD)
        self.board = board
        rows = []
        for entry in board["rows"]:
            runs = [load_record(folder / record_name(entry["label"], seed)) for seed in entry["seeds"]]
            failures = [(seed, reason) for seed, reason in entry["failures"]]
            rows.append(Row(entry["label"], entry["model"], runs, failures))
        if not any(row.runs for row in rows):
            raise CheckpointError(f"{folder} contains no record of a finished run.")
        mark_baselines(rows, board["options"]["baselines"])
        super().__init__(rows, board["options"], directory, warnings=board["warnings"])

    @property
    def test_rows(self) -> int:
        """Test rows of every run."""
        return int(self.reference.results["test_rows"])

    @property
    def n_users(self) -> int:
        """Users that were tested."""
        return int(self.reference.results["tested_users"])

    @cached_property
    def tests(self) -> dict[tuple[str, str, str], Test]:
        """The stored tests, computed when all runs were available."""
        tests = {}
        for entry in self.board["tests"]:
            test = Test(**{key: value for key, value in entry.items() if key != "version"})
            tests[entry["version"], test.label, test.metric] = test
        return tests

    @cached_property
    def _pairs(self) -> dict[tuple[str, str, str, str], Pair]:
        pairs = (Pair(**entry) for entry in self.board["pairs"])
        return {(pair.label, pair.against, pair.metric, pair.version): pair for pair in pairs}

    def pair(self, label: str, against: str, metric: str) -> Pair | None:
        """Return the stored comparison of two rows under the first of the versions; None if there is none."""
        return self._pairs.get((label, against, metric, self.versions[0]))

    @cached_property
    def warnings(self) -> list[str]:
        """Warnings about the comparison, for the reader of its tables."""
        missing = [] if self.board["tests"] else ["The paired tests are missing: they need the runs of all rows."]
        return [*super().warnings, *(missing if len(self.rows) > 1 else [])]


def hashes_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Hashes of the ranks behind each row, by label."""
    return {row.label: [ranks_hash(run) for run in row.runs] for row in rows if row.runs}


def tests_of(comparison: Comparison) -> list[dict[str, Any]]:
    """The paired tests of a comparison as a board keeps them."""
    return plain([{"version": version, **asdict(test)} for (version, _, _), test in comparison.tests.items()])


def stored_pairs(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return pairs as a board keeps them."""
    return [plain(asdict(pair)) for pair in pairs]
