"""A study: its trials in an Optuna journal, the next one to run, and their outcomes."""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.errors import CheckpointError, RecBoleLLMError
from recbole_llm.run.identity import plain
from recbole_llm.trainer import checkpoint
from recbole_llm.tune.options import StudyOptions, optuna
from recbole_llm.tune.space import Parameter, grid, size_of
from recbole_llm.tune.trial import PruneRule, tidy

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial

# Optuna's journal, which `optuna-dashboard` and `optuna.load_study(study_name="study", ...)` read, too.
JOURNAL = "journal.log"
# A study whose first trials all fail is set up wrongly.
FAILURES = 5
# Give up on a trial after this many deaths of the process in the same epoch.
STARTS = 5
# How often to redraw settings that were tried before: by the algorithm, and then, in a space with ranges, at random;
# after that the space counts as exhausted.
DRAWS, RANDOM_DRAWS = 5, 200
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
    test : dict or None
        Test metrics, masked and unmasked, where this trial was the winner when a study ended.
    """

    number: int
    params: dict[str, Any]
    state: str
    score: float | None = None
    curve: list[tuple[int, int, float]] = field(default_factory=list)
    result: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state != "started"


def open_journal(folder: Path, options: StudyOptions, bigger: bool) -> "OptunaStudy":
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
            pruner=options.optuna_pruner(),
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
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with file.open("r+b") as stream:
                stream.truncate(whole)


def prune_rule(study: "OptunaStudy", number: int) -> PruneRule:
    """Report a trial's validation curve to Optuna, and ask its pruner.

    Parameters
    ----------
    study : optuna.Study
    number : int
        Of the trial.

    Returns
    -------
    callable
        Of the curve so far; it gives the reason to stop, or None.
    """
    frozen = study.get_trials(deepcopy=False)[number]
    # Optuna has no public way to continue a trial that another process began.
    handle = optuna().trial.Trial(study, frozen._trial_id)
    reported = set(frozen.intermediate_values)

    def rule(curve: Sequence[Sequence[Any]]) -> str | None:
        for stage, epoch, score in curve:
            step = stage * STAGE + epoch
            if step not in reported:
                handle.report(score, step)
                reported.add(step)
        if not curve or not handle.should_prune():
            return None
        return f"{curve[-1][-1]:.6g} after {curve[-1][1]} epochs, {type(study.pruner).__name__}"

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
    """

    def __init__(
        self, folder: Path, space: Sequence[Parameter], options: StudyOptions, metric: str, bigger: bool, seed: int
    ) -> None:
        self.folder, self.space, self.options = folder, list(space), options
        self.metric, self.bigger, self.seed = metric, bigger, seed
        self.size = size_of(space)
        recover_journal(folder)
        self.optuna = open_journal(folder, options, bigger)
        self._distributions = {parameter.name: parameter.distribution() for parameter in space}
        self._running: set[int] = set()
        self._retries = iter([t for t in self.trials if t.state == "failed"] if options.retry_failed else [])
        self.exhausted = False
        self._why_ended = ""

    def run_dir(self, trial: Trial) -> Path:
        """Where a trial runs."""
        return self.folder / "trials" / f"{trial.number:04d}"

    @property
    def trials(self) -> list[Trial]:
        """Every trial in order of its number."""
        return [self._view(frozen) for frozen in self.optuna.get_trials(deepcopy=False)]

    def _view(self, frozen: "FrozenTrial") -> Trial:
        states = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        state, steps = states.get(frozen.state.name, "started"), sorted(frozen.intermediate_values.items())
        curve = [(step // STAGE, step % STAGE, score) for step, score in steps]
        score = frozen.value if state == "finished" else None
        if state == "pruned":
            score = (max if self.bigger else min)(score for _, _, score in curve)
        return Trial(
            frozen.number,
            self._settings(frozen.params),
            state,
            score,
            curve,
            frozen.user_attrs.get("result", {}),
            frozen.user_attrs.get("details", {}),
            self.optuna.user_attrs.get(f"test of trial {frozen.number}"),
        )

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best validation score; of equal ones the first."""
        return self._best(self.trials)

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        sign = 1 if self.bigger else -1
        finished = [trial for trial in trials if trial.state == "finished"]
        return max(finished, key=lambda trial: sign * (trial.score or 0.0), default=None)

    def ask(self) -> Trial | None:
        """Return the next trial to run, interrupted ones first; None if none is to be started now.

        Raises
        ------
        StudyError
            Where the first trials all failed.
        """
        for trial in self.trials:
            if not trial.ended and trial.number not in self._running:
                if self._start(trial.number):
                    return trial
                self.tell(trial, {"state": "failed", "details": {"error": _LOST}})
        trials = self.trials
        failed = next(self._retries, None)
        if failed is not None:
            return self._add(self.optuna.get_trials(deepcopy=False)[failed.number].params, {"retry_of": failed.number})
        if self._is_over(trials):
            return None
        sampled = self._propose(trials)
        if sampled is None:
            self.exhausted = True
            return None
        return self._add(sampled, {})

    def _add(self, sampled: Mapping[str, Any], attributes: Mapping[str, Any]) -> Trial:
        """Start a trial; one line of the journal holds all of it."""
        running = optuna().trial.create_trial(
            state=optuna().trial.TrialState.RUNNING,
            params=dict(sampled),
            distributions=self._distributions,
            user_attrs=dict(attributes),
        )
        self.optuna.add_trial(running)
        trial = self.trials[-1]
        self._start(trial.number)
        return trial

    def _propose(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """Values of the distributions that were not tried before, or None where none is left."""
        if self.options.algo == "exhaustive":
            return next(itertools.islice(grid(self.space), self._proposed(), None), None)
        tried = {self._key(trial.params) for trial in trials}
        place = optuna().trial.create_trial(state=optuna().trial.TrialState.RUNNING)
        finite = math.isfinite(self.size)
        for draw in range(DRAWS if finite else DRAWS + RANDOM_DRAWS):
            seed = int(np.random.SeedSequence([self.seed, len(trials), draw]).generate_state(1)[0])
            sampler = self.options.optuna_sampler(seed) if draw < DRAWS else optuna().samplers.RandomSampler(seed)
            sampled = {
                name: sampler.sample_independent(self.optuna, place, name, distribution)
                for name, distribution in self._distributions.items()
            }
            if self._key(self._settings(sampled)) not in tried:
                return sampled
        rest = (
            [labels for labels in grid(self.space) if self._key(self._settings(labels)) not in tried] if finite else []
        )
        return rest[int(np.random.default_rng([self.seed, len(trials)]).integers(len(rest)))] if rest else None

    def _proposed(self) -> int:
        """Count the trials that do not repeat a failed one."""
        return sum("retry_of" not in frozen.user_attrs for frozen in self.optuna.get_trials(deepcopy=False))

    def _settings(self, sampled: Mapping[str, Any]) -> dict[str, Any]:
        return {parameter.name: parameter.setting(sampled[parameter.name]) for parameter in self.space}

    @staticmethod
    def _key(settings: Mapping[str, Any]) -> str:
        return repr(list(settings.values()))  # tells 1 from True

    def _start(self, number: int) -> bool:
        """Note that a trial starts, unless it ended the process too often in the same epoch."""
        frozen = self.optuna.get_trials(deepcopy=False)[number]
        state = checkpoint.state_folder(self.folder / "trials" / f"{number:04d}")
        values = checkpoint.read_state(state) if state else {}
        progress = [values.get("stage", 0), values.get("finished_epochs", 0)]
        before, starts = frozen.user_attrs.get("starts", [None, 0])
        starts = starts + 1 if before == progress else 1
        if starts > STARTS:
            return False
        self._note(number, "starts", [progress, starts])
        self._running.add(number)
        return True

    def _note(self, number: int, key: str, value: Any) -> None:
        """Keep something about a trial that runs."""
        frozen = self.optuna.get_trials(deepcopy=False)[number]
        optuna().trial.Trial(self.optuna, frozen._trial_id).set_user_attr(key, plain(value))

    def _is_over(self, trials: Sequence[Trial]) -> bool:
        ended = [trial for trial in trials if trial.ended]
        failed = [trial for trial in ended if trial.state == "failed"]
        if len(failed) >= FAILURES and len(failed) == len(ended):
            raise StudyError(
                f"The first {len(failed)} trials failed, the last with: {failed[-1].details['error']} See "
                f"{self.run_dir(failed[-1]) / 'run.log'}. Once that is fixed, add --retry_failed."
            )
        best = self._best(trials)
        since = sum(trial.number > best.number for trial in ended) if best else 0
        hours = sum(trial.details.get("seconds", 0.0) for trial in ended) / 3600
        if self.options.max_evals is not None and self._proposed() >= self.options.max_evals:
            self._why_ended = f"max_evals={self.options.max_evals}"
        elif self.options.early_stop and since >= self.options.early_stop:
            self._why_ended = f"{since} trials without improvement (early_stop={self.options.early_stop})"
        elif self.options.max_hours is not None and hours >= self.options.max_hours:
            self._why_ended = f"{hours:.1f} hours in trials (max_hours={self.options.max_hours})"
        else:
            return False
        return True

    def why_ended(self) -> str:
        """Describe what ended the search."""
        return "every setting has been tried" if self.exhausted else self._why_ended

    def tell(self, trial: Trial, outcome: Mapping[str, Any]) -> Trial:
        """Record the outcome of a trial; update tables and directories.

        Parameters
        ----------
        trial : Trial
        outcome : dict
            As :func:`recbole_llm.tune.trial.run_trial` gives it.
        """
        states = optuna().trial.TrialState
        previous = self.best
        self._note(trial.number, "result", outcome.get("result", {}))
        self._note(trial.number, "details", outcome.get("details", {}))
        state = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[outcome["state"]]
        self.optuna.tell(trial.number, outcome["score"] if state == states.COMPLETE else None, state)
        self._running.discard(trial.number)
        trials = self.trials
        best = self._best(trials)
        for number in {trial.number} | ({previous.number} if previous else set()):
            self.tidy(trials[number], best)
        self.write_table()
        return trials[trial.number]

    def tidy(self, trial: Trial, best: Trial | None) -> None:
        """Keep the parts of a finished trial's directory that ``keep_trials`` names."""
        # A trial that was tested keeps its weights: its test metrics must stay reproducible.
        is_best = trial.test is not None or (best is not None and trial.number == best.number)
        tidy(self.run_dir(trial), self.options.keep_trials, is_best)

    def tested(self, trial: Trial, test: Mapping[str, Any]) -> None:
        """Note the winner's test metrics."""
        self.optuna.set_user_attr(f"test of trial {trial.number}", plain(test))

    def write_table(self) -> None:
        """Write ``study.csv``: one row per trial with settings, validation metrics and costs."""
        trials, names = self.trials, [parameter.name for parameter in self.space]
        metrics = list(dict.fromkeys(name for trial in trials for name in trial.result))
        costs = ["best_epoch", "epochs", "updates", "parameters", "seconds", "peak_memory_mb"]
        temporary = self.folder / "study.csv.tmp"
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["trial", "state", f"best_valid_{self.metric}", *names, *metrics, *costs, "note"])
            for trial in trials:
                writer.writerow(
                    [trial.number, trial.state, trial.score]
                    + [trial.params[name] for name in names]
                    + [trial.result.get(name) for name in metrics]
                    + [trial.details.get(name) for name in costs]
                    + [trial.details.get("error") or trial.details.get("reason")]
                )
        temporary.replace(self.folder / "study.csv")
