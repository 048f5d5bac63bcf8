"""The command line: ``recbole-llm`` and ``python run_recbole_llm.py``."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_llm.errors import RecBoleLLMError

COMMANDS = ("run", "compare", "tune", "models", "convert", "check", "recommend", "export", "evaluate", "help")
HELP = """\
LLM-based sequential recommenders inside RecBole.

  recbole-llm [run] --model=NAME --dataset=NAME [--key=value ...]    train and evaluate
  recbole-llm --model=NAME,NAME --dataset=NAME [--seeds=1,2,3]       side by side: tables, tests and a report
  recbole-llm compare RUN_DIR RUN_DIR ...                            the same for finished runs
  recbole-llm --resume=RUN_DIR                                       continue an interrupted run
  recbole-llm tune --model=NAME --dataset=NAME [--params_file=FILE]  search for the best settings
  recbole-llm models                                                 names for --model
  recbole-llm convert NAME --input PATH [--output FOLDER]            downloads or own logs -> atomic files
  recbole-llm check DATASET [--data_path FOLDER]                     what would hurt in a dataset
  recbole-llm evaluate RUN_DIR [--topk=1,5] [--mask_history=False]   results of saved weights, by any protocol
  recbole-llm recommend RUN_DIR [--users=...] [--k=10] [--out=FILE]  the best items for users of a finished run
  recbole-llm export RUN_DIR --out=DIR [--faiss]                     its item and user vectors
  recbole-llm COMMAND --help | --version

examples:
  recbole-llm --model=LiteLLM4Rec --dataset=ml-100k                  ml-100k comes with RecBole
  recbole-llm --model=LiteLLM4Rec --dataset=ml-100k --smoke          does it hang together? under a minute
  recbole-llm --model=SASRec --dataset=ml-1m --data_path=datasets    datasets/ml-1m/ml-1m.inter
  recbole-llm --model=LiteLLM4Rec --dataset=ml-1m --config_files="mine.yaml more.yaml" --epochs=5

Any parameter can be given as --key=value, without blanks around "="; command line > --config_files > defaults.
Frequent ones:
  --data_path=FOLDER     holds one folder per dataset (default: dataset/)
  --checkpoint_dir=DIR   where the run directory with results.json goes (default: saved/)
  --llm=NAME             Hugging Face id, local folder, auto or bundled: the model that reads item texts
  --mask_history=False   let items of the user's history be recommended
  --epochs, --learning_rate, --train_batch_size, --eval_args, --metrics, --topk, --valid_metric: as in RecBole
All keys, with comments: {props}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    0 for success, 1 for a comparison with failed runs, 2 for an error of the user's input, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    try:
        return _dispatch(command, arguments)
    except RecBoleLLMError as error:
        if _is_first_to_fail():
            sys.stderr.write(f"recbole-llm: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def _is_first_to_fail() -> bool:
    if "RANK" not in os.environ:
        return True  # without the seconds that importing torch takes
    from recbole_llm.distributed import first_to_fail

    return first_to_fail()


def _dispatch(command: str, arguments: list[str]) -> int:
    if command == "convert":
        from recbole_llm.convert.command import convert_main

        return convert_main(arguments)
    if command == "check":
        from recbole_llm.convert.command import check_main

        return check_main(arguments)
    if command == "evaluate":
        from recbole_llm.run.evaluate import evaluate_main

        return evaluate_main(arguments)
    if command in ("recommend", "export"):
        from recbole_llm.recommend.command import export_main, recommend_main

        return recommend_main(arguments) if command == "recommend" else export_main(arguments)
    if command == "compare" and not {"-h", "--help"} & set(arguments):
        return _compare(arguments)
    if "--version" in arguments:
        from recbole_llm import __version__

        sys.stdout.write(f"recbole-llm {__version__}\n")
        return 0

    from recbole_llm.config.arguments import parse_arguments
    from recbole_llm.config.registry import own_models, props_dir, stock_models
    from recbole_llm.config.values import nearest

    if command == "tune" and {"-h", "--help"} & set(arguments):
        from recbole_llm.tune.command import HELP as TUNE_HELP

        sys.stdout.write(TUNE_HELP)
        return 0
    if command == "help" or {"-h", "--help"} & set(arguments):
        sys.stdout.write(HELP.replace("{props}", str(props_dir())))
        return 0
    if command not in COMMANDS:
        raise RecBoleLLMError(
            f"{command!r} is not a command.{nearest(command, COMMANDS)} Commands: {', '.join(COMMANDS)}."
        )
    given = parse_arguments(arguments)
    if command == "models":
        if given:
            raise RecBoleLLMError(f"`recbole-llm models` takes no parameters, but got {', '.join(given)}.")
        sys.stdout.write(f"recbole-llm: {', '.join(own_models())}\nRecBole: {', '.join(stock_models())}\n")
        return 0
    if command == "tune" or "params_file" in given:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
            raise RecBoleLLMError(
                "A study is started once and not by torchrun: --tool=Ray runs its trials side by side."
            )
        from recbole_llm.tune.command import tune_main

        return tune_main(given)
    return _run(given)


def _run(given: dict) -> int:
    from recbole_llm.compare import is_comparison
    from recbole_llm.run.experiment import run

    if is_comparison(given):
        return _compare_models(given)
    if not given:
        raise RecBoleLLMError("Nothing is asked for: give --model and --dataset, or see `recbole-llm --help`.")
    files = []
    if isinstance(given.get("resume"), str) and "model" not in given:
        folder = Path(given["resume"])
        if not (folder / "config.yaml").is_file():
            raise RecBoleLLMError(
                f"--resume={given['resume']}: there is no config.yaml in {folder}; is it a run directory?"
            )
        files = [folder / "config.yaml"]
    _no_bars_in_files(given)
    run(config_file_list=files, arguments=given)
    return 0


def _compare(arguments: list[str]) -> int:
    from recbole_llm.config.arguments import parse_arguments

    run_dirs = [argument for argument in arguments if not argument.startswith("--")]
    given = parse_arguments([argument for argument in arguments if argument.startswith("--")])
    if not run_dirs:
        return _compare_models(given)
    from recbole_llm.compare import compare_runs

    compare_runs(run_dirs, given)
    return 0


def _compare_models(given: dict) -> int:
    """0 if every run finished, 1 if some are missing from the table."""
    from recbole_llm.compare import compare

    _no_bars_in_files(given)
    comparison = compare(arguments=given)
    return int(any(row.failures for row in comparison.all_rows))


def _no_bars_in_files(given: dict) -> None:
    if not sys.stderr.isatty():
        given.setdefault("show_progress", False)


if __name__ == "__main__":
    sys.exit(main())
