"""HTML pages that need no other file and no network: one look for comparisons, studies and leaderboards."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

if TYPE_CHECKING:
    import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_CHART = {"displayModeBar": False, "responsive": True}


def render(template: Path, **values: Any) -> str:
    """Fill a template; it may ``{% include "page.css" %}``, and ``{{ plotlyjs }}`` where it shows charts."""
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


def chart(figure: "go.Figure") -> Markup:
    """Render a figure as HTML for a page that already includes plotly's code."""
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=_CHART))  # noqa: S704


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
