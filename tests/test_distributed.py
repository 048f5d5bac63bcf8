"""Two processes compute what one computes: rows, gradients, metrics, resumed runs; and they end together."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llm import distributed
from recbole_llm.cli import main
from recbole_llm.config import Config
from recbole_llm.distributed import World
from recbole_llm.errors import ConfigError
from recbole_llm.processes import spawn
from recbole_llm.quick_start import experiment, load_run, run
from tests import distributed_work as work
from tests.worlds import write_cycle

TWO = {"nproc": 2, "world_size": 2, "ip": "localhost", "port": None, "group_offset": 0}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    write_cycle(folder / "data", users=41, items=60)
    return folder


@pytest.fixture(scope="module")
def two(folder):
    """What two processes found."""
    return spawn(work.everything, {"folder": folder}, TWO)


def test_each_row_is_in_the_share_of_one_process_once(two, folder):
    alone = work.rows(folder)
    for view, rows in alone.items():
        shares = [share[view] for share in two["rows"]]
        assert abs(len(shares[0]) - len(shares[1])) <= 1 + max(row[0] for row in rows)
        assert sorted(shares[0] + shares[1]) == sorted(rows)


@pytest.mark.parametrize("model", sorted(work.TRAINED))
def test_gradients_are_those_of_the_whole_batch(model, two, folder):
    alone, together = work.train(folder, model), two["trained"][model]
    assert model != "SASRec" or alone["rows"] % work.TRAINED[model]["train_batch_size"] == 1
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    for name, weight in alone["weights"].items():
        np.testing.assert_allclose(together["weights"][name], weight, rtol=1e-4, atol=1e-6, err_msg=name)
        assert np.array_equal(*(weights[name] for weights in together["of_all"])), name


def test_gradients_by_rows_are_averaged_whichever_rows_a_process_has_read(two):
    both, of_one, of_other, none = two["averaged"][0]
    assert both == [0, 0.5, 1.5, 0, 0, 0.5, 0]
    assert of_one == [0, 0, 0, 0, 0.5, 0, 0]
    assert of_other == [0, 0, 0, 0.5, 0, 0, 0]
    assert none is None
    assert two["averaged"][0] == two["averaged"][1]


@pytest.mark.parametrize("case", sorted(work.EVALUATED))
def test_metrics_are_those_of_one_process_to_the_last_digit(case, two, folder):
    alone, together = work.evaluate(folder, case), two["evaluated"][case]
    assert together["batches"] == -(-alone["batches"] // 2)
    assert together["masked"] == alone["masked"]
    assert together["unmasked"] == alone["unmasked"]
    for name, values in vars(alone["ranks"]).items():
        assert np.array_equal(getattr(together["ranks"], name), values), name


def test_processes_draw_different_random_numbers_and_share_an_error_of_the_main_one(two):
    assert two["draws"][0] != two["draws"][1]
    assert two["refused"] == ["refused by the main process"] * 2


def test_a_run_has_one_directory_and_the_metrics_of_its_weights(two, folder):
    (run_dir,) = (path for path in (folder / "saved").iterdir() if path.name.startswith("LiteLLM4Rec"))
    report = json.loads((run_dir / "results.json").read_text())
    assert report["batch"] == {"rows_per_update": 64, "processes": 2, "rows_per_process": 32}
    loaded = load_run(run_dir)
    assert loaded.trainer.evaluate(loaded.test_data, load_best_model=False) == report["test_result"]
    assert two["whole"]["test_result"] == report["test_result"]
    ranks = np.load(run_dir / "test_ranks.npz")
    assert np.array_equal(ranks["rank_masked"], loaded.trainer.evaluation.ranks.masked)
    assert len(np.unique(ranks["user"])) == 41


def test_texts_are_encoded_once(two):
    assert two["encoded"] == [60, 0]


def test_a_resumed_run_equals_an_uninterrupted_one(two):
    assert two["again"]["stages"] == two["whole"]["stages"]
    assert two["again"]["test_result"] == two["whole"]["test_result"]
    curves = []
    for result in (two["whole"], two["again"]):
        with (Path(result["run_dir"]) / "history.csv").open(newline="") as file:
            curves.append([{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)])
    assert curves[0] == curves[1]
    weights = [(Path(result["run_dir"]) / "model.safetensors").read_bytes() for result in (two["whole"], two["again"])]
    assert weights[0] == weights[1]


def test_two_stage_and_untrained_models(two, folder):
    alone = run("LLMSeqSim", "cycle", config_dict=work.settings(folder, epochs=0, reduced_dim=4))
    assert two["LLMSeqSim"]["test_result"] == alone["test_result"]
    assert set(two["S3Rec"]["test_result"]) == set(alone["test_result"])


def test_another_number_of_processes_may_resume(two, folder, caplog):
    """The state of a run of two processes is read by one."""
    import shutil

    run_dir = Path(two["whole"]["run_dir"])
    other = folder / "resumed" / run_dir.name
    shutil.copytree(run_dir, other)
    (other / "results.json").unlink()
    more = {"checkpoint_dir": str(folder / "resumed"), "learning_rate": 0.01, "resume": str(other)}
    again = run("LiteLLM4Rec", "cycle", config_dict=work.settings(folder, **more))
    assert "with 2 process(es) so far and goes on with 1" in caplog.text
    assert again["test_result"] == two["whole"]["test_result"]


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("error", ConfigError, "the second process has an error"),
        ("interrupt", KeyboardInterrupt, None),
        ("interrupt, then abort", KeyboardInterrupt, None),
    ],
)
def test_when_one_ends_all_end(how, error, words):
    with pytest.raises(error, match=words):
        spawn(work.fail, {"how": how}, TWO)


# ---- one process


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_a_partition(rows, size):
    shares = [list(range(rows))[World(rank, size).share(rows)] for rank in range(size)]
    assert sum(shares, []) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_torchrun_is_recognised(monkeypatch):
    assert distributed.launched() is None
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "MASTER_ADDR": "a", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.launched() == World(5, 8, 1, 4)
    config = Config("SASRec", "ml-100k", config_dict={"nproc": 2})
    assert config["local_rank"] == 1 and config["show_progress"] is False
    assert any("nproc=2" in notice for notice in config.notices)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.launched() is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nproc": 4, "world_size": 2}, "world_size=2 is too small for nproc=4"),
        ({"nproc": 2, "world_size": 4, "group_offset": 3}, "group_offset=3"),
        ({"local_rank": 0}, "torchrun"),
        ({"nproc": 0}, "at least 1"),
    ],
)
def test_contradictions_are_named(given, words):
    with pytest.raises(ConfigError, match=words):
        Config("SASRec", "ml-100k", config_dict=given)


def test_gpus_are_given_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def device(local_rank, **given):
        monkeypatch.setattr(distributed, "launched", lambda: World(local_rank, 2, local_rank, 2))
        return str(Config("SASRec", "ml-100k", config_dict=given)["device"])

    assert [device(rank) for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert [device(rank, gpu_id="3,1") for rank in range(2)] == ["cuda:3", "cuda:1"]
    with pytest.raises(ConfigError, match="no device for process 1 of 2"):
        device(1, gpu_id="3")
    monkeypatch.setattr(distributed, "launched", lambda: None)
    config = Config("SASRec", "ml-100k", config_dict={"gpu_id": "2,3"})
    assert str(config["device"]) == "cuda:2"
    assert any("set the number with --nproc" in notice for notice in config.notices)


def test_one_process_does_not_pretend_to_be_several(folder):
    config = Config("SASRec", "cycle", config_dict=work.settings(folder, nproc=2))
    with pytest.raises(ConfigError, match="nproc=2"):
        experiment(config, None)


@pytest.mark.parametrize("arguments", [["--model=SASRec,GRU4Rec", "--dataset=cycle"], ["tune", "--model=SASRec"]])
def test_comparisons_and_studies_are_not_started_by_torchrun(arguments, monkeypatch, capsys):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "first_to_fail", lambda: True)
    assert main(arguments) == 2
    assert "without torchrun" in capsys.readouterr().err
