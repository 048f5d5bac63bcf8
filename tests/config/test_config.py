import inspect
import logging
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recbole
import torch
import yaml
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

import recbole_llm
from recbole_llm.config import Config
from recbole_llm.config.arguments import parse_arguments, split_arguments
from recbole_llm.config.registry import own_models, props_dir, stock_models
from recbole_llm.config.schema import types_by_key
from recbole_llm.config.values import ParameterDumper, ParameterLoader, load_yaml, parse_value
from recbole_llm.errors import ConfigError
from recbole_llm.layer.item_loss import ItemLoss
from recbole_llm.run.submodel import inner_config

PACKAGE = Path(recbole_llm.__file__).parent


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


def sasrec(**settings):
    return Config("SASRec", "ml-100k", config_dict=settings)


# ---- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("~", None),
        ("null", None),
        ("", None),
        ("(0,1)", (0, 1)),
        ("['a', 'b']", ["a", "b"]),
        ("[a, b]", ["a", "b"]),
        ("{'LS': 'valid_and_test'}", {"LS": "valid_and_test"}),
        ("{LS: valid_and_test}", {"LS": "valid_and_test"}),
        ("{}", {}),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("1_000", 1000),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("'quoted'", "quoted"),
    ],
)
def test_parse_value_reads_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "{movie_title}",
        "{movie_title}, {genre}",
        "{title} ({year})",
        "[0,inf)",
        "__import__('os').system('true')",
        "open('x','w')",
        "key",
        "self",
        "!!python/object/apply:os.system [true]",
        "no",
        "off",
        "Yes",
        "12:30:45",
        "2001-01-01",
        "2001-12-14 21:59:43",
        "010",
        "08",
        "a: b",
        "- a",
        "title # 1",
        "# 1",
        "...",
        "---",
        "&a x",
        "1 2",
        "b'bytes'",
        "1j",
        "a=b",
        "google-t5/t5-small",
        "saved/SASRec-ml-100k-2025-01-01_00-00-00",
        "[" * 1500,
        "\0",
    ],
)
def test_parse_value_leaves_text_alone(text):
    assert parse_value(text) == text


def test_yaml_has_no_dates_no_norway_no_base_60(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: no\nb: 12:30:45\nc: 2001-01-01\nd: 1e-3\ne: None\nf: 010\ng: on\nh: 1e5\n", encoding="utf-8")
    assert load_yaml(file) == {
        "a": "no",
        "b": "12:30:45",
        "c": "2001-01-01",
        "d": 0.001,
        "e": None,
        "f": "010",
        "g": "on",
        "h": 100000.0,
    }


@pytest.mark.parametrize(
    "value",
    ["None", "1e-3", "10", "010", "no", "true", "", "~", "[0,inf)", "{a}", "a: b", "é\t\n", 1e-12, 1e16, 3, None, True]
    + [[1, 2.5, "x"], {"a": {"b": None}}, math.inf],
)
def test_what_the_dumper_writes_the_loader_reads(value):
    text = yaml.dump({"key": value}, Dumper=ParameterDumper, allow_unicode=True)
    read = yaml.load(text, Loader=ParameterLoader)["key"]  # noqa: S506 - a SafeLoader
    assert read == value
    assert type(read) is type(value)


# ---- arguments


def test_arguments():
    assert parse_arguments(["--epochs=3", "--smoke", "--item_text={a}=1", "--llm=None", "--dataset=2020"]) == {
        "epochs": 3,
        "smoke": True,
        "item_text": "{a}=1",
        "llm": None,
        "dataset": "2020",
    }
    assert parse_arguments(["--note=a=b=c"]) == {"note": "a=b=c"}
    assert parse_arguments(["--seed=1", "--seed=1"]) == {"seed": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model"], "--model needs a value: write --model=VALUE"),
        (["--model", "--dataset=ml-100k"], "--model needs a value: write --model=VALUE"),
        (["--epochs"], "--epochs needs a value"),
        (["--epochs", "=3"], "--epochs needs a value: write --epochs=VALUE, without spaces"),
        (["SASRec"], "'SASRec' is not understood: write --key=value"),
        (["-x=SASRec"], "--key=value"),
        (["--=3"], "--key=value"),
        (["--"], "--key=value"),
        (["--seed=1", "--seed=2"], "--seed is given twice: 1 and 2"),
        (["--smoke", "yes"], "'yes' is not understood"),
    ],
)
def test_arguments_that_are_not_understood(arguments, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_arguments(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "-m",
            "SASRec",
            "-d",
            "ml-100k",
            "--epochs",
            "3",
            "--config_files",
            "a.yaml b.yaml",
            "--smoke",
            "--topk",
            "[5]",
        ],
        [
            "--model=SASRec",
            "-d=ml-100k",
            "--epochs=3",
            "--config_files=a.yaml b.yaml",
            "--smoke",
            "True",
            "--topk=[5]",
        ],
        ["--smoke", "--topk", "[5]", "--model", "SASRec", "--dataset", "ml-100k", "--config_files=a.yaml b.yaml"]
        + ["--epochs", "3"],
    ],
)
def test_recboles_habits(arguments):
    """On d0eece4 only the second form without -d was understood."""
    expected = {"model": "SASRec", "dataset": "ml-100k", "epochs": 3, "config_files": "a.yaml b.yaml"}
    assert parse_arguments(arguments) == {**expected, "smoke": True, "topk": [5]}


