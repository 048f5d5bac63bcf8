"""The command line: ``recbole-llm`` and ``python run_recbole_llm.py``.

recbole-llm [run] --model=LiteLLM4Rec --dataset=ml-100k [--config_files="a.yaml b.yaml"] [--any_key=value ...]
recbole-llm --resume=RUN_DIR
recbole-llm models
recbole-llm convert NAME --input PATH [--output FOLDER]
recbole-llm check DATASET [--data_path FOLDER]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_llm.errors import RecBoleLLMError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 for success, 2 for an error of the user's input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    try:
        return _dispatch(command, arguments)
    except RecBoleLLMError as error:
        sys.stderr.write(f"recbole-llm: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def _dispatch(command: str, arguments: list[str]) -> int:
    if command in ("help", "-h", "--help") or {"-h", "--help"} & set(arguments[:1]) and command == "run":
        sys.stdout.write(__doc__ or "")
        return 0
    if command == "convert":
        from recbole_llm.convert.command import convert_main

        return convert_main(arguments)
    if command == "check":
        from recbole_llm.convert.command import check_main

        return check_main(arguments)

    from recbole_llm.config import nearest, own_models, parse_arguments, stock_models

    if command == "models":
        sys.stdout.write(f"recbole-llm: {', '.join(own_models())}\nRecBole: {', '.join(stock_models())}\n")
        return 0
    if command != "run":
        known = ["run", "models", "convert", "check", "help"]
        raise RecBoleLLMError(f"{command!r} is not a command.{nearest(command, known)} Commands: {', '.join(known)}.")
    return _run(parse_arguments(arguments))


def _run(given: dict) -> int:
    from recbole_llm.quick_start import run

    files = []
    if isinstance(given.get("resume"), str) and "model" not in given:
        folder = Path(given["resume"])
        if not (folder / "config.yaml").is_file():
            raise RecBoleLLMError(
                f"--resume={given['resume']}: there is no config.yaml in {folder}; is it a run directory?"
            )
        files = [folder / "config.yaml"]
    run(config_file_list=files, arguments=given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
