import sys
import time

import pytest
import torch

from recbole_llm.trainer.meter import Meter


def test_seconds_add_up_and_the_highest_peak_stays():
    meter = Meter(torch.device("cpu"))
    for megabytes in (40, 1):
        with meter.phase("train"):
            bytearray(megabytes * 2**20)
    with pytest.raises(ValueError, match="here"), meter.phase("test"):
        raise ValueError("here")
    assert list(meter.seconds) == list(meter.cpu_seconds) == ["train", "test"]
    assert all(value > 0 for value in [*meter.seconds.values(), *meter.peak_memory_mb.values()])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets the peak of a process")
def test_a_phase_does_not_inherit_the_peak_of_the_one_before():
    meter = Meter(torch.device("cpu"))
    with meter.phase("large"):
        block = bytearray(200 * 2**20)
        del block
    with meter.phase("small"):
        pass
    assert meter.peak_memory_mb["large"] - meter.peak_memory_mb["small"] > 150


def test_what_an_inner_phase_measures_counts_there_only():
    meter = Meter(torch.device("cpu"))
    with meter.phase("train"):
        with meter.phase("valid"):
            time.sleep(0.05)
        time.sleep(0.02)
    assert meter.seconds["valid"] >= 0.05 > meter.seconds["train"] - 0.02 >= 0
    assert meter.peak_memory_mb["valid"] > 0


def test_cpu_seconds_are_those_of_work_and_not_of_waiting():
    meter = Meter(torch.device("cpu"))
    with meter.phase("work"):
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    with meter.phase("wait"):
        time.sleep(0.2)
    assert 0.2 <= meter.cpu_seconds["work"] <= meter.seconds["work"] + 0.05
    assert meter.cpu_seconds["wait"] < 0.15 and meter.seconds["wait"] >= 0.2
