import time

import pytest
import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError
from recbole_llm.evaluator.timing import inference_times
from recbole_llm.quick_start import run
from tests.worlds import write_cycle


class Clockwork:
    """Takes a known time for each batch and notes what it was given."""

    ITEM_SEQ_LEN = "item_length"

    def __init__(self, items, seconds):
        self.items, self.seconds, self.users = items, seconds, []

    def prepare(self, interaction):
        return None

    def scores_of(self, prepared, interaction):
        return self.full_sort_predict(interaction)

    def input_length(self, interaction):
        return int(interaction[self.ITEM_SEQ_LEN].max())

    def full_sort_predict(self, interaction):
        assert torch.is_inference_mode_enabled()
        time.sleep(self.seconds)
        self.users.append(interaction["user_id"].tolist())
        return torch.zeros(len(interaction) * self.items)  # flat, as some of RecBole's models do


class Prompted(Clockwork):
    """Prompts are slow, and outside the clock."""

    def prepare(self, interaction):
        time.sleep(0.2)
        return "prompts"

    def scores_of(self, prepared, interaction):
        assert prepared == "prompts"
        return self.full_sort_predict(interaction)

    def input_length(self, interaction):
        return 7


@pytest.fixture
def test_data(tmp_path):
    write_cycle(tmp_path, users=70)
    config = Config(
        "SASRec", "cycle", config_dict={"data_path": str(tmp_path), "eval_batch_size": 5, "use_gpu": False}
    )
    return prepare_data(config, HistoryDataset(config))[2]


def test_whole_batches_of_32_users_are_timed(test_data):
    model = Clockwork(test_data.dataset.item_num, 0.02)
    times = inference_times(model, test_data, torch.device("cpu"), k=10, warmup=1)
    assert [len(users) for users in model.users] == [32, 32, 32] and model.users[0] == model.users[1] != model.users[2]
    assert (times["users"], times["batches"], times["k"]) == (32, 2, 10)
    assert times["median_ms"] >= 20 and times["median_cpu_ms"] < times["median_ms"]  # sleeping is no work
    assert times["input_length"] == 11  # a history of 12 less the target


def test_prompts_are_ready_before_the_clock_starts(test_data):
    times = inference_times(Prompted(test_data.dataset.item_num, 0.0), test_data, torch.device("cpu"), 10, batches=1)
    assert times["median_ms"] < 200 and times["input_length"] == 7


def test_what_cannot_be_timed(tmp_path):
    write_cycle(tmp_path / "data")
    settings = {"data_path": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / "saved"), "use_gpu": False}
    sampled = {"mode": {"valid": "full", "test": "uni20"}}
    with pytest.raises(ConfigError, match="timing_batches=1 .* Set timing_batches=0 or mode=full"):
        run("MostPopular", "cycle", config_dict={**settings, "timing_batches": 1, "eval_args": sampled})
    with pytest.raises(ConfigError, match="invalid value for timing_batches: -1"):
        run("MostPopular", "cycle", config_dict={**settings, "timing_batches": -1})
