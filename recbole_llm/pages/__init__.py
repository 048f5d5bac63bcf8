"""HTML pages that need no other file and no network: one look for comparisons and studies."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from markupsafe import Markup

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_CHART = {"displayModeBar": False, "responsive": True}


class Chart(NamedTuple):
    """A chart on a page."""

    title: str
    html: Markup
    note: str


def render(template: Path, **values: Any) -> str:
    """Fill a template that extends ``frame.html``.

    Parameters
    ----------
    template : pathlib.Path
    values
        What the frame shows: ``title``, ``subtitle``, ``created`` (date and time, or None), ``facts`` (pairs of name
        and text), ``warnings`` and ``charts`` (lists); and what the template needs.
    """
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    plotlyjs = Markup(get_plotlyjs())  # noqa: S704 - plotly's own code
    return environment.get_template(template.name).render(plotlyjs=plotlyjs, **values)


def empty_figure(x_title: str, y_title: str, **layout: Any) -> "go.Figure":
    """Return a figure in the style of our pages, without data."""
    import plotly.graph_objects as go

    figure = go.Figure()
    axis = {"gridcolor": "#e6e9ed", "linecolor": "#aab2bd", "zeroline": False, "ticks": "outside", "automargin": True}
    title = {"font": {"size": 13, "color": "#56606e"}, "standoff": 12}
    figure.update_layout(
        template="none",
        font={"family": _FONT, "size": 13, "color": "#1d2430"},
        margin={"l": 56, "r": 16, "t": 36, "b": 48},
        height=360,
        hovermode="closest",
        showlegend=False,  # the page has one for all charts
        paper_bgcolor="white",
        plot_bgcolor="white",
        xaxis={**axis, "title": {**title, "text": x_title}, "showgrid": False},
        yaxis={**axis, "title": {**title, "text": y_title}},
        **layout,
    )
    return figure


def chart(title: str, figure: "go.Figure", note: str) -> Chart:
    """Render a figure for a page, whose frame includes plotly's code."""
    html = figure.to_html(full_html=False, include_plotlyjs=False, config=_CHART)
    return Chart(title, Markup(html), note)  # noqa: S704 - plotly's


def provenance(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Dataset, code and hardware of a run, as name and text, from its ``results.json``."""
    data, environment = results["dataset"], results["environment"]
    git = environment["git"]
    commit = f", commit {git['commit'][:9]}{' with changes' * git['dirty']}" if git else ""
    filters = ", ".join(f"{key}={value}" for key, value in data["filters"].items())
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    size = f"{data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions"
    return [
        ("Dataset", f"{data['name']}: {size}"),
        ("Filters", filters or "none"),
        ("Files", ", ".join(f"{name} sha256:{digest[:12]}…" for name, digest in data["files"].items())),
        ("Code", f"{packages}; Python {environment['python']}{commit}"),
        ("Hardware", f"{environment['gpu'] or environment['processor']}, threads: {environment['threads']}"),
    ]
