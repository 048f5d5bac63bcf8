"""A study: its trials in an Optuna journal, the next one to run, and their outcomes."""

import csv
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.config.schema import StudyOptions
from recbole_llm.errors import CheckpointError, RecBoleLLMError
from recbole_llm.files import whole
from recbole_llm.run.folder import RESULTS
from recbole_llm.run.identity import plain
from recbole_llm.trainer import checkpoint
from recbole_llm.tune.options import optuna, pruner_of, sampler_of
from recbole_llm.tune.space import Label, Parameter, combination, size_of
from recbole_llm.tune.trial import Curve, Details, Outcome, PruneRule, tidy

if TYPE_CHECKING:
    import optuna as optuna_types

# Optuna's journal, which `optuna-dashboard` and `optuna.load_study(study_name="study", ...)` read, too.
JOURNAL = "journal.log"
# A study whose first trials all fail is set up wrongly.
FAILURES = 5
# Give up on a trial after this many deaths of the process in the same epoch.
STARTS = 5
# How often to draw from the algorithm until a setting is new.
DRAWS = 5
# Optuna's step of the e-th epoch (from 1) of stage s is s * STAGE + e.
STAGE = 10**6
_LOST = f"The process died {STARTS} times in the same epoch of this trial: most likely the system had no memory left."


class StudyError(RecBoleLLMError, RuntimeError):
    """A study has no finished trial to choose from."""


@dataclass(frozen=True)
class Trial:
    """One trial: its settings and outcome.

    Attributes
    ----------
    number : int
        Counts from 0.
    params : dict
        Settings by key.
    state : str
        started, finished, pruned or failed.
    score : float or None
        Best validation score; of a pruned trial the best until then.
    curve : list of (stage, epoch, score)
        Every validation: index of the stage, epoch within it (from 1), validation score.
    result : dict
        Validation metrics of the best epoch.
    details : dict
        ``best_epoch``, ``epochs``, ``updates``, ``seconds``, ``peak_memory_mb``, ``parameters``; ``reason`` of
        pruning, ``error`` of failing.
    """

    number: int
    params: dict[str, Any]
    state: str
    score: float | None = None
    curve: Curve = field(default_factory=list)
    result: dict[str, float] = field(default_factory=dict)
    details: Details = field(default_factory=dict)


