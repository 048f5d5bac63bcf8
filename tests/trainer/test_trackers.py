import csv
import sys
from types import SimpleNamespace

import pytest

from recbole_llm.errors import MissingExtraError
from recbole_llm.trainer.trackers import Trackers

ROWS = [
    {"stage": "train", "epoch": 1, "updates": 3, "train_loss": 2.5},
    {"stage": "train", "epoch": 2, "updates": 6, "train_loss": 2.0, "valid_score": 0.25, "recall@10": 0.5},
]


class Config(dict):
    merged = {"learning_rate": 0.1, "llm_token": "s3cret"}

    def __missing__(self, key):
        return None


class WandB(SimpleNamespace):
    """What the package has of it."""

    def init(self, project, config):
        self.project, self.settings, self.rows, self.ended = project, config, [], 0
        return self

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.ended += 1


def test_the_curve_is_a_table_with_all_columns(tmp_path):
    trackers = Trackers(Config(), tmp_path)
    for number in (1, 2):
        trackers.log(ROWS[:number])
    with (tmp_path / "history.csv").open(encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert first == {**{key: str(value) for key, value in ROWS[0].items()}, "valid_score": "", "recall@10": ""}
    assert second == {key: str(value) for key, value in ROWS[1].items()}
    assert list((tmp_path / "tensorboard").iterdir())
    trackers.close()
    trackers.close()


@pytest.mark.parametrize("how", [{"is_main": False}, {"run_dir": None}, {"to_files": False}])
def test_nothing_is_written_by_other_processes_or_unsaved_runs(how, tmp_path):
    trackers = Trackers(Config(), how.get("run_dir", tmp_path), how.get("is_main", True))
    trackers.log(ROWS, to_files=how.get("to_files", True))
    trackers.close()
    assert not list(tmp_path.iterdir())


def test_weights_and_biases_gets_numbers_by_stage_and_no_secret(monkeypatch, tmp_path):
    wandb = WandB()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trackers = Trackers(Config(log_wandb=True, wandb_project="shop"), None)
    trackers.log(ROWS)
    trackers.close()
    assert (wandb.project, wandb.settings, wandb.ended) == ("shop", {"learning_rate": 0.1}, 1)
    assert wandb.rows == [
        {"epoch": 2, "train/updates": 6, "train/train_loss": 2.0, "train/valid_score": 0.25, "train/recall@10": 0.5}
    ]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="log_wandb=True.*pip install wandb"):
        Trackers(Config(log_wandb=True), None)
