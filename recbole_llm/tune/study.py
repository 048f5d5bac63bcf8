"""A study: which trial is next, what came of each, all of it on disk the moment it is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.errors import CheckpointError, RecBoleLLMError
from recbole_llm.trainer import checkpoint
from recbole_llm.tune.journal import Journal, Trial, write_table
from recbole_llm.tune.options import StudyOptions
from recbole_llm.tune.proposals import Proposals
from recbole_llm.tune.space import Parameter
from recbole_llm.tune.trial import PruneRule, tidy

# A study whose first trials all fail is set up wrongly.
FAILURES = 5
# A trial in which the process died so often, in the same epoch, would end it again.
STARTS = 5
_LOST = f"The process died {STARTS} times in the same epoch of this trial: most likely the system had no memory left."


class StudyError(RecBoleLLMError, RuntimeError):
    """A study has no trial that it could choose."""


class Study:
    """The trials of one search, with ``trials.jsonl`` as their memory.

    Parameters
    ----------
    folder : pathlib.Path
    space : list of Parameter
    proposals : Proposals
    options : StudyOptions
        With ``max_evals`` and ``early_stop`` decided.
    metric : str
        What the score is called.
    bigger : bool
        Whether a bigger score is better.

    Attributes
    ----------
    trials : list of Trial
        In order of their numbers.
    """

    def __init__(
        self,
        folder: Path,
        space: Sequence[Parameter],
        proposals: Proposals,
        options: StudyOptions,
        metric: str,
        bigger: bool,
    ) -> None:
        self.folder, self.space, self.proposals, self.options = folder, list(space), proposals, options
        self.metric, self.bigger = metric, bigger
        self.pruner = options.pruning(bigger)
        self.journal = Journal(folder / "trials.jsonl")
        self.trials = self.journal.read()
        if [trial.number for trial in self.trials] != list(range(len(self.trials))):
            raise CheckpointError(f"{self.journal.file} lacks trials; restore it from a copy or begin another study.")
        self.running: set[int] = set()
        self.exhausted = False
        self._why_ended = ""
        if options.retry_failed:
            for trial in self.trials:
                if trial.state == "failed":
                    trial.state, trial.progress = "started", None

    def run_dir(self, trial: Trial) -> Path:
        """Where a trial runs."""
        return self.folder / "trials" / f"{trial.number:04d}"

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best validation score; of equal ones the first."""
        finished = [trial for trial in self.trials if trial.state == "finished"]
        sign = 1 if self.bigger else -1
        return max(finished, key=lambda trial: sign * (trial.score or 0.0), default=None)

    def ask(self) -> Trial | None:
        """The next trial to run, one that a crash left first; None where none is to be started now.

        Raises
        ------
        StudyError
            Where the first trials all failed.
        """
        for trial in self.trials:
            if not trial.ended and trial.number not in self.running:
                if trial.starts < STARTS or trial.progress is None:
                    return self._start(trial)
                self.tell(trial, {"state": "failed", "details": {"error": _LOST}})
        if self._is_over():
            return None
        number = len(self.trials)
        point = self.proposals.propose(number, self.trials)
        if point is None:
            self.exhausted = True
            return None
        params = {parameter.name: parameter.value(point[parameter.name]) for parameter in self.space}
        self.trials.append(Trial(number, params, point))
        return self._start(self.trials[-1])

    def _start(self, trial: Trial) -> Trial:
        state = checkpoint.state_folder(self.run_dir(trial))
        values = checkpoint.read_state(state) if state else {}
        progress = [values.get("stage", 0), values.get("next_epoch", 0)]
        trial.starts = trial.starts + 1 if progress == trial.progress else 1
        trial.curve = []
        trial.progress = progress
        self.running.add(trial.number)
        self.journal.append(trial, "started")
        return trial

    def _is_over(self) -> bool:
        ended = [trial for trial in self.trials if trial.ended]
        failed = [trial for trial in ended if trial.state == "failed"]
        if len(failed) >= FAILURES and len(failed) == len(ended):
            raise StudyError(
                f"The first {len(failed)} trials failed, the last with: {failed[-1].details['error']} See "
                f"{self.run_dir(failed[-1]) / 'run.log'}. Once that is put right, add --retry_failed."
            )
        best = self.best
        since = sum(trial.number > best.number for trial in ended) if best else 0
        hours = sum(trial.details.get("seconds", 0.0) for trial in ended) / 3600
        if self.options.max_evals is not None and len(self.trials) >= self.options.max_evals:
            self._why_ended = f"max_evals={self.options.max_evals}"
        elif self.options.early_stop and since >= self.options.early_stop:
            self._why_ended = f"{since} trials without improvement (early_stop={self.options.early_stop})"
        elif self.options.max_hours is not None and hours >= self.options.max_hours:
            self._why_ended = f"{hours:.1f} hours in trials (max_hours={self.options.max_hours})"
        else:
            return False
        return True

    def why_ended(self) -> str:
        """What ended the search, for people."""
        return "every setting has been tried" if self.exhausted else self._why_ended

    def prune_rule(self, trial: Trial) -> PruneRule:
        """The stopping rule as the trial sees it."""
        others = [other for other in self.trials if other.number != trial.number]
        return lambda curve: self.pruner.reason(curve, others)

    def tell(self, trial: Trial, outcome: Mapping[str, Any]) -> None:
        """Note how a trial ended; tables and directories follow."""
        previous = self.best
        trial.state, trial.score = outcome["state"], outcome.get("score")
        trial.curve, trial.result = outcome.get("curve", []), outcome.get("result", {})
        trial.details = dict(outcome.get("details", {}))
        self.journal.append(trial, trial.state)
        self.running.discard(trial.number)
        best = self.best
        # A trial that was tested keeps its weights: its test figures must stay checkable.
        for other in {id(other): other for other in (trial, previous) if other is not None}.values():
            tidy(self.run_dir(other), self.options.keep_trials, other is best or other.test is not None)
        self.write_table()

    def write_table(self) -> None:
        """``study.csv``: one row a trial."""
        names = [parameter.name for parameter in self.space]
        write_table(self.folder / "study.csv", self.trials, names, self.metric)

    def tested(self, trial: Trial, test: Mapping[str, Any]) -> None:
        """Note the winner's test metrics."""
        trial.test = dict(test)
        self.journal.append(trial, "tested")
