"""What a study says on the terminal: a line per trial, and tables at its end."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.utils import set_color
from tabulate import tabulate

from recbole_llm.config import Config
from recbole_llm.run.protocol import history_text, protocol_text
from recbole_llm.tune.study import Study, Trial

# Rows of the table at the end.
SHOWN = 10
COLOURS = {"finished": "green", "pruned": "yellow", "failed": "red"}


def log_end(study: Study, trial: Trial) -> None:
    """Log the line of a trial that has ended."""
    best, details = study.best, trial.details
    number = f"trial {trial.number}" + (f" of {study.options.max_evals}" if study.options.max_evals else "")
    score = "" if trial.score is None else f", {study.metric} {trial.score:.6f}"
    if best is not None and best.number == trial.number:
        score += " (best)"
    elif best is not None:
        score += f" (best {best.score:.6f}, trial {best.number})"
    costs = f", epochs {details['epochs']}, {details['seconds']:.1f} s" if "seconds" in details else ""
    reason = "" if trial.state == "finished" else f"; {details.get('error') or details.get('reason')}"
    state = set_color(trial.state, COLOURS[trial.state])
    logging.getLogger().info(f"{number} {state}{score}{costs}; {settings(trial)}{reason}")


def settings(trial: Trial) -> str:
    """``learning_rate=0.001 dropout=0.2``."""
    return " ".join(f"{key}={value}" for key, value in trial.params.items())


def command_of(config_file: Path) -> str:
    """Return the command that runs the winner's settings again."""
    return f"recbole-llm --config_files={shlex.quote(str(config_file))}"


def ranking(trials: Sequence[Trial], bigger: bool) -> list[Trial]:
    """Finished trials from best to worst, then pruned ones, then the rest."""
    states = {"finished": 0, "pruned": 1}

    def order(trial: Trial) -> tuple[int, float, int]:
        score = trial.score or 0.0
        return states.get(trial.state, 2), -score if bigger else score, trial.number

    return sorted(trials, key=order)


def varied(study: Study, trials: Sequence[Trial]) -> list[str]:
    """Names of the parameters in which these trials differ."""
    names = [parameter.name for parameter in study.space]
    return [name for name in names if len({repr(trial.params[name]) for trial in trials}) > 1]


def figures(best: Trial, results: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Heads and rows of the winner's metrics: best validation, test under ``mask_history``, and the other way."""
    masked = results["protocol"]["mask_history"]
    shown = {way: results["test_masked" if way else "test_unmasked"] or {} for way in (masked, not masked)}
    rows = [[name, value, *(test.get(name) for test in shown.values())] for name, value in best.result.items()]
    return ["metric", "best validation", *(f"test, {history_text(way)}" for way in shown)], rows


def tested_in_turn(study: Study) -> str:
    """Say how often the test set was looked at; empty if once."""
    tested = [str(trial.number) for trial in study.trials if study.is_tested(trial)]
    if len(tested) < 2:
        return ""
    return f"The test set was evaluated for {len(tested)} winners in turn: trials {', '.join(tested)}."


def summary(study: Study, best: Trial, config: Config, results: Mapping[str, Any], config_file: Path) -> str:
    """Render the tables at the end of a study: the best trials, and the winner's metrics."""
    trials = study.trials
    names = varied(study, trials)
    rows = [
        [trial.number, trial.state, trial.score, *(trial.params[name] for name in names)]
        + [trial.details.get("epochs"), trial.details.get("seconds")]
        for trial in ranking(trials, study.bigger)[:SHOWN]
    ]
    places = f".{config['metric_decimal_place']}f"
    heads = ["trial", "state", f"valid {study.metric}", *names, "epochs", "seconds"]
    formats = ("", "", places, *["g"] * len(names), "", ".1f")
    more = f" ({len(trials) - SHOWN} more in study.csv)" if len(trials) > SHOWN else ""
    metric_heads, metrics = figures(best, results)
    return "\n".join(
        [
            set_color(f"{config['model']} on {config['dataset']}", "green") + f": {protocol_text(config)}",
            "",
            tabulate(rows, heads, tablefmt="simple", floatfmt=formats) + more,
            "",
            f"winner: trial {best.number}, {settings(best)}",
            "",
            tabulate(metrics, metric_heads, tablefmt="simple", floatfmt=places),
            "",
            *filter(None, [tested_in_turn(study)]),
            f"written to {study.folder}: study.html, study.csv, best.yaml",
            f"  again: {command_of(config_file)}",
            f"  lists: recbole-llm recommend {shlex.quote(str(study.run_dir(best)))}",
        ]
    )
