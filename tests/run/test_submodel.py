"""Models inside a model: built from their own property file, or taken from a finished run."""

from types import SimpleNamespace

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.quick_start import run
from recbole_llm.run import submodel
from tests.worlds import write_cycle

SMALL = {"hidden_size": 8, "inner_size": 8, "n_heads": 1, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 8}


@pytest.fixture
def settings(tmp_path):
    write_cycle(tmp_path / "data")
    return {
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "show_progress": False,
        "use_gpu": False,
        "epochs": 1,
    }


def outer(settings, **more):
    config = Config("LRURec", "cycle", config_dict={**settings, **more})
    train, _, test = prepare_data(config, HistoryDataset(config))
    return SimpleNamespace(config=config, dataset=train.dataset, batch=next(iter(test))[0])


def test_a_trained_model_scores_as_in_its_own_run(settings):
    result = run("SASRec", "cycle", config_dict={**settings, **SMALL})
    here = outer(settings, MAX_ITEM_LIST_LENGTH=11)
    model = submodel.load_trained(result["run_dir"], here.config, here.dataset)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert (model.config["model"], model.max_seq_length) == ("SASRec", 8)

    own = outer(settings, MAX_ITEM_LIST_LENGTH=8).batch
    assert here.batch["item_length"].max() > 8  # the longer histories of the outer run are cut
    cut = submodel.newest(here.batch, "item_length", model.max_seq_length)
    torch.testing.assert_close(model.full_sort_predict(cut), model.full_sort_predict(own))


def test_a_model_that_reads_item_features_brings_its_own_data(settings, tmp_path):
    items = tmp_path / "data" / "cycle" / "cycle.item"
    lines = items.read_text(encoding="utf-8").splitlines()
    kinds = ["kind:token", *(f"k{i % 3}" for i in range(len(lines) - 1))]
    items.write_text("\n".join(f"{a}\t{b}" for a, b in zip(lines, kinds, strict=True)) + "\n", encoding="utf-8")
    result = run("FDSA", "cycle", config_dict={**settings, **SMALL, "selected_features": ["kind"]})
    here = outer(settings, MAX_ITEM_LIST_LENGTH=8)
    assert here.dataset.item_feat is None
    model = submodel.load_trained(result["run_dir"], here.config, here.dataset)
    assert torch.isfinite(model.full_sort_predict(here.batch)[:, 1:]).all()


def test_both_stages_of_s3rec(settings, tmp_path):
    items = tmp_path / "data" / "cycle" / "cycle.item"
    lines = items.read_text(encoding="utf-8").splitlines()
    items.write_text("\n".join([lines[0] + "\tclass:token_seq", *(line + "\tx" for line in lines[1:])]) + "\n")
    result = run("S3Rec", "cycle", config_dict={**settings, **SMALL, "pretrain_epochs": 1, "item_attribute": "class"})
    here = outer(settings, MAX_ITEM_LIST_LENGTH=8)
    model = submodel.load_trained(result["run_dir"], here.config, here.dataset)
    assert model.train_stage == "finetune"
    assert torch.isfinite(model.full_sort_predict(here.batch)[:, 1:]).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"time_order": "recbole"}, "another time_order"),
        ({"item_inter_num_interval": "[2,inf)"}, "another item_inter_num_interval"),
        ({"eval_args": {"split": {"LS": "test_only"}}}, "another eval_args.split"),
        ({"MAX_ITEM_LIST_LENGTH": 5}, "set MAX_ITEM_LIST_LENGTH to the same"),
    ],
)
def test_a_run_on_other_data_is_refused(settings, change, says):
    result = run("SASRec", "cycle", config_dict={**settings, **SMALL})
    here = outer(settings, **{"MAX_ITEM_LIST_LENGTH": 8, **change})
    with pytest.raises(CheckpointError, match=says):
        submodel.load_trained(result["run_dir"], here.config, here.dataset)


def test_changed_files_are_refused(settings, tmp_path):
    result = run("SASRec", "cycle", config_dict={**settings, **SMALL})
    with (tmp_path / "data" / "cycle" / "cycle.inter").open("a", encoding="utf-8") as file:
        file.write("u0\ti29\t99\n")
    here = outer(settings, MAX_ITEM_LIST_LENGTH=8)
    with pytest.raises(CheckpointError, match="another cycle.inter"):
        submodel.load_trained(result["run_dir"], here.config, here.dataset)


def test_what_is_no_finished_run_is_refused(settings, tmp_path):
    here = outer(settings)
    with pytest.raises(CheckpointError, match="not a run directory"):
        submodel.load_trained(tmp_path, here.config, here.dataset)


def test_an_inner_model_has_its_own_property_file_and_the_data_of_the_run(settings):
    config = Config(
        "LRURec", "cycle", config_dict={**settings, "learning_rate": 0.5, "seed": 7, "MAX_ITEM_LIST_LENGTH": 9}
    )
    inner = submodel.inner_config("SASRec", config, {"hidden_size": 16})
    assert (inner["seed"], inner["MAX_ITEM_LIST_LENGTH"], inner["hidden_size"]) == (7, 9, 16)
    assert inner["learning_rate"] == 0.001  # the outer model's is the outer model's
    assert inner["data_path"] == config["data_path"]
    with pytest.raises(ConfigError, match="Did you mean 'SASRec'"):
        submodel.inner_config("SASrec", config)


def test_newest_keeps_the_end_of_every_list():
    lists = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 0, 0]])
    batch = Interaction(
        {"a_list": lists, "v_list": lists[..., None] * torch.tensor([1, 10]), "item_length": (lists > 0).sum(1)}
    )
    cut = submodel.newest(batch, "item_length", 2)
    assert cut["a_list"].tolist() == [[4, 5], [6, 7], [9, 10]]
    assert cut["v_list"].tolist() == [[[4, 40], [5, 50]], [[6, 60], [7, 70]], [[9, 90], [10, 100]]]
    assert cut["item_length"].tolist() == [2, 2, 2]
    assert submodel.newest(batch, "item_length", 5) is batch
