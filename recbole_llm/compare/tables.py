"""The tables of a comparison as text, Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from recbole_llm.compare.analysis import MASKED, Cell, Comparison
from recbole_llm.config.metrics import metric_name
from recbole_llm.run.protocol import history_text

PLACES = 4
LEGEND = "¹ best, ² second best, * significant: "


def history(version: str) -> str:
    """``masked`` -> ``history masked``."""
    return history_text(version == MASKED)


def caption(comparison: Comparison, version: str) -> str:
    """Describe the protocol behind the numbers of one table."""
    return f"{comparison.dataset}, test, {history(version)}, {comparison.protocol}"


class Table(NamedTuple):
    """Names of the columns, and the cells of each row, its label first."""

    heads: list[str]
    grid: list[list[str]]


def metric_table(
    comparison: Comparison,
    version: str,
    show: Callable[[Cell, bool], str],
    escape: Callable[[str], str] = lambda text: text,
) -> Table:
    """Metrics of every row, written by ``show(cell, significant)``, other text by ``escape``; of what finished.

    Where a row has many, a last column holds the share of targets whose score another item has, too.
    """
    heads = ["model", *map(metric_name, comparison.metrics), *["tied targets"] * comparison.shows_ties]
    grid = []
    for row in comparison.all_rows:
        cells = [comparison.cells.get((version, row.label, metric)) for metric in comparison.metrics]
        shown = [
            show(cell, comparison.significant(version, row, metric)) if cell else "failed" if row.failures else "…"
            for cell, metric in zip(cells, comparison.metrics, strict=True)
        ]
        ties = [escape(f"{comparison.tied(row):.1%}") if row.runs else ""] * comparison.shows_ties
        grid.append([escape(row.label), *shown, *ties])
    return Table(heads, grid)


def cost_table(comparison: Comparison) -> Table:
    """Parameters trained, seconds and peak memory per phase, milliseconds of inference per test row."""
    phases, grid = comparison.phases, []
    for row in comparison.rows:
        seconds, memory = comparison.seconds(row), comparison.memory(row)
        grid.append(
            [
                row.label,
                f"{comparison.parameters(row):,}",
                *(f"{seconds[phase]:.1f}" if phase in seconds else "-" for phase in phases),
                f"{comparison.milliseconds_per_row(row):.2f}",
                *(f"{memory[phase]:,.0f}" if phase in memory else "-" for phase in phases),
            ]
        )
    heads = [*(f"{phase} s" for phase in phases), "ms/user", *(f"{phase} MB" for phase in phases)]
    return Table(["model", "trained", *heads], grid)


def ladder_caption(comparison: Comparison) -> str:
    """Describe what was timed and on which hardware."""
    times = comparison.inference(comparison.timed[0])
    environment = comparison.reference.results["environment"]
    return (
        f"{comparison.dataset}, test, {history(comparison.versions[0])}; ms: batch of {times['users']:.0f} users from "
        f"the model's input to the top-{times['k']:.0f} list, median of {times['batches']:.0f} batches; "
        f"{environment['gpu'] or environment['processor']}, threads: {environment['threads']}; last column: ratio of "
        f"{_ladder_clock(comparison)[1]}"
    )


def _ladder_clock(comparison: Comparison) -> tuple[str, str]:
    """Key and name of the time that rows are compared by: on a CPU what a busy machine does not prolong."""
    gpu = comparison.reference.results["environment"]["gpu"]
    return ("median_ms", "ms") if gpu else ("median_cpu_ms", "CPU ms")


def ladder_table(comparison: Comparison) -> Table:
    """Table 2 of arXiv 2402.09543: accuracy, and what a batch of users costs, of the rows that timed it."""
    times = {row.label: comparison.inference(row) for row in comparison.timed}
    clock, _ = _ladder_clock(comparison)
    fastest = min(time[clock] for time in times.values())
    grid = []
    for row in comparison.timed:
        time = times[row.label]
        cells = [comparison.cells[comparison.versions[0], row.label, metric] for metric in comparison.ladder_metrics]
        grid.append(
            [
                row.label,
                *(f"{cell.mean:.{PLACES}f}" for cell in cells),
                f"{time['input_length']:.1f}",
                f"{time['median_ms']:.2f}",
                f"{time['median_cpu_ms']:.2f}",
                f"{time[clock] / fastest:.1f}",
            ]
        )
    metrics = map(metric_name, comparison.ladder_metrics)
    return Table(["model", *metrics, "input length", "ms", "CPU ms", "times the fastest"], grid)


def _deviation(cell: Cell) -> str:
    return "" if cell.deviation is None else f" ±{cell.deviation:.{PLACES}f}"


# ---- the terminal


def as_text(comparison: Comparison) -> str:
    """Everything for the terminal."""

    def show(cell: Cell, significant: bool) -> str:
        mark = {1: "¹", 2: "²"}.get(cell.place, "") + "*" * significant
        return f"{cell.mean:.{PLACES}f}{_deviation(cell)} {mark:<2}"

    parts = []
    for version in comparison.versions:
        parts += [caption(comparison, version), "", _plain(metric_table(comparison, version, show)), ""]
    parts += [LEGEND + comparison.test_description, "", _plain(cost_table(comparison)), ""]
    if comparison.timed:
        parts += [ladder_caption(comparison), "", _plain(ladder_table(comparison)), ""]
    parts += [f"! {warning}" for warning in comparison.warnings]
    return "\n".join(parts).rstrip() + "\n"


def _plain(table: Table) -> str:
    align = ["left", *["right"] * (len(table.heads) - 1)]
    return tabulate(table.grid, table.heads, tablefmt="simple", colalign=align, disable_numparse=True)


# ---- Markdown


def as_markdown(comparison: Comparison) -> str:
    """GitHub's Markdown: best in bold, second best in italics."""

    def show(cell: Cell, significant: bool) -> str:
        frame = {1: "**", 2: "_"}.get(cell.place, "")
        star = "\\*" * significant
        return f"{frame}{cell.mean:.{PLACES}f}{frame}{star}{_deviation(cell)}"

    parts = []
    for version in comparison.versions:
        heads, grid = metric_table(comparison, version, show)
        parts += [caption(comparison, version) + ".", "", markdown_table(grid, heads), ""]
    parts += [f"Best in bold, second best in italics. \\* {comparison.test_description}.", ""]
    heads, grid = cost_table(comparison)
    parts += [markdown_table(grid, heads), ""]
    if comparison.timed:
        heads, grid = ladder_table(comparison)
        parts += [ladder_caption(comparison) + ".", "", markdown_table(grid, heads), ""]
    parts += [f"* {escape_markdown(warning)}" for warning in comparison.warnings]
    return "\n".join(parts).rstrip() + "\n"


