"""The command line: ``recbole-llm`` and ``python run_recbole_llm.py``."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recbole_llm.config.arguments import parse_arguments, split_arguments
from recbole_llm.config.layers import is_comparison, precheck
from recbole_llm.config.registry import props_dir
from recbole_llm.config.values import nearest
from recbole_llm.errors import RecBoleLLMError
from recbole_llm.version import __version__

HELP_OPTIONS = frozenset({"-h", "--help"})


class Command(NamedTuple):
    """A command of ``recbole-llm``.

    Attributes
    ----------
    usage, summary : str
        Shown by ``recbole-llm --help``.
    main : str or function
        Function of the arguments after the command that returns the exit status; ``module:function`` is imported
        on use. It handles ``--help`` itself unless ``help`` is set.
    help : str or None
        Text that ``--help`` shows after usage and summary.
    """

    usage: str
    summary: str
    main: str | Callable[[list[str]], int]
    help: str | None = None


RUN_HELP = """\
examples:
  recbole-llm -m LiteLLM4Rec -d ml-100k                              ml-100k comes with RecBole
  recbole-llm --model=LiteLLM4Rec --dataset=ml-100k --smoke          quick sanity check of a configuration
  recbole-llm --model=SASRec --dataset=ml-1m --data_path=datasets    datasets/ml-1m/ml-1m.inter
  recbole-llm --config_files="mine.yaml more.yaml" --epochs 5        settings from files
  recbole-llm --model=LRURec,SASRec --dataset=ml-100k --seeds=1,2    compared, as with `compare`

Set any setting with --key=value or --key value; command line > --config_files > defaults. Frequent ones:
  -m, --model=NAME       see `recbole-llm models`; package.module:Class for your own class
  -d, --dataset=NAME     a folder in data_path with NAME.inter
  --data_path=FOLDER     holds one folder per dataset (default: dataset/)
  --config_files=FILES   YAML files, or names of presets and paper rows
  --checkpoint_dir=DIR   where the run directory with results.json goes (default: saved/)
  --resume=RUN_DIR       continue an interrupted run
  --llm=NAME             the model that reads item texts: Hugging Face id, local folder, auto or bundled
  --debug                show the traceback of an error, in any command
  --mask_history=False   allow recommending items of the user's history
  --epochs, --learning_rate, --train_batch_size, --eval_args, --metrics, --topk, --valid_metric: as in RecBole
`recbole-llm help KEY` explains a setting, `recbole-llm help MODEL` lists those of a model.
"""
COMPARE_HELP = """\
examples:
  recbole-llm compare --model=LLM2SASRec,SASRec --dataset=ml-100k --seeds=1,2,3
  recbole-llm compare --config_files=quickstart
  recbole-llm compare saved/SASRec-ml-100k-... saved/LRURec-ml-100k-... --significance_test=wilcoxon

