"""The tables at the end of a run."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.utils import set_color
from tabulate import tabulate

from recbole_llm.config import Config
from recbole_llm.data.controls import label
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.evaluator.ranks import MANY_TIES


def _cold_table(cold: Mapping[str, Any], kind: str, places: int) -> str:
    """Render metrics on cold and warm targets, and on cold ones ranked among cold items."""
    parts = {
        f"{cold['cold']['targets']} cold targets": cold["cold"].get(kind, {}),
        f"{cold['warm']['targets']} warm targets": cold["warm"].get(kind, {}),
        f"cold among the {cold['items']} cold items": cold["cold"].get("among_cold", {}),
    }
    metrics = list(dict.fromkeys(metric for part in parts.values() for metric in part))
    rows = [[metric, *(part.get(metric) for part in parts.values())] for metric in metrics]
    return tabulate(rows, ["metric", *parts], tablefmt="simple", floatfmt=f".{places}f")


def _members_table(results: Mapping[str, Any], part: str, head: str, places: int) -> str:
    """Render a hybrid's metrics beside those of its members, with the cost of each."""
    provenance = results["language_models"]["members"]
    rows = [[results["model"], *results[part].values(), None, results["seconds"]["test"]]]
    for member, source in zip(results["members"], provenance, strict=True):
        rows.append([member["member"], *member[part].values(), source["run_seconds"], member["test_seconds"]])
    seconds = [row[-2] for row in rows[1:] if row[-2] is not None]
    rows[0][-2] = sum(seconds) if seconds else None
    columns = [head, *results[part], "seconds of runs", "of test"]
    digits = [f".{places}f"] * (len(columns) - 2) + [".1f", ".1f"]
    return tabulate(rows, columns, tablefmt="simple", floatfmt=digits)


def _retrieval_lines(results: Mapping[str, Any], metric: str, places: int) -> list[str]:
    """Return the rows of a two-stage model: retriever alone, and both on users whose target was retrieved."""
    model, retrieval, mask_history = results["model"], results["retrieval"], results["protocol"]["mask_history"]
    k, users, found = retrieval["candidates"], retrieval["users"], retrieval["users_retrieved"]
    masked, unmasked = "retriever_masked", "retriever_unmasked"
    first, second = (masked, unmasked) if mask_history else (unmasked, masked)
    heads = {masked: "retriever alone,\nhistory masked", unmasked: "retriever alone,\nnot masked"}
    columns = [first, second, "retrieved_users", "retrieved_users_retriever"]
    rows = [[metric, *((retrieval[key] or {}).get(metric) for key in columns)] for metric in retrieval[first]]
    there = f"these {found} users"
    titles = ["metric", heads[first], heads[second], f"{model},\n{there}", f"retriever alone,\n{there}"]
    skipped = users - retrieval["users_reranked"]
    alone, both = retrieval[first].get(metric), results["test_result"].get(metric)
    gain = f" ({both / alone - 1:+.1%})" if alone and both is not None else ""
    return [
        "",
        f"{model} re-orders the retriever's first {k} items: they hold the target of {found} of {users} users "
        f"(Recall@{k} {retrieval[f'retriever_recall@{k}']:.{places}f})"
        + (f"; {skipped} users were not re-ranked (skip_users_without_target reads the label)" if skipped else ""),
        *([f"{metric} {both:.{places}f}, the retriever alone {alone:.{places}f}{gain}"] if alone is not None else []),
        "",
        tabulate(rows, titles, tablefmt="simple", floatfmt=f".{places}f"),
    ]


def _inference_line(times: Mapping[str, float]) -> str:
    return (
        f"inference: {times['median_ms']:.1f} ms ({times['median_cpu_ms']:.1f} ms of CPU) per batch of "
        f"{times['users']} users, top {times['k']}, input length {times['input_length']:.1f}, median of "
        f"{times['batches']} batches"
    )


def _model_report_line(figures: Mapping[str, float]) -> str:
    """Render what the model counted on the test set, such as shares of invalid answers."""
    shown = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
    return "test: " + ", ".join(shown)


def _final_fit_line(results: Mapping[str, Any]) -> str:
    """Say what a model for production was trained on, in place of figures that it cannot have."""
    stages = ", ".join(f"{stage['updates']:,} updates ({stage['stage']})" for stage in results["stages"])
    return (
        f"trained on all {results['dataset']['interactions']:,} interactions for {stages}, as validation chose in "
        f"{results['final_fit']['run']}; there are no test figures: those of that run apply to its weights only"
    )


