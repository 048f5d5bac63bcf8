"""Search spaces: RecBole's ``.test`` files, read without ``eval``.

One parameter per line, ``name kind values``; ``#`` starts a comment (RecBole's own parser has no comments)::

    learning_rate loguniform -9.21,-4.61     # natural logarithms: 1e-4 to 1e-2
    dropout uniform 0,0.9
    hidden_size quniform 16,512,16           # multiples of 16
    loss_type choice ['BPR','CE']
    mlp_hidden_size choice ['[64]','[64,64]']   # text that reads as a value is that value, as in RecBole
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.config import Config
from recbole_llm.config.registry import props_dir
from recbole_llm.config.schema import is_text
from recbole_llm.config.values import nearest, parse_value, without_code_keys
from recbole_llm.errors import ConfigError
from recbole_llm.run.identity import CIRCUMSTANCES
from recbole_llm.tune.options import optuna

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Label = str | int | float | bool | None
KINDS = ("choice", "uniform", "quniform", "loguniform", "qloguniform")
# Trials that differ in one of these are measured differently, so their scores cannot be compared.
MEASURE = frozenset(
    {"model", "dataset", "task", "protocol", "control", "control_seed", "repeatable", "popularity_counts"}
    | {"smoke", "smoke_users", "smoke_interactions", "eval_args", "metrics", "topk", "valid_metric", "mask_history"}
    | {"topn_negatives", "time_order", "allow_rank_times", "threshold", "val_interval", "rm_dup_inter"}
    | {"user_inter_num_interval", "item_inter_num_interval", "filter_inter_by_user_or_item"}
    | {f"temporal_session_{part}" for part in ("test_ratio", "valid_ratio", "valid_max", "seed", "fold", "folds")}
)


@dataclass(frozen=True)
class Parameter:
    """One searched parameter.

    Attributes
    ----------
    name, kind : str
    options : tuple
        Of ``choice``.
    low, high, step : float
        Of the others; natural logarithms of the bounds for the two logarithmic kinds, ``step`` for the q kinds.
    whole : bool
        Values are whole numbers.
    where : str
        Location of the line for error messages.
    """

    name: str
    kind: str
    options: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    whole: bool = False
    where: str = ""

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest value of a range: of the q kinds the outermost multiples of ``step`` inside it."""
        low, high = (math.exp(self.low), math.exp(self.high)) if "log" in self.kind else (self.low, self.high)
        if self.step:
            # 0.9 / 0.05 is 18.000000000000004, 0.15 / 0.05 is 2.9999999999999996.
            low, high = (math.ceil(low / self.step - 1e-9), math.floor(high / self.step + 1e-9))
            low, high = low * self.step, high * self.step
        return self._tidy(low), self._tidy(high)

    def _tidy(self, number: float) -> float:
        """Round to six significant digits, so that a setting is short and parses back to the same number."""
        return round(number) if self.whole else float(f"{number:.6g}")

    @property
    def labels(self) -> tuple[Label, ...]:
        """The options as Optuna keeps them: scalars that differ, or their text."""
        scalars = all(isinstance(option, (str, int, float, bool, type(None))) for option in self.options)
        if scalars and len(set(self.options)) == len(self.options):
            return self.options
        return tuple(repr(option) for option in self.options)

    @property
    def size(self) -> float:
        """Number of values: options of ``choice``, multiples of the q kinds; infinite for the others."""
        if self.kind == "choice":
            return len(self.options)
        low, high = self.ends
        return round((high - low) / self.step) + 1 if self.step else math.inf

    def value_at(self, place: int) -> Label:
        """Return one of the :attr:`size` values, as :meth:`distribution` has it."""
        return self.labels[place] if self.kind == "choice" else self._tidy(self.ends[0] + place * self.step)

    def distribution(self) -> "BaseDistribution":
        """Return the distribution that Optuna samples from."""
        distributions = optuna().distributions
        if self.kind == "choice":
            return distributions.CategoricalDistribution(self.labels)
        low, high = self.ends
        if self.kind == "quniform" and self.whole:
            return distributions.IntDistribution(low, high, step=int(self.step))
        if self.kind == "quniform":
            return distributions.FloatDistribution(low, high, step=self.step)
        return distributions.FloatDistribution(low, high, log="log" in self.kind)

    def setting(self, sampled: Any) -> Any:
        """Return the setting for a value of :meth:`distribution`."""
        if self.kind == "choice":
            return self.options[self.labels.index(sampled)]
        low, high = self.ends
        number = round(sampled / self.step) * self.step if self.step else sampled
        return self._tidy(min(max(number, low), high))

    def bounds(self) -> list[Any]:
        """Return the settings that must pass the checks of the configuration: every option, or both bounds."""
        return list(self.options) if self.kind == "choice" else [self.setting(end) for end in self.ends]

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"{self.name} choice {list(self.options)!r}"
        numbers = [self.low, self.high] + ([self.step] if self.kind.startswith("q") else [])
        whole = self.whole and self.kind == "quniform"  # what makes values whole when the line is read again
        return f"{self.name} {self.kind} " + ",".join(str(int(n)) if whole else repr(n) for n in numbers)


