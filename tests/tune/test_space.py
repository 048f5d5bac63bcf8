import ast
import itertools
import math
from pathlib import Path

import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from recbole.config import Config as RecBoleConfig

from recbole_llm.config import Config
from recbole_llm.config.registry import own_models, property_file, props_dir, stock_models
from recbole_llm.errors import ConfigError
from recbole_llm.tune import tune
from recbole_llm.tune.space import (
    check_space,
    combination,
    find_space,
    read_lines,
    read_space,
    size_of,
    space_from_dict,
)
from tests.properties import examples

optuna.logging.set_verbosity(optuna.logging.WARNING)

HYPER = sorted((props_dir() / "hyper").glob("*.test"))


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


def parse(*lines):
    return read_lines(lines, "a.test")


def test_every_kind_of_line():
    space = parse(
        "# a comment with three words",
        "",
        "learning_rate loguniform -8,0",
        "dropout  uniform 0, 0.9   # blanks do not matter",
        "hidden_size quniform 16,512,16",
        "share quniform 0,0.9,0.05",
        "width qloguniform 2.77,6.24,16",
        "loss_type choice ['BPR', 'CE']  # after a list",
        "words choice ['a b#c', None, True, 1, 0.5, (1,2), {'max_norm': 5}]",
        "plain choice [pca, none]",
    )
    by_name = {parameter.name: parameter for parameter in space}
    assert by_name["learning_rate"].bounds() == [float(f"{math.exp(-8):.6g}"), 1.0]
    assert by_name["dropout"].setting(0.1234567891) == 0.123457
    assert [type(by_name[name].setting(33.0)) for name in ("hidden_size", "share", "width")] == [int, float, int]
    assert by_name["share"].setting(0.15000000000000002) == 0.15
    assert [by_name[name].ends for name in ("hidden_size", "share", "width")] == [(16, 512), (0, 0.9), (16, 512)]
    assert by_name["loss_type"].options == ("BPR", "CE")
    assert by_name["words"].options == ("a b#c", None, True, 1, 0.5, (1, 2), {"max_norm": 5})
    assert by_name["plain"].options == ("pca", "none")
    again = parse(*map(str, space))
    assert [(p.name, p.kind, p.options, p.low, p.high, p.step, p.whole) for p in again] == [
        (p.name, p.kind, p.options, p.low, p.high, p.step, p.whole) for p in space
    ]


def test_the_combinations_of_a_space_in_order():
    space = parse("n_layers choice [1,2]", "hidden_size quniform 16,48,16", "dropout quniform 0,0.3,0.15")
    assert [parameter.size for parameter in space] == [2, 3, 3] and size_of(space) == 18
    made = [tuple(combination(space, index).values()) for index in range(18)]
    assert made == list(itertools.product([1, 2], [16, 32, 48], [0.0, 0.15, 0.3]))
    assert size_of(parse("width qloguniform 2.77,4.16,16")) == 4  # 16, 32, 48, 64
    assert size_of(parse("n_layers choice [1,2]", "dropout uniform 0,0.3")) == math.inf


def test_whole_numbers_are_not_rounded():
    (parameter,) = parse("seed quniform 0,4294967295,1")
    assert parameter.ends == (0, 4294967295) and parameter.setting(1234567891) == 1234567891
    assert combination([parameter], 1234567891) == {"seed": 1234567891}


# ---- as RecBole reads them


def as_recbole_reads(kind, value):
    """The settings that RecBole's tuner and its Config make of an option, the text of a list."""
    return [RecBoleConfig._convert_config_dict(None, {"key": option})["key"] for option in eval(value)]  # noqa: S307


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("['[0.25,0.5]']", [[0.25, 0.5]]),
        ("['[64]','[64,64]']", [[64], [64, 64]]),
        ("['[64]', '[64, 64]']", [[64], [64, 64]]),
        ("['None','True','CE']", [None, True, "CE"]),
        ("""['{"max_norm": 5}', '1e-3']""", [{"max_norm": 5}, 0.001]),
        ("[None,1,0.5]", [None, 1, 0.5]),
        ("['(1,2)',(3,4)]", [(1, 2), (3, 4)]),
        ("('BPR','CE')", ["BPR", "CE"]),
    ],
)
def test_options_in_the_notation_of_recboles_users(text, options):
    (parameter,) = parse(f"key choice {text}")
    assert list(parameter.options) == options == as_recbole_reads("choice", text)
    # Every option comes back from Optuna as the setting that it stands for.
    distribution = parameter.distribution()
    assert [parameter.setting(label) for label in distribution.choices] == options
    assert list(space_from_dict({"choice": {"key": ast.literal_eval(text)}})[0].options) == options


