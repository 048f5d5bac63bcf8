"""The page of a leaderboard, made from records: one table, best first, with costs, controls, tests and provenance."""

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_llm.compare import report
from recbole_llm.compare.pairs import Pair, control_of, families, is_twin
from recbole_llm.compare.records import RecordedComparison, record_name
from recbole_llm.compare.runs import Row
from recbole_llm.compare.tables import PLACES, escape_markdown, markdown_table
from recbole_llm.config.metrics import metric_name
from recbole_llm.config.registry import stock_models

# Metrics of the page, where the runs have them; the CSV file beside it has them all.
SHOWN = ("recall@10", "ndcg@10", "mrr@10", "recall@20", "ndcg@20")
TESTED = ("ndcg@10", "recall@10")
LISTS = ("catalogcoverage@10", "serendipity@10", "novelty@10")
# Modules whose models score with a language model; other readers of text use vectors of the items.
_LANGUAGE_MODELS = ("litellm4rec", "llamarec", "llmseqprompt", "generative")

_READ_TEXT = ("text vectors", "ids, text vectors", "language model")


def page_of(comparison: RecordedComparison, board: str, command: str) -> str:
    """Render the page of a board as Markdown.

    Parameters
    ----------
    comparison : RecordedComparison
    board : str
        Name of the plan.
    command : str
        The command that makes the page.
    """
    ranked = [row for row in _best_first(comparison) if control_of(row) == "none"]
    parts = [
        f"# {comparison.dataset}",
        f"<!-- Made by `{command}` from records/{board}/; changes by hand are lost. -->",
        f"{_sentence(comparison.protocol)} Every figure is that of a record, which the last column links to; "
        f"[all metrics]({board}.csv), [report]({board}.html).",
        *_headline(comparison, ranked),
        *_data(comparison.board.get("data")),
        *_ranking(comparison, ranked, board),
        *_against_baseline(comparison, ranked),
        *_controls(comparison),
        *_lists(comparison, ranked),
        *_studies(comparison),
        *_missing(comparison),
        *_notes(comparison),
        "## Provenance",
        "\n".join(f"* {name}: {value}" for name, value in report.facts_of(comparison, command)),
    ]
    return "\n\n".join(parts) + "\n"


def kind_of(row: Row) -> str:
    """Return what a row learns from: ids, fields of the items, vectors of their texts, or a language model."""
    results = row.runs[0].results
    if results["model_class"].split(".")[-2] in _LANGUAGE_MODELS:
        return "language model"
    if is_twin(row):
        return "ids"
    models = results["language_models"] or {}
    if models.get("llm") or any(member.get("llm") for member in models.get("members") or []):
        return "ids, text vectors" if results["parameters"]["trained"] or models.get("members") else "text vectors"
    reads_items = any(name.endswith(".item") for name in results["dataset"]["files"])
    return "ids, fields" if reads_items and row.model in stock_models() else "ids"


def _best_first(comparison: RecordedComparison) -> list[Row]:
    version, metric = comparison.versions[0], comparison.headline
    return sorted(comparison.rows, key=lambda row: -comparison.cells[version, row.label, metric].mean)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _headline(comparison: RecordedComparison, rows: Sequence[Row]) -> list[str]:
    """Say in a sentence what reading text is worth: the best row that does, against the best baseline."""
    version, metric = comparison.versions[0], comparison.headline
    best = next((row for row in rows if not row.baseline and kind_of(row) in _READ_TEXT), None)
    if best is None:
        return []
    test = comparison.tests.get((version, best.label, metric))
    if test is None:
        return []
    cells = [comparison.cells[version, label, metric].mean for label in (best.label, test.baseline)]
    verb = "is" if test.significant else "is not"
    return [
        f"**The best row that reads text, {escape_markdown(best.label)}, {verb} significantly better than the best "
        f"baseline, {escape_markdown(test.baseline)}**: {metric_name(metric)} {cells[0]:.{PLACES}f} and "
        f"{cells[1]:.{PLACES}f}, {_percent(test.difference, cells[1])}, p {_p(test.corrected, '= ')} (Holm)."
        f"{_not_run_baselines(comparison)}"
    ]