def escape_markdown(text: str) -> str:
    """Escape what Markdown would read as markup."""
    for character in "\\`*_|<":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def markdown_table(grid: Sequence[Sequence[str]], heads: Sequence[str], names: int = 1, left: int = 0) -> str:
    """Return a table of GitHub's Markdown.

    Its first ``names`` columns are text without markup, which is escaped; they are aligned to the left, like all of
    the first ``left`` columns.
    """
    left = max(names, left)
    lines = [heads, [*["---"] * left, *["---:"] * (len(heads) - left)]]
    lines += [[*map(escape_markdown, line[:names]), *line[names:]] for line in grid]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- LaTeX

_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"±": r"$\pm$", "–": "--"},
}


def as_latex(comparison: Comparison) -> str:
    """Tables for ``\\usepackage{booktabs}``: best in bold, second best underlined."""

    def show(cell: Cell, significant: bool) -> str:
        frame = {1: r"\textbf{%s}", 2: r"\underline{%s}"}.get(cell.place, "%s")
        deviation = "" if cell.deviation is None else rf" {{\scriptsize$\pm${cell.deviation:.{PLACES}f}}}"
        return frame % f"{cell.mean:.{PLACES}f}" + "$^{*}$" * significant + deviation

    parts = ["% needs \\usepackage{booktabs}"]
    for version in comparison.versions:
        note = _escape_latex(f"{caption(comparison, version)}. Best in bold, second best underlined; ")
        note += "$^{*}$ " + _escape_latex(comparison.test_description) + "."
        table = metric_table(comparison, version, show, _escape_latex)
        parts.append(_latex_table(table, note, f"tab:{comparison.dataset}-{version}"))
    note = f"{comparison.dataset}: parameters trained, seconds and peak memory (MB) per phase, inference per user."
    costs = _escaped(cost_table(comparison))
    parts.append(_latex_table(costs, _escape_latex(note), f"tab:{comparison.dataset}-costs"))
    if comparison.timed:
        ladder, note = _escaped(ladder_table(comparison)), _escape_latex(ladder_caption(comparison) + ".")
        parts.append(_latex_table(ladder, note, f"tab:{comparison.dataset}-inference"))
    return "\n\n".join(parts) + "\n"