def test_a_title_or_a_path_stays_text():
    (parameter,) = parse("item_text choice ['{title}','2020']")
    assert parameter.options == ("{title}", "2020")


def test_a_list_as_option_reaches_the_model_as_a_list(shop, tiny):
    from tests.test_quick_start import LastItem

    seen = []

    class Tower(LastItem):
        defaults = {**LastItem.defaults, "mlp_hidden_size": [8]}

        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            seen.append(config["mlp_hidden_size"])

    Path("a.test").write_text("mlp_hidden_size choice ['[64]','[64,64]']\n", encoding="utf-8")
    result = tune(Tower, "shop", params_file="a.test", config_dict={**tiny, "epochs": 0})
    assert seen[:2] == [[64], [64, 64]] and result["best_params"]["mlp_hidden_size"] in seen


VALUES = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(-1e6, 1e6).map(lambda value: float(f"{value:.6g}")),
    st.sampled_from([None, True, False, "CE", "pca", "a-b"]),
    st.lists(st.integers(0, 512), max_size=3),
    st.lists(st.floats(0, 1), max_size=3).map(str),
    st.dictionaries(st.sampled_from(["max_norm", "norm_type"]), st.integers(0, 9)).map(str),
)


@examples(200)
@given(st.lists(VALUES, min_size=1, max_size=5, unique_by=repr))
def test_any_option_is_what_recbole_makes_of_it(values):
    wanted = as_recbole_reads("choice", repr(values))
    assume(len({repr(option) for option in wanted}) == len(wanted))
    (parameter,) = parse(f"key choice {values!r}")
    assert list(map(repr, parameter.options)) == list(map(repr, wanted))
    assert [repr(parameter.setting(label)) for label in parameter.distribution().choices] == list(map(repr, wanted))
    (again,) = parse(str(parameter))
    assert list(map(repr, again.options)) == list(map(repr, wanted))


@examples(200)
@given(
    kind=st.sampled_from(["uniform", "loguniform", "quniform", "qloguniform"]),
    low=st.integers(-40, 20),
    width=st.integers(1, 60),
    step=st.sampled_from(["1", "3", "16", "0.05", "0.5"]),
    seed=st.integers(0, 999),
)
def test_any_range_gives_settings_inside_its_bounds(kind, low, width, step, seed):
    low, high = (low / 10, (low + width) / 10) if "log" in kind else (low, low + width)
    line = f"key {kind} {low},{high}" + (f",{step}" if kind.startswith("q") else "")
    try:
        (parameter,) = parse(line)
    except ConfigError as error:
        assert "no multiple of" in str(error) or "takes natural logarithms" in str(error)
        return
    distribution = parameter.distribution()
    sampler = optuna.samplers.RandomSampler(seed)
    place = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
    study = optuna.create_study()
    value = parameter.setting(sampler.sample_independent(study, place, "key", distribution))
    if kind.startswith("q"):
        every = [parameter.setting(parameter.value_at(number)) for number in range(int(parameter.size))]
        assert value in every and len(set(every)) == len(every) and every[-1] == parameter.bounds()[1]
    bounds = (math.exp(low), math.exp(high)) if "log" in kind else (low, high)
    slack = 1e-5 * (1 + max(map(abs, bounds)))  # six digits
    assert bounds[0] - slack <= value <= bounds[1] + slack
    if kind.startswith("q"):
        assert abs(value / float(step) - round(value / float(step))) < 1e-4
        assert isinstance(value, int) is parameter.whole


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("dropout quniform 0.1,0.9,1", "no multiple of 1 between the bounds"),
        ("dropout uniform", "a.test, line 2: 'dropout uniform' is not `name kind values`"),
        ("dropout unifrom 0,1", "line 2: 'unifrom' is not a kind. Did you mean 'uniform'?"),
        ("dropout uniform 0", "uniform takes 2 numbers"),
        ("dropout quniform 0,1", "'0,1' is not low,high,step: quniform takes 3 numbers"),
        ("dropout uniform 0,inf", "uniform takes 2 numbers"),
        ("dropout uniform 1,0", "the lower bound 1 must be below the upper bound 0"),
        ("dropout quniform 0,1,0", "the step 0 must be above 0"),
        ("learning_rate loguniform 1e-4,1e-2", "takes natural logarithms of the bounds, as in RecBole. For 0.0001 to"),
        ("learning_rate loguniform 1e-4,1e-2", "write -9.21,-4.605"),
        ("hidden_size loguniform 16,512", "write 2.773,6.238"),
        ("n_layers choice 1,2", "'1,2' is not a list of options"),
        ("n_layers choice []", "is not a list of options"),
        ("n_layers choice [1,2,1]", "n_layers has an option twice"),
        ("n_layers choice open('x','w')", "is not a list of options"),
        ("n_layers choice [open('x','w')]", "is not a list of options"),
        ("seed choice [1]", "'seed' is already in a.test, line 1"),
    ],
)
def test_what_is_not_understood_is_named_with_its_line(line, says):
    with pytest.raises(ConfigError) as caught:
        parse("seed choice [0]", line)
    assert says in str(caught.value)
    assert not Path("x").exists()


