"""The schema against the property files, which hold defaults and comments."""

import re

import pytest

from recbole_llm.config.layers import is_comparison, precheck
from recbole_llm.config.registry import (
    get_model,
    included_files,
    load_yaml,
    own_models,
    property_file,
    props_dir,
    recbole_root,
    stock_models,
)
from recbole_llm.config.schema import (
    Comparison,
    StudyOptions,
    general_sections,
    is_text,
    sections_of,
    types_of,
    value_problem,
)
from recbole_llm.config.schema.models import MODELS
from recbole_llm.config.schema.recbole import METRICS, STOCK_MODELS
from recbole_llm.config.types import members
from recbole_llm.errors import ConfigError
from tests.configs import choices_of

SHARED = (
    recbole_root() / "properties" / "overall.yaml",
    recbole_root() / "properties" / "dataset" / "sample.yaml",
    props_dir() / "overall.yaml",
)
WHERE = {
    "overall": "a section of recbole_llm/config/schema/general.py",
    "compare": "Comparison in recbole_llm/config/schema/general.py",
    "tune": "StudyOptions in recbole_llm/config/schema/general.py",
}
# What a user gives, and what RecBole's configuration derives.
WITHOUT_DEFAULT = {"model", "dataset", "local_rank"}


def own_files():
    return [
        props_dir() / "overall.yaml",
        props_dir() / "compare.yaml",
        props_dir() / "tune.yaml",
        *sorted((props_dir() / "model").glob("*.yaml")),
    ]


def types_for(path):
    if path.stem in ("compare", "tune"):
        return (Comparison if path.stem == "compare" else StudyOptions).types()
    return types_of(path.stem if path.parent.name == "model" else None)


@pytest.mark.parametrize("path", own_files(), ids=lambda path: path.stem)
def test_every_key_of_a_property_file_is_declared(path):
    missing = sorted(set(property_file(path)) - set(types_for(path)))
    where = WHERE.get(path.stem, f"the section {path.stem} in recbole_llm/config/schema/models.py")
    assert not missing, f"declare {', '.join(missing)} of {path.name} with its type in {where}"


@pytest.mark.parametrize("path", own_files(), ids=lambda path: path.stem)
def test_every_default_is_of_its_declared_type(path):
    content = property_file(path)
    problems = [value_problem(key, value, types_for(path), content) for key, value in content.items()]
    assert [text for text in problems if text] == []


def test_every_general_setting_has_a_default():
    given = {key for path in SHARED for key in property_file(path)}
    declared = {key for section in general_sections() for key in section.types()}
    assert declared - given - WITHOUT_DEFAULT == set()
    assert given - declared == set()
    assert set(Comparison.types()) == set(property_file(props_dir() / "compare.yaml"))
    assert set(StudyOptions.types()) == set(property_file(props_dir() / "tune.yaml"))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_setting_of_a_model_has_a_default_or_may_be_absent(name):
    given = set(property_file(props_dir() / "model" / f"{name}.yaml"))
    absent = {
        key for key, kind in MODELS[name].types().items() if key not in given and type(None) not in members(kind)
    }
    assert absent == set(), f"give them a default in props/model/{name}.yaml, or drop them from the section {name}"


def test_included_blocks_are_taken_over_and_departed_from(tmp_path):
    block = load_yaml(props_dir() / "common" / "item_loss.yaml")
    assert block.items() <= property_file(props_dir() / "model" / "LRURec.yaml").items()
    file = tmp_path / "Mine.yaml"
    file.write_text("include: [item_loss]\nnum_negatives: 7\nmine: 1\n", encoding="utf-8")
    assert property_file(file) == {**block, "num_negatives": 7, "mine": 1}
    for path in sorted(props_dir().glob("common/*.yaml")):
        users = [other for other in props_dir().glob("model/*.yaml") if path in included_files(other)]
        assert len(users) > 1, f"{path.name} is included by fewer than two models"
        repeated = {
            other.stem: [k for k, v in load_yaml(path).items() if load_yaml(other).get(k, "-") == v] for other in users
        }
        assert not any(repeated.values()), f"{path.name} already says {repeated}"


def test_every_own_model_has_a_section():
    assert sorted(MODELS) == own_models(), "declare the settings of each model in recbole_llm/config/schema/models.py"


