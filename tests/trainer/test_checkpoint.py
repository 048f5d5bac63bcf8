import random

import numpy as np
import pytest
import torch
from torch import nn

from recbole_llm.errors import CheckpointError
from recbole_llm.trainer import checkpoint


class Small(nn.Module):
    learned_earlier = ()

    def __init__(self, width=4):
        super().__init__()
        self.table = nn.Embedding(5, width)
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.table.weight  # tied
        self.frozen = nn.Linear(width, width)
        self.frozen.requires_grad_(False)
        self.register_buffer("vectors", torch.arange(6.0).view(2, 3).T)  # not contiguous
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


class Other(nn.Linear):
    learned_earlier = ()


def test_what_is_saved_is_what_was_learned(tmp_path):
    assert set(checkpoint.learned_tensors(Small())) == {"table.weight", "vectors"}
    model = Small()
    checkpoint.save_weights(model, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    other = Small()
    frozen = other.frozen.weight.clone()
    checkpoint.load_weights(other, tmp_path / "model.safetensors")
    assert torch.equal(other.table.weight, model.table.weight)
    assert other.head.weight is other.table.weight
    assert torch.equal(other.frozen.weight, frozen)


def test_what_an_earlier_stage_has_learned_is_kept():
    model = Small()
    model.learned_earlier = ("frozen.",)
    names = {"table.weight", "vectors", "frozen.weight", "frozen.bias"}
    assert set(checkpoint.learned_tensors(model)) == names


def test_what_belongs_to_a_frozen_weight_is_left_out():
    """Weights of 4 bits have scales of their own in the state, under the name of the weight."""
    model = Small()
    model.frozen.register_state_dict_post_hook(
        lambda module, state, prefix, _: state.update({f"{prefix}weight.absmax": torch.ones(3)})
    )
    assert "frozen.weight.absmax" in model.state_dict()
    assert set(checkpoint.learned_tensors(model)) == {"table.weight", "vectors"}


def test_fingerprint():
    first, second = Small(), Small()
    assert checkpoint.fingerprint(first) != checkpoint.fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert checkpoint.fingerprint(first) == checkpoint.fingerprint(second)
    second.frozen.bias.data[0] += 1e-6
    assert checkpoint.fingerprint(first) != checkpoint.fingerprint(second)


def test_weights_of_another_shape_are_refused_and_named(tmp_path):
    checkpoint.save_weights(Small(4), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"table.weight: \(5, 4\) in the file, \(5, 6\) in the model"):
        checkpoint.load_weights(Small(6), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="unknown.*table.weight"):
        checkpoint.load_weights(Other(2, 2), tmp_path / "model.safetensors")


def test_damaged_and_missing_files_are_named(tmp_path):
    file = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="There is no file"):
        checkpoint.load_weights(Small(), file)
    checkpoint.save_weights(Small(), file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load_weights(Small(), file)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    checkpoint.save_weights(Small(), file)
    before = file.read_bytes()

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", no_space)
    with pytest.raises(CheckpointError, match="No space left.*checkpoint_dir"):
        checkpoint.save_weights(Small(), file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_state_restores_weights_optimizer_and_every_random_generator(tmp_path, kind):
    def step(model, optimizer):
        loss = model.head(model.table(torch.tensor([1, 2]))).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    torch.manual_seed(0)
    model = Small()
    optimizer = kind(model.table.parameters(), lr=0.1)
    step(model, optimizer)
    checkpoint.save_state(tmp_path / "training_state", model, optimizer, {"epoch": 3})
    draws = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
    step(model, optimizer)

    other = Small()
    fresh = kind(other.table.parameters(), lr=0.7)
    values = checkpoint.load_state(checkpoint.read_whole_state(tmp_path / "training_state"), other, fresh)
    assert values == {"epoch": 3} and fresh.param_groups[0]["lr"] == 0.1
    again = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
    assert torch.equal(draws[0], again[0]) and np.array_equal(draws[1], again[1]) and draws[2] == again[2]
    step(other, fresh)
    assert torch.equal(other.table.weight, model.table.weight)


def test_no_file_of_a_state_is_a_pickle(tmp_path):
    model = Small()
    checkpoint.save_state(tmp_path / "training_state", model, torch.optim.Adam(model.table.parameters()), {})
    names = sorted(path.name for path in (tmp_path / "training_state").iterdir())
    assert names == ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]


def test_after_a_crash_between_two_renames_a_whole_state_is_found(tmp_path):
    model = Small()
    optimizer = torch.optim.Adam(model.table.parameters())
    folder = tmp_path / "training_state"
    assert checkpoint.state_folder(tmp_path) is None
    checkpoint.save_state(folder, model, optimizer, {"epoch": 1})
    folder.rename(tmp_path / "training_state.old")
    assert checkpoint.read_state(checkpoint.state_folder(tmp_path))["epoch"] == 1
    checkpoint.save_state(folder, model, optimizer, {"epoch": 2})
    assert checkpoint.read_state(checkpoint.state_folder(tmp_path))["epoch"] == 2


def test_a_damaged_state_is_named(tmp_path):
    model = Small()
    optimizer = torch.optim.Adam(model.table.parameters())
    checkpoint.save_state(tmp_path / "training_state", model, optimizer, {})
    (tmp_path / "training_state" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="state.json is damaged"):
        checkpoint.read_whole_state(tmp_path / "training_state")


def test_one_flipped_byte_anywhere_is_an_error(tmp_path):
    file, model = tmp_path / "model.safetensors", Small()
    checkpoint.save_weights(model, file)
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):
            checkpoint.load_weights(Small(), file)
    file.write_bytes(whole)
    checkpoint.load_weights(Small(), file)


def test_one_flipped_byte_in_the_training_state_is_an_error(tmp_path):
    model, folder = Small(), tmp_path / "training_state"
    checkpoint.save_state(folder, model, torch.optim.Adam(model.table.parameters()), {"epoch": 3})
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for place in range(len(whole) // 50, len(whole), max(1, len(whole) // 50)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CheckpointError):
                checkpoint.read_whole_state(folder)
        file.write_bytes(whole)
    assert checkpoint.read_whole_state(folder).values["epoch"] == 3
