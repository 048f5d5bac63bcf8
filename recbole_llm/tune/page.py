"""``study.html``: the winner, the effect of each parameter, every trial, and where the numbers come from."""

import html
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from recbole_llm import pages
from recbole_llm.config import Config
from recbole_llm.config.metrics import metric_name
from recbole_llm.files import write_text
from recbole_llm.run.protocol import protocol_text
from recbole_llm.tune import report
from recbole_llm.tune.options import optuna
from recbole_llm.tune.space import Parameter
from recbole_llm.tune.study import Study, Trial

if TYPE_CHECKING:
    import plotly.graph_objects as go

WINNER, OTHER, PRUNED = "#1f5fa8", "#8794a3", "#d9782b"
# Values of a parameter that the page shows one by one; more are shown in quarters of the trials.
MOST_VALUES = 8
# Fewer trials say nothing about which parameter matters.
IMPORTANCE_TRIALS = 8


@dataclass(frozen=True)
class Group:
    """The finished trials with one value of a parameter, or with values in a range; ``place`` orders the groups."""

    place: int
    label: str
    trials: int
    mean: float
    deviation: float | None
    best: float
    pruned: int


def write_page(study: Study, best: Trial, config: Config, results: Mapping[str, Any], config_file: Path) -> None:
    """Write ``study.html``.

    Parameters
    ----------
    study : Study
    best : Trial
        The winner.
    config : Config
    results : dict
        ``results.json`` of the winner.
    config_file : pathlib.Path
        The winner's settings.
    """
    trials = report.ranking(study.trials, study.bigger)
    shares = importance(study)
    names = report.varied(study, trials)
    searched = sorted(study.space, key=lambda parameter: -shares.get(parameter.name, 0.0))
    varied = [parameter for parameter in searched if parameter.name in names]
    heads, figures = report.figures(best, results)
    content = pages.render(
        Path(__file__).with_name("study.html"),
        title=f"Study of {config['model']} on {config['dataset']}",
        subtitle=f"{len(trials)} trials",
        created=time.strftime("%Y-%m-%d %H:%M"),
        facts=_facts(study, config, results),
        warnings=_warnings(study, results),
        best=best,
        metric=_metric(study),
        heads=[head[0].upper() + head[1:] for head in heads],
        figures=[(metric_name(name), values) for name, *values in figures],
        commands=[
            report.command_of(config_file),
            f"recbole-llm recommend {shlex.quote(str(study.run_dir(best)))}",
            f"recbole-llm tune --resume={shlex.quote(str(study.folder))} --max_evals={len(trials) + 20}",
        ],
        space=[(parameter, best.params[parameter.name], shares.get(parameter.name)) for parameter in searched],
        finished=sum(trial.state == "finished" for trial in trials),
        enough=IMPORTANCE_TRIALS,
        effects=[
            (
                groups_of(study, parameter),
                pages.chart(f"Effect of {parameter.name}", _effect(study, best, parameter), ""),
            )
            for parameter in varied
        ],
        charts=[
            pages.chart("Score of each trial", _history(study, best), "In order; the line is the best score so far."),
            *([pages.chart("Validation curves", _curves(study, best), "")] if any(t.curve for t in trials) else []),
        ],
        trials=trials,
        colours={"winner": WINNER, "finished": OTHER, "pruned": PRUNED},
        places=config["metric_decimal_place"],
    )
    write_text(study.folder / "study.html", content)


def _metric(study: Study) -> str:
    return metric_name(study.metric.lower())


def _facts(study: Study, config: Config, results: Mapping[str, Any]) -> list[tuple[str, str]]:
    options = study.options
    pruner = "" if options.pruner == "none" else f", {options.pruner} pruner from epoch {max(1, options.prune_after)}"
    hours = study.hours(study.trials)
    spent = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    return [
        ("Protocol", protocol_text(config)),
        ("Search", f"{options.algo}{pruner}, seed {study.seed}; {spent} in trials; ended: {study.ended}"),
        ("Chosen by", f"{_metric(study)} on the validation set; trials see no test data"),
        *pages.provenance(results),
        ("Optuna", metadata.version("optuna")),
    ]


def _warnings(study: Study, results: Mapping[str, Any]) -> list[str]:
    failed = sum(trial.state == "failed" for trial in study.trials)
    warnings = [report.tested_in_turn(study)]
    if failed:
        warnings.append(f"{failed} of {len(study.trials)} trials failed: the table of trials says why.")
    return [warning for warning in [*warnings, *results["notices"]] if warning]


def importance(study: Study) -> dict[str, float]:
    """Return the share of the variance of the score that each parameter explains (fANOVA, Hutter et al., 2014).

    Empty where fewer than :data:`IMPORTANCE_TRIALS` trials finished, or there is nothing to compare.
    """
    finished = [trial for trial in study.trials if trial.state == "finished"]
    names = report.varied(study, finished)
    if len(names) < 2 or len(finished) < IMPORTANCE_TRIALS or len({trial.score for trial in finished}) == 1:
        return {}
    package = optuna().importance
    evaluator = package.FanovaImportanceEvaluator(seed=study.seed)
    return dict(package.get_param_importances(study.optuna, evaluator=evaluator, params=names))


