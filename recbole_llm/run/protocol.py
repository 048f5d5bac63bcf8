"""Descriptions of the evaluation protocol, to report with every number."""

from recbole_llm.config import Config
from recbole_llm.data.controls import control_of

FILTERS = (
    *("user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter", "threshold"),
    *("filter_inter_by_user_or_item", "benchmark_filename"),
)


def history_text(masked: bool) -> str:
    """Return what tables call the history of an evaluation: ``history masked`` or ``history not masked``."""
    return "history masked" if masked else "history not masked"


def protocol_text(config: Config) -> str:
    """Return one line that describes the protocol of a run."""
    masked = history_text(config["mask_history"])
    stamp = "SMOKE RUN, " if config["smoke"] else ""
    if control_of(config) != "none":
        stamp += f"CONTROL {control_of(config)} (seed {config['control_seed']}), "
    if config["final_fit"]:
        return (
            f"{stamp}FINAL FIT on all interactions, not evaluated; at most {config['MAX_ITEM_LIST_LENGTH']} items of "
            f"history, seed {config['seed']}, updates chosen by {config['valid_metric']} in another run"
        )
    return (
        f"{stamp}{masked}, {evaluation_text(config)}, at most {config['MAX_ITEM_LIST_LENGTH']} items of history, "
        f"seed {config['seed']}, best epoch by {config['valid_metric']}"
    )


def evaluation_text(config: Config) -> str:
    """Return the part of the protocol that rows of one table must share."""
    arguments = config["eval_args"]
    (kind, how), *_ = arguments["split"].items()
    split = "leave-one-out" if kind == "LS" and how == "valid_and_test" else f"{kind}={how}"
    if kind == "temporal_session":
        split = _temporal_session(config)
    if config["benchmark_filename"]:
        split = f"split by the files {', '.join(config['benchmark_filename'])}"
    ranking = _ranking(arguments["mode"]["test"], config["mask_history"])
    if arguments["mode"]["valid"] != arguments["mode"]["test"]:
        ranking = f"test: {ranking}, validation: {_ranking(arguments['mode']['valid'], config['mask_history'])}"
    if config["task"] == "topn":
        ranking = f"ranked among {config['topn_negatives']} sampled items (top-N task)"
    if config["cold_items"]:
        kept = "kept in" if config["cold_items_in_history"] else "dropped from"
        split += (
            f", {config['cold_items']:.0%} of the items held out of training (cold_items_seed "
            f"{config['cold_items_seed']}, {kept} evaluated histories)"
        )
    return f"{split}, {ranking}, time order {config['time_order']}"


def _ranking(mode: str, mask_history: bool) -> str:
    """Describe what the targets of a phase are ranked among (``full``, ``uni100``, ``pop100``)."""
    if mode == "full":
        return "full ranking"
    drawn = "uniformly" if mode.startswith("uni") else "by popularity in training"
    where = "outside the history" if mask_history else "in or outside the history"
    return f"ranked among {mode[3:]} distinct items sampled {drawn} {where} (masked and unmasked agree)"


def _temporal_session(config: Config) -> str:
    share, ranks = config["temporal_session_test_ratio"], " BY RANK TIMES" * config["allow_rank_times"]
    tested = f"last {share:.0%} of the sessions tested"
    if config["temporal_session_fold"] is not None:
        tested = (
            f"tuning fold {config['temporal_session_fold']} of {config['temporal_session_folds']} within the first "
            f"{1 - share:.0%} of the sessions"
        )
    return f"temporal session split{ranks} ({tested}, items unseen in training dropped)"
