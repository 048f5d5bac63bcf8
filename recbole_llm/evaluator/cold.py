"""Metrics of a test apart for cold and for warm targets; see :mod:`recbole_llm.data.cold`."""

from typing import Any

from recbole_llm.config import Config
from recbole_llm.data.cold import ColdItems
from recbole_llm.evaluator.metrics import of_ranks
from recbole_llm.evaluator.ranks import Ranks


def cold_report(config: Config, ranks: Ranks, cold: ColdItems) -> dict[str, Any]:
    """Return the entry of ``results.json`` about cold items.

    Parameters
    ----------
    config : Config
        ``metrics`` (those of a target's rank) and ``topk``.
    ranks : Ranks
        Of the test.
    cold : ColdItems

    Returns
    -------
    dict
        Settings and counts; ``cold`` and ``warm``, each with the number of its targets and its metrics, masked and not
        masked. ``cold`` also has ``among_cold``: its targets ranked among the cold items alone, history masked, which
        tells items apart where warm ones stand above all of them. Chance is k / ``items`` there.
    """
    is_cold = cold.mask[ranks.target]
    report: dict[str, Any] = {
        "share": cold.share,
        "seed": cold.seed,
        "in_history": cold.in_history,
        "items": int(cold.mask.sum()),
        **cold.counts,
    }
    for name, rows in (("cold", is_cold), ("warm", ~is_cold)):
        kinds = {"masked": ranks.masked, "unmasked": ranks.unmasked}
        if name == "cold" and ranks.among is not None:
            kinds["among_cold"] = ranks.among
        report[name] = {"targets": int(rows.sum())}
        if rows.any():
            report[name] |= {kind: of_ranks(config, rank[rows]) for kind, rank in kinds.items()}
    return report