Runs every row and seed that is not finished yet, then writes tables, paired tests and report.html. --LABEL.key=value
sets a setting for one row. `recbole-llm help KEY` explains seeds, baselines, significance_test, reuse and the others.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 for success, 1 for a comparison with failed runs, 2 for an error of the user's input, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    try:
        return _dispatch(name, arguments)
    except RecBoleLLMError as error:
        if _is_first_to_fail():
            if debug:
                traceback.print_exception(error)
            sys.stderr.write(f"recbole-llm: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def _is_first_to_fail() -> bool:
    if "RANK" not in os.environ:
        return True  # avoids importing torch, which takes seconds
    from recbole_llm.distributed import first_to_fail

    return first_to_fail()


def _dispatch(name: str, arguments: list[str]) -> int:
    asks_for_help = bool(HELP_OPTIONS & set(arguments))
    if not name and asks_for_help:
        return _write(overview())
    if "--version" in arguments:
        return _write(f"recbole-llm {__version__}\n")
    command = COMMANDS.get(name or "run")
    if command is None:
        raise RecBoleLLMError(f"{name!r} is not a command.{nearest(name, COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    if asks_for_help and command.help is not None:
        return _write(f"usage: recbole-llm {command.usage}\n\n{command.summary}\n\n{command.help}")
    if isinstance(command.main, str):
        module, _, function = command.main.partition(":")
        return getattr(importlib.import_module(module), function)(arguments)
    return command.main(arguments)


def overview() -> str:
    """Return what ``recbole-llm --help`` prints."""
    parser = argparse.ArgumentParser(
        prog="recbole-llm",
        usage="recbole-llm [COMMAND] [--key=value ...] | recbole-llm COMMAND --help | --version",
        description="LLM-based sequential recommenders inside RecBole.",
        epilog=f"{RUN_HELP}All settings with their defaults: {props_dir()}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=56, width=118),
        add_help=False,
    )
    commands = parser.add_argument_group("commands")
    for command in COMMANDS.values():
        commands.add_argument(command.usage, nargs="?", help=command.summary)
    return parser.format_help()


def _write(text: str) -> int:
    sys.stdout.write(text)
    return 0


# ---- commands


def _models(arguments: list[str]) -> int:
    if arguments:
        raise RecBoleLLMError(f"`recbole-llm models` takes no parameters, but got {', '.join(arguments)}.")
    from recbole_llm.config.reference import models_table

    return _write(models_table())


def _help(arguments: list[str]) -> int:
    from recbole_llm.config.reference import explain

    names = [argument for argument in arguments if argument not in HELP_OPTIONS]
    if names in ([], ["help"]):
        return _write(overview())
    for name in names:
        command = COMMANDS.get(name)
        if command is not None and len(names) == 1:
            return _dispatch(name, ["--help"])
        _write(explain(name))
    return 0


def _run(arguments: list[str]) -> int:
    given = parse_arguments(arguments)
    if "params_file" in given:
        return _tune(arguments)
    if not given:
        raise RecBoleLLMError("Nothing to do: pass --model and --dataset, or see `recbole-llm --help`.")
    if is_comparison(given):
        return _compare_models(given)
    files = []
    if isinstance(given.get("resume"), str) and "model" not in given:
        folder = Path(given["resume"])
        if not (folder / "config.yaml").is_file():
            raise RecBoleLLMError(f"--resume={given['resume']}: {folder} has no config.yaml; is it a run directory?")
        files = [folder / "config.yaml"]
    precheck(files, None, given)
    from recbole_llm.run.experiment import run

    run(config_file_list=files, arguments=given)
    return 0


def _tune(arguments: list[str]) -> int:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        raise RecBoleLLMError("Start a study once, without torchrun: --tool=Ray runs its trials in parallel.")
    if HELP_OPTIONS & set(arguments):
        from recbole_llm.tune.options import help_text

        return _write(help_text())
    from recbole_llm.tune.search import tune_main

    return tune_main(parse_arguments(arguments))


def _compare(arguments: list[str]) -> int:
    given, run_dirs = split_arguments(arguments)
    unknown = [argument for argument in run_dirs if argument.startswith("-")]
    if unknown:
        parse_arguments(unknown)
    if not run_dirs:
        return _compare_models(given)
    from recbole_llm.compare import compare_runs

    compare_runs(run_dirs, given)
    return 0


def _compare_models(given: dict[str, Any]) -> int:
    """Return 0 if every run finished, 1 if some are missing from the table."""
    from recbole_llm.compare import compare

    comparison = compare(arguments=given)
    return int(any(row.failures for row in comparison.all_rows))


COMMANDS = {
    "run": Command("[run] -m NAME -d NAME [--key=value ...]", "train and evaluate a model", _run, RUN_HELP),
    "compare": Command(
        "compare RUN_DIR ... | --model=NAME,NAME -d NAME",
        "compare models: tables, significance tests, report",
        _compare,
        COMPARE_HELP,
    ),
    "leaderboard": Command(
        "leaderboard [PLAN ...] [--check]",
        "reproduce the tables of docs/results",
        "recbole_llm.compare.leaderboard:leaderboard_main",
    ),
    "tune": Command("tune -m NAME -d NAME [--params_file=FILE]", "search for the best settings", _tune),
    "evaluate": Command(
        "evaluate RUN_DIR [--topk=1,5] [--mask_history=False]",
        "evaluate saved weights under any protocol",
        "recbole_llm.run.evaluate:evaluate_main",
    ),
    "refit": Command(
        "refit RUN_DIR",
        "train on all interactions, for production",
        "recbole_llm.run.refit:refit_main",
    ),
    "recommend": Command(
        "recommend RUN_DIR [--users=...] [--k=10]",
        "recommend items to users from a finished run",
        "recbole_llm.recommend.command:recommend_main",
    ),
    "explore": Command(
        "explore RUN_DIR [--port=8501]",
        "look at recommendations in a browser",
        "recbole_llm.recommend.explore:explore_main",
    ),
    "export": Command(
        "export RUN_DIR --out=DIR [--faiss]",
        "export item and user vectors of a finished run",
        "recbole_llm.recommend.command:export_main",
    ),
    "card": Command(
        "card RUN_DIR [--out=DIR] [--name=ORG/NAME]",
        "write a model card and a folder for the Hugging Face hub",
        "recbole_llm.recommend.card:card_main",
    ),
    "convert": Command(
        "convert NAME --input PATH [--output FOLDER]",
        "convert downloads or your own logs to atomic files",
        "recbole_llm.convert.command:convert_main",
    ),
    "check": Command(
        "check DATASET [--data_path FOLDER]",
        "check a dataset for common problems",
        "recbole_llm.convert.command:check_main",
    ),
    "models": Command("models", "list the models: paper, requirements, status", _models, "Names for --model."),
    "help": Command("help [KEY | MODEL | COMMAND]", "explain a setting, a model or a command", _help),
}


if __name__ == "__main__":
    sys.exit(main())
