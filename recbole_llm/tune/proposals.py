"""What to try next: the whole grid, or RecBole's ``HyperTuning`` asked for one proposal at a time."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from recbole.trainer import HyperTuning

from recbole_llm.errors import ConfigError, MissingExtraError
from recbole_llm.tune.journal import Trial
from recbole_llm.tune.space import Parameter

ALGORITHMS = ("exhaustive", "random", "bayes")
# What was tried before is drawn again: TPE so often, and then, since it insists, at random until the space counts as
# exhausted.
TPE_DRAWS, RANDOM_DRAWS = 5, 200


class Proposals(Protocol):
    """Settings of a trial as a function of its number and of the trials that ended before."""

    size: float

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """Raw values by parameter name for trial ``number``, or None where nothing is left to try.

        Parameters
        ----------
        number : int
            Counts from 0.
        trials : sequence of Trial
            The trials before this one, in order; those without a score are still running or have failed.
        """


def grid_size(space: Sequence[Parameter]) -> float:
    """How many settings a space has; infinite with a range in it."""
    return math.prod(len(parameter.options) if parameter.kind == "choice" else math.inf for parameter in space)


class Grid:
    """Every combination of the options, the last parameter changing fastest; needs no hyperopt.

    RecBole draws combinations at random until a thousand draws in a row were known, which leaves some out, and which
    hyperopt 0.3.0 cannot run.
    """

    def __init__(self, space: Sequence[Parameter]) -> None:
        ranges = [parameter for parameter in space if parameter.kind != "choice"]
        if ranges:
            raise ConfigError(
                f"{ranges[0].where}: algo=exhaustive tries every option of `choice`, but {ranges[0].name} is "
                f"{ranges[0].kind}. Write options, such as `{ranges[0].name} choice "
                f"{ranges[0].bounds()}`, or use --algo=random or --algo=bayes."
            )
        self.space = list(space)
        self.size = grid_size(space)

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """The ``number``-th combination; what other trials gave plays no part."""
        if number >= self.size:
            return None
        point = {}
        for parameter in reversed(self.space):
            number, point[parameter.name] = divmod(number, len(parameter.options))
        return {parameter.name: point[parameter.name] for parameter in self.space}


class HyperoptProposals(HyperTuning):
    """Random search and TPE, chosen by RecBole's ``HyperTuning``.

    Its ``run`` keeps every result in memory, draws from a generator without a seed and knows no failed trial, so it is
    not called: the algorithm is asked directly, with a seed that only the study's seed and the trial's number decide.
    The same results therefore always lead to the same proposal, also in another process.

    Parameters
    ----------
    space : list of Parameter
    algo : str
        random or bayes.
    seed : int
    bigger : bool
        Whether a bigger score is better.
    random_trials : int
        Of TPE: how many trials are drawn at random before it models the results.
    """

    def __init__(self, space: Sequence[Parameter], algo: str, seed: int, bigger: bool, random_trials: int) -> None:
        try:
            from hyperopt import tpe
            from hyperopt.base import Domain
        except ImportError as error:
            old = "; hyperopt 0.2.5 also needs setuptools<80" if "pkg_resources" in str(error) else ""
            raise MissingExtraError(
                f"algo={algo} needs the package hyperopt ({error}{old}): pip install 'recbole-llm[tune]', or "
                "pip install hyperopt. algo=exhaustive needs no package, but options (`choice`) in every line."
            ) from error
        how: Any = algo if algo == "random" else functools.partial(tpe.suggest, n_startup_jobs=random_trials)
        super().__init__(None, space={parameter.name: _hyperopt(parameter) for parameter in space}, algo=how)
        self.parameters = list(space)
        self.seed, self.sign = seed, -1.0 if bigger else 1.0
        self.size = grid_size(space)
        self.domain = Domain(lambda settings: 0.0, self.space)

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """The algorithm's next point, settings that were tried before left out."""
        from hyperopt import rand
        from hyperopt.base import JOB_STATE_DONE, STATUS_FAIL, STATUS_OK, Trials

        known = Trials()
        documents = []
        for trial in trials:
            loss = None if trial.score is None else self.sign * trial.score
            result = {"status": STATUS_FAIL} if loss is None else {"status": STATUS_OK, "loss": loss}
            values = {name: [value] for name, value in trial.point.items()}
            misc = {
                **{"tid": trial.number, "cmd": self.domain.cmd, "workdir": None},
                **{"idxs": {name: [trial.number] for name in values}, "vals": values},
            }
            (document,) = known.new_trial_docs([trial.number], [None], [result], [misc])
            documents.append({**document, "state": JOB_STATE_DONE})
        known.insert_trial_docs(documents)
        known.refresh()

        tried = [trial.params for trial in trials]
        for draw in range(TPE_DRAWS + RANDOM_DRAWS if len(tried) < self.size else 0):
            seed = int(np.random.SeedSequence([self.seed, number, draw]).generate_state(1)[0]) % 2**31
            suggest = self.algo if draw < TPE_DRAWS else rand.suggest
            (document,) = suggest([number], self.domain, known, seed)
            point = {name: np.asarray(value[0]).item() for name, value in document["misc"]["vals"].items()}
            if {parameter.name: parameter.value(point[parameter.name]) for parameter in self.parameters} not in tried:
                return {parameter.name: point[parameter.name] for parameter in self.parameters}
        return None


def _hyperopt(parameter: Parameter) -> Any:
    """A parameter as hyperopt knows it; options by their index, since it takes lists and mappings apart."""
    from hyperopt import hp

    if parameter.kind == "choice":
        return hp.choice(parameter.name, list(range(len(parameter.options))))
    step = [parameter.step] if parameter.kind.startswith("q") else []
    return getattr(hp, parameter.kind)(parameter.name, parameter.low, parameter.high, *step)


def choose(
    algo: str | None, space: Sequence[Parameter], max_evals: int | None, seed: int, bigger: bool, random_trials: int
) -> tuple[str, Proposals]:
    """The search algorithm and what proposes its trials.

    Without ``algo`` a space of options that ``max_evals`` can go through is searched exhaustively, any other by TPE.

    Raises
    ------
    ConfigError
        For an unknown algorithm, or one that does not suit the space.
    MissingExtraError
        Where hyperopt is needed and missing.
    """
    size = grid_size(space)
    if algo is None:
        algo = "exhaustive" if size <= (max_evals or 100) else "bayes"
    if algo not in ALGORITHMS:
        raise ConfigError(f"algo={algo!r} is not a choice. Allowed: {', '.join(ALGORITHMS)}.")
    if algo != "exhaustive":
        return algo, HyperoptProposals(space, algo, seed, bigger, random_trials)
    grid = Grid(space)
    if max_evals is not None and max_evals < size:
        raise ConfigError(
            f"algo=exhaustive tries all {size:,.0f} combinations, but max_evals={max_evals}. Use --algo=random or "
            f"--algo=bayes for a part of them, or --max_evals={size:.0f}."
        )
    return algo, grid
