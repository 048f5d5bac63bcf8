"""benchmarks/scale.py at sizes that take no time: every stage runs and measures what it says."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from recbole_llm.data.lines import read_lines

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs a checkout: the wheel has no benchmarks")
OPTIONS = argparse.Namespace(users=5, steps=2)


@pytest.fixture(scope="module")
def scale():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("scale", FOLDER / "scale.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def test_made_up_data_has_every_item_and_is_made_once(scale, tmp_path):
    path = scale.make_data(tmp_path, 900, 40)
    lines = [line.split("\t") for _, line in read_lines(path)]
    assert lines[0] == ["user_id:token", "item_id:token", "timestamp:float"]
    assert len(lines) == 901
    assert {line[1] for line in lines[1:]} == {str(item) for item in range(40)}
    assert scale.make_data(tmp_path, 900, 40).stat().st_mtime_ns == path.stat().st_mtime_ns


@pytest.mark.parametrize("stage", ["prepare", "step", "prepare_pyarrow"])
def test_stages_over_interactions(scale, stage, tmp_path, one_thread):
    found = getattr(scale, stage)(scale.make_data(tmp_path, 17_000, 40), OPTIONS)
    assert found["seconds"] > 0
    assert found["MB"] >= 0


@pytest.mark.parametrize("stage", ["lists", "lists_numpy"])
def test_stages_over_items(scale, stage, one_thread):
    assert getattr(scale, stage)(120, OPTIONS)["seconds"] > 0


def test_growth_is_the_slope_of_logarithms(scale):
    assert scale.exponent([10, 100, 1000], [2, 20, 200]) == pytest.approx(1)
    assert scale.exponent([10, 1000], [3, 3]) == pytest.approx(0)
    assert scale.numbers("5e6,20") == [5_000_000, 20]
