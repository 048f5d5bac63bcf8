"""An order that ties decide does not go unnoticed."""

import numpy as np
import pytest

from recbole_llm.quick_start import run
from tests.worlds import write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("alike", [True, False])
def test_the_share_of_tied_targets_stands_beside_the_metrics(alike, tmp_path, caplog):
    histories = {f"u{u}": [f"i{(5 * u + 3 * i) % 20}" for i in range(5)] for u in range(12)}
    write_dataset(tmp_path / "data", "same", histories, {f"i{i}": f"thing {i}" for i in range(20)})
    # One component that is not zero: every kernel gives the same products, so that equal vectors tie on any machine.
    vectors = np.zeros((20, 3), dtype=np.float32)
    vectors[:, 0] = 2 if alike else 2 + np.arange(20)
    np.savez(tmp_path / "vectors.npz", ids=np.array([f"i{i}" for i in range(20)]), vectors=vectors)
    settings = {
        "item_vectors": str(tmp_path / "vectors.npz"),
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "dim_reduction": "none",
        "use_gpu": False,
        "show_progress": False,
    }
    with caplog.at_level("INFO"):
        run("LLMSeqSim", "same", config_dict=settings)
    rows = [line.split() for line in caplog.text.splitlines() if line.startswith("tied targets")]
    assert rows == ([["tied", "targets", "1.000000", "1.000000"]] if alike else [])
    assert ("100.0% of the targets share their score" in caplog.text) is alike
