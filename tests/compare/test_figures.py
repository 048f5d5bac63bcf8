import numpy as np

from recbole_llm.compare.figures import _label_sides


def test_labels_of_near_points_go_apart():
    sides = _label_sides(np.log10([0.30, 0.35, 3.0]), np.array([0.0414, 0.0390, 0.1]))
    assert sides == ["top right", "bottom right", "top right"]
    assert _label_sides(np.zeros(2), np.zeros(2)) == ["top right", "bottom right"]
    assert _label_sides(np.zeros(1), np.zeros(1)) == ["middle right"]
