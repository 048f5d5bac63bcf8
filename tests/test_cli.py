import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_llm
from recbole_llm.cli import COMMANDS, main, overview
from recbole_llm.config.registry import own_models, props_dir, stock_models
from recbole_llm.config.schema import types_by_key
from recbole_llm.config.values import load_yaml

TINY = ["--epochs=1", "--train_batch_size=64", "--MAX_ITEM_LIST_LENGTH=5", "--topk=5", "--valid_metric=NDCG@5"]


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


def only_run_dir():
    (run_dir,) = Path("saved").iterdir()
    return run_dir


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["--model=SASRec", "--help"]])
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


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_of_its_own(command, capsys):
    try:
        status = main([command, "--help"])
    except SystemExit as stop:  # argparse's
        status = stop.code
    assert status == 0
    text = capsys.readouterr().out
    assert command in text and "Traceback" not in text
    assert f"  {COMMANDS[command].usage}"[:20] in overview()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["recommend"], "required: RUN_DIR"),
        (["recommend", "run", "--k=x"], "--k: invalid int value: 'x'"),
        (["recommend", "run", "--history=never"], "--history: invalid choice: 'never'"),
        (["recommend", "run", "--mask_history=maybe"], "--mask_history: invalid choice"),
        (["export", "run"], "required: --out"),
        (["export", "run", "--out="], "--out is blank"),
        (["evaluate"], "required: RUN_DIR"),
        (["convert"], "NAME and --input are required"),
        (["convert", "ml-1m", "--input", "a", "--k_core=x"], "--k_core: invalid int value"),
    ],
)
def test_a_wrong_option_is_one_line(arguments, text, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and text in printed.err and len(printed.err.splitlines()) == 1


def test_the_examples_of_the_help_name_real_keys(capsys):
    main(["--help"])
    main(["compare", "--help"])
    known = {
        *types_by_key(),
        "help",
        "version",
        "check",
        "key",
        "input",
        "output",
        "users",
        "k",
        "out",
        "name",
        "faiss",
        "debug",
        "params_file",
    }
    assert set(re.findall(r"--(\w+)", capsys.readouterr().out)) - {"LABEL"} <= known


def test_help_explains_settings_and_models(capsys):
    assert main(["help", "learning_rate"]) == 0
    text = capsys.readouterr().out
    assert "number above 0" in text and "RecBole's default: 0.001" in text and "LiteLLM4Rec, POD: 0.0005" in text
    assert main(["help", "--loss"]) == 0
    assert "'sampled_softmax'" in capsys.readouterr().out
    assert main(["help", "LRURec"]) == 0
    assert "state_size = 128" in capsys.readouterr().out
    assert main(["help", "compare"]) == 0
    assert "usage: recbole-llm compare" in capsys.readouterr().out
    assert main(["help", "lerning_rate"]) == 2
    assert "Did you mean 'learning_rate'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["models"], 0),
        (["help", "topk"], 0),
        (["run", "--help"], 0),
        (["-m", "SASRec", "-d", "ml-100k", "--epochs", "many"], 2),
        (["-m", "SASRec", "-d", "ml-100", "--epochs", "3"], 2),
        (["-m", "SASRek", "-d", "ml-100k"], 2),
        (["-m", "LRURec", "-d", "ml-100k", "--config_files=nosuch.yaml"], 2),
        (["modls"], 2),
    ],
)
def test_what_needs_no_torch_does_not_import_it(arguments, status):
    """On d0eece4 each took the 2.4 seconds of CPU time that torch, RecBole and sklearn need."""
    code = (
        "import sys\nfrom recbole_llm.cli import main\nstatus = main(sys.argv[1:])\n"
        "heavy = {'torch', 'recbole', 'sklearn', 'pandas', 'numpy', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-llm {recbole_llm.__version__}\n"


def test_models(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*own_models(), *stock_models()])
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "2310.02367" in rows["LRURec"] and "reproduced" in rows["LRURec"]


def test_every_model_of_the_table_says_what_it_needs():
    about = load_yaml(props_dir() / "models.yaml")
    assert sorted(about) == own_models(), "list every model of props/model in props/models.yaml"
    assert all({"needs", "status"} <= set(entry) <= {"paper", "needs", "status"} for entry in about.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "recbole-llm --help"),
        (["trian"], "'trian' is not a command. Commands:"),
        (["modls"], "Did you mean 'models'?"),
        (["--dataset=ml-100k", "--model"], "--model needs a value: write --model=VALUE"),
        (["--model=SASRec", "--dataset=ml-100k", "3"], "'3' is not understood"),
        (["--model=SASRec", "--dataset=ml-100"], "Did you mean 'ml-100k'?"),
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


def test_the_package_is_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "recbole_llm", "--version"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == f"recbole-llm {recbole_llm.__version__}\n"