def _not_run_baselines(comparison: RecordedComparison) -> str:
    """Say which baselines the best one was not chosen from."""
    have = {row.label for row in comparison.rows}
    left = [label for label in comparison.options["baselines"] or () if label not in have]
    return f" Baselines not run yet: {', '.join(map(escape_markdown, left))}." if left else ""


def _data(data: Mapping[str, Any] | None) -> list[str]:
    if not data:
        return []
    text = (
        f"{data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions: "
        f"{data['mean_history']:.1f} a user on average, {data['median_history']:.0f} in the middle, at most "
        f"{data['longest_history']:,}. {data['repeats']:.1%} of the interactions repeat an earlier one of their user; "
        f"the test item of {data['targets_in_history']:.1%} of the users is in their history, where a masked history "
        f"makes it a miss. {data['tied_times']:.1%} of the adjacent interactions of a user have equal times; for "
        f"{data['tied_targets']:.1%} of the users the order of the file decides which item is the test item."
    )
    if data["with_text"] is not None:
        text += (
            f" {data['with_text']:.1%} of the items have text (`{data['template']}`, {data['mean_words']:.1f} words), "
            f"{data['distinct_text']:.1%} one of their own."
        )
    return ["## Data", text]


# ---- rows, best first


def _ranking(comparison: RecordedComparison, rows: Sequence[Row], board: str) -> list[str]:
    parts = []
    for version in comparison.versions:
        shown = [metric for metric in SHOWN if metric in comparison.metrics]
        heads = ["model", "learns from", *map(metric_name, shown)]
        first = version == comparison.versions[0]
        heads += ["trained", "CPU s", "peak MB", "ms/user", "seeds"] if first else []
        grid = [
            [
                row.label,
                kind_of(row),
                *(_cell(comparison, version, row, metric) for metric in shown),
                *(_costs(comparison, row, board) if first else []),
            ]
            for row in rows
        ]
        parts += [
            f"## Test, history {'masked' if version == 'masked' else 'not masked'}",
            markdown_table(grid, heads, 2),
        ]
        if first:
            parts.append(
                f"Best in bold. \\* {comparison.test_description}. ± is the standard deviation over seeds. CPU s: "
                "everything before the test, encoding of texts included (cached vectors cost nothing), mean over "
                "seeds; peak MB: of the process; ms/user: scoring and ranking the catalogue in the test, wall time."
            )
    return parts


def _cell(comparison: RecordedComparison, version: str, row: Row, metric: str) -> str:
    cell = comparison.cells[version, row.label, metric]
    best = max(
        comparison.cells[version, other.label, metric].mean for other in comparison.rows if control_of(other) == "none"
    )
    frame = "**" if cell.mean == best else ""
    star = "\\*" * comparison.significant(version, row, metric)
    deviation = "" if cell.deviation is None else f" ±{cell.deviation:.{PLACES}f}"
    return f"{frame}{cell.mean:.{PLACES}f}{frame}{star}{deviation}"


def _costs(comparison: RecordedComparison, row: Row, board: str) -> list[str]:
    cpu = [run.results.get("cpu_seconds") for run in row.runs]
    before = [sum(value for phase, value in each.items() if phase != "test") for each in cpu if each]
    return [
        f"{comparison.parameters(row):,}",
        f"{sum(before) / len(before):,.0f}" if before else "",
        f"{max(comparison.memory(row).values(), default=0):,.0f}",
        f"{comparison.milliseconds_per_row(row):.2f}",
        ", ".join(f"[{run.seed}](records/{board}/{record_name(row.label, run.seed)})" for run in row.runs),
    ]


# ---- differences


def _against_baseline(comparison: RecordedComparison, rows: Sequence[Row]) -> list[str]:
    version = comparison.versions[0]
    tests = [
        (row, test)
        for metric in TESTED
        for row in rows
        for test in [comparison.tests.get((version, row.label, metric))]
        if test is not None
    ]
    if not tests:
        return []
    grid = []
    for row, test in tests:
        other = comparison.cells[version, test.baseline, test.metric].mean
        grid.append(
            [
                row.label,
                test.baseline,
                metric_name(test.metric),
                _difference(test.difference, test.low, test.high),
                _percent(test.difference, other),
                _p(test.corrected),
            ]
        )
    heads = ["model", "best baseline", "metric", "difference [95 %]", "relative", "p (Holm)"]
    return ["## Against the best baseline", markdown_table(grid, heads, 2)]


