"""Options of a study, and the Optuna objects that they configure."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from recbole_llm.config.values import nearest
from recbole_llm.errors import ConfigError
from recbole_llm.extras import optional

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

ALGORITHMS = ("exhaustive", "random", "bayes")
PRUNERS = ("none", "median", "percentile", "halving")
KEEP = ("light", "all", "best")
TOOLS = ("Optuna", "Ray")
# Options of RecBole's run_hyper.py, and their replacements.
REPLACED = {
    "output_file": "a study writes study.csv into its folder, which --study=FOLDER names",
    "display_file": "a study draws study.html into its folder, which --study=FOLDER names",
}

HELP = """\
Hyper-parameter search on the validation score; the winner alone is evaluated on test.

  recbole-llm tune --model=NAME --dataset=NAME [--params_file=FILE] [--option=value ...] [--key=value ...]
  recbole-llm tune --resume=STUDY_DIR          continue a study (as does the same command again)

  --params_file=FILE     search space in RecBole's format; default: props/hyper/<Model>.test
                           learning_rate loguniform -9.21,-4.61    natural logarithms of the bounds
                           dropout uniform 0,0.9                   also quniform and qloguniform: low,high,step
                           n_layers choice [1,2,4]
  --algo=NAME            exhaustive, random or bayes (Optuna's TPE).
                           Default: exhaustive if max_evals covers the whole space, else bayes
  --max_evals=N          maximum number of trials (default 100; exhaustive: all); raising it continues a study
  --early_stop=N         end after N trials without improvement, 0: never (default 20; exhaustive: 0)
  --max_hours=H          start no new trial after H hours in trials
  --random_trials=N      bayes: random trials at the start (default 20)
  --pruner=NAME          none (default), median, percentile or halving: stop bad trials early
  --prune_after=N        epochs before pruning starts; first rung of halving (default 5)
  --prune_trials=N       median, percentile: finished trials needed at the same epoch (default 5)
  --prune_keep=SHARE     percentile: share of the trials that continue (default 0.25)
  --prune_factor=N       halving: one of N trials continues at every rung (default 3)
  --keep_trials=WHAT     light (default: settings, log and curve of every trial, the best one's weights),
                           all (all weights) or best (the best trial's directory only)
  --study=FOLDER         default: <checkpoint_dir>/study-<Model>-<dataset>-<hash>
  --retry_failed         run the settings of failed trials again
  --tool=Ray             several trials at once: --parallel=N --cpus_per_trial=N --gpus_per_trial=0.5
  --ray_address=ADDRESS  a Ray cluster (`auto`, `ray://head:10001`) whose machines all see the study's folder

Needs `pip install 'recbole-llm[tune]'` (Optuna). A study leaves study.csv (every trial, written when it ends),
study.html, best.yaml (the winner's settings for --config_files), trials/ and journal.log, which Optuna's own tools
read (`optuna-dashboard journal.log`).
"""


def optuna() -> ModuleType:
    """Return Optuna.

    Raises
    ------
    MissingExtraError
        If Optuna is not installed; the message says how to install it.
    """
    return optional("optuna", "tune", "A study")


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "algo": (None, *ALGORITHMS),
    "pruner": PRUNERS,
    "keep_trials": KEEP,
    "tool": TOOLS,
}
# Kind and least value of each number.
_NUMBERS: dict[str, tuple[type, int]] = {
    "max_evals": (int, 1),
    "early_stop": (int, 0),
    "random_trials": (int, 1),
    "prune_after": (int, 0),
    "prune_trials": (int, 1),
    "prune_factor": (int, 2),
    "parallel": (int, 1),
    "max_hours": (float, 0),
    "cpus_per_trial": (float, 0),
    "gpus_per_trial": (float, 0),
}


def _check_choice(key: str, value: object, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        names = [choice for choice in choices if choice is not None]
        hint = nearest(str(value), names)
        raise ConfigError(f"invalid value for {key}: {value!r} (choose from {', '.join(names)}).{hint}")


def _check_number(key: str, value: Any, kind: type, low: int) -> None:
    kinds = (int, float) if kind is float else int
    # Not `value < low`, which is false for nan.
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value >= low):
        raise ConfigError(f"{key}={value!r} must be a {'whole ' * (kind is int)}number of at least {low}.")


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study, beside the settings of its runs.

    Attributes
    ----------
    algo : str or None
        exhaustive, random or bayes (TPE). None: exhaustive if ``max_evals`` covers the whole space, else bayes.
    max_evals : int or None
        Maximum number of trials; None: the whole space for exhaustive, else 100. A larger number continues a study.
    early_stop : int or None
        End after this many trials without improvement, 0: never. None: 0 for exhaustive, else 20. (RecBole's 10 ends
        most studies before TPE's random trials are over.)
    max_hours : float or None
        Start no new trial after this much time in trials.
    random_trials : int
        Trials that bayes draws at random before it models the results.
    pruner : str
        none, median or percentile (Optuna's ``PercentilePruner``) or halving (:class:`Halving`).
    prune_after : int
        Epochs before pruning starts; first rung of halving.
    prune_trials : int
        Finished trials needed at the same epoch; median and percentile.
    prune_keep : float
        Share of the trials that continue under percentile.
    prune_factor : int
        One of this many trials continues at every rung of halving.
    keep_trials : str
        light (every trial's settings, log, curve and results; the best one's weights), all (every trial's weights) or
        best (the best trial's directory only).
    study : str or None
        Folder of the study. None: ``checkpoint_dir/study-<Model>-<dataset>-<hash of what is searched>``, so that the
        same command continues the same study.
    retry_failed : bool
        Run the settings of failed trials again, as new trials.
    tool : str
        Optuna (one trial after the other) or Ray (several at once, also on several machines).
    ray_address : str or None
        Ray cluster to use, such as ``auto`` or ``ray://head:10001``; None: this machine.
    parallel : int or None
        Ray: trials at once; None: as many as the resources allow.
    cpus_per_trial, gpus_per_trial : float or None
        Ray: resources of a trial, fractions of a GPU allowed. None: 1 CPU; 1 GPU where there is one and use_gpu.
    """

    algo: str | None = None
    max_evals: int | None = None
    early_stop: int | None = None
    max_hours: float | None = None
    random_trials: int = 20
    pruner: str = "none"
    prune_after: int = 5
    prune_trials: int = 5
    prune_keep: float = 0.25
    prune_factor: int = 3
    keep_trials: str = "light"
    study: str | None = None
    retry_failed: bool = False
    tool: str = "Optuna"
    ray_address: str | None = None
    parallel: int | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            _check_choice(key, getattr(self, key), choices)
        for key, (kind, low) in _NUMBERS.items():
            _check_number(key, getattr(self, key), kind, low)
        share = self.prune_keep
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ConfigError(f"prune_keep={share!r} must be a share between 0 and 1.")
        if not isinstance(self.retry_failed, bool):
            raise ConfigError(f"retry_failed={self.retry_failed!r} must be True or False.")
        if self.study is not None and (not str(self.study).strip() or isinstance(self.study, bool)):
            raise ConfigError("study needs the name of a folder: --study=FOLDER.")
        if self.tool != "Ray":
            for key in ("ray_address", "parallel", "cpus_per_trial", "gpus_per_trial"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"{key}={getattr(self, key)!r} applies to trials under Ray only: add --tool=Ray."
                    )

    @classmethod
    def names(cls) -> list[str]:
        """Names of the options."""
        return [field.name for field in fields(cls)]

    def optuna_pruner(self) -> "BasePruner":
        """Return Optuna's pruner; its steps are finished epochs."""
        pruners = optuna().pruners
        if self.pruner == "none":
            return pruners.NopPruner()
        if self.pruner == "halving":
            return cast("BasePruner", Halving(max(1, self.prune_after), self.prune_factor))
        keep = 50.0 if self.pruner == "median" else 100 * self.prune_keep
        needed = self.prune_trials
        return pruners.PercentilePruner(keep, needed, self.prune_after, n_min_trials=needed)

    def optuna_sampler(self, seed: int) -> "BaseSampler":
        """Return Optuna's sampler for ``random`` and ``bayes``."""
        samplers = optuna().samplers
        if self.algo == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(n_startup_trials=self.random_trials, seed=seed)


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving (Li et al., MLSys 2020): one of ``factor`` trials continues at every rung.

    Optuna's ``SuccessiveHalvingPruner`` makes the same decisions, but records that a trial reached a rung before it
    decides: if killed in between, it lets the trial continue. This one only reads the validation curves.

    Attributes
    ----------
    first : int
        Epochs of the first rung; the others are ``first * factor``, ``first * factor**2``, ...
    factor : int
    """

    first: int
    factor: int

    def prune(self, study: "Study", trial: "FrozenTrial") -> bool:
        """Whether a trial should stop after its last validation."""
        steps = sorted(trial.intermediate_values)
        before, step = [0, *steps][-2:]
        others = [
            other.intermediate_values
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and other.state.name != "FAIL"
        ]
        sign = 1 if study.direction.name == "MAXIMIZE" else -1
        own = sign * trial.intermediate_values[step] if steps else 0.0
        rung = self.first
        while rung <= step:
            if rung > before:
                reached = [curve for curve in others if max(curve, default=0) >= rung]
                values = [sign * curve[min(at for at in curve if at >= rung)] for curve in reached]
                places = max(1, (len(values) + 1) // self.factor)
                if sum(value > own for value in values) >= places:
                    return True
            rung *= self.factor
        return False


def split_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split settings into options of the study and settings of its runs."""
    for key, instead in REPLACED.items():
        if key in given:
            raise ConfigError(f"{key}={given[key]!r}: {instead}.")
    if given.get("tool") == "Hyperopt":
        raise ConfigError("tool='Hyperopt': the search runs on Optuna (exhaustive, random, bayes); leave --tool out.")
    names = StudyOptions.names()
    options = {key: value for key, value in given.items() if key in names}
    return options, {key: value for key, value in given.items() if key not in names}
