"""The process of one run, ``python -m recbole_llm.compare.worker``.

A process of its own gives every run its own peak memory and undoes what a model's import leaves behind; a run that is
killed takes nothing else along. It reads its task as a line of JSON from standard input, which hides tokens from disk
and process list, and ends when that pipe closes: with the process that started it, however that ended.
"""

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def main() -> int:
    """Run one experiment; the answer is JSON on standard output: ``{"run_dir": ...}`` or ``{"error": ...}``."""
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Output of libraries goes to the terminal, not into the answer.
    answer_to = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.argv = task["argv"]  # the command that `results.json` names is the one that was typed
    try:
        answer = run_task(task)
    except KeyboardInterrupt:
        return 130
    with os.fdopen(answer_to, "w", encoding="utf-8") as pipe:
        json.dump(answer, pipe)
    return 0


def run_task(task: dict[str, Any]) -> dict[str, str]:
    """Run one experiment; errors of the run are part of the answer."""
    from recbole_llm.errors import RecBoleLLMError

    try:
        from recbole_llm.run.experiment import run

        result = run(task["model"], task["dataset"], [task["file_settings"]], task["given"], task["arguments"])
    except RecBoleLLMError as error:
        return {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    return {"run_dir": str(Path(result["run_dir"]))}


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
