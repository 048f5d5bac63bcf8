"""The charts of the report, made with plotly."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from recbole_llm.compare.analysis import Comparison
from recbole_llm.compare.runs import Row
from recbole_llm.compare.statistics import interval
from recbole_llm.config.metrics import metric_name
from recbole_llm.pages import empty_figure

# Distinguishable with colour blindness; baselines are also dotted.
COLOURS = (
    *("#1f5fa8", "#d9782b", "#1f9e77", "#b5396b", "#6f58a8", "#8a6a1f", "#3a9fc4", "#5f6b7a", "#c2402a", "#4b8a2f"),
)
CUT_OFFS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)


def colour_of(comparison: Comparison, row: Row) -> str:
    """Return the colour of a row, the same in every chart."""
    return COLOURS[comparison.all_rows.index(row) % len(COLOURS)]


def _line(comparison: Comparison, row: Row) -> dict[str, Any]:
    return {"color": colour_of(comparison, row), "width": 2, "dash": "dot" if row.baseline else "solid"}


def _name(row: Row) -> str:
    return html.escape(row.label)  # plotly reads a little HTML in names


def _rgba(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _choice(options: Sequence[tuple[str, dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Build a menu at the top right that switches between updates of traces and layout."""
    return {
        "type": "buttons",
        "direction": "right",
        "showactive": True,
        "buttons": [
            {"label": label, "method": "update", "args": [traces, layout]} for label, traces, layout in options
        ],
        "x": 1,
        "xanchor": "right",
        "y": 1.02,
        "yanchor": "bottom",
        "pad": {"b": 2},
        "font": {"size": 12},
        "bgcolor": "white",
        "bordercolor": "#c9d0d9",
        "borderwidth": 1,
    }


def learning_curves(comparison: Comparison) -> go.Figure | None:
    """Plot the validation metric after each epoch; None if no row was trained."""
    metric = comparison.headline
    figure = empty_figure("epoch", f"{metric_name(metric)}, validation")
    epochs: list[list[float]] = []
    seconds: list[list[float]] = []
    for row in comparison.rows:
        for run in row.runs:
            x, t, y = _curve(run.curve, metric)
            if not y:
                continue
            best = int(np.argmax(y))
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="lines+markers",
                    line=_line(comparison, row),
                    marker={"size": [9 if i == best else 4 for i in range(len(y))]},
                    opacity=1 if len(row.runs) == 1 else 0.7,
                    hovertemplate=f"{_name(row)}, seed {run.seed}<br>%{{x:.4g}}: %{{y:.4f}}<extra></extra>",
                )
            )
            epochs.append(x)
            seconds.append(t)
    if not epochs:
        return None
    ends = max(max(x) for x in epochs), max(max(t) for t in seconds)
    for row in comparison.rows:
        valid = (row.runs[0].results["best_valid_result"] or {}).get(metric)
        if not any(run.curve for run in row.runs) and valid is not None:
            figure.add_trace(
                go.Scatter(
                    x=[0, ends[0]],
                    y=[valid, valid],
                    mode="lines",
                    line={"color": colour_of(comparison, row), "width": 1.5, "dash": "dash"},
                    hovertemplate=f"{_name(row)}, not trained: %{{y:.4f}}<extra></extra>",
                )
            )
            epochs.append([0, ends[0]])
            seconds.append([0, ends[1]])
    axes = [("epochs", epochs, "epoch", step := 1 if ends[0] <= 12 else None)]
    axes += [("seconds", seconds, "seconds of training and validation", None)]
    options = [
        (label, {"x": values}, {"xaxis.title.text": title, "xaxis.dtick": dtick})
        for label, values, title, dtick in axes
    ]
    figure.update_layout(updatemenus=[_choice(options)])
    figure.update_xaxes(dtick=step, rangemode="tozero")
    return figure


def _curve(lines: Sequence[dict[str, Any]], metric: str) -> tuple[list[float], list[float], list[float]]:
    """Epochs counted through all stages, seconds so far, and the metric; where it was validated."""
    x, t, y, clock = [], [], [], 0.0
    for number, line in enumerate(lines, 1):
        clock += (line.get("train_seconds") or 0.0) + (line.get("valid_seconds") or 0.0)
        if line.get(metric) is not None:
            x.append(float(number))
            t.append(round(clock, 2))
            y.append(line[metric])
    return x, t, y


