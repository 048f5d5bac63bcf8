"""What a result says about the code that made it."""

import subprocess
from pathlib import Path

import pytest

from recbole_llm.run.provenance import git_state

ROOT = Path(__file__).parents[2]


def test_a_result_names_the_commit():
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a checkout")
    assert git_state()["commit"] == head.stdout.strip()
