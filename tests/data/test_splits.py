"""Nothing to evaluate is an error, little to evaluate is said with counts."""

import pytest

from recbole_llm.errors import DataError

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
