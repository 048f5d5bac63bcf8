"""Nothing to evaluate is an error, little to evaluate is said with counts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.data.filters import factorize
from recbole_llm.data.splits import leave_one_out
from recbole_llm.errors import DataError
from tests.properties import examples

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


def users(atomic, *lengths):
    rows = [f"u{user}\ti{n}\t{n}\n" for user, length in enumerate(lengths) for n in range(length)]
    atomic(inter=HEADER + "".join(rows))


@pytest.mark.parametrize(
    ("lengths", "split", "message"),
    [
        ((2, 2, 1), {"LS": "valid_and_test"}, "Nothing to evaluate: of 3 users of 'shop', the longest with 2 .* test"),
        ((2, 2), {"LS": "test_only"}, "none has a test item .leave-one-out needs users with 3"),
        ((2, 2), {"LS": "valid_only"}, "none has a validation item .leave-one-out needs users with 3"),
        ((2, 2), {"RS": [0.8, 0.1, 0.1]}, "none has a test item. Use more data"),
    ],
)
def test_nothing_to_evaluate(atomic, make_dataset, lengths, split, message):
    users(atomic, *lengths)
    with pytest.raises(DataError, match=message):
        make_dataset(eval_args={"split": split}).build()


def test_little_to_evaluate_is_said(atomic, make_dataset):
    users(atomic, 3, 3, 2, 5)
    dataset = make_dataset()
    dataset.build()
    (notice,) = dataset.config.notices
    assert notice.startswith("Of 4 users, 3 tested and 1 validated (leave-one-out tests users of 3")


def test_no_validation_is_said(atomic, make_dataset):
    users(atomic, 3, 3, 3)
    dataset = make_dataset()
    dataset.build()
    first, second = dataset.config.notices
    assert first.startswith("No user has a validation item")
    assert "no early stopping" in first
    assert second.startswith("Of 3 users, 0 validated")


def test_a_model_that_does_not_train_has_no_early_stopping_to_lose(atomic, make_dataset):
    users(atomic, 3, 3, 3)
    dataset = make_dataset(epochs=0)
    dataset.build()
    assert dataset.config.notices[0].startswith("No user has a validation item (leave-one-out")
    assert not any("early stopping" in notice for notice in dataset.config.notices)


@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"LS": "test_only"}, {"RS": [0.6, 0.2, 0.2]}])
def test_enough_to_evaluate_needs_no_word(atomic, make_dataset, split):
    users(atomic, 9, 8, 10)
    dataset = make_dataset(eval_args={"split": split})
    dataset.build()
    assert dataset.config.notices == []


@examples(60)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=40), st.data())
def test_leave_one_out_is_that_of_rows_in_order_of_time(rows, data):
    """As RecBole: all rows by time, stably, then groups of users in order of appearance."""
    mode = data.draw(st.sampled_from(["valid_and_test", "valid_only", "test_only"]))
    users, times = (np.array(column) for column in zip(*sorted(rows), strict=True))
    by_time = np.argsort(times, kind="stable")
    expected = {"train": [], "valid": [], "test": []}
    for user in dict.fromkeys(users[by_time].tolist()):
        own = [row for row in by_time.tolist() if users[row] == user]
        for part in {"valid_and_test": ["test", "valid"], "valid_only": ["valid"], "test_only": ["test"]}[mode]:
            if len(own) > 1:
                expected[part].append(own.pop())
        expected["train"] += own
    assert [part.tolist() for part in leave_one_out(users, times, mode)] == list(expected.values())


@examples(60)
@given(st.lists(st.sampled_from(["a", "b", "01", "1", None]), max_size=12), st.integers(0, 12))
def test_codes_without_hashing_are_those_with(texts, first):
    column = pd.Series(pd.Categorical.from_codes(*encoded(texts)))
    for part in (column, column[first:]):
        codes, values = factorize(part)
        expected, unique = pd.factorize(np.array(part.astype(object).where(part.notna(), None), dtype=object))
        assert codes.tolist() == expected.tolist()
        assert list(values) == list(unique)


def encoded(texts):
    """Return codes and categories in order of first appearance, as a file is read."""
    words = list(dict.fromkeys(text for text in texts if text is not None))
    return [-1 if text is None else words.index(text) for text in texts], pd.Index(words, dtype=object)