def size_of(space: Sequence[Parameter]) -> float:
    """Return the number of settings in a space; infinite if it contains a continuous range."""
    return math.prod(parameter.size for parameter in space)


def combination(space: Sequence[Parameter], index: int) -> dict[str, Label]:
    """Return one of the :func:`size_of` combinations of values; with the index, the last parameter changes fastest.

    (RecBole draws combinations at random until a thousand draws in a row were known, which leaves some out.)
    """
    values = {}
    for parameter in reversed(space):
        index, place = divmod(index, int(parameter.size))
        values[parameter.name] = parameter.value_at(place)
    return {parameter.name: values[parameter.name] for parameter in space}


def check_countable(space: Sequence[Parameter]) -> None:
    """Raise ConfigError for a continuous range, of which no search can try every value."""
    for parameter in space:
        if math.isinf(parameter.size):
            raise ConfigError(
                f"{parameter.where}: algo=exhaustive tries every value, but {parameter.name} is {parameter.kind}. "
                f"Write options, such as `{parameter.name} choice {parameter.bounds()}`, or use --algo=random or "
                "--algo=bayes."
            )


def find_space(model: str, name: str | Path | None) -> Path:
    """Return the file that ``params_file`` names, by default the model's file that ships.

    A missing path is looked up in our ``props/hyper`` by its file name, with or without ``.test``.

    Raises
    ------
    ConfigError
        If there is no such file.
    """
    folder = props_dir() / "hyper"
    ours = folder / (f"{Path(name).name.removesuffix('.test')}.test" if name is not None else f"{model}.test")
    if name is not None and Path(name).is_file():
        return Path(name)
    if ours.is_file():
        return ours
    known = sorted(path.stem for path in folder.glob("*.test"))
    asked = f"There is no file {str(name)!r}" if name is not None else f"There is no search space for {model}"
    raise ConfigError(
        f"{asked} (looked from {Path.cwd()} and in {folder}).{nearest(ours.stem, known)} Give a file of lines such as "
        f'"learning_rate loguniform -9.21,-4.61" with --params_file=FILE. Ours: {", ".join(known)}.'
    )


