import json
import re
from pathlib import Path

import pytest

import recbole_llm
from recbole_llm.cli import main
from recbole_llm.config.registry import own_models, props_dir, stock_models

TINY = ["--epochs=1", "--train_batch_size=64", "--MAX_ITEM_LIST_LENGTH=5", "--topk=5", "--valid_metric=NDCG@5"]


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


def only_run_dir():
    (run_dir,) = Path("saved").iterdir()
    return run_dir


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["help"], ["run", "--help"], ["--model=SASRec", "--help"], ["models", "-h"]]
)
def test_help(arguments, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for word in (
        "--model=",
        "--dataset=",
        "--resume=",
        "--config_files",
        "--data_path",
        "--smoke",
        "convert",
        "check",
    ):
        assert word in text
    assert str(props_dir()) in text
    assert max(map(len, text.splitlines()[:-1])) < 120


def test_the_examples_of_the_help_name_real_keys(capsys):
    main(["--help"])
    from recbole_llm.config import Config

    config = Config("LiteLLM4Rec", "ml-100k")
    known = set(config.merged) | {"config_files", "help", "version", "key", "input", "output"}
    known |= {"users", "k", "out", "seeds", "faiss", "params_file"}
    assert set(re.findall(r"--(\w+)", capsys.readouterr().out)) <= known


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-llm {recbole_llm.__version__}\n"


def test_models(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*own_models(), *stock_models()])


@pytest.mark.parametrize("command", ["convert", "check"])
def test_other_commands_have_their_own_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "recbole-llm --help"),
        (["trian"], "'trian' is not a command. Commands:"),
        (["modls"], "Did you mean 'models'?"),
        (["--model", "SASRec", "--dataset=ml-100k"], "--model needs a value: write --model=VALUE"),
        (["--model=SASRec", "--dataset=ml-100k", "--epochs", "3"], "write --epochs=3"),
        (["--dataset=ml-100k"], "No model is given"),
        (["--model=SASRec"], "No dataset is given"),
        (["--model=SASRek", "--dataset=ml-100k"], "Did you mean 'SASRec'?"),
        (["--model=SASRec", "--dataset=ml-100k", "--epochs=many"], "invalid value for epochs: 'many'"),
        (["--model=SASRec", "--dataset=nosuch"], "nosuch"),
        (["--model=SASRec", "--dataset=ml-100k", "--config_files=a.yaml"], "There is no settings file 'a.yaml'"),
        (["--resume=nowhere"], "is it a run directory?"),
        (["--model=BPR", "--dataset=ml-100k"], "is not a sequential recommender"),
        (["models", "--x=1"], "takes no parameters"),
        (["--model=LiteLLM4Rec", "--dataset=ml-100k", "--llm=google-t5/t5-small"], "pip install"),
        (["--model=LiteLLM4Rec", "--dataset=ml-100k", "--llm=./nothing"], "does not exist"),
    ],
)
def test_user_errors_are_one_message_and_status_2(arguments, says, capsys):
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("recbole-llm: error: ")
    assert says in text
    assert "Traceback" not in text


def test_a_run(shop):
    assert main(["--model=SASRec", "--dataset=shop", *TINY]) == 0
    report = json.loads((only_run_dir() / "results.json").read_text(encoding="utf-8"))
    assert report["settings"]["show_progress"] is False  # stderr is no terminal
    assert report["epochs"] == 1


def test_run_is_the_default_command_and_an_allowed_unknown_key_is_reported_twice(shop, caplog):
    arguments = ["run", "--model=SASRec", "--dataset=shop", "--learning_rte=1", *TINY]
    assert main(arguments) == 2
    assert not Path("saved").exists()
    assert main([*arguments, "--allow_unknown_keys"]) == 0
    said = [record.message for record in caplog.records if "learning_rte" in record.message]
    assert said == ["The parameter 'learning_rte' is not known. Did you mean 'learning_rate'?"] * 2
    assert said[0] in (only_run_dir() / "run.log").read_text(encoding="utf-8")
    assert json.loads((only_run_dir() / "results.json").read_text(encoding="utf-8"))["notices"] == said[:1]


def test_the_command_line_wins_over_files(shop):
    Path("mine.yaml").write_text("epochs: 3\nhidden_size: 8\nmodel: SASRec\ndataset: shop\n", encoding="utf-8")
    assert main(["--config_files=mine.yaml", *TINY]) == 0
    settings = json.loads((only_run_dir() / "results.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["epochs"], settings["hidden_size"]) == (1, 8)


def test_interrupt_and_resume(shop, monkeypatch, caplog):
    from recbole_llm.trainer.trainer import RunTrainer

    original = RunTrainer._train_epoch

    def train(self, data, epoch_idx, *args, **kwargs):
        if epoch_idx == 1:
            raise KeyboardInterrupt
        return original(self, data, epoch_idx, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "_train_epoch", train)
    arguments = ["--model=SASRec", "--dataset=shop", *TINY[1:], "--epochs=2"]
    assert main(arguments) == 130
    monkeypatch.setattr(RunTrainer, "_train_epoch", original)
    run_dir = only_run_dir()
    assert f"--resume={run_dir}" in caplog.text

    assert main([f"--resume={run_dir}", "--seed=9"]) == 2
    assert main([f"--resume={run_dir}"]) == 0
    assert (run_dir / "results.json").is_file()
    assert only_run_dir() == run_dir
    assert main([f"--resume={run_dir}"]) == 2  # finished


def test_bare_resume(shop):
    assert main(["--model=SASRec", "--dataset=shop", "--resume", *TINY]) == 0
    assert (only_run_dir() / "results.json").is_file()
