import csv
import io
import re

import numpy as np
import pytest

from recbole_llm.compare import tables
from recbole_llm.compare.report import render
from recbole_llm.compare.runs import Row, rows_from, split_by_language_models
from tests.compare.made_up_runs import METRICS, draw_ranks, made_up_comparison, made_up_run


@pytest.fixture(scope="module")
def comparison():
    """A clear winner, two seeds; one row failed."""
    rng = np.random.default_rng(0)
    ranks = {
        "SASRec": [draw_ranks(rng, 0.10), draw_ranks(rng, 0.10)],
        "A_b & <c>": [draw_ranks(rng, 0.5), draw_ranks(rng, 0.5)],
        "worse": [draw_ranks(rng), draw_ranks(rng)],
    }
    made = made_up_comparison(ranks, warnings=["something was odd"])
    made.all_rows.append(Row("broken", "DIEN", failures=[(1, "It needs data_path.\nAnd more.")]))
    made.text_lengths = np.arange(500) % 7
    return made


def test_places_and_marks(comparison):
    cells = comparison.cells
    assert [cells["masked", label, "ndcg@10"].place for label in ("A_b & <c>", "SASRec", "worse")] == [1, 2, 3]
    assert comparison.significant("masked", comparison.rows[1], "ndcg@10")
    assert not comparison.significant("masked", comparison.rows[2], "ndcg@10")
    assert ("masked", "SASRec", "ndcg@10") not in comparison.tests  # the baseline
    assert comparison.tests["masked", "worse", "recall@10"].baseline == "SASRec"


def test_smaller_is_better_where_it_is():
    made = made_up_comparison({"SASRec": np.array([1, 2]), "b": np.array([3, 4])}, metrics=("recall@10",))
    for row, value in zip(made.rows, (0.1, 0.9), strict=True):
        row.runs[0].results["test_masked"]["giniindex@10"] = value
        row.runs[0].results["test_unmasked"]["giniindex@10"] = value
    assert made.cells["masked", "SASRec", "giniindex@10"].place == 1
    assert made.rank_metrics == ["recall@10"]
    assert "GiniIndex@10" in tables.as_text(made)


def test_text(comparison):
    text = tables.as_text(comparison)
    winner = next(line for line in text.splitlines() if line.startswith("A_b"))
    mean = comparison.cells["masked", "A_b & <c>", "recall@10"].mean
    assert f"{mean:.4f} ±" in winner
    assert winner.count("¹*") == len(METRICS)
    assert text.count("failed") == 2 * len(METRICS)
    assert "toy, test, history masked, leave-one-out, full ranking, seeds 1, 2, best epoch by NDCG@10" in text
    assert "! something was odd" in text
    assert "! broken, seed 1 is missing: It needs data_path." in text
    assert "500 users" in text and "Holm" in text


def test_markdown(comparison):
    text = tables.as_markdown(comparison)
    assert "| A\\_b & \\<c> | **" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines if "@" in line or "\\_b & " in line} >= {len(METRICS) + 2}
    assert text.count("**") == 2 * 2 * len(METRICS)


def test_latex(comparison):
    text = tables.as_latex(comparison)
    assert r"A\_b \& $<$c$>$ & \textbf{" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert len(re.split(r"(?<!\\)&", line)) in (1 + len(METRICS), 2 + 2 * len(comparison.phases) + 1)
    assert not re.search(r"(?<!\\)[%#]", text.partition("\n")[2])


def test_csv(comparison, tmp_path):
    (tmp_path / "table.csv").write_text(tables.as_csv(comparison), encoding="utf-8", newline="")
    (tmp_path / "runs.csv").write_text(tables.runs_as_csv(comparison), encoding="utf-8", newline="")
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3 * len(METRICS)
    winner = next(line for line in lines if line["model"] == "A_b & <c>" and line["metric"] == "ndcg@10")
    cell = comparison.cells["masked", "A_b & <c>", "ndcg@10"]
    assert (winner["history"], float(winner["mean"]), winner["seeds"]) == ("masked", cell.mean, "2")
    assert (winner["compared_with"], winner["significant"]) == ("SASRec", "True")
    with (tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["model"] for line in lines] == [
        "SASRec",
        "SASRec",
        "A_b & <c>",
        "A_b & <c>",
        "worse",
        "worse",
        "broken",
    ]
    assert lines[-1]["error"] == "It needs data_path.\nAnd more."
    assert lines[0]["train_seconds"] == "3.0"