def dataset_text(dataset: HistoryDataset) -> str:
    """Return the numbers of users, items and interactions in one line, without RecBole's padding."""
    users, items, interactions = dataset.user_num - 1, dataset.item_num - 1, len(dataset.flat)
    return (
        f"{dataset.dataset_name}: {users:,} users, {items:,} items, {interactions:,} interactions "
        f"({interactions / users:.1f} per user), {1 - interactions / (users * items):.2%} of the pairs empty"
    )


def _next_steps(run_dir: Path, final_fit: bool) -> list[str]:
    """List the files of a finished run and commands to use it."""
    folder = shlex.quote(str(run_dir))
    files = ("results.json", "history.csv", "test_ranks.npz")
    steps = [("lists", "recommend")]
    if not (run_dir / "config.yaml").is_file():
        steps = []  # the folder of an evaluation
    elif not final_fit:
        steps += [("other protocol", "evaluate"), ("beside others", "compare"), ("for production", "refit")]
    return [
        f"written to {run_dir}: {', '.join(name for name in files if (run_dir / name).is_file())}",
        *(f"  {purpose}: recbole-llm {command} {folder}" for purpose, command in steps),
    ]


def print_summary(config: Config, results: Mapping[str, Any], run_dir: Path | None) -> None:
    """Log the table at the end of a run, with the protocol above it."""
    logger = logging.getLogger()
    first, second = ("test_masked", "test_unmasked") if config["mask_history"] else ("test_unmasked", "test_masked")
    heads = {"test_masked": "test, history masked", "test_unmasked": "test, not masked"}
    places = config["metric_decimal_place"]
    valid = results["best_valid_result"] or {}
    test, other = results[first] or {}, results[second] or {}
    rows = [[metric, valid.get(metric), test.get(metric), other.get(metric)] for metric in test or valid]
    ties = results["tied_targets"] or 0
    if ties > MANY_TIES:
        rows.append(["tied targets", None, ties, ties])
    table = tabulate(
        rows, ["metric", "best valid", heads[first], heads[second]], tablefmt="simple", floatfmt=f".{places}f"
    )
    if results["cold_items"]:
        table += "\n\n" + _cold_table(results["cold_items"], first.removeprefix("test_"), places)
    if results["members"]:
        table += "\n\n" + _members_table(results, first, heads[first], places)
    language = results["language_models"] or {}
    if results["final_fit"]:
        table = _final_fit_line(results)
    lines = [
        set_color(f"{label(config)} on {config['dataset']}", "green") + f": {results['protocol']['text']}",
        *([f"llm: {language['llm']}, rec_llm: {language['rec_llm']}"] if "rec_llm" in language else []),
        *([f"llm: {language['llm']}, retriever: {language['retriever']}"] if "retriever" in language else []),
        *(
            f"stage {stage['stage']}: best {stage['valid_metric']} {stage['best_valid_score']:.{places}f} "
            f"in epoch {stage['best_epoch']}, {stage['updates']} updates"
            for stage in results["stages"]
            if len(results["stages"]) > 1 and stage["best_valid_score"] is not None
        ),
        "",
        table,
        *(_retrieval_lines(results, config["valid_metric"].lower(), places) if results["retrieval"] else []),
        *(["", _model_report_line(results["model_report"])] if results["model_report"] else []),
        "",
        "seconds: "
        + ", ".join(f"{name} {value:.1f}" for name, value in results["seconds"].items())
        + f"; peak memory {results['peak_memory_mb']} MB",
        *([_inference_line(results["inference"])] if results["inference"] else []),
    ]
    if run_dir is not None:
        lines += _next_steps(run_dir, bool(results["final_fit"]))
    logger.info("\n".join(lines))
    if ties > 0.01:
        logger.warning(
            f"{ties:.1%} of the targets share their score with another item; how these are ordered is arbitrary."
        )
    if results["targets_in_history"]:
        logger.warning(
            f"{results['targets_in_history']} targets were in their user's history and count as misses when it is "
            "masked; with repeated consumption compare the unmasked column, or set mask_history=False."
        )
    for notice in config.notices:
        logger.warning(notice)
