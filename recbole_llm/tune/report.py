"""Reports of a study: a line per trial, the table at its end, and ``study.html``."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.utils import set_color
from tabulate import tabulate

from recbole_llm import pages
from recbole_llm.config import Config
from recbole_llm.run.protocol import protocol_text
from recbole_llm.tune.options import optuna
from recbole_llm.tune.study import Study, Trial

# Rows of the table at the end.
SHOWN = 10
# Fewer trials say nothing about which parameter matters.
IMPORTANCE_TRIALS = 8


def trial_line(trial: Trial, best: Trial | None, total: int | None, metric: str) -> str:
    """Return the terminal's line for a trial that has ended."""
    number = f"trial {trial.number}" + (f" of {total}" if total else "")
    score = "" if trial.score is None else f" {metric} {trial.score:.6f}"
    if best is not None and best.number == trial.number:
        standing = " (best)"
    else:
        standing = f" (best {best.score:.6f}, trial {best.number})" if best and best.score is not None else ""
    details = trial.details
    reason = f": {details.get('error') or details.get('reason')}" if trial.state != "finished" else ""
    costs = f", {details['epochs']} epochs, {details['seconds']:.1f} s" if "seconds" in details else ""
    colour = {"finished": "green", "pruned": "yellow", "failed": "red"}[trial.state]
    return f"{number} {set_color(trial.state, colour)}{reason}{score}{standing}{costs}; {settings(trial)}"


def settings(trial: Trial) -> str:
    """``learning_rate=0.001 dropout=0.2``."""
    return " ".join(f"{key}={value}" for key, value in trial.params.items())


def ranking(trials: Sequence[Trial], bigger: bool) -> list[Trial]:
    """Finished trials from best to worst, then pruned ones, then the rest."""
    states = {"finished": 0, "pruned": 1}

    def order(trial: Trial) -> tuple[int, float, int]:
        score = trial.score or 0.0
        return states.get(trial.state, 2), -score if bigger else score, trial.number

    return sorted(trials, key=order)


def summary(study: Study, config: Config, config_file: Path) -> str:
    """Render the table at the end of a study: protocol above, the best trial's test metrics below."""
    best = study.best
    assert best is not None and best.test is not None
    names = [parameter.name for parameter in study.space]
    # Parameters that all trials share need no column.
    varied = [name for name in names if len({repr(trial.params[name]) for trial in study.trials}) > 1]
    rows = [
        [trial.number, trial.state, trial.score, *(trial.params[name] for name in varied)]
        + [trial.details.get("epochs"), trial.details.get("seconds")]
        for trial in ranking(study.trials, study.bigger)[:SHOWN]
    ]
    places = config["metric_decimal_place"]
    head = ["trial", "state", f"valid {study.metric}", *varied, "epochs", "seconds"]
    formats = ["", "", f".{places}f", *["g"] * len(varied), "", ".1f"]
    table = tabulate(rows, head, tablefmt="simple", floatfmt=tuple(formats))
    first, second = ("masked", "unmasked") if config["mask_history"] else ("unmasked", "masked")
    heads = {"masked": "test, history masked", "unmasked": "test, not masked"}
    figures = tabulate(
        [[name, best.result.get(name), value, best.test[second][name]] for name, value in best.test[first].items()],
        ["metric", "best valid", heads[first], heads[second]],
        tablefmt="simple",
        floatfmt=f".{places}f",
    )
    more = f" ({len(study.trials) - SHOWN} more in study.csv)" if len(study.trials) > SHOWN else ""
    tested = [str(trial.number) for trial in study.trials if trial.test is not None]
    lines = [
        set_color(f"{config['model']} on {config['dataset']}", "green") + f": {protocol_text(config)}",
        "",
        table + more,
        "",
        f"winner: trial {best.number}, {settings(best)}",
        "",
        figures,
        "",
        f"written to {study.folder}; the winner's settings: --config_files={config_file}",
    ]
    if len(tested) > 1:
        lines.insert(-1, f"The test set was evaluated for {len(tested)} winners in turn: trials {', '.join(tested)}.")
    return "\n".join(lines)