@pytest.mark.parametrize("name", stock_models())
def test_defaults_of_recboles_models_are_of_their_types(name):
    content = property_file(recbole_root() / "properties" / "model" / f"{name}.yaml")
    types = types_of(name, content)
    assert set(content) <= set(types)
    assert [text for key, value in content.items() if (text := value_problem(key, value, types))] == []


def test_the_hand_table_of_recboles_models_names_their_keys():
    given = {
        key
        for name in stock_models()
        for key in property_file(recbole_root() / "properties" / "model" / f"{name}.yaml")
    }
    assert set(STOCK_MODELS) - given <= {"eta", "beta"}  # of transforms


@pytest.mark.parametrize(
    "path", sorted([*props_dir().glob("paper/*.yaml"), *props_dir().glob("preset/*.yaml")]), ids=lambda path: path.stem
)
def test_every_value_of_a_preset_is_of_its_declared_type(path):
    content = load_yaml(path)
    types = {**Comparison.types(), **types_of(content.get("model"))}
    assert [text for key, value in content.items() if (text := value_problem(key, value, types, content))] == []


@pytest.mark.parametrize("path", own_files(), ids=lambda path: path.stem)
def test_the_type_in_a_comment_is_that_of_the_declaration(path):
    """`(int)`, `(list of str)`, `(int or str)`: the first word names the type of the default, where it has one."""
    words = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}
    content, comments = load_yaml(path), {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(\w+):.*?\s# \(([\w ]+)\)", line):
            comments[match[1]] = match[2]
    for key, value in content.items():
        assert key in comments, f"{key}: give its type in a comment, like `# (int) ...`"
        allowed = set(re.findall(r"\w+", comments[key]))
        if value is not None:
            assert words[type(value)] in allowed or (type(value) is int and "float" in allowed), key


@pytest.mark.parametrize(
    "path", sorted([*props_dir().glob("paper/*.yaml"), *props_dir().glob("preset/*.yaml")]), ids=lambda path: path.stem
)
def test_every_preset_passes_the_check_of_the_command_line(path):
    """It runs before torch is imported and may refuse nothing that a run accepts; data sets need not be here."""
    arguments = {"config_files": str(path)}
    if is_comparison(arguments):
        return
    try:
        precheck(None, None, arguments)
    except ConfigError as error:
        assert str(error).startswith("There is no dataset"), error


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_defaults_of_every_model_pass_the_check_of_the_command_line(name):
    """It knows no class, but may refuse nothing that the class allows."""
    assert tuple(get_model(name).valid_figures) == MODELS[name].valid_figures
    precheck(None, None, {"model": name, "dataset": "ml-100k"})


def test_choices_are_those_of_the_code():
    from recbole_llm.evaluator.metrics import BEYOND_ACCURACY, LIST_METRICS, RANK_METRICS
    from recbole_llm.llm.spec import DTYPES
    from recbole_llm.model.llm2sequential import ACTIVATIONS
    from recbole_llm.model.llmseqsim import DECAYS
    from recbole_llm.prompt.item_index import SCHEMES

    assert set(METRICS) == {*RANK_METRICS, *LIST_METRICS, *BEYOND_ACCURACY}
    for model, key, options in (
        (None, "llm_dtype", DTYPES),
        ("LLM2SASRec", "hidden_act", ACTIVATIONS),
        ("LLMSeqSim", "decay", DECAYS),
        ("P5", "item_index", SCHEMES),
    ):
        assert set(choices_of(key, model)) == set(options), key


def test_settings_of_a_model_inside_a_model_are_checked():
    types = types_of("LlamaRec")
    assert value_problem("retriever_settings", {"dropout": 0.4}, types, {"retriever": "LRURec"}) is None
    text = value_problem("retriever_settings", {"dropout": 4}, types, {"retriever": "LRURec"})
    assert text is not None and text.startswith("retriever_settings: invalid value for dropout: 4")
    text = value_problem("first_model", {"similarity": "cosin"}, types_of("EmbeddingEnsemble"))
    assert text is not None and "Did you mean 'cosine'?" in text


def test_text_is_never_parsed_and_says_so():
    for key in ("model", "dataset", "llm_revision", "item_text", "item_inter_num_interval", "config_files", "prompt"):
        assert is_text(key), key
    for key in ("epochs", "topk", "lora_target_modules", "test_template", "gpu_id", "eval_args", "llm_dtype"):
        assert not is_text(key), key


def test_sections_of_a_model_end_with_its_own():
    assert sections_of("LRURec")[-1] is MODELS["LRURec"]
    assert sections_of("SASRec") == general_sections()
