"""The property files: every key is read, explained and checked; every row and preset loads."""

import inspect
import re
from pathlib import Path

import pytest
import recbole
import yaml

import recbole_llm
from recbole_llm.config import Config
from recbole_llm.config.registry import own_models, props_dir
from recbole_llm.config.schema import types_by_key
from recbole_llm.config.values import ParameterDumper, load_yaml
from recbole_llm.layer.item_loss import ItemLoss
from recbole_llm.run.submodel import inner_config

PACKAGE = Path(recbole_llm.__file__).parent

pytestmark = pytest.mark.usefixtures("isolated")


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