def _controls(comparison: RecordedComparison) -> list[str]:
    found = families(comparison.rows)
    if not found:
        return []
    version = comparison.versions[0]
    grid = []
    for twin, others in found:
        for row in [*others, twin]:
            shown = [
                _of_pair(comparison.pair(row.label, twin.label, metric)) if row is not twin else ""
                for metric in TESTED
            ]
            values = [f"{comparison.cells[version, row.label, metric].mean:.{PLACES}f}" for metric in TESTED]
            grid.append([row.label, values[0], shown[0], values[1], shown[1]])
    heads = ["model"]
    for metric in TESTED:
        heads += [metric_name(metric), "less the twin [95 %]"]
    return [
        "## Is it the text?",
        "A twin is the same network trained in the same way, without text. A control has the vectors of other items' "
        "texts (shuffled_text) or none at all (random_vectors). Differences are paired over users, not corrected.",
        markdown_table(grid, heads),
    ]


def _of_pair(pair: Pair | None) -> str:
    if pair is None:
        return "…"
    low, high = (pair.low, pair.high) if pair.low is not None and pair.high is not None else (float("nan"),) * 2
    return f"{_difference(pair.difference, low, high)}, {_percent(pair.difference, pair.other)}"


def _difference(value: float, low: float, high: float) -> str:
    return f"{value:+.{PLACES}f} [{low:+.{PLACES}f}, {high:+.{PLACES}f}]"


def _percent(difference: float, other: float) -> str:
    return f"{difference / other:+.1%}" if other else ""


def _p(value: float, equals: str = "") -> str:
    return "< .0001" if value < 1e-4 else equals + f"{value:.4f}".removeprefix("0")


def _lists(comparison: RecordedComparison, rows: Sequence[Row]) -> list[str]:
    shown = [metric for metric in LISTS if metric in comparison.metrics]
    if not shown:
        return []
    version = comparison.versions[0]
    grid = [
        [row.label, *(f"{comparison.cells[version, row.label, metric].mean:.{PLACES}f}" for metric in shown)]
        for row in rows
    ]
    return [
        "## Beyond accuracy",
        "Share of the catalogue in anyone's list, hits that popularity would not have had, and mean self-information "
        "of the items (arXiv 2402.01339).",
        markdown_table(grid, ["model", *map(metric_name, shown)]),
    ]


def _studies(comparison: RecordedComparison) -> list[str]:
    """Say what was searched for which row, with what budget, and what was found."""
    studies = comparison.board.get("studies") or {}
    if not studies:
        return []
    grid = [
        [
            label,
            "<br>".join(f"`{line}`" for line in study["space"]),
            "<br>".join(f"`{key}: {value}`" for key, value in study["best_params"].items()),
            f"{study['best_valid_score']:.{PLACES}f}",
            str(study["trials"]),
            f"{study['seconds'] / 60:.1f}",
        ]
        for label, study in studies.items()
    ]
    first = next(iter(studies.values()))
    limits = ", ".join(f"{key}={value}" for key, value in first["options"].items() if value not in (None, 0, "none"))
    return [
        "## Tuning",
        f"Before its seeds were run, each of these rows had a study of its own on validation {first['metric']} "
        f"({limits}; seed {first['seed']}). Settings of other rows, and those not listed, are the plan's.",
        markdown_table(
            grid, ["model", "search space", "found", f"validation {first['metric']}", "trials", "minutes"], left=3
        ),
    ]


# ---- what there is to know


def _missing(comparison: RecordedComparison) -> list[str]:
    planned = comparison.board.get("seeds") or []
    lines = []
    for row in comparison.all_rows:
        failed = {seed for seed, _ in row.failures}
        left = [seed for seed in planned if seed not in failed and seed not in {run.seed for run in row.runs}]
        if left:
            which = "not run yet" if len(left) == len(planned) else f"seeds not run yet: {', '.join(map(str, left))}"
            lines.append(f"* {escape_markdown(row.label)}: {which}")
    return ["## Missing", "\n".join(lines)] if lines else []


def _notes(comparison: RecordedComparison) -> list[str]:
    lines = [f"* {escape_markdown(warning)}" for warning in comparison.warnings]
    return ["## Notes", "\n".join(lines)] if lines else []