def test_what_follows_a_switch_is_not_its_value():
    assert split_arguments(["--smoke", "saved/a", "--resume", "--topk", "5", "saved/b"]) == (
        {"smoke": True, "resume": True, "topk": 5},
        ["saved/a", "saved/b"],
    )
    assert parse_arguments(["--resume", "saved/a", "--n_facet_window", "-2"]) == {
        "resume": "saved/a",
        "n_facet_window": -2,
    }
    assert parse_arguments(["--SASRec.llm_revision=123", "--LLM2SASRec.epochs", "4"]) == {
        "SASRec.llm_revision": "123",
        "LLM2SASRec.epochs": 4,
    }


def test_sys_argv_is_never_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--epochs=77", "--seed=abc", "-x", "nonsense", "--model=Pop"])
    config = sasrec()
    assert (config["epochs"], config["seed"], config["model"]) == (300, 2020, "SASRec")
    assert sys.argv[1] == "--epochs=77"


# ---- precedence


def test_precedence(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 1\nseed: 1\ntrain_batch_size: 1\nweight_decay: 0.5\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("seed: 2\ntrain_batch_size: 2\nepochs: 2\n", encoding="utf-8")
    config = Config(
        "LiteLLM4Rec",
        "ml-100k",
        [tmp_path / "a.yaml", tmp_path / "b.yaml"],
        {"train_batch_size": 3, "epochs": 3},
        {"epochs": 4},
    )
    assert config["epochs"] == 4  # command line
    assert config["train_batch_size"] == 3  # dictionary
    assert config["seed"] == 2  # the later file
    assert config["weight_decay"] == 0.5  # a file over our model's props
    assert config["stopping_step"] == 20  # our model's props over RecBole's 10
    assert config["valid_metric"] == "Recall@10"  # our model's props over our overall.yaml
    assert config["eval_batch_size"] == 512  # our overall.yaml over RecBole's 4096
    assert config["item_text"] == "{movie_title} ({release_year}), {class}"  # our dataset props
    assert config["shuffle"] is True  # RecBole's


def test_config_files_from_the_command_line_win_over_those_of_the_call(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\nepochs: 9\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("seed: 2\n", encoding="utf-8")
    config = Config("SASRec", "ml-100k", ["a.yaml"], arguments={"config_files": "b.yaml"})
    assert (config["seed"], config["epochs"]) == (2, 9)
    assert config.notices == []


def test_strings_of_a_dictionary_are_parsed_but_text_is_not():
    config = Config(
        "LiteLLM4Rec", "ml-100k", config_dict={"topk": "[5, 10]", "seed": "3", "item_text": "{movie_title}"}
    )
    assert (config["topk"], config["seed"], config["item_text"]) == ([5, 10], 3, "{movie_title}")


def test_the_dictionary_of_the_caller_is_not_changed():
    given = {"seed": "3", "eval_args": {"mode": "uni10"}}
    sasrec(**given)
    assert given == {"seed": "3", "eval_args": {"mode": "uni10"}}


# ---- names


@pytest.mark.parametrize(
    ("key", "hint"),
    [("learning_rte", "learning_rate"), ("mask_hystory", "mask_history"), ("learning-rate", "learning_rate")],
)
def test_unknown_key_stops_the_run_with_the_nearest(key, hint):
    with pytest.raises(ConfigError, match=f"The parameter '{key}' is not known. Did you mean '{hint}'"):
        sasrec(**{key: 1})


def test_unknown_keys_may_be_allowed(caplog):
    config = sasrec(learning_rte=1, allow_unknown_keys=True)
    assert config.notices == ["The parameter 'learning_rte' is not known. Did you mean 'learning_rate'?"]
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == config.notices
    with pytest.raises(ConfigError, match="invalid value for allow_unknown_keys"):
        sasrec(allow_unknown_keys=1)


def test_key_of_another_model_is_reported():
    (notice,) = sasrec(seq_pool="mean").notices
    assert notice == "The parameter 'seq_pool' has no effect on SASRec; it belongs to LiteLLM4Rec."


def test_keys_that_only_code_reads_are_known():
    assert sasrec(tail_ratio=0.2, encoding="utf-8").notices == []
    keys = {"rec_llm_revision": "abc", "rec_llm_dtype": "float32", "llm_attn_implementation": "sdpa"}
    assert Config("LiteLLM4Rec", "ml-100k", config_dict=keys).notices == []
    assert sasrec(transform="mask_itemseq", mask_ratio=0.3, ft_ratio=0.5).notices == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "SASRek"}, "model='SASRek' is not known. Did you mean 'SASRec'?"),
        ({"model": "sasrec"}, "Did you mean 'SASRec'?"),
        ({"model": "BPR"}, "model='BPR' is not a sequential recommender"),
        ({"model": 5}, "model=5 is neither a model name nor a subclass"),
        ({"model": dict}, "is neither a model name nor a subclass"),
        ({"dataset": 1.5}, "invalid value for dataset: 1.5 (give non-empty text"),
        ({"metrics": ["Recal"]}, "invalid value for metrics[0]: 'Recal' (give one of recall, mrr"),
        ({"metrics": 5}, "invalid value for metrics: 5 (give one of recall"),
        ({"metrics": []}, "a list of names"),
        ({"metrics": "AUC"}, "invalid value for metrics: 'AUC'"),
        ({"valid_metric": "NDCG@7"}, "valid_metric='NDCG@7' is not among"),
        ({"valid_metric": "NDCG"}, "valid_metric='NDCG' is not among"),
        ({"valid_metric": "Hit@10"}, "Recall@10, Recall@20, NDCG@10"),
        ({"topk": 0}, "invalid value for topk: 0 (give a whole number of at least 1 or a list"),
        ({"topk": [5, "x"]}, "invalid value for topk[1]: 'x'"),
        ({"epochs": "many"}, "invalid value for epochs: 'many' (give a whole number of at least 0)"),
        ({"epochs": 1.5}, "give a whole number"),
        ({"epochs": True}, "invalid value for epochs: True"),
        ({"epochs": -1}, "invalid value for epochs: -1 (give a whole number of at least 0)"),
        ({"train_batch_size": 0}, "invalid value for train_batch_size: 0 (give a whole number of at least 1)"),
        ({"learning_rate": "fast"}, "give a number above 0"),
        ({"mask_history": "perhaps"}, "give True or False"),
        ({"val_interval": "rating"}, "a mapping of names to an interval"),
        ({"state": "LOUD"}, "invalid value for state: 'LOUD' (give one of debug, info"),
        ({"train_neg_sample_args": {"distribution": "uniform"}}, "contradicts loss_type='CE'"),
        ({"loss_type": "BPR", "train_neg_sample_args": "uniform"}, "a mapping with keys from distribution"),
        ({"loss_type": "MSE"}, "invalid value for loss_type: 'MSE' (choose from 'CE', 'BPR')"),
        ({"eval_args": "full"}, "a mapping with keys from split, order"),
        ({"eval_args": {"order": "RO"}}, "eval_args.order: 'RO' (choose from 'TO'); sequences are ordered in time"),
        ({"eval_args": {"mode": "labeled"}}, "full, uniN or popN"),
        ({"eval_args": {"mode": "uni0"}}, "full, uniN or popN"),
        ({"eval_args": {"mode": ["full"]}}, "invalid value for eval_args.mode"),
        (
            {"eval_args": {"splitt": {}}},
            "unknown key in eval_args: 'splitt' (choose from split, order, group_by, mode). Did you mean 'split'?",
        ),
        ({"eval_args": {"split": {}}}, "invalid value for eval_args.split: {} (give {LS: valid_and_test}"),
        ({"eval_args": {"split": {"XX": 1}}}, "unknown key in eval_args.split: 'XX' (choose from LS, RS)"),
        ({"eval_args": {"split": {"LS": "last"}}}, "choose from 'valid_and_test'"),
        ({"eval_args": {"split": {"RS": [0.8, 0.2]}}}, "three shares such as [0.8, 0.1, 0.1]"),
        ({"clip_grad_norm": "x"}, "a number above 0, a mapping with keys from max_norm"),
        ({"eval_args": {"group_by": "item"}}, "invalid value for eval_args.group_by: 'item'"),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(settings, says):
    settings = {"model": "SASRec", "dataset": "ml-100k", **settings}
    with pytest.raises(ConfigError, match=re.escape(says)):
        Config(config_dict=settings)