def test_an_empty_file_and_a_missing_one():
    with pytest.raises(ConfigError, match="holds no parameter"):
        parse("# nothing")
    with pytest.raises(ConfigError, match="There is no file 'mine.test'"):
        find_space("SASRec", "mine.test")
    with pytest.raises(ConfigError, match="There is no search space for NARM"):
        find_space("NARM", None)


def test_where_a_space_is_found():
    ours = props_dir() / "hyper" / "LRURec.test"
    assert find_space("LRURec", None) == find_space("SASRec", "props/hyper/LRURec.test") == ours
    assert find_space("SASRec", "LRURec") == ours
    Path("LRURec.test").write_text("dropout choice [0]", encoding="utf-8")
    assert find_space("SASRec", "LRURec.test") == Path("LRURec.test")


def test_recboles_dictionary_is_the_same_space():
    space = space_from_dict({"choice": {"n_layers": [1, 2]}, "quniform": {"hidden_size": [16, 64, 16]}})
    assert [str(parameter) for parameter in space] == ["n_layers choice [1, 2]", "hidden_size quniform 16,64,16"]
    with pytest.raises(ConfigError, match="params_dict, n_layers: 'choose' is not a kind"):
        space_from_dict({"choose": {"n_layers": [1]}})


@pytest.mark.parametrize(
    ("line", "typed", "says"),
    [
        (
            "learning_rat loguniform -8,0",
            {},
            "line 1: The parameter 'learning_rat' is not known. Did",
        ),
        ("mask_ratio choice [0.1]", {}, "'mask_ratio' has no effect on SASRec; it belongs to BERT4Rec"),
        ("mask_history choice [True,False]", {}, "mask_history changes what is measured"),
        ("valid_metric choice ['NDCG@10']", {}, "valid_metric changes what is measured"),
        ("checkpoint_dir choice ['a','b']", {}, "not its results"),
        ("n_layers choice [1,2]", {"n_layers": 3}, "n_layers is searched, but n_layers=3 is given as well"),
        ("n_layers choice [1,'two']", {}, "line 1: invalid value for n_layers: 'two' (give a whole number"),
        ("hidden_size quniform 16.0,64.0,16", {}, "For whole numbers write `hidden_size quniform 16,64,1`"),
        ("train_batch_size quniform 0,64,16", {}, "invalid value for train_batch_size: 0"),
    ],
)
def test_what_cannot_be_searched(line, typed, says):
    with pytest.raises(ConfigError) as caught:
        check_space(parse(line), Config("SASRec", "ml-100k"), typed)
    assert says in str(caught.value)


# ---- the files that ship


def test_every_model_of_ours_has_a_space():
    nothing_to_search = {"MaxIdRule", "MostPopular"}
    missing = sorted(set(own_models()) - {path.stem for path in HYPER} - nothing_to_search)
    assert missing == [], f"write props/hyper/{missing[0]}.test"


@pytest.mark.parametrize("path", HYPER, ids=lambda path: path.stem)
def test_every_key_is_read_by_its_model_and_every_value_allowed(path):
    space = read_space(path)
    if path.stem not in own_models() + stock_models():
        pytest.skip(f"{path.stem} is not there yet")
    config = Config(path.stem, "ml-100k")
    check_space(space, config, {})
    # A key of overall.yaml passes for any model; here it must be one of the model or of its training.
    recbole = property_file(props_dir() / "overall.yaml").keys() | set(config.parameters["Training"])
    training = {key for key in recbole if key in config.parameters["Training"] or key in ("warmup_ratio", "amp")}
    assert {parameter.name for parameter in space} <= config.model_keys | training


@pytest.mark.parametrize("path", HYPER, ids=lambda path: path.stem)
def test_every_file_says_what_it_is(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# Search space of ") and path.stem in lines[0]
    assert any(f"recbole-llm tune --model={path.stem} " in line for line in lines[:4])
    assert max(map(len, lines)) < 120
