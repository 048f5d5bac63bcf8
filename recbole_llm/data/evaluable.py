"""Check that a split can be evaluated."""

from collections.abc import Sequence

import numpy as np

from recbole_llm.config import Config
from recbole_llm.data.row_dataset import RowDataset
from recbole_llm.errors import DataError


def check_evaluated(config: Config, splits: Sequence[RowDataset]) -> list[str]:
    """Check the size of validation and test; return warnings for the user.

    Raises
    ------
    DataError
        If no row is left to test, or to validate where only validation is wanted.
    """
    train, valid, test = splits
    users = int((np.diff(train.offsets) > 0).sum())
    wanted = _phases(config)
    parts = {"valid": valid, "test": test}
    evaluated = {
        phase: np.count_nonzero(np.bincount(parts[phase].inter_feat[train.uid_field].numpy())) for phase in wanted
    }
    last = "test" if "test" in wanted else "valid"
    longest = int(np.diff(train.offsets).max())
    rule, split = "", f"eval_args.split={config['eval_args']['split']!r}"
    if config["benchmark_filename"] is not None:
        split = f"benchmark_filename={config['benchmark_filename']!r}"
    if "LS" in config["eval_args"]["split"] and config["benchmark_filename"] is None:
        rule = " (leave-one-out tests users of 3 interactions or more, and validates those of 4 or more)"
        if len(wanted) == 1:
            rule = " (leave-one-out needs users with 3 interactions or more)"
    if evaluated[last] == 0:
        raise DataError(
            f"Nothing to evaluate: of {users:,} users of {train.dataset_name!r}, the longest with {longest} "
            f"interactions, none has a {'test' if last == 'test' else 'validation'} item{rule}. Use more data, looser "
            f"filters, or another split than {split}."
        )
    texts = []
    if evaluated.get("valid") == 0:
        texts.append(
            f"No user has a validation item{rule}"
            + (
                ": there is no early stopping, and the weights of the last epoch are tested."
                if config["epochs"]
                else "."
            )
        )
    if config["protocol"] == "temporal_session" or config["benchmark_filename"] is not None:
        return texts
    names = {"test": "tested", "valid": "validated"}
    counts = [f"{evaluated[phase]:,} {names[phase]}" for phase in wanted[::-1] if evaluated[phase] < users]
    if counts:
        texts.append(f"Of {users:,} users, {' and '.join(counts)}{rule}.")
    return texts


def _phases(config: Config) -> list[str]:
    """Return the phases for which a split must leave rows."""
    if config["benchmark_filename"] is not None:
        return ["valid", "test"] if len(config["benchmark_filename"]) == 3 else ["test"]
    (kind, how), *_ = config["eval_args"]["split"].items()
    if kind == "temporal_session":
        return ["valid", "test"] if config["temporal_session_valid_ratio"] > 0 else ["test"]
    if kind == "LS":
        return {"valid_and_test": ["valid", "test"], "valid_only": ["valid"], "test_only": ["test"]}[how]
    return [phase for phase, share in zip(("valid", "test"), how[1:], strict=False) if share > 0] or ["test"]
