"""Options of a study, and the Optuna objects that they configure."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from recbole_llm.config.given import check_value
from recbole_llm.config.reference import comments, explained_settings
from recbole_llm.config.registry import property_file, props_dir
from recbole_llm.config.schema import StudyOptions
from recbole_llm.config.values import nearest
from recbole_llm.errors import ConfigError
from recbole_llm.extras import optional

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

# Options of RecBole's run_hyper.py, and their replacements.
REPLACED = {
    "output_file": "a study writes study.csv into its folder, which --study=FOLDER names",
    "display_file": "a study draws study.html into its folder, which --study=FOLDER names",
}
_HELP = """\
Hyper-parameter search on the validation score; only the winner is evaluated on test.

  recbole-llm tune --model=NAME --dataset=NAME [--params_file=FILE] [--option=value ...] [--key=value ...]
  recbole-llm tune --resume=STUDY_DIR          continue a study (as does the same command again)

--params_file=FILE holds the search space in RecBole's format; default: props/hyper/<Model>.test

  learning_rate loguniform -9.21,-4.61    natural logarithms of the bounds
  dropout uniform 0,0.9                   also quniform and qloguniform: low,high,step
  n_layers choice [1,2,4]

"""
_NEEDS = """
Needs `pip install 'recbole-llm[tune]'` (Optuna). A study leaves study.csv (every trial, written when it ends),
study.html, best.yaml (the winner's settings for --config_files), trials/ and journal.log, which Optuna's own tools
read (`optuna-dashboard journal.log`).
"""


def help_text() -> str:
    """Return what ``recbole-llm tune --help`` prints."""
    file = props_dir() / "tune.yaml"
    return _HELP + explained_settings("Options and their defaults:", property_file(file), comments(file)) + _NEEDS


def optuna() -> ModuleType:
    """Return Optuna.

    Raises
    ------
    MissingExtraError
        If Optuna is not installed; the message says how to install it.
    """
    return optional("optuna", "tune", "A study")


def options_of(given: Mapping[str, Any]) -> StudyOptions:
    """Return the options of a study (``props/tune.yaml``): as given, else their defaults.

    Raises
    ------
    ConfigError
        For an unknown option, an invalid value, or options that contradict one another.
    """
    defaults = property_file(props_dir() / "tune.yaml")
    for key in given:
        if key not in defaults:
            raise ConfigError(f"{key!r} is not an option of a study.{nearest(key, defaults)}")
    options = {**defaults, **given}
    for key, value in options.items():
        check_value(key, value, StudyOptions.types())
    if reason := StudyOptions.contradiction(options):
        raise ConfigError(reason)
    return StudyOptions.of(options)


def pruner_of(options: StudyOptions) -> "BasePruner":
    """Return Optuna's pruner; its steps are finished epochs."""
    pruners = optuna().pruners
    if options.pruner == "none":
        return pruners.NopPruner()
    if options.pruner == "halving":
        return cast("BasePruner", Halving(max(1, options.prune_after), options.prune_factor))
    keep = 50.0 if options.pruner == "median" else 100 * options.prune_keep
    needed = options.prune_trials
    return pruners.PercentilePruner(keep, needed, options.prune_after, n_min_trials=needed)


def sampler_of(options: StudyOptions, seed: int) -> "BaseSampler":
    """Return Optuna's sampler for ``random`` and ``bayes``."""
    samplers = optuna().samplers
    if options.algo == "random":
        return samplers.RandomSampler(seed)
    return samplers.TPESampler(n_startup_trials=options.random_trials, seed=seed)


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