def groups_of(study: Study, parameter: Parameter) -> list[Group]:
    """Return mean and spread of the score per value of a parameter, or per quarter of the trials in a range."""
    trials = [trial for trial in study.trials if trial.state in ("finished", "pruned")]
    values = [trial.params[parameter.name] for trial in trials]
    if _is_ranged(study, parameter):
        place_of = pd.qcut(pd.Series(values, dtype=float), 4, labels=False, duplicates="drop").tolist()
    else:
        shown = [repr(value) for value in _values(study, parameter)]
        place_of = [shown.index(repr(value)) for value in values]
    groups = []
    for place in sorted(set(place_of)):
        inside = [number for number, other in enumerate(place_of) if other == place]
        scores = pd.Series(
            [trials[number].score for number in inside if trials[number].state == "finished"], dtype=float
        )
        if len(scores):
            deviation = float(scores.std()) if len(scores) > 1 else None
            best = float(scores.max() if study.bigger else scores.min())
            label = _label([values[number] for number in inside])
            pruned = len(inside) - len(scores)
            groups.append(Group(int(place), label, len(scores), float(scores.mean()), deviation, best, pruned))
    return groups


def _label(values: Sequence[Any]) -> str:
    if len({repr(value) for value in values}) == 1:
        return str(values[0])
    return f"{min(values):.4g} to {max(values):.4g}"


def _is_ranged(study: Study, parameter: Parameter) -> bool:
    """Whether a parameter has too many values to show each."""
    many = len({repr(trial.params[parameter.name]) for trial in study.trials}) > MOST_VALUES
    return math.isinf(parameter.size) or (parameter.kind != "choice" and many)


def _values(study: Study, parameter: Parameter) -> list[Any]:
    """Values of a parameter as the page orders them: options as they were given, numbers by size."""
    return list(parameter.options) or sorted({trial.params[parameter.name] for trial in study.trials})


# ---- charts


def _effect(study: Study, best: Trial, parameter: Parameter) -> "go.Figure":
    """Plot the score against a parameter; where its values are few, with mean and standard deviation beside them."""
    name = parameter.name
    figure = pages.empty_figure(name, _metric(study))
    if _is_ranged(study, parameter):
        _add_trials(figure, study.trials, best, lambda trial: trial.params[name])
        if "log" in parameter.kind:
            figure.update_xaxes(type="log", dtick="D2")  # ticks at 1, 2 and 5
        return figure
    values = _values(study, parameter)
    place = {repr(value): number for number, value in enumerate(values)}
    groups = groups_of(study, parameter)
    _add_trials(figure, study.trials, best, lambda trial: place[repr(trial.params[name])] - 0.08)
    figure.add_scatter(
        x=[group.place + 0.12 for group in groups],
        y=[group.mean for group in groups],
        error_y={
            "array": [group.deviation or 0.0 for group in groups],
            **{"thickness": 1, "width": 5, "color": "#1d2430"},
        },
        mode="markers",
        marker={"symbol": "line-ew", "size": 16, "line": {"width": 2, "color": "#1d2430"}},
        hovertemplate="mean %{y:.4f}<extra></extra>",
    )
    ticks = [html.escape(f"{value}" if len(str(value)) <= 18 else f"{value}"[:17] + "…") for value in values]
    figure.update_xaxes(tickvals=list(range(len(values))), ticktext=ticks, range=[-0.5, len(values) - 0.5])
    return figure


def _history(study: Study, best: Trial) -> "go.Figure":
    """Plot the score of every trial and the best so far."""
    figure = pages.empty_figure("trial", _metric(study))
    finished = [trial for trial in study.trials if trial.state == "finished"]
    so_far = pd.Series([trial.score for trial in finished], [trial.number for trial in finished], dtype=float)
    so_far = so_far.cummax() if study.bigger else so_far.cummin()
    line = {"color": WINNER, "shape": "hv", "width": 1.5}
    figure.add_scatter(x=list(so_far.index), y=list(so_far), mode="lines", line=line, hoverinfo="skip")
    _add_trials(figure, study.trials, best, lambda trial: trial.number)
    return figure


def _add_trials(figure: "go.Figure", trials: Sequence[Trial], best: Trial, x_of: Callable[[Trial], float]) -> None:
    """Add a point for every trial that has a score: the winner large, pruned trials hollow."""
    trials = [trial for trial in trials if trial.score is not None]
    colours = [_colour(trial, best) for trial in trials]
    figure.add_scatter(
        x=[x_of(trial) for trial in trials],
        y=[trial.score for trial in trials],
        mode="markers",
        marker={
            "size": [13 if trial.number == best.number else 8 for trial in trials],
            "symbol": ["circle-open" if trial.state == "pruned" else "circle" for trial in trials],
            "color": colours,
            "line": {"width": 1.5, "color": colours},
        },
        text=[f"trial {trial.number}, {trial.state}: {html.escape(report.settings(trial))}" for trial in trials],
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        cliponaxis=False,
    )


def _curves(study: Study, best: Trial) -> "go.Figure":
    """Plot the validation score after each epoch, stages one after the other; the winner on top."""
    figure = pages.empty_figure("validations so far", _metric(study))
    for trial in sorted(study.trials, key=lambda trial: trial.number == best.number):
        figure.add_scatter(
            x=list(range(1, len(trial.curve) + 1)),
            y=[score for *_, score in trial.curve],
            mode="lines+markers",
            line={"color": _colour(trial, best), "width": 3 if trial.number == best.number else 1},
            marker={"size": 5, "symbol": "circle-open" if trial.state == "pruned" else "circle"},
            text=[f"stage {stage + 1}, epoch {epoch}" for stage, epoch, _ in trial.curve],
            hovertemplate=f"trial {trial.number}, %{{text}}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(rangemode="tozero", dtick=1 if max(len(t.curve) for t in study.trials) <= 12 else None)
    return figure


def _colour(trial: Trial, best: Trial) -> str:
    return WINNER if trial.number == best.number else PRUNED if trial.state == "pruned" else OTHER
