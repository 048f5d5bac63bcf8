"""RecBole is installed apart from this package; without it every way in says how."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REMEDY = "pip install --no-deps recbole==1.2.1"


@pytest.fixture
def python(tmp_path):
    """Python with everything but RecBole: a path entry before all others refuses to find it."""
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "from importlib.machinery import PathFinder\n"
        "found = PathFinder.find_spec.__func__\n"
        "def find_spec(cls, name, path=None, target=None):\n"
        "    return None if name.split('.')[0] == 'recbole' else found(cls, name, path, target)\n"
        "PathFinder.find_spec = classmethod(find_spec)\n"
    )

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_the_command_line_says_what_to_type(python):
    done = python(str(ROOT / "run_recbole_llm.py"), "--model=LRURec", "--dataset=ml-100k")
    assert done.returncode == 2
    assert REMEDY in done.stderr and "Traceback" not in done.stderr


def test_an_import_says_what_to_type(python):
    done = python("-c", "from recbole_llm.quick_start import run")
    assert done.returncode == 1 and REMEDY in done.stderr.splitlines()[-1]


def test_help_needs_no_recbole(python):
    done = python(str(ROOT / "run_recbole_llm.py"), "--version")
    assert done.returncode == 0, done.stderr
