import sys

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
    assert list(meter.seconds) == ["train", "test"]
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
