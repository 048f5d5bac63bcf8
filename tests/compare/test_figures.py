"""Charts: labels and what they must not lie on."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.compare import figures
from recbole_llm.compare.figures import LETTER, LINE, PLOT, label_places
from tests.compare.made_up_runs import draw_ranks, made_up_comparison


def boxes_of(places, letters):
    return [
        (left, left + LETTER * count, middle - LINE / 2, middle + LINE / 2)
        for (left, middle), count in zip(places, letters, strict=True)
    ]


def meet(one, other):
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def test_one_point_has_its_label_on_the_right():
    ((left, middle),) = label_places(*(np.array([v]) for v in (100.0, 50.0, 30.0, 70.0)), [6])
    assert left > 100 and middle == 50


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(10, PLOT[0] * 0.7), st.floats(60, PLOT[1] - 60), st.floats(0, 40), st.integers(3, 14)),
        min_size=1,
        max_size=5,
    )
)
def test_labels_lie_neither_on_error_bars_nor_on_each_other(points):
    x, y, half, letters = (np.array(values) for values in zip(*points, strict=True))
    places = label_places(x, y, y - half, y + half, letters)
    labels = boxes_of(places, letters)
    bars = [(x[i] - 1, x[i] + 1, y[i] - half[i], y[i] + half[i]) for i in range(len(x))]
    for number, label in enumerate(labels):
        assert not any(meet(label, bar) for bar in bars)
        assert not any(meet(label, other) for other in labels[:number])


def test_every_row_is_named_beside_its_point():
    rng = np.random.default_rng(0)
    made = made_up_comparison({name: draw_ranks(rng) for name in ("SASRec", "a & b", "c")})
    figure = figures.accuracy_against_time(made)
    assert [note.text for note in figure.layout.annotations] == ["SASRec", "a &amp; b", "c"]
    assert len(figure.data) == 3 and all(trace.error_y.array[0] > 0 for trace in figure.data)