def test_report(comparison):
    page = render(comparison, "recbole-llm compare <x>")
    assert page.count("plotly.js v") == 1  # inlined once
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=", page)  # nothing is fetched
    body = page[page.index("<main>") :]
    assert "A_b &amp; &lt;c&gt;" in body and "<c>" not in body
    assert "recbole-llm compare &lt;x&gt;" in body
    for title in ("Learning curves", "Metric at each k", "history length", "popularity", "text of the target"):
        assert title in body
    assert body.count('class="plotly-graph-div"') == 6
    assert "something was odd" in body
    assert "failed: It needs data_path." in body


def test_breakdowns_partition_the_test_rows(comparison):
    assert len(comparison.breakdowns) == 3
    for groups in comparison.breakdowns.values():
        assert (sum(group.mask.astype(int) for group in groups) == 1).all()
    groups = {group.name: group.mask for group in comparison.breakdowns["Popularity of the target"]}
    ranks = comparison.reference.ranks
    assert (ranks["target_popularity"][groups["cold"]] == 0).all()
    assert groups["head"].sum() == 2 * 0.2 * 200  # the 40 most popular items are the targets of two users each
    assert ranks["target_popularity"][groups["head"]].min() > ranks["target_popularity"][groups["tail"]].max()


def test_a_report_of_runs_that_trained_nothing_and_know_little():
    rank = np.array([1, 5, 30])
    runs = [made_up_run(rank, model, peak_memory_mb=1) for model in ("LLMSeqSim", "LRURec")]
    for run in runs:
        run.curve.clear()
        run.results["stages"] = []
        run.results["environment"] = {**run.results["environment"], "git": None}
        for key in ("phase_peak_memory_mb", "language_models"):
            run.results.pop(key, None)
            run.results.setdefault("language_models", None)
    made = made_up_comparison({"a": rank, "b": rank}, baselines=None)
    made.rows[0].runs[:], made.rows[1].runs[:] = [runs[0]], [runs[1]]
    page = render(made, "")
    assert "Learning curves" not in page
    assert "best other row" in page


def test_warnings_name_what_differs():
    rng = np.random.default_rng(1)
    made = made_up_comparison({"SASRec": draw_ranks(rng), "b": draw_ranks(rng)})
    assert made.warnings == []
    first, second = (row.runs[0] for row in made.rows)
    second.results["environment"]["packages"]["torch"] = "2.6"
    second.results["environment"]["git"] = {"commit": "f" * 40, "dirty": True}
    second.results["environment"]["threads"] = 8
    second.results["protocol"]["valid_metric"] = "Recall@10"
    second.results["tied_targets"] = 0.2
    second.results["notices"] = ["a notice"]
    second.results["stages"][0]["best_epoch"] = 2
    first.results["targets_in_history"] = 3
    del made.__dict__["warnings"]
    text = "\n".join(made.warnings)
    for part in (
        "different versions of the code: 012345678, fffffffff",
        "uncommitted changes",
        "different versions of torch: 2.13, 2.6",
        "seconds cannot be compared",
        "different valid_metric: SASRec NDCG@10, b Recall@10",
        "b: 20.0% of the targets share",
        "b: a notice",
        "b was still improving in its last epoch (2)",
        "3 targets were in their user's history",
    ):
        assert part in text
    assert len(made.warnings) == 9