def read_space(file: Path) -> list[Parameter]:
    """Parse the parameters of a search-space file.

    Raises
    ------
    ConfigError
        For a line that cannot be parsed; the message names file and line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The search space {str(file)!r} cannot be read: {error}.") from error
    return read_lines(text.splitlines(), str(file))


def read_lines(lines: Sequence[str], name: str) -> list[Parameter]:
    """Parse lines as :func:`read_space` does; ``name`` appears in messages."""
    space: list[Parameter] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{name}, line {number}"
        parts = line.split(None, 2)
        if len(parts) < 3:
            raise ConfigError(
                f"{where}: {line.strip()!r} is not `name kind values`, such as `dropout uniform 0,0.9` or "
                "`n_layers choice [1,2]`."
            )
        parameter = _parse(parts[0], parts[1], parts[2], where)
        _refuse_code(parameter)
        _add(space, parameter)
    if not space:
        raise ConfigError(f"{name} holds no parameter: write lines such as `dropout uniform 0,0.9`.")
    return space


def _refuse_code(parameter: Parameter) -> None:
    """Raise ConfigError for a choice in a file that lets a model repository run code."""
    dropped: list[str] = []
    without_code_keys(list(parameter.options), dropped)
    if dropped:
        raise ConfigError(
            f"{parameter.where}: {dropped[0]} lets a model repository run code and does not count in a file. Pass "
            f"--{dropped[0]}=True on the command line if you trust the repository."
        )


def space_from_dict(params: Mapping[str, Mapping[str, Any]], source: str = "params_dict") -> list[Parameter]:
    """RecBole's ``params_dict``: ``{"choice": {"n_layers": [1, 2]}, "loguniform": {"learning_rate": [-8, 0]}}``.

    ``source`` appears in messages.
    """
    space: list[Parameter] = []
    for kind, entries in params.items():
        for name, values in entries.items():
            where = f"{source}, {name}"
            if kind == "choice":
                _add(space, _choice(name, values, where))
            else:
                text = ",".join(str(value) for value in (values if isinstance(values, (list, tuple)) else [values]))
                _add(space, _parse(name, kind, text, where))
    if not space:
        raise ConfigError(f"{source} holds no parameter, such as {{'choice': {{'n_layers': [1, 2]}}}}.")
    return space


def _add(space: list[Parameter], parameter: Parameter) -> None:
    for other in space:
        if other.name == parameter.name:
            raise ConfigError(f"{parameter.where}: {parameter.name!r} is already in {other.where}; keep one.")
    space.append(parameter)


def _parse(name: str, kind: str, text: str, where: str) -> Parameter:
    if kind not in KINDS:
        raise ConfigError(f"{where}: {kind!r} is not a kind.{nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    if kind == "choice":
        # A comment may follow the list; inside it "#" is a character.
        found = re.fullmatch(r"([\[(].*[\])])\s*(?:#.*)?", text.strip())
        return _choice(name, parse_value(found[1]) if found else text, where)
    needed = 3 if kind.startswith("q") else 2
    form = "low,high,step" if needed == 3 else "low,high"
    words = [word.strip() for word in text.partition("#")[0].split(",")]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != needed or not all(math.isfinite(number) for number in numbers):
        raise ConfigError(f"{where}: {text.strip()!r} is not {form}: {kind} takes {needed} numbers.")
    low, high, step = [*numbers, 0.0][:3]
    if low >= high:
        raise ConfigError(f"{where}: the lower bound {words[0]} must be below the upper bound {words[1]}.")
    if needed == 3 and step <= 0:
        raise ConfigError(f"{where}: the step {words[2]} must be above 0.")
    if "log" in kind and (high > 30 or 0 < low < high < 1):
        raise ConfigError(
            f"{where}: {kind} takes natural logarithms of the bounds, as in RecBole. For {low:g} to {high:g} write "
            f"{math.log(low) if low > 0 else -9:.4g},{math.log(high):.4g}."
        )
    whole = kind == "quniform" and all(re.fullmatch(r"[-+]?\d+", word) for word in words)
    whole |= kind == "qloguniform" and step >= 1 and step.is_integer()
    parameter = Parameter(name, kind, (), low, high, step, whole, where)
    if parameter.ends[0] > parameter.ends[1]:
        raise ConfigError(f"{where}: no multiple of {words[2]} between the bounds.")
    return parameter


def _choice(name: str, values: Any, where: str) -> Parameter:
    """Parse options as RecBole does, whose users quote lists (``['[64]','[64,64]']``) because of hyperopt."""
    if not isinstance(values, (list, tuple)) or not values:
        raise ConfigError(
            f"{where}: {values!r} is not a list of options, such as [1,2] or ['pca','none'] (quote words that "
            "contain commas or spaces)."
        )
    if not is_text(name):
        values = [parse_value(value) if isinstance(value, str) else value for value in values]
    if len({repr(value) for value in values}) < len(values):
        raise ConfigError(f"{where}: {name} has an option twice: {list(values)!r}.")
    return Parameter(name, "choice", tuple(values), where=where)


def check_space(space: Sequence[Parameter], config: Config, typed: Mapping[str, Any]) -> None:
    """Reject parameters that cannot be searched, before the first trial.

    Parameters
    ----------
    space : list of Parameter
    config : Config
        Of the study, without any trial's values.
    typed : dict
        Settings of the command line or the caller's dictionary, which would contradict a searched value.

    Raises
    ------
    ConfigError
        For a parameter that the model does not read, that changes what is measured or nothing at all, that is also
        given, or whose values have the wrong type.
    """
    for parameter in space:
        key, where = parameter.name, parameter.where
        if key in CIRCUMSTANCES:
            raise ConfigError(f"{where}: {key} only affects where or how a run is executed, not its results.")
        if key in MEASURE:
            raise ConfigError(
                f"{where}: {key} changes what is measured, so trials could not be compared. Fix it for the study: "
                f"--{key}=VALUE."
            )
        reason = config.no_effect(key)
        if reason and not config["allow_unknown_keys"]:
            raise ConfigError(f"{where}: {reason}")
        if key in typed:
            raise ConfigError(f"{where}: {key} is searched, but {key}={typed[key]!r} is given as well; drop one.")
        for value in parameter.bounds():
            try:
                config.check_value(key, value)
            except ConfigError as error:
                hint = ""
                if isinstance(value, float) and "whole number" in str(error):
                    hint = f" For whole numbers write `{key} quniform {parameter.low:g},{parameter.high:g},1`."
                raise ConfigError(f"{where}: {error}{hint}") from error