def _escaped(table: Table) -> Table:
    return table._replace(grid=[list(map(_escape_latex, line)) for line in table.grid])


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_table(table: Table, note: str, label: str) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{note}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escape_latex, table.heads)) + r" \\",
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in table.grid),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


# ---- CSV


def as_csv(comparison: Comparison) -> str:
    """One line per version, row and metric, unrounded, with the test where there was one."""
    heads = ["history", "model", "baseline", "seeds", "metric", "mean", "deviation", "place", "compared_with"]
    heads += ["difference", "low", "high", "p", "p_holm", "significant", "tied_targets"]
    lines: list[list[Any]] = []
    for (version, label, metric), cell in comparison.cells.items():
        row = next(row for row in comparison.rows if row.label == label)
        line = [version.replace("un", "not "), label, row.baseline, len(row.runs), metric]
        line += [cell.mean, cell.deviation, cell.place]
        test = comparison.tests.get((version, label, metric))
        if test is not None:
            line += [test.baseline, test.difference, test.low, test.high, test.p, test.corrected, test.significant]
        lines.append(line + [None] * (len(heads) - 1 - len(line)) + [comparison.tied(row)])
    return _csv(heads, lines)


def runs_as_csv(comparison: Comparison) -> str:
    """One line per run, failed ones included."""
    phases = comparison.phases
    metrics = [f"{metric} {version}" for version in comparison.versions for metric in comparison.metrics]
    heads = ["model", "seed", "run_dir", "error", "parameters_trained", "epochs", "best_epoch", *metrics]
    heads += [f"{phase}_seconds" for phase in phases] + [f"{phase}_peak_mb" for phase in phases]
    timed = ["input_length", "median_ms", "median_cpu_ms"] if comparison.timed else []
    heads += [f"inference_{key}" for key in timed]
    lines: list[list[Any]] = []
    for row in comparison.all_rows:
        for run in row.runs:
            results = run.results
            stages = results["stages"] or [{"best_epoch": None}]
            line = [row.label, run.seed, run.run_dir, None, results["parameters"]["trained"], results["epochs"]]
            line += [stages[-1]["best_epoch"]]
            line += [results[f"test_{version}"][m] for version in comparison.versions for m in comparison.metrics]
            line += [results["seconds"].get(phase) for phase in phases]
            line += [results.get("phase_peak_memory_mb", {}).get(phase) for phase in phases]
            line += [(results.get("inference") or {}).get(key) for key in timed]
            lines.append(line)
        lines += [[row.label, seed, None, reason, *[None] * (len(heads) - 4)] for seed, reason in row.failures]
    return _csv(heads, lines)


def _csv(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(lines)
    return stream.getvalue()
