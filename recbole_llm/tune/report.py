"""A study for people: a line per trial, the table at its end, and ``study.html``."""

import html
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole.utils import set_color
from tabulate import tabulate

from recbole_llm.config import Config
from recbole_llm.run.protocol import protocol_text
from recbole_llm.tune.journal import Trial
from recbole_llm.tune.study import Study

# Rows of the table at the end.
SHOWN = 10
COLOURS = {"finished": "#2a6fbb", "pruned": "#e09f3e", "failed": "#c0392b"}


def trial_line(trial: Trial, best: Trial | None, total: int | None, metric: str) -> str:
    """What the terminal says when a trial has ended."""
    number = f"trial {trial.number}" + (f" of {total}" if total else "")
    score = "" if trial.score is None else f" {metric} {trial.score:.6f}"
    if best is trial:
        standing = " (best)"
    else:
        standing = f" (best {best.score:.6f}, trial {best.number})" if best and best.score is not None else ""
    details = trial.details
    reason = f": {details.get('error') or details.get('reason')}" if trial.state != "finished" else ""
    costs = f", {details['epochs']} epochs, {details['seconds']:.1f} s" if "seconds" in details else ""
    colour = {"finished": "green", "pruned": "yellow", "failed": "red"}[trial.state]
    return f"{number} {set_color(trial.state, colour)}{reason}{score}{standing}{costs}; {settings(trial)}"


def settings(trial: Trial) -> str:
    """``learning_rate=0.001 dropout=0.2``."""
    return " ".join(f"{key}={value}" for key, value in trial.params.items())


def ranking(trials: Sequence[Trial], bigger: bool) -> list[Trial]:
    """Finished trials from best to worst, then pruned ones, then the rest."""
    states = {"finished": 0, "pruned": 1}

    def order(trial: Trial) -> tuple[int, float, int]:
        score = trial.score or 0.0
        return states.get(trial.state, 2), -score if bigger else score, trial.number

    return sorted(trials, key=order)


def summary(study: Study, config: Config, config_file: Path) -> str:
    """The table at the end of a study, with the protocol above it and the winner's test figures below."""
    best = study.best
    assert best is not None and best.test is not None
    names = [parameter.name for parameter in study.space]
    # What every trial has in common needs no column.
    varied = [name for name in names if len({repr(trial.params[name]) for trial in study.trials}) > 1]
    rows = [
        [trial.number, trial.state, trial.score, *(trial.params[name] for name in varied)]
        + [trial.details.get("epochs"), trial.details.get("seconds")]
        for trial in ranking(study.trials, study.bigger)[:SHOWN]
    ]
    places = config["metric_decimal_place"]
    head = ["trial", "state", f"valid {study.metric}", *varied, "epochs", "seconds"]
    formats = ["", "", f".{places}f", *["g"] * len(varied), "", ".1f"]
    table = tabulate(rows, head, tablefmt="simple", floatfmt=tuple(formats))
    first, second = ("masked", "unmasked") if config["mask_history"] else ("unmasked", "masked")
    heads = {"masked": "test, history masked", "unmasked": "test, not masked"}
    figures = tabulate(
        [[name, best.result.get(name), value, best.test[second][name]] for name, value in best.test[first].items()],
        ["metric", "best valid", heads[first], heads[second]],
        tablefmt="simple",
        floatfmt=f".{places}f",
    )
    more = f" ({len(study.trials) - SHOWN} more in study.csv)" if len(study.trials) > SHOWN else ""
    tested = [str(trial.number) for trial in study.trials if trial.test is not None]
    lines = [
        set_color(f"{config['model']} on {config['dataset']}", "green") + f": {protocol_text(config)}",
        "",
        table + more,
        "",
        f"winner: trial {best.number}, {settings(best)}",
        "",
        figures,
        "",
        f"written to {study.folder}; the winner's settings: --config_files={config_file}",
    ]
    if len(tested) > 1:
        lines.insert(-1, f"The test set was evaluated for {len(tested)} winners in turn: trials {', '.join(tested)}.")
    return "\n".join(lines)