def open_journal(folder: Path, options: StudyOptions, bigger: bool) -> "optuna_types.Study":
    """Open the Optuna study of a folder, creating it if there is none.

    Raises
    ------
    CheckpointError
        If the journal is damaged.
    """
    package = optuna()
    package.logging.set_verbosity(package.logging.WARNING)
    try:
        backend = package.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        return package.create_study(
            study_name="study",
            storage=package.storages.JournalStorage(backend),
            direction="maximize" if bigger else "minimize",
            pruner=pruner_of(options),
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise CheckpointError(
            f"{folder / JOURNAL} is damaged ({error}). Restore it from a copy, or begin another study with "
            "--study=FOLDER."
        ) from error


def recover_journal(folder: Path) -> None:
    """Remove what a killed process left: a line that it was writing, and its lock.

    Only the process that runs the study may call it.
    """
    file = folder / JOURNAL
    for lock in folder.glob(f"{JOURNAL}.lock*"):
        lock.unlink(missing_ok=True)
    if file.is_file():
        content = file.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            with file.open("r+b") as stream:
                stream.truncate(complete)


def handle_of(study: "optuna_types.Study", number: int) -> "optuna_types.Trial":
    """Return Optuna's handle of a trial that runs; Optuna has no public way to continue another process's trial."""
    return optuna().trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def prune_rule(study: "optuna_types.Study", number: int, name: str) -> PruneRule:
    """Return a function that reports a trial's validation curve to Optuna and asks its pruner, called ``name``.

    It takes the curve so far, and gives the reason to stop, or None.
    """
    handle = handle_of(study, number)
    reported = set(study.get_trials(deepcopy=False)[number].intermediate_values)

    def rule(curve: Curve) -> str | None:
        for stage, epoch, score in curve:
            step = stage * STAGE + epoch
            if step not in reported:
                handle.report(score, step)
                reported.add(step)
        if not curve or not handle.should_prune():
            return None
        return f"{name} pruner after epoch {curve[-1][1]}: {curve[-1][-1]:.6g}"

    return rule


class Study:
    """The trials of one search.

    Parameters
    ----------
    folder : pathlib.Path
    space : list of Parameter
    options : StudyOptions
        With ``algo``, ``max_evals`` and ``early_stop`` decided.
    metric : str
        Name of the score.
    bigger : bool
        Whether a bigger score is better.
    seed : int
        Of the proposals: the same seed and results lead to the same proposal, also in another process.

    Attributes
    ----------
    ended : str
        Why :meth:`ask` gives no further trial; empty while it does.
    """

    def __init__(
        self, folder: Path, space: Sequence[Parameter], options: StudyOptions, metric: str, bigger: bool, seed: int
    ) -> None:
        self.folder, self.space, self.options = folder, list(space), options
        self.metric, self.bigger, self.seed = metric, bigger, seed
        recover_journal(folder)
        self.optuna = open_journal(folder, options, bigger)
        self._distributions = {parameter.name: parameter.distribution() for parameter in space}
        self._running: set[int] = set()
        self._retries = iter([t for t in self.trials if t.state == "failed"] if options.retry_failed else [])
        self.ended = ""

    def run_dir(self, trial: Trial) -> Path:
        """Where a trial runs."""
        return self.folder / "trials" / f"{trial.number:04d}"

    @property
    def trials(self) -> list[Trial]:
        """Every trial in order of its number."""
        return [self._view(frozen) for frozen in self.optuna.get_trials(deepcopy=False)]

    def _view(self, frozen: "optuna_types.trial.FrozenTrial") -> Trial:
        states = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        state, steps = states.get(frozen.state.name, "started"), sorted(frozen.intermediate_values.items())
        curve = [(step // STAGE, step % STAGE, score) for step, score in steps]
        score = frozen.value if state == "finished" else None
        if state == "pruned":
            score = (max if self.bigger else min)(score for _, _, score in curve)
        notes = frozen.user_attrs
        params = self._settings(frozen.params)
        return Trial(frozen.number, params, state, score, curve, notes.get("result", {}), notes.get("details", {}))

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best validation score; of equal ones the first."""
        sign = 1 if self.bigger else -1
        finished = [trial for trial in self.trials if trial.state == "finished"]
        return max(finished, key=lambda trial: sign * (trial.score or 0.0), default=None)

    def is_tested(self, trial: Trial) -> bool:
        """Whether a trial was evaluated on test: only winners are."""
        return (self.run_dir(trial) / RESULTS).is_file()

    def ask(self) -> Trial | None:
        """Return the next trial to run, interrupted ones first; None if none is to be started now.

        Raises
        ------
        StudyError
            If the first trials all failed.
        """
        for trial in self.trials:
            if trial.state == "started" and trial.number not in self._running:
                if self._start(trial):
                    return trial
                self.tell(trial, Outcome("failed", details={"error": _LOST}))
        trials = self.trials
        if failed := next(self._retries, None):
            return self._add(self.optuna.get_trials(deepcopy=False)[failed.number].params, {"retry_of": failed.number})
        self.ended = self._why_over(trials)
        if self.ended:
            return None
        sampled = self._propose(trials)
        if sampled is None:
            self.ended = "every setting has been tried"
            return None
        return self._add(sampled, {})

    def _add(self, sampled: Mapping[str, Label], attributes: Mapping[str, int]) -> Trial:
        """Start a trial; one line of the journal holds all of it."""
        running = optuna().trial.create_trial(
            state=optuna().trial.TrialState.RUNNING,
            params=dict(sampled),
            distributions=self._distributions,
            user_attrs=dict(attributes),
        )
        self.optuna.add_trial(running)
        trial = self.trials[-1]
        self._start(trial)
        return trial

    def _propose(self, trials: Sequence[Trial]) -> dict[str, Label] | None:
        """Values of the distributions that were not tried before, or None where none is left."""
        size = size_of(self.space)
        if self.options.algo == "exhaustive":
            number = self._proposed()
            return combination(self.space, number) if number < size else None
        tried = {repr(trial.params) for trial in trials}  # tells 1 from True
        place = optuna().trial.create_trial(state=optuna().trial.TrialState.RUNNING)
        for draw in range(DRAWS):
            seed = int(np.random.SeedSequence([self.seed, len(trials), draw]).generate_state(1)[0])
            sampler = sampler_of(self.options, seed)
            sampled = {
                name: sampler.sample_independent(self.optuna, place, name, distribution)
                for name, distribution in self._distributions.items()
            }
            if repr(self._settings(sampled)) not in tried:
                return sampled
        if math.isinf(size):
            return None
        # The next one that is left, from a random place on.
        start = random.Random(f"{self.seed} {len(trials)}").randrange(int(size))
        around = (combination(self.space, (start + step) % int(size)) for step in range(int(size)))
        return next((sampled for sampled in around if repr(self._settings(sampled)) not in tried), None)

    def _proposed(self) -> int:
        """Count the trials that do not repeat a failed one."""
        return sum("retry_of" not in frozen.user_attrs for frozen in self.optuna.get_trials(deepcopy=False))

    def _settings(self, sampled: Mapping[str, Any]) -> dict[str, Any]:
        return {parameter.name: parameter.setting(sampled[parameter.name]) for parameter in self.space}

    def _start(self, trial: Trial) -> bool:
        """Note that a trial starts, unless it ended the process too often in the same epoch."""
        state = checkpoint.state_folder(self.run_dir(trial))
        values = checkpoint.read_state(state) if state else {}
        progress = [values.get("stage", 0), values.get("finished_epochs", 0)]
        notes = self.optuna.get_trials(deepcopy=False)[trial.number].user_attrs
        before, starts = notes.get("starts", [None, 0])
        starts = starts + 1 if before == progress else 1
        if starts > STARTS:
            return False
        handle_of(self.optuna, trial.number).set_user_attr("starts", [progress, starts])
        self._running.add(trial.number)
        return True

    def _why_over(self, trials: Sequence[Trial]) -> str:
        """Say which limit the study has reached; empty if none."""
        options, best = self.options, self.best
        ended = [trial for trial in trials if trial.state != "started"]
        failed = [trial for trial in ended if trial.state == "failed"]
        if len(failed) >= FAILURES and len(failed) == len(ended):
            raise StudyError(
                f"The first {len(failed)} trials failed, the last with: {failed[-1].details['error']} See "
                f"{self.run_dir(failed[-1]) / 'run.log'}. Once that is fixed, add --retry_failed."
            )
        since = sum(trial.number > best.number for trial in ended) if best else 0
        hours = self.hours(ended)
        if options.max_evals is not None and self._proposed() >= options.max_evals:
            return f"max_evals={options.max_evals}"
        if options.early_stop and since >= options.early_stop:
            return f"{since} trials without improvement (early_stop={options.early_stop})"
        if options.max_hours is not None and hours >= options.max_hours:
            return f"{hours:.1f} hours in trials (max_hours={options.max_hours:g})"
        return ""

    @staticmethod
    def hours(trials: Sequence[Trial]) -> float:
        """Return the time that was spent in trials."""
        return sum(float(trial.details.get("seconds") or 0.0) for trial in trials) / 3600

    def tell(self, trial: Trial, outcome: Outcome) -> Trial:
        """Record the outcome of a trial; update tables and directories."""
        states = optuna().trial.TrialState
        previous = self.best
        handle = handle_of(self.optuna, trial.number)
        handle.set_user_attr("result", plain(outcome.result))
        handle.set_user_attr("details", plain(outcome.details))
        state = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[outcome.state]
        self.optuna.tell(trial.number, outcome.score if state == states.COMPLETE else None, state)
        self._running.discard(trial.number)
        ended = self.trials[trial.number]
        self.tidy([ended, previous] if previous else [ended])
        self.write_table()
        return ended

    def tidy(self, trials: Sequence[Trial]) -> None:
        """Keep the parts of finished trials' directories that ``keep_trials`` names."""
        best = self.best
        for trial in trials:
            # A trial that was tested keeps its weights: its test metrics must stay reproducible.
            is_best = self.is_tested(trial) or (best is not None and trial.number == best.number)
            tidy(self.run_dir(trial), self.options.keep_trials, is_best)

    def write_table(self) -> None:
        """Write ``study.csv``: one row per trial with settings, validation metrics and costs."""
        costs = ("best_epoch", "epochs", "updates", "parameters", "seconds", "peak_memory_mb")
        rows = [
            {"trial": trial.number, "state": trial.state, f"best_valid_{self.metric}": trial.score}
            | {name: trial.params[name] for name in self._distributions}
            | trial.result
            | {name: trial.details.get(name) for name in costs}
            | {"note": trial.details.get("error") or trial.details.get("reason")}
            for trial in self.trials
        ]
        longest = max(rows, key=lambda row: len(row))  # a failed trial has no metrics, which stand before the costs
        columns = dict.fromkeys(name for row in [longest, *rows] for name in row)
        with whole(self.folder / "study.csv") as file, file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(columns))
            writer.writeheader()
            writer.writerows(rows)