def test_accuracy_beside_the_time_of_a_batch():
    ranks = {"P5": [np.array([1, 30]), np.array([1, 30])], "LITE_x": np.array([1, 15]), "not timed": np.array([9, 9])}
    made = made_up_comparison(ranks, baselines=(), metrics=("recall@10", "recall@20", "ndcg@20"))
    times = {"users": 32, "k": 20, "batches": 3, "input_length": 85.0, "mean_ms": 0.0, "sd_ms": 0.0}
    for run, median in zip(made.rows[0].runs, (300.0, 500.0), strict=True):
        run.results["inference"] = {**times, "median_ms": median, "median_cpu_ms": 350.0}
    made.rows[1].runs[0].results["inference"] = {**times, "input_length": 20, "median_ms": 2.0, "median_cpu_ms": 1.5}
    heads, grid = tables.ladder_table(made)
    assert heads[1:4] == ["Recall@20", "NDCG@20", "input length"]
    assert grid == [
        ["P5", "0.5000", "0.5000", "85.0", "400.00", "350.00", "233.3"],
        ["LITE_x", "1.0000", "0.6250", "20.0", "2.00", "1.50", "1.0"],
    ]
    text = tables.as_text(made)
    assert "batch of 32 users from the model's input to the top-20 list, median of 3 batches; a processor" in text
    assert "| LITE\\_x | 1.0000 | 0.6250 | 20.0 | 2.00 |" in tables.as_markdown(made)
    assert r"LITE\_x & 1.0000 & 0.6250 & 20.0 & 2.00" in tables.as_latex(made)
    assert "<h2>Accuracy and inference time</h2>" in render(made, "")


# ---- ties


def test_many_ties_stand_beside_the_metrics():
    rng = np.random.default_rng(5)
    made = made_up_comparison({"SASRec": draw_ranks(rng), "b": draw_ranks(rng)})
    made.rows[1].runs[0].results["tied_targets"] = 0.04
    assert "tied targets" not in tables.as_text(made) and "Tied targets" not in render(made, "")
    made.rows[1].runs[0].results["tied_targets"] = 0.65
    assert made.shows_ties
    for text in (tables.as_text(made), tables.as_markdown(made), tables.as_latex(made)):
        lines = [line for line in text.splitlines() if line.lstrip("| ").startswith("b ") and "%" in line]
        assert len(lines) == 2 and all("65.0%" in line.replace("\\", "") for line in lines)
        assert text.count("tied targets") == 2
    assert "65.0 %" in render(made, "")
    lines = csv.DictReader(io.StringIO(tables.as_csv(made)))
    assert {row["model"]: row["tied_targets"] for row in lines} == {"SASRec": "0.0", "b": "0.65"}


# ---- language models


def of_llm(name, seed=1, setting="auto", **models):
    rng = np.random.default_rng(seed)
    settings = {"model": "LLMSeqSim", "seed": seed, "llm": setting}
    return made_up_run(draw_ranks(rng), "LLMSeqSim", seed, settings=settings, language_models={"llm": name, **models})


def test_auto_that_meant_another_model_is_another_row():
    runs = [of_llm("a/large"), of_llm("a/large", 2), of_llm("bundled", 3), of_llm("bundled", 1, "bundled")]
    rows = rows_from(runs)
    assert [len(row.runs) for row in rows] == [2, 1, 1]
    assert rows[0].label == "LLMSeqSim (llm=a/large)" and len({row.label for row in rows}) == 3
    same = [of_llm("a", 1, llm_revision="1"), of_llm("a", 2, llm_revision="2")]
    assert [row.label for row in rows_from(same)] == ["LLMSeqSim (llm_revision=1)", "LLMSeqSim (llm_revision=2)"]
    hybrids = [
        of_llm("x", 1, members=[{"language_models": {"llm": "x"}}]),
        of_llm("x", 2, members=[{"language_models": {"llm": "y"}}]),
    ]
    assert len(rows_from(hybrids)) == 2


def test_seeds_of_a_plan_with_other_models_are_told_apart():
    row = Row("text", "LLMSeqSim", [of_llm("a/large"), of_llm("a/large", 2), of_llm("bundled", 3)])
    rows = split_by_language_models(row)
    assert [(each.label, len(each.runs)) for each in rows] == [("text (llm=a/large)", 2), ("text (llm=bundled)", 1)]
    assert split_by_language_models(rows[0]) == [rows[0]]