def metric_at_k(comparison: Comparison) -> go.Figure | None:
    """Plot every rank metric for lists of 1 to 100 items, with 95 % confidence intervals over users."""
    names = list(dict.fromkeys(metric.partition("@")[0] for metric in comparison.rank_metrics))
    if not names:
        return None
    items = comparison.reference.results["dataset"]["items"]
    cut_offs = [k for k in CUT_OFFS if k <= items]
    figure = empty_figure("length of the list, k", "")
    for name in names:
        for row in comparison.rows:
            points = [interval(comparison.values(row, f"{name}@{k}", comparison.versions[0])) for k in cut_offs]
            mean = np.array([point[0] for point in points])
            half = np.nan_to_num([point[1] for point in points])
            colour = colour_of(comparison, row)
            figure.add_trace(
                go.Scatter(
                    x=[*cut_offs, *cut_offs[::-1]],
                    y=[*(mean + half), *np.maximum(mean - half, 0)[::-1]],
                    fill="toself",
                    fillcolor=_rgba(colour, 0.13),
                    line={"width": 0},
                    hoverinfo="skip",
                    visible=name == names[0],
                )
            )
            figure.add_trace(
                go.Scatter(
                    x=cut_offs,
                    y=list(mean),
                    mode="lines+markers",
                    line=_line(comparison, row),
                    marker={"size": 5},
                    visible=name == names[0],
                    customdata=list(half),
                    hovertemplate=f"{_name(row)}<br>{metric_name(name)}@%{{x}}: %{{y:.4f}} ± %{{customdata:.4f}}"
                    "<extra></extra>",
                )
            )
    per_name = 2 * len(comparison.rows)
    options: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (metric_name(name), {"visible": [i // per_name == number for i in range(per_name * len(names))]}, {})
        for number, name in enumerate(names)
    ]
    figure.update_layout(updatemenus=[_choice(options)] if len(names) > 1 else [])
    figure.update_xaxes(type="log", tickvals=cut_offs, ticktext=[str(k) for k in cut_offs])
    figure.update_yaxes(rangemode="tozero")
    return figure


def breakdown(comparison: Comparison, title: str) -> go.Figure:
    """Plot the headline metric in each group of a breakdown, with 95 % confidence intervals over users."""
    metric = comparison.headline
    groups = comparison.breakdowns[title]
    figure = empty_figure(title, metric_name(metric), barmode="group", bargap=0.25)
    soft = "<span style='color:#5b6472'>n = {:,}</span>"
    ticks = [f"{html.escape(group.name)}<br>{soft.format(group.mask.sum())}" for group in groups]
    for row in comparison.rows:
        values = comparison.values(row, metric, comparison.versions[0])
        points = [interval(values[group.mask]) for group in groups]
        figure.add_trace(
            go.Bar(
                x=ticks,
                y=[point[0] for point in points],
                error_y={
                    "array": [point[1] for point in points],
                    **{"type": "data", "thickness": 1, "width": 3, "color": "#3b4452"},
                },
                marker={"color": colour_of(comparison, row), "opacity": 0.6 if row.baseline else 0.95},
                hovertemplate=f"{_name(row)}: %{{y:.4f}}<extra></extra>",
            )
        )
    figure.update_xaxes(ticks="", type="category")
    figure.update_yaxes(rangemode="tozero")
    return figure


def accuracy_against_time(comparison: Comparison) -> go.Figure:
    """Plot the headline metric against milliseconds of inference per test row."""
    metric = comparison.headline
    figure = empty_figure("milliseconds per user, test pass (log scale)", metric_name(metric))
    times = [comparison.milliseconds_per_row(row) for row in comparison.rows]
    intervals = [interval(comparison.values(row, metric, comparison.versions[0])) for row in comparison.rows]
    for row, time, (mean, half) in zip(comparison.rows, times, intervals, strict=True):
        figure.add_trace(
            go.Scatter(
                x=[time],
                y=[mean],
                error_y={"type": "data", "array": [half], "thickness": 1, "width": 4},
                mode="markers",
                marker={
                    **{"size": 12, "color": colour_of(comparison, row)},
                    "symbol": "circle-open" if row.baseline else "circle",
                    "line": {"width": 2, "color": colour_of(comparison, row)},
                },
                cliponaxis=False,
                hovertemplate=f"{_name(row)}<br>%{{x:.3g}} ms, %{{y:.4f}} ± {half:.4f}<extra></extra>",
            )
        )
    low, high = np.log10(min(times)) - 0.3, np.log10(max(times)) + 0.3
    x_range = (low, high + 0.35 * (high - low))  # room for labels on the right
    ends = [mean - half for mean, half in intervals], [mean + half for mean, half in intervals]
    room = 0.15 * (max(ends[1]) - min(ends[0]) or 1.0)
    y_range = (min(ends[0]) - room, max(ends[1]) + room)
    x = _pixels(np.log10(times), x_range, PLOT[0])
    y, bottom, top = (_pixels(values, y_range, PLOT[1]) for values in ([mean for mean, _ in intervals], *ends))
    places = label_places(x, y, bottom, top, [len(row.label) for row in comparison.rows])
    for row, (left, middle) in zip(comparison.rows, places, strict=True):
        figure.add_annotation(
            text=_name(row),
            x=x_range[0] + (x_range[1] - x_range[0]) * left / PLOT[0],
            y=y_range[0] + (y_range[1] - y_range[0]) * middle / PLOT[1],
            xanchor="left",
            yanchor="middle",
            showarrow=False,
            font={"color": colour_of(comparison, row)},
        )
    ticks = [digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5)]
    figure.update_xaxes(type="log", range=list(x_range))
    figure.update_yaxes(range=list(y_range))
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:,.10g}" for tick in ticks])
    return figure