def write_page(study: Study, config: Config, results: Mapping[str, Any], command: str) -> None:
    """``study.html``: the winner, the effect of each parameter, every trial, and its provenance.

    Parameters
    ----------
    study : Study
        With a winner.
    config : Config
    results : dict
        ``results.json`` of the winner.
    command : str
        Command that runs the winner's settings.
    """
    trials, best = ranking(study.trials, study.bigger), study.best
    assert best is not None and best.test is not None
    first, second = ("masked", "unmasked") if config["mask_history"] else ("unmasked", "masked")
    options = study.options
    pruner = "" if options.pruner == "none" else f", {options.pruner} pruner from epoch {max(1, options.prune_after)}"
    hours = sum(trial.details.get("seconds", 0.0) for trial in trials) / 3600
    origin = pages.provenance(results)
    facts = [
        ("Protocol", protocol_text(config)),
        (
            "Search",
            f"{options.algo}{pruner}; {len(trials)} trials, {hours:.2f} hours; seed {study.seed}; ended: "
            f"{study.why_ended()}",
        ),
        ("Score", f"{study.metric} on the validation set; trials see no test data"),
        *origin,
        ("Winner again", command),
    ]
    page = pages.render(
        Path(__file__).with_name("study.html"),
        title=f"{config['model']} on {config['dataset']}",
        created=time.strftime("%Y-%m-%d %H:%M"),
        facts=[(name, text) for name, text in facts if text],
        space=[(parameter, best.params[parameter.name]) for parameter in study.space],
        metric=study.metric,
        best=best,
        heads=["best validation", f"test, {_history(first)}", f"test, {_history(second)}"],
        figures=[
            (name, [best.result.get(name), value, best.test[second][name]]) for name, value in best.test[first].items()
        ],
        tested=[trial.number for trial in study.trials if trial.test is not None],
        charts=_charts(study, best),
        trials=trials,
        places=config["metric_decimal_place"],
    )
    file = study.folder / "study.html"
    temporary = file.with_name("study.html.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(file)


def _history(version: str) -> str:
    return "history masked" if version == "masked" else "history not masked"


def _charts(study: Study, best: Trial) -> list[dict[str, Any]]:
    """Optuna's plots of a study, in the colours of our pages."""
    draw = optuna().visualization
    finished = [trial for trial in study.trials if trial.state == "finished"]
    varied = [
        parameter.name
        for parameter in study.space
        if len({repr(trial.params[parameter.name]) for trial in finished}) > 1
    ]
    charts = [
        (
            "Score of each trial",
            draw.plot_optimization_history(study.optuna, target_name=study.metric),
            "Finished trials in order, and the best so far.",
        )
    ]
    if any(len(trial.curve) > 1 for trial in study.trials):
        figure = draw.plot_intermediate_values(study.optuna)
        figure.update_yaxes(title=study.metric)
        for trace in figure.data:
            is_best = trace.name == f"Trial{best.number}"
            trace.update(
                line={"color": "#1f5fa8" if is_best else "#aab2bd", "width": 3 if is_best else 1}, mode="lines"
            )
        # Epochs of a later stage would stand a million to the right.
        figure.update_xaxes(title="epoch of the first stage", range=[0.5, _last_epoch(study) + 0.5])
        charts.append(("Validation curves", figure, f"The winner, trial {best.number}, is blue."))
    for name in varied:
        figure = draw.plot_slice(study.optuna, params=[name], target_name=study.metric)
        charts.append((f"Effect of {name}", figure, "Every finished trial; darker: later."))
    if len(varied) > 1 and len(finished) >= IMPORTANCE_TRIALS and len({trial.score for trial in finished}) > 1:
        evaluator = optuna().importance.FanovaImportanceEvaluator(seed=study.seed)
        figure = draw.plot_param_importances(
            study.optuna, evaluator=evaluator, params=varied, target_name=study.metric
        )
        note = f"Share of the variance of the score (fANOVA, Hutter et al., 2014), from {len(finished)} trials."
        charts.append(("Importance of each parameter", figure, note))
    for _, figure, _ in charts:
        figure.update_layout(
            template="none", title=None, height=360, font={"family": pages.FONT, "size": 13}, paper_bgcolor="white"
        )
        figure.update_layout(margin={"l": 70, "r": 16, "t": 24, "b": 56})
    return [{"title": title, "html": pages.chart(figure), "note": note} for title, figure, note in charts]


def _last_epoch(study: Study) -> int:
    return max(epoch for trial in study.trials for stage, epoch, _ in trial.curve if stage == 0)