def write_page(file: Path, study: Study, protocol: str) -> None:
    """``study.html``: scores and the best so far, validation curves, and every trial; needs no network."""
    try:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots
    except ImportError:
        logging.getLogger().warning("study.html is not drawn: the package plotly is missing (pip install plotly).")
        return
    best = study.best
    curves = [trial for trial in study.trials if len(trial.curve) > 1]
    figure = make_subplots(
        rows=1,
        cols=2 if curves else 1,
        subplot_titles=["Best validation score of each trial", "Validation curves"][: 2 if curves else 1],
    )
    for state, colour in COLOURS.items():
        chosen = [trial for trial in study.trials if trial.state == state and trial.score is not None]
        if chosen:
            figure.add_trace(
                go.Scatter(
                    x=[trial.number for trial in chosen],
                    y=[trial.score for trial in chosen],
                    text=[settings(trial).replace(" ", "<br>") for trial in chosen],
                    hovertemplate="trial %{x}: %{y:.6f}<br>%{text}<extra></extra>",
                    mode="markers",
                    marker={"color": colour, "size": 8, "symbol": "circle" if state == "finished" else "x"},
                    name=state,
                ),
                row=1,
                col=1,
            )
    steps: list[tuple[int, float]] = []
    for trial in study.trials:
        if trial.state == "finished" and trial.score is not None:
            past = steps[-1][1] if steps else trial.score
            steps.append((trial.number, max(past, trial.score) if study.bigger else min(past, trial.score)))
    figure.add_trace(
        go.Scatter(
            x=[number for number, _ in steps],
            y=[score for _, score in steps],
            mode="lines",
            line={"shape": "hv", "color": "#444", "dash": "dot"},
            name="best so far",
            hoverinfo="skip",
        ),
        row=1,
        col=1,
    )
    for trial in curves:
        is_best = trial is best
        figure.add_trace(
            go.Scatter(
                x=_epochs(trial),
                y=[score for _, _, score in trial.curve],
                mode="lines",
                line={"color": "#1b7f3b" if is_best else COLOURS[trial.state], "width": 3 if is_best else 1},
                opacity=1 if is_best else 0.35,
                name=f"winner, trial {trial.number}",
                showlegend=is_best,
                hovertemplate=f"trial {trial.number}, epoch %{{x}}: %{{y:.6f}}<extra></extra>",
            ),
            row=1,
            col=2,
        )
    figure.update_xaxes(title_text="trial", row=1, col=1)
    figure.update_yaxes(title_text=study.metric, row=1, col=1)
    if curves:
        figure.update_xaxes(title_text="epoch", row=1, col=2)
    figure.update_layout(
        template="plotly_white",
        height=460,
        margin={"t": 50, "l": 70, "r": 30, "b": 50},
        legend={"orientation": "h", "y": -0.2},
    )
    plot = figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    title = html.escape(study.folder.name)
    file.write_text(
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        f"</head><body><h1>{title}</h1><p>{html.escape(protocol)}. Trials see no test data.</p>{plot}"
        f"{_rows(study)}</body></html>\n",
        encoding="utf-8",
    )


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } p { color: #555 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e4e4e4 }
tr.best td { font-weight: 600; background: #eef7f0 } td.note { color: #777 }
"""


def _epochs(trial: Trial) -> list[int]:
    """Epochs counted on through the stages."""
    counted, before, stage_now, last = [], 0, 0, -1
    for stage, epoch, _ in trial.curve:
        if stage != stage_now:
            before, stage_now = before + last + 1, stage
        counted.append(before + epoch)
        last = epoch
    return counted


def _rows(study: Study) -> str:
    names = [parameter.name for parameter in study.space]

    def cells(values: Sequence[Any], kind: str = "td") -> str:
        return "".join(f"<{kind}>{html.escape(str(value))}</{kind}>" for value in values)

    head = cells(["trial", "state", f"valid {study.metric}", *names, "epochs", "seconds", "note"], "th")
    body = []
    for trial in ranking(study.trials, study.bigger):
        score = "" if trial.score is None else f"{trial.score:.6f}"
        seconds = trial.details.get("seconds")
        values = [trial.number, trial.state, score, *(trial.params[name] for name in names)]
        values += [trial.details.get("epochs", ""), "" if seconds is None else f"{seconds:.1f}"]
        note = html.escape(str(trial.details.get("error") or trial.details.get("reason") or ""))
        mark = " class='best'" if trial is study.best else ""
        body.append(f"<tr{mark}>{cells(values)}<td class='note'>{note}</td></tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
