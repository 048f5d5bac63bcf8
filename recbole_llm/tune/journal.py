"""What is known about the trials of a study, on disk the moment it is known."""

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_llm.errors import CheckpointError
from recbole_llm.run.identity import plain

ENDED = ("finished", "pruned", "failed")


@dataclass
class Trial:
    """One setting and what came of it.

    Attributes
    ----------
    number : int
        Counts from 0.
    params : dict
        Settings by key.
    point : dict
        The search algorithm's own numbers for them.
    state : str
        started, finished, pruned or failed.
    progress : list of int or None
        Stage and epoch that it was last started in.
    starts : int
        How often it was started there.
    score : float or None
        Best validation score; of a pruned trial the best until then.
    curve : list of [stage, epoch, score]
        Every validation: index of the stage, epoch within it, validation score.
    result : dict
        Validation metrics of the best epoch.
    details : dict
        ``best_epoch``, ``epochs``, ``updates``, ``seconds``, ``peak_memory_mb``, ``parameters``; ``reason`` of
        pruning, ``error`` of failing.
    test : dict or None
        Test metrics where this trial was the winner when a study ended.
    """

    number: int
    params: dict[str, Any]
    point: dict[str, Any]
    state: str = "started"
    progress: list[int] | None = None
    starts: int = 0
    score: float | None = None
    curve: list[list[Any]] = field(default_factory=list)
    result: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ENDED


class Journal:
    """``trials.jsonl``: one line when a trial starts and one when it ends, with its settings and its result.

    A line that a crash cut short is dropped; every other stays.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, trial: Trial, event: str) -> None:
        """Write a line and wait until it is on disk."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = {"trial": trial.number, "event": event, "at": now, "params": trial.params}
        if event == "started":
            line |= {"point": trial.point, "progress": trial.progress}
        elif event == "tested":
            line["test"] = trial.test
        else:
            line |= {"score": trial.score, "result": trial.result, "curve": trial.curve, **trial.details}
        with self.file.open("ab") as file:
            file.write(json.dumps(plain(line), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Trial]:
        """Every trial in order of its number.

        Raises
        ------
        CheckpointError
            If a line other than the last is damaged.
        """
        if not self.file.is_file():
            return []
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.file.open("r+b") as file:
                file.truncate(whole)
        trials: dict[int, Trial] = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                self._apply(trials, json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{self.file}, line {number} is damaged ({error}). Remove that line (its trial is then run again) "
                    "or restore the file from a copy."
                ) from error
        return [trials[number] for number in sorted(trials)]

    @staticmethod
    def _apply(trials: dict[int, Trial], line: Mapping[str, Any]) -> None:
        number, event = int(line["trial"]), line["event"]
        if event == "started":
            trial = trials.setdefault(number, Trial(number, line["params"], line["point"]))
            trial.starts = trial.starts + 1 if trial.progress == line["progress"] and not trial.ended else 1
            trial.progress = line["progress"]
            trial.state, trial.score, trial.curve, trial.result, trial.details = "started", None, [], {}, {}
        elif event == "tested":
            trials[number].test = line["test"]
        elif event in ENDED:
            trial = trials[number]
            trial.state, trial.score = event, line["score"]
            trial.curve, trial.result = line["curve"], line["result"]
            known = {"trial", "event", "at", "params", "score", "curve", "result"}
            trial.details = {key: value for key, value in line.items() if key not in known}
        else:
            raise ValueError(f"unknown event {event!r}")


def write_table(file: Path, trials: Sequence[Trial], names: Sequence[str], metric: str) -> None:
    """``study.csv``: one row a trial, with its settings (``names``), validation metrics and costs."""
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.result))
    costs = ["best_epoch", "epochs", "updates", "parameters", "seconds", "peak_memory_mb"]
    columns = ["trial", "state", f"best_valid_{metric}", *names, *metrics, *costs, "note"]
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for trial in trials:
            note = trial.details.get("error") or trial.details.get("reason")
            writer.writerow(
                [trial.number, trial.state, trial.score]
                + [trial.params.get(name) for name in names]
                + [trial.result.get(name) for name in metrics]
                + [trial.details.get(name) for name in costs]
                + [note]
            )
    temporary.replace(file)