# Width and height of a chart's inner part, of a letter and of a label, in pixels, as the report shows them.
PLOT, LETTER, LINE = (470, 276), 7.5, 17


def _pixels(values: Sequence[float] | np.ndarray, limits: tuple[float, float], length: int) -> np.ndarray:
    return (np.asarray(values) - limits[0]) / (limits[1] - limits[0]) * length


def label_places(
    x: np.ndarray, y: np.ndarray, bottom: np.ndarray, top: np.ndarray, letters: Sequence[int]
) -> list[tuple[float, float]]:
    """Place labels of points so that they overlap neither error bars nor each other, where there is room.

    Parameters
    ----------
    x, y, bottom, top : numpy.ndarray, shape (n,)
        Points and the ends of their error bars, in pixels.
    letters : sequence of int
        Length of each label.

    Returns
    -------
    list of (left, middle)
        Left end and vertical middle of each label, in pixels.
    """
    # Bars with their caps, and the markers: left, right, bottom, top.
    taken = [(x[i] - 5, x[i] + 5, bottom[i] - 1, top[i] + 1) for i in range(len(x))]
    taken += [(x[i] - 8, x[i] + 8, y[i] - 8, y[i] + 8) for i in range(len(x))]
    places: list[tuple[float, float]] = [(0.0, 0.0)] * len(x)
    for i in np.argsort(-y, kind="stable"):
        width = LETTER * letters[i]
        beside, before = x[i] + 11, x[i] - 11 - width
        shifts = [sign * LINE * step for step in range(5) for sign in (1, -1)]
        tried = [(left, y[i] + shift) for shift in shifts for left in (beside, before)]
        tried[2:2] = [(x[i] - width / 2, top[i] + LINE), (x[i] - width / 2, bottom[i] - LINE)]
        boxes = [(left, left + width, middle - LINE / 2, middle + LINE / 2) for left, middle in tried]
        inside = [box[0] >= 0 and box[1] <= PLOT[0] and box[2] >= 0 and box[3] <= PLOT[1] for box in boxes]
        overlaps = [sum(_overlap(box, other) for other in taken) for box in boxes]
        best = min(range(len(boxes)), key=lambda k: (overlaps[k], not inside[k], k))
        places[i] = tried[best]
        taken.append(boxes[best])
    return places


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