def test_missing_model_or_dataset():
    with pytest.raises(ConfigError, match="No model is given: pass --model=NAME"):
        Config(dataset="ml-100k")
    with pytest.raises(ConfigError, match="No dataset is given"):
        Config("SASRec")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [1", "not valid YAML"),
        ("- a\n- b\n", "must hold `key: value` lines, not a list"),
        ("1: 2\n", "has the key 1, which is not a string"),
        (
            "llm_revision: 1234567\n",
            "invalid value for llm_revision: 1234567 (give non-empty text or ~ (null)); quote what",
        ),
        (b"a: \xff\xfe", "cannot be read"),
    ],
)
def test_bad_settings_file(tmp_path, content, says):
    file = tmp_path / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        Config("SASRec", "ml-100k", [file])
    assert "bad.yaml" in str(caught.value) or "llm_revision" in str(caught.value)


def test_missing_settings_file():
    with pytest.raises(ConfigError, match="There is no settings file 'nowhere.yaml'"):
        Config("SASRec", "ml-100k", arguments={"config_files": "nowhere.yaml"})


def test_empty_settings_file(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    assert Config("SASRec", "ml-100k", ["empty.yaml"])["epochs"] == 300


# ---- RecBole's habits and walls


# ---- property files of rows and presets


@pytest.mark.parametrize(
    "file", sorted([*props_dir().glob("paper/*.yaml"), *props_dir().glob("preset/*.yaml")]), ids=str
)
def test_every_row_of_a_paper_and_every_preset_loads(file):
    text, given = file.read_text(encoding="utf-8"), load_yaml(file)
    if "models" in given:  # of a comparison
        return
    # What names no model is put after the row it changes, which its comment names.
    after = re.search(rf'--config_files="([^"]+ {re.escape(file.stem)})"', text)
    files = file.stem if "model" in given else after[1]
    config = Config(config_dict={"config_files": files})
    assert config.notices == []
    if "retriever_settings" in config.model_keys:
        assert inner_config(config["retriever"], config, config["retriever_settings"]).notices == []
    recipes = load_yaml(props_dir() / "dataset" / "recipes.yaml")
    for recipe in re.findall(r"the recipe ([\w-]+\w)", text.replace("\n# ", " ")):
        assert recipes[recipe]["source"] == config["dataset"]


@pytest.mark.parametrize("name", stock_models())
def test_every_stock_model_has_a_config(name):
    config = Config(name, "ml-100k")
    assert config["model"] == name
    assert config.model_class.__name__ == name
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert config.notices == []
    if config["loss_type"] == "CE":
        assert config["train_neg_sample_args"]["distribution"] == "none"


def test_a_class_of_the_user():
    class Mine(SequentialRecommender):
        input_type = InputType.POINTWISE

    config = Config(Mine, "ml-100k", config_dict={"hidden_size": 8})  # other models' keys may be its own
    assert config["model"] == "Mine"
    assert issubclass(config.model_class, Mine)
    assert config.notices == []
    with pytest.raises(ConfigError, match="'hiddn_size' is not known"):
        Config(Mine, "ml-100k", config_dict={"hiddn_size": 8})

    class WithKeys(Mine):
        config_keys = ("my_switch",)

    assert Config(WithKeys, "ml-100k", config_dict={"my_switch": 1}).notices == []


def test_data_path_of_ml100k(tmp_path, recbole_ml100k):
    assert Path(sasrec()["data_path"]) == recbole_ml100k
    config = sasrec(data_path="elsewhere")
    assert Path(config["data_path"]) == recbole_ml100k
    assert "There is no ml-100k in data_path='elsewhere'" in config.notices[0]
    (tmp_path / "elsewhere" / "ml-100k").mkdir(parents=True)
    config = sasrec(data_path="elsewhere")
    assert Path(config["data_path"]) == Path("elsewhere/ml-100k")
    assert config.notices == []
    assert Path(Config("SASRec", "other", config_dict={"data_path": "elsewhere"})["data_path"]) == Path(
        "elsewhere/other"
    )


def test_columns_that_are_loaded():
    assert sasrec()["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}
    fdsa = Config("FDSA", "ml-100k", config_dict={"val_interval": {"rating": "[3,inf)"}})
    assert fdsa["load_col"] == {"inter": ["user_id", "item_id", "timestamp", "rating"], "item": ["item_id", "class"]}
    own = {"inter": ["user_id", "item_id", "timestamp", "rating"]}
    assert sasrec(load_col=own)["load_col"] == own


def test_sampled_evaluation_modes():
    config = sasrec(eval_args={"mode": {"valid": "uni50"}})
    assert config["eval_args"]["mode"] == {"valid": "uni50", "test": "uni50"}
    assert config["valid_neg_sample_args"] == {"distribution": "uniform", "sample_num": 50}


def test_nothing_of_recbole_numpy_or_yaml_is_changed():
    modules = [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] == "recbole"]
    sasrec()  # imports what it needs
    before = {module: {k: (id(v), repr(v)[:200]) for k, v in vars(module).items()} for module in modules}
    attributes, path = set(dir(np)), dict(__import__("os").environ)
    lengths = len(recbole.utils.dataset_arguments)
    loaders = repr(yaml.FullLoader.yaml_implicit_resolvers), repr(yaml.SafeLoader.yaml_implicit_resolvers)
    Config("FDSA", "ml-100k", config_dict={"gpu_id": "0"})
    assert set(dir(np)) == attributes
    assert before == {m: {k: (id(v), repr(v)[:200]) for k, v in vars(m).items() if k in before[m]} for m in modules}
    assert len(recbole.utils.dataset_arguments) == lengths
    assert (repr(yaml.FullLoader.yaml_implicit_resolvers), repr(yaml.SafeLoader.yaml_implicit_resolvers)) == loaders
    assert dict(__import__("os").environ) == path


def test_anomaly_detection_stays_off_and_numpy_as_it_was():
    """In a process of its own, since the switch is thrown by the first import only."""
    code = (
        "import numpy; before = set(dir(numpy))\n"
        "import torch\n"
        "from recbole_llm.config import Config\nfrom recbole_llm.config.registry import get_model\n"
        "get_model('SASRec'); Config('GRU4Rec', 'ml-100k')\n"
        "assert not torch.is_anomaly_enabled()\n"
        "assert not {'bool', 'int', 'float', 'object', 'str'} & (set(dir(numpy)) - before - {'bool'})\n"
        "import sys; assert 'ray' not in sys.modules and 'recbole.quick_start' not in sys.modules\n"
        "torch.autograd.set_detect_anomaly(True); get_model('BERT4Rec'); assert torch.is_anomaly_enabled()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


# ---- smoke, summary


def test_smoke_shrinks_but_what_is_typed_wins(tmp_path):
    (tmp_path / "long.yaml").write_text("epochs: 200\n", encoding="utf-8")
    config = Config("LiteLLM4Rec", "ml-100k", ["long.yaml"], {"smoke": True})
    assert (config["epochs"], config["llm"], config["rec_llm"]) == (1, "tiny-random-t5", "tiny-random-t5")
    config = Config("LiteLLM4Rec", "ml-100k", ["long.yaml"], {"smoke": True}, {"epochs": 2, "llm": "bundled"})
    assert (config["epochs"], config["llm"]) == (2, "bundled")
    assert "rec_llm" not in Config("SASRec", "ml-100k", config_dict={"smoke": True})


def test_secrets_are_not_shown():
    config = Config("LiteLLM4Rec", "ml-100k", config_dict={"llm_token": "hf_secret", "seed": 7})
    assert config["llm_token"] == "hf_secret"
    for text in (str(config), repr(config), config.summary()):
        assert "hf_secret" not in text
    assert "(hidden)" in str(config)


def test_summary_is_short_and_says_what_was_changed():
    summary = re.sub(r"\x1b\[[0-9;]*m", "", sasrec(epochs=3, hidden_size=32).summary())
    first, *rest = summary.split("\n")
    assert first == "Changed: epochs = 3, hidden_size = 32"
    assert [line.partition(":")[0] for line in rest] == ["Model", "Loss", "Training"]
    assert "n_layers = 2" in rest[0] and "learning_rate = 0.001" in rest[2]


def test_summary_groups_settings_by_concern():
    config = Config("LiteLLM4Rec", "ml-100k", config_dict={"llm": "bundled"})
    lines = re.sub(r"\x1b\[[0-9;]*m", "", config.summary()).split("\n")
    shown = {line.partition(":")[0]: line for line in lines}
    assert list(shown)[:3] == ["Changed", "Model", "Item text"] and shown["Changed"] == "Changed: llm = bundled"
    for name, key in (("Item text", "item_pooling"), ("Language model", "rec_llm_init"), ("Training", "learner")):
        assert f"{key} = " in shown[name] and f"{key} = " not in shown["Model"]


# ---- property files


def _sources():
    ours = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    theirs = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("data", "model", "trainer", "utils", "evaluator", "config")
        for path in (Path(recbole.__file__).parent / folder).rglob("*.py")
    )
    return ours, theirs


def _props():
    return [
        props_dir() / "overall.yaml",
        *sorted(props_dir().glob("model/*.yaml")),
        *props_dir().glob("common/*.yaml"),
    ]


@pytest.mark.parametrize("path", _props(), ids=lambda path: path.stem)
def test_no_key_is_dead(path):
    """Every key of our property files is read by our code or RecBole's."""
    ours, theirs = _sources()
    dead = []
    for key in set(load_yaml(path)) - {"include", *inspect.signature(ItemLoss).parameters}:
        options = [key, re.sub(r"^(?:rec_)?llm_", "", key), re.sub(r"^(?:stage2|retriever|item_index)_", "", key)]
        read = rf"\.({'|'.join(options)})\b"  # from a typed section
        named = any(f'"{name}"' in ours or f'"{name}"' in theirs or f"'{name}'" in theirs for name in options)
        if not named and re.search(read, ours) is None:
            dead.append(key)
    assert dead == []


def test_every_key_that_is_read_stands_in_a_property_file():
    ours, _ = _sources()
    read = set(re.findall(r"config\[\"(\w+)\"\]", ours))
    known = {"device", "valid_metric_bigger", "eval_type", "MODEL_TYPE", "MODEL_INPUT_TYPE", *types_by_key()}
    assert read - known == set()


@pytest.mark.parametrize("path", _props(), ids=lambda path: path.stem)
def test_every_key_has_a_comment_with_its_type(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"\w+:", line):
            assert re.search(r"\S\s+# \((?:str|int|float|bool|dict|list)\b", line), line


def test_every_default_passes_its_own_checks(tmp_path):
    """A default that our checks refuse could not be replayed from config.yaml."""
    for name in [*own_models(), "SASRec", "S3Rec"]:
        config = Config(name, "ml-100k")
        settings = {key: value for key, value in config.merged.items() if key != "MODEL_TYPE"}
        (tmp_path / "config.yaml").write_text(yaml.dump(settings, Dumper=ParameterDumper), encoding="utf-8")
        replayed = Config(config_file_list=["config.yaml"])
        assert replayed.merged == config.merged
        assert replayed.notices == []


def test_device_is_cpu_where_asked():
    assert sasrec(use_gpu=False)["device"] == torch.device("cpu")
    assert sasrec(gpu_id="")["device"] == torch.device("cpu")
