"""Kill -9 at random times, as often as one likes: ``RECBOLE_LLM_KILLS=50 pytest -k kills``.

Work is done in a fork of the test's process, which has imported everything, so that a kill costs what the work costs.
"""

import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch

KILLS = int(os.environ.get("RECBOLE_LLM_KILLS", "2"))
SEED = int(os.environ.get("RECBOLE_LLM_KILLS_SEED", time.time_ns() % 10**6))

needs_fork = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="work is killed in a fork")


def _work(function):
    torch.set_num_threads(1)  # a fork must not wait for threads that it does not have
    function()


def _start(function):
    process = multiprocessing.get_context("fork").Process(target=_work, args=(function,))
    process.start()
    return process


def seconds_of(function):
    """Let the work be done in a fork, undisturbed; how long that took."""
    start = time.monotonic()
    process = _start(function)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - start


def kill_at_random(function, seconds):
    """Do the work and kill it, :data:`KILLS` times, each at a random time within its duration.

    Returns
    -------
    int
        How many times it was killed before it had ended.
    """
    rng = random.Random(SEED)
    sys.stdout.write(f"RECBOLE_LLM_KILLS={KILLS} RECBOLE_LLM_KILLS_SEED={SEED}\n")  # shown where the test fails
    killed = 0
    for _ in range(KILLS):
        process = _start(function)
        process.join(rng.uniform(0, seconds))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
    return killed
