"""Runs that never took place: ranks drawn at random, with everything beside them that a comparison reads."""

import functools
from pathlib import Path

import numpy as np

from recbole_llm.compare.analysis import Comparison
from recbole_llm.compare.runs import FinishedRun, Row, mark_baselines
from recbole_llm.config.registry import property_file, props_dir
from recbole_llm.evaluator.metrics import RANK_METRICS

USERS, ITEMS = 500, 200
METRICS = ("recall@10", "ndcg@10")


def draw_ranks(rng, easy=0.0, users=USERS):
    """Ranks of one target a user: some users are easy for every model, and a share ``easy`` of all for this one."""
    rank = rng.integers(1, ITEMS + 1, users)
    return np.where(rng.random(users) < easy, rng.integers(1, 11, users), rank)


def made_up_run(ranks, model="SASRec", seed=1, metrics=METRICS, **changes):
    """A finished run with these ranks, equal with and without the mask unless ``unmasked`` is given."""
    unmasked = changes.pop("unmasked", ranks)
    users = len(ranks)

    def result(rank):
        values = {}
        for metric in metrics:
            name, _, k = metric.partition("@")
            values[metric] = float(RANK_METRICS[name](rank, int(k)).mean())
        return values

    package = "recbole.model" if model in ("SASRec", "GRU4Rec") else "recbole_llm.model"
    results = {
        "model": model,
        "model_class": f"{package}.{model.lower()}.{model}",
        "smoke": False,
        "protocol": {
            "text": "history masked, leave-one-out, full ranking",
            "evaluation": "leave-one-out, full ranking",
            "mask_history": True,
            "valid_metric": "NDCG@10",
            "seed": seed,
        },
        "best_valid_score": 0.1,
        "best_valid_result": result(ranks),
        "test_masked": result(ranks),
        "test_unmasked": result(unmasked),
        "tied_targets": 0.0,
        "targets_in_history": 0,
        "stages": [{"stage": "train", "best_epoch": 1, "updates": 10}],
        "epochs": 2,
        "updates": 10,
        "dataset": {
            **{"name": "toy", "users": users, "items": ITEMS, "interactions": 9 * users},
            **{"filters": {"item_inter_num_interval": "[1,inf)"}, "files": {"toy.inter": "0" * 64}},
        },
        "language_models": None,
        "parameters": {"trained": 1234, "all": 1234},
        "seconds": {"data": 0.1, "model": 0.2, "train": 3.0, "valid": 0.5, "test": 0.25},
        "peak_memory_mb": 500,
        "phase_peak_memory_mb": {"data": 300, "model": 310, "train": 500, "valid": 450, "test": 420},
        "environment": {
            "python": "3.11.7",
            "packages": {"recbole-llm": "0.1.0", "torch": "2.13"},
            "git": {"commit": "0123456789abcdef", "dirty": False},
            **{"processor": "a processor", "threads": 1, "gpu": None},
        },
        "notices": [],
        "command": "recbole-llm",
        "settings": {"model": model, "seed": seed, "epochs": 2, "hidden_size": 64},
    }
    results.update(changes)
    curve = [
        {"stage": "train", "epoch": float(epoch), "train_seconds": 1.5, "valid_seconds": 0.2, "valid_score": score}
        | {"ndcg@10": score, "recall@10": 2 * score}
        for epoch, score in enumerate((0.1, 0.09), 1)
    ]
    arrays = {**_test_rows(users), "rank_masked": ranks, "rank_unmasked": unmasked}
    return FinishedRun(Path("saved") / f"{model}-toy-{seed}", results, curve, arrays)


@functools.cache
def _test_rows(users):
    popularity = np.arange(users) % ITEMS
    return {
        "user": np.array([f"u{user:06d}" for user in range(users)]),
        "target": np.array([f"i{user % ITEMS}" for user in range(users)]),
        "history_length": 3 + np.arange(users) % 20,
        "target_popularity": popularity,
        "target_popularity_rank": ITEMS - popularity,
    }


def made_up_comparison(
    ranks, baselines=("SASRec",), directory=Path("saved/compare"), metrics=METRICS, warnings=(), **options
):
    """Rows by label; each value is an array of ranks, or a list of them, one per seed."""
    rows = []
    for label, values in ranks.items():
        seeds = values if isinstance(values, list) else [values]
        model = "SASRec" if label == "SASRec" else "LRURec"
        runs = [made_up_run(each, model, seed, metrics) for seed, each in enumerate(seeds, 1)]
        rows.append(Row(label, model, runs))
    mark_baselines(rows, baselines)
    return Comparison(rows, {**property_file(props_dir() / "compare.yaml"), **options}, directory, warnings=warnings)
