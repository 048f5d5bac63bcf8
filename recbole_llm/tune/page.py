"""``study.html``: the winner, the effect of each parameter, every trial, and where the numbers come from."""

import html
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from recbole_llm import pages
from recbole_llm.config import Config
from recbole_llm.config.metrics import metric_name
from recbole_llm.files import whole
from recbole_llm.run.protocol import protocol_text
from recbole_llm.tune import report
from recbole_llm.tune.options import optuna
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
    """The finished trials with one value of a parameter, or with values in a range."""

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
    names = sorted(report.varied(study, trials), key=lambda name: -shares.get(name, 0.0))
    heads, figures = report.figures(best, results)
    content = pages.render(
        Path(__file__).with_name("study.html"),
        title=f"Study of {config['model']} on {config['dataset']}",
        subtitle=f"{len(trials)} trials",
        created=time.strftime("%Y-%m-%d %H:%M"),
        facts=_facts(study, config, results),
        warnings=_warnings(study, results),
        best=best,
        metric=metric_name(study.metric.lower()),
        heads=[head[0].upper() + head[1:] for head in heads],
        figures=[(metric_name(name), values) for name, *values in figures],
        commands=[
            report.command_of(config_file),
            f"recbole-llm recommend {shlex.quote(str(study.run_dir(best)))}",
            f"recbole-llm tune --resume={shlex.quote(str(study.folder))} --max_evals={len(trials) + 20}",
        ],
        space=[(parameter, best.params[parameter.name], shares.get(parameter.name)) for parameter in study.space],
        finished=sum(trial.state == "finished" for trial in trials),
        enough=IMPORTANCE_TRIALS,
        effects=[(name, groups_of(study, name), pages.chart(name, _effect(study, best, name), "")) for name in names],
        charts=[
            pages.chart("Score of each trial", _history(study, best), "In order; the line is the best score so far."),
            *([pages.chart("Validation curves", _curves(study, best), "")] if any(t.curve for t in trials) else []),
        ],
        trials=trials,
        colours={"winner": WINNER, "finished": OTHER, "pruned": PRUNED},
        places=config["metric_decimal_place"],
    )
    with whole(study.folder / "study.html") as file:
        file.write_text(content, encoding="utf-8")


def _facts(study: Study, config: Config, results: Mapping[str, Any]) -> list[tuple[str, str]]:
    options = study.options
    pruner = "" if options.pruner == "none" else f", {options.pruner} pruner from epoch {max(1, options.prune_after)}"
    hours = study.hours(study.trials)
    spent = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    return [
        ("Protocol", protocol_text(config)),
        ("Search", f"{options.algo}{pruner}, seed {study.seed}; {spent} in trials; ended: {study.ended}"),
        ("Chosen by", f"{metric_name(study.metric.lower())} on the validation set; trials see no test data"),
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


def groups_of(study: Study, name: str) -> list[Group]:
    """Return mean and spread of the score per value of a parameter, or per quarter of the trials in a range."""
    trials = [trial for trial in study.trials if trial.state in ("finished", "pruned")]
    values = [trial.params[name] for trial in trials]
    table = pd.DataFrame({"score": [trial.score for trial in trials], "state": [trial.state for trial in trials]})
    if _is_ranged(study, name):
        numbers = pd.Series(values, dtype=float)
        table["group"] = pd.qcut(numbers, 4, labels=False, duplicates="drop")
        ends = numbers.groupby(table["group"]).agg(["min", "max"])
        labels = {key: f"{low:.4g} to {high:.4g}" for key, (low, high) in ends.iterrows()}
    else:
        order = _places(study, name)
        table["group"] = [order[repr(value)] for value in values]
        labels = {order[repr(value)]: str(value) for value in values}
    groups = []
    for key, part in table.groupby("group"):
        scores = part.loc[part["state"] == "finished", "score"]
        if len(scores):
            deviation = float(scores.std()) if len(scores) > 1 else None
            best = scores.max() if study.bigger else scores.min()
            pruned = len(part) - len(scores)
            groups.append(Group(labels[key], len(scores), float(scores.mean()), deviation, float(best), pruned))
    return groups


def _is_ranged(study: Study, name: str) -> bool:
    """Whether a parameter has too many values to show each."""
    (parameter,) = [parameter for parameter in study.space if parameter.name == name]
    return parameter.kind != "choice" and len({trial.params[name] for trial in study.trials}) > MOST_VALUES


def _places(study: Study, name: str) -> dict[str, int]:
    """Order of a parameter's values on the page, by ``repr``: that of its options, or by size."""
    (parameter,) = [parameter for parameter in study.space if parameter.name == name]
    values = parameter.options or sorted({trial.params[name] for trial in study.trials})
    return {repr(value): place for place, value in enumerate(values)}


# ---- charts


def _effect(study: Study, best: Trial, name: str) -> "go.Figure":
    """Plot the score against a parameter; where its values are few, with mean and standard deviation beside them."""
    figure = pages.empty_figure(name, metric_name(study.metric.lower()))
    if _is_ranged(study, name):
        _add_trials(figure, study.trials, best, lambda trial: trial.params[name])
        (parameter,) = [parameter for parameter in study.space if parameter.name == name]
        figure.update_xaxes(type="log" if "log" in parameter.kind else "linear")
        return figure
    order = _places(study, name)
    groups = {group.label: group for group in groups_of(study, name)}
    shown = {str(value): order[repr(value)] for value in (trial.params[name] for trial in study.trials)}
    _add_trials(figure, study.trials, best, lambda trial: order[repr(trial.params[name])] - 0.08)
    figure.add_scatter(
        x=[shown[label] + 0.12 for label in groups],
        y=[group.mean for group in groups.values()],
        error_y={"array": [group.deviation or 0.0 for group in groups.values()], "thickness": 1, "width": 5},
        mode="markers",
        marker={"symbol": "line-ew", "size": 16, "line": {"width": 2, "color": "#1d2430"}},
        hovertemplate="mean %{y:.4f}<extra></extra>",
    )
    ticks = [html.escape(label if len(label) <= 18 else f"{label[:17]}…") for label in shown]
    figure.update_xaxes(tickvals=list(shown.values()), ticktext=ticks, range=[-0.5, len(order) - 0.5])
    return figure


def _history(study: Study, best: Trial) -> "go.Figure":
    """Plot the score of every trial and the best so far."""
    figure = pages.empty_figure("trial", metric_name(study.metric.lower()))
    finished = [trial for trial in study.trials if trial.state == "finished"]
    so_far = pd.Series([trial.score for trial in finished], [trial.number for trial in finished], dtype=float)
    so_far = so_far.cummax() if study.bigger else so_far.cummin()
    line = {"color": WINNER, "shape": "hv", "width": 1.5}
    figure.add_scatter(x=list(so_far.index), y=list(so_far), mode="lines", line=line, hoverinfo="skip")
    _add_trials(figure, study.trials, best, lambda trial: trial.number)
    return figure


def _add_trials(figure: "go.Figure", trials: Sequence[Trial], best: Trial, x_of: Any) -> None:
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
    figure = pages.empty_figure("validation", metric_name(study.metric.lower()))
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
