"""Which layer of settings wins, what a Config adds to RecBole's, and what it leaves alone."""

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

from recbole_llm.config import Config
from recbole_llm.config.registry import stock_models
from recbole_llm.errors import ConfigError
from tests.configs import sasrec

pytestmark = pytest.mark.usefixtures("isolated")


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


def test_smoke_shrinks_but_what_is_typed_wins(tmp_path):
    (tmp_path / "long.yaml").write_text("epochs: 200\n", encoding="utf-8")
    config = Config("LiteLLM4Rec", "ml-100k", ["long.yaml"], {"smoke": True})
    assert (config["epochs"], config["llm"], config["rec_llm"]) == (1, "tiny-random-t5", "tiny-random-t5")
    config = Config("LiteLLM4Rec", "ml-100k", ["long.yaml"], {"smoke": True}, {"epochs": 2, "llm": "bundled"})
    assert (config["epochs"], config["llm"]) == (2, "bundled")
    assert "rec_llm" not in Config("SASRec", "ml-100k", config_dict={"smoke": True})


def test_device_is_cpu_where_asked():
    assert sasrec(use_gpu=False)["device"] == torch.device("cpu")
    assert sasrec(gpu_id="")["device"] == torch.device("cpu")
