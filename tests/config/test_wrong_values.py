"""Settings that are wrong in every way: one line that names the key, before any work, and never a traceback."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.cli import main
from recbole_llm.config import Config
from recbole_llm.config.given import check_value
from recbole_llm.config.layers import precheck
from recbole_llm.config.registry import known_models, model_file, own_models, property_file, stock_models
from recbole_llm.config.schema import types_of
from recbole_llm.config.values import load_yaml, parse_value
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError, RecBoleLLMError
from recbole_llm.run.submodel import build
from tests.properties import examples


def nested(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


ENDLESS: dict = {}
ENDLESS["split"] = ENDLESS

# What d0eece4 accepted, or answered with a traceback, stands first.
OF_EVERY_MODEL = [
    {"train_neg_sample_args": {"popularity": 1}},
    {"clip_grad_norm": {"norm_typ": 2}},
    {"clip_grad_norm": {"max_norm": -1}},
    {"clip_grad_norm": {"max_norm": "1"}},
    {"clip_grad_norm": -1},
    {"clip_grad_norm": [1]},
    {"clip_grad_norm": True},
    {"clip_grad_norm": 0},
    {"eval_args": {"split": {"RS": [0, 0, 0]}}},
    {"eval_args": {"split": {"RS": [0.8, 0.2]}}},
    {"eval_args": {"split": {"RS": [0.8, 0.1, -0.1]}}},
    {"eval_args": {"split": {"RS": [0.8, 0.1, math.nan]}}},
    {"eval_args": {"split": {"RS": "0.8"}}},
    {"eval_args": {"split": {"LS": ["valid_and_test"]}}},
    {"eval_args": {"split": {"LS": "valid_and_test", "RS": [0.8, 0.1, 0.1]}}},
    {"eval_args": {"split": {1: 2}}},
    {"eval_args": {"split": None}},
    {"eval_args": {"mode": "uni-5"}},
    {"eval_args": {"mode": "uni99999999999999999999"}},
    {"eval_args": {"mode": {"valid": "uni5", "tset": "full"}}},
    {"eval_args": {"mode": {"valid": 5}}},
    {"eval_args": {"order": "RO"}},
    {"eval_args": {"group_by": 1}},
    {"eval_args": None},
    {"eval_args": []},
    {"train_neg_sample_args": {"sample_num": 0}},
    {"train_neg_sample_args": {"sample_num": "x"}},
    {"train_neg_sample_args": {"distribution": "unifrom"}},
    {"train_neg_sample_args": {"alpha": math.inf}},
    {"train_neg_sample_args": {"dynamic": 1}},
    {"train_neg_sample_args": {"candidate_num": -1}},
    {"train_neg_sample_args": [1]},
    {"seed": None},
    {"seed": 2**32},
    {"seed": -1},
    {"seed": 1.5},
    {"seed": "seven"},
    {"seed": [1]},
    {"seed": True},
    {"learning_rate": math.nan},
    {"learning_rate": math.inf},
    {"learning_rate": -1e-3},
    {"learning_rate": 0},
    {"learning_rate": None},
    {"learning_rate": "1e-3x"},
    {"learning_rate": {"lr": 1}},
    {"warmup_ratio": 5},
    {"warmup_ratio": -0.1},
    {"warmup_updates": -5},
    {"warmup_updates": 1.5},
    {"warmup_updates": 10, "warmup_ratio": 0.1},
    {"eval_step": -2},
    {"epochs": None},
    {"epochs": 10**400},
    {"epochs": "3 epochs"},
    {"stopping_step": -1},
    {"train_batch_size": 0},
    {"train_batch_size": 64.0},
    {"eval_batch_size": -1},
    {"weight_decay": -0.01},
    {"weight_decay": math.nan},
    {"learner": "adma"},
    {"learner": None},
    {"learner": 3},
    {"lr_schedule": "cosin"},
    {"amp": "fp8"},
    {"amp": True},
    {"adam_eps": 0},
    {"accumulate_grad_batches": 0},
    {"decay_groups": "no_bias"},
    {"eval_updates": 0},
    {"topk": 0},
    {"topk": []},
    {"topk": [10, 2.5]},
    {"topk": None},
    {"topk": "ten"},
    {"metrics": []},
    {"metrics": ["Recall", 5]},
    {"metrics": {"Recall": 10}},
    {"metrics": "Recal"},
    {"metrics": None},
    {"valid_metric": "NDCG"},
    {"valid_metric": "NDCG@11"},
    {"valid_metric": 10},
    {"valid_metric": ""},
    {"metric_decimal_place": -1},
    {"metric_decimal_place": 400},
    {"repeatable": False},
    {"mask_history": "no"},
    {"mask_history": 0},
    {"time_order": "exakt"},
    {"protocol": "temporal"},
    {"temporal_session_valid_ratio": 1},
    {"temporal_session_folds": 0},
    {"control": "random"},
    {"control": None},
    {"popularity_counts": "test"},
    {"tail_ratio": 1.5},
    {"cold_items": -0.1},
    {"cold_items": 1},
    {"MAX_ITEM_LIST_LENGTH": 0},
    {"MAX_ITEM_LIST_LENGTH": [50]},
    {"item_inter_num_interval": "5"},
    {"item_inter_num_interval": 5},
    {"user_inter_num_interval": "[five,inf)"},
    {"val_interval": {"rating": 3}},
    {"val_interval": ["rating"]},
    {"val_interval": {"rating": "3-5"}},
    {"threshold": {"rating": "3"}},
    {"seq_len": {"item_id": 0}},
    {"load_col": ["user_id"]},
    {"load_col": {"inter": 5}},
    {"load_col": {"inter": [None]}},
    {"unload_col": "timestamp"},
    {"unused_col": {"inter": {"a": 1}}},
    {"rm_dup_inter": "newest"},
    {"rm_dup_inter": True},
    {"normalize_field": "rating"},
    {"numerical_features": None},
    {"alias_of_item_id": "item_id"},
    {"additional_feat_suffix": 3},
    {"benchmark_filename": "train"},
    {"field_separator": ""},
    {"USER_ID_FIELD": None},
    {"LIST_SUFFIX": ""},
    {"encoding": 8},
    {"train_view": "segments"},
    {"windows": None},
    {"item_text": 5},
    {"item_text": [5]},
    {"item_vectors": ""},
    {"item_vectors_missing": "skip"},
    {"llm": None},
    {"llm": " "},
    {"llm_dtype": "float8"},
    {"llm_local_files_only": "yes"},
    {"llm_revision": 1234567},
    {"embedding_cache_dir": ""},
    {"nproc": 0},
    {"world_size": 0},
    {"world_size": -2},
    {"port": 70000},
    {"distributed_timeout": 0},
    {"use_gpu": "cuda"},
    {"worker": -1},
    {"state": "LOUD"},
    {"state": 10},
    {"data_path": ""},
    {"checkpoint_dir": None},
    {"show_progress": None},
    {"smoke": "yes"},
    {"smoke_users": 0},
    {"smoke": True, "smoke_settings": {"epochs": -1}},
    {"smoke_settings": [1]},
    {"transform": "mask"},
    {"save_state": "no"},
    {"resume": 5},
    {"valid_users_sample": 0},
    {"timing_batches": -1},
    {"config_files": 5},
    {"learning_rte": 1},
    {"epochs ": 1},
    {"": 1},
    {5: 1},
    {"eval_args": ENDLESS},
    {"item_text": nested(5000)},
    {"metrics": nested(40)},
]
OF_A_MODEL = [
    ("SASRec", {"hidden_size": -4}),
    ("SASRec", {"hidden_size": 0}),
    ("SASRec", {"n_heads": 2.0}),
    ("SASRec", {"hidden_act": "gelo"}),
    ("SASRec", {"attn_dropout_prob": 1}),
    ("SASRec", {"hidden_dropout_prob": -0.5}),
    ("SASRec", {"layer_norm_eps": 0}),
    ("SASRec", {"loss_type": "BCE"}),
    ("SASRec", {"loss_type": None}),
    ("SASRec", {"transform": "mask_itemseq"}),
    ("SASRec", {"transform": "crop_itemseq", "eta": 2}),
    ("GRU4Rec", {"num_layers": 0}),
    ("FPMC", {"loss_type": "CE"}),
    ("GRU4RecCPR", {"loss_type": "BPR"}),  # RecBole's model prints a line and exits with status 0
    ("LRURec", {"initializer_range": 0}),
    ("LLMSeqSim", {"reduced_dim": None}),
    ("GRU4Rec", {"dropout_prob": "a"}),
    ("NARM", {"dropout_probs": [0.25]}),
    ("NARM", {"dropout_probs": [0.25, 1.5]}),
    ("BERT4Rec", {"mask_ratio": 2}),
    ("FDSA", {"selected_features": []}),
    ("FDSA", {"pooling_mode": "median"}),
    ("S3Rec", {"train_stage": "tune"}),
    ("S3Rec", {"pretrain_epochs": -1}),
    ("Caser", {"reg_weight": "a"}),
    ("SHAN", {"reg_weight": [0.1, -1]}),
    ("LRURec", {"loss_type": "BPR"}),
    ("LRURec", {"loss": "bpr"}),
    ("LRURec", {"num_negatives": 0}),
    ("LRURec", {"gbce_t": 1.1}),
    ("LRURec", {"r_min": 0.9, "r_max": 0.5}),
    ("LRURec", {"dropout": 1.0}),
    ("LLM2SASRec", {"adaptor": "mpl"}),
    ("LLM2SASRec", {"dim_reduction": True}),
    ("LLM2SASRec", {"reduced_dim": 0}),
    ("LLM2SASRec", {"item_pooling": "max"}),
    ("LLM2BERT4Rec", {"mask_ratio": 0}),
    ("LLM2GRU4Rec", {"embedding_size": None}),
    ("LiteLLM4Rec", {"item_llm_mode": "both"}),
    ("LiteLLM4Rec", {"rec_llm_init": "random"}),
    ("LiteLLM4Rec", {"dropout": math.nan}),
    ("LiteLLM4Rec", {"stage2_epochs": -1}),
    ("LiteLLM4Rec", {"scratch_shape": [64]}),
    ("LlamaRec", {"n_candidates": 1}),
    ("LlamaRec", {"lora_target_modules": []}),
    ("LlamaRec", {"lora_target_modules": [5]}),
    ("LlamaRec", {"lora_alpha": 0}),
    ("LlamaRec", {"lora_r": 8.5}),
    ("LlamaRec", {"retriever_settings": {"dropout": 4}}),
    ("LlamaRec", {"retriever_settings": {"droput": 0.4}}),
    ("LlamaRec", {"retriever": "SASRec", "retriever_settings": {"state_size": 4}}),
    ("LlamaRec", {"retriever_settings": "dropout"}),
    ("LlamaRec", {"retriever_weight": 2}),
    ("LLMSeqPrompt", {"variant": "genre"}),
    ("LLMSeqPrompt", {"top_p": 0}),
    ("LLMSeqPrompt", {"temperature": "hot"}),
    ("LLMSeqPrompt", {"clusters": 1}),
    ("LLMSeqPrompt", {"seqsim_settings": {"decay": "exp"}}),
    ("LLMSeqSim", {"similarity": "cos"}),
    ("LLMSeqSim", {"train_neg_sample_args": {"distribution": "uniform"}}),
    ("LLMSeqSimPopularity", {"popularity_quantile_grid": [0.5, 2]}),
    ("LLMSeqSimSequential", {"unpopular_model": {"model": "VSKNN", "neighbors": 0}}),
    ("EmbeddingEnsemble", {"first_model": {"similarity": "cos"}}),
    ("EmbeddingEnsemble", {"cutoff": -1}),
    ("ScoreEnsemble", {"members": [5]}),
    ("ScoreEnsemble", {"weights": [0, 0]}),
    ("VSKNN", {"similarity": "euclidean"}),
    ("MaxIdRule", {"item_index": "sci"}),
    ("P5", {"templates": []}),
    ("P5", {"templates": "one"}),
    ("P5", {"test_template": -1}),
    ("POD", {"soft_prompts": -1}),
    ("POD", {"beams": 0}),
    ("LightLM", {"item_index_clusters": 1}),
    ("LightLM", {"digit_embedding_range": -1}),
]


def says_one_line(error, given):
    text = str(error)
    assert "\n" not in text and len(text) < 3000
    names = [str(key) for key in given]
    assert any(name in text for name in names) or any(repr(name) in text for name in names), text


@pytest.mark.parametrize("number", range(len(OF_EVERY_MODEL)))
def test_a_wrong_value_of_any_model(number):
    """Each over three models in turn, so that all of them are tried many times."""
    given = OF_EVERY_MODEL[number]
    names = known_models()
    for name in (names[number % len(names)], names[(7 * number + 3) % len(names)], "SASRec"):
        with pytest.raises(ConfigError) as caught:
            precheck(None, {"model": name, "dataset": "ml-100k", **given}, None)
        says_one_line(caught.value, given)


@pytest.mark.parametrize(("name", "given"), OF_A_MODEL, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_value_of_a_model(name, given):
    with pytest.raises(ConfigError) as caught:
        Config(name, "ml-100k", config_dict=copy.deepcopy(given))
    says_one_line(caught.value, given)


RIGHT = [
    ("LlamaRec", {"lora_target_modules": "all-linear"}),
    ("LlamaRec", {"lora_target_modules": ["q_proj"]}),
    ("LlamaRec", {"lora_alpha": 16.5}),
    ("LlamaRec", {"retriever_settings": {"dropout": 0.4}}),
    ("LLMSeqPrompt", {"lora_target_modules": ["q_proj", "v_proj"]}),
    ("LLMSeqPrompt", {"lora_alpha": 16.5}),
    ("P5", {"test_template": "{user} {history}"}),
    ("POD", {"topn_test_template": "Which? {history}"}),
    ("SASRec", {"clip_grad_norm": 5.0}),
    ("SASRec", {"clip_grad_norm": {"max_norm": 1, "norm_type": math.inf}}),
    ("SASRec", {"learning_rate": 1, "weight_decay": 0}),
    ("SASRec", {"seed": np.int64(3), "learning_rate": np.float32(0.5)}),
    ("SASRec", {"topk": 5, "metrics": "ndcg", "valid_metric": "NDCG@5"}),
    ("SASRec", {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "popularity", "sample_num": 2}}),
    ("SASRec", {"eval_args": {"split": {"RS": [8, 1, 1]}, "mode": {"valid": "uni5", "test": "full"}}}),
    ("SASRec", {"item_inter_num_interval": "[5,inf);[0,2)", "val_interval": {"rating": "[3,inf)"}}),
    ("SASRec", {"eval_step": 0, "gpu_id": "", "learner": "AdamW", "state": "warning"}),
]


@pytest.mark.parametrize(("name", "given"), RIGHT, ids=lambda value: value if isinstance(value, str) else "")
def test_documented_values_are_accepted(name, given):
    """The first eight were refused on d0eece4, which went by the type of the default."""
    precheck(None, {"model": name, "dataset": "ml-100k", **given}, None)


GARBAGE = [None, True, -1, 0, 3, 10**30, 0.5, -0.5, math.nan, math.inf, "", "x", [], [1], ["x"], {}, {"x": 1}, {1: {}}]


@pytest.mark.parametrize("name", [None, *own_models(), *stock_models()])
def test_any_garbage_for_any_key_is_accepted_or_named(name):
    types = types_of(name, name and property_file(model_file(name)))
    for key in set(types) - set(types_of(None) if name else ()):
        for value in [*GARBAGE, b"x", {2}, nested(100), "x" * 10**5, object()]:
            try:
                check_value(key, value, types)
            except ConfigError as error:
                assert key in str(error)
                assert "\n" not in str(error) and len(str(error)) < 2000


# ---- YAML


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("seed:\n", "invalid value for seed: null"),
        ("learning_rate: .nan\n", "invalid value for learning_rate: nan"),
        ("weight_decay: .inf\n", "invalid value for weight_decay: inf"),
        ("a: &a [*a]\n", "recursive"),
        ("a: &a {b: *a}\n", "recursive"),
        ("a: " + "[" * 2000 + "]" * 2000 + "\n", "nested too deeply"),
        ("metrics: " + "[" * 60 + "]" * 60 + "\n", "nested more than"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
            ),
            "holds too many values",
        ),
        ("seed: 1\nseed: 2\n", "the key 'seed' is given twice"),
        ("eval_args: {mode: full, mode: uni5}\n", "the key 'mode' is given twice"),
        ("1: 2\n", "has the key 1, which is not a string"),
        ("null: 2\n", "has the key None"),
        ("[a, b]: 2\n", "not valid YAML"),
        ("eval_args: {1: 2}\n", "unknown key in eval_args: 1"),
        ("- a\n", "must hold `key: value` lines, not a list"),
        ("just text\n", "must hold `key: value` lines, not a str"),
        ("5\n", "not a int"),
        ("a: b: c\n", "not valid YAML"),
        ("a: 'b\n", "not valid YAML"),
        ("\tseed: 1\n", "not valid YAML"),
        ("seed: *unknown\n", "undefined alias"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("seed: !!int x\n", "has an invalid value"),
        ("smoke: !!bool maybe\n", "has an invalid value"),
        ("seed: !!timestamp x\n", "has an invalid value"),
        ("seed: !!set {a, b}\n", "invalid value for seed"),
        ("seed: !!binary aGk=\n", "invalid value for seed"),
        ("seed: " + "9" * 5000 + "\n", "settings file"),
        ("seed: 1\n---\nseed: 2\n", "not valid YAML"),
        (b"\xff\xfe", "cannot be read"),
        ("seed: \x00\n", "not valid YAML"),
    ],
)
def test_wrong_yaml(tmp_path, content, says):
    file = tmp_path / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        precheck([file], {"model": "SASRec", "dataset": "ml-100k"}, None)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_anchors_and_merges_that_end_are_read(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n", encoding="utf-8")
    assert load_yaml(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": [{"x": 1, "y": 2}] * 2}


@examples(300)
@given(st.text(max_size=60))
def test_any_text_on_the_command_line_is_a_value(text):
    parse_value(text)


@examples(100)
@given(st.binary(max_size=60))
def test_any_file_is_settings_or_an_error_in_one_line(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    try:
        load_yaml(file)
    except RecBoleLLMError as error:
        assert "\n" not in str(error)


# ---- command line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seed="], "invalid value for seed: null"),
        (["--clip_grad_norm={norm_typ: 2}"], "Did you mean 'norm_type'?"),
        (["--eval_args={split: {RS: [0,0,0]}}"], "three shares"),
        (["--learning_rate=.nan"], "invalid value for learning_rate"),
        (["--hidden_size", "-4"], "invalid value for hidden_size: -4"),
        (["--epochs=" + "9" * 5000], "invalid value for epochs"),
        (["--metrics=" + "[" * 90 + "]" * 90], "nested more than"),
        (["--lerning_rate=1"], "Did you mean 'learning_rate'?"),
        (["--train_neg_sample_args={'popularity':1}"], "unknown key in train_neg_sample_args: 'popularity'"),
    ],
)
def test_wrong_values_on_the_command_line(isolated, arguments, says, capsys):
    assert main(["-m", "SASRec", "-d", "ml-100k", *arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("recbole-llm: error: ") and says in text
    assert text.count("\n") == 1
    assert list(isolated.iterdir()) == []


# ---- settings that only the model's own code can judge


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("SASRec", {"hidden_size": 7}),  # ValueError: not a multiple of the heads
        ("FEARec", {"n_layers": 1}),  # ZeroDivisionError
        ("SASRecCPR", {"n_facet_emb": 1}),  # AssertionError
        ("S3Rec", {"train_stage": "finetune"}),  # FileNotFoundError
    ],
)
def test_what_recboles_constructors_object_to_arrives_as_an_error(isolated, name, given):
    """On d0eece4 all but the first were tracebacks."""
    config = Config(name, "ml-100k", config_dict={"smoke": True, **given})
    with pytest.raises(ConfigError, match=f"{name} cannot be built with these settings"):
        build(config, HistoryDataset(config).build()[0])


# ---- warm-up


def test_warmup_ratio_counts_where_warmup_updates_has_a_default(tmp_path):
    """On d0eece4 LlamaRec's default of 100 updates won over the ratio that was given."""
    config = Config("LlamaRec", "ml-100k", config_dict={"warmup_ratio": 0.05})
    assert (config["warmup_ratio"], config["warmup_updates"]) == (0.05, None)
    assert Config("LlamaRec", "ml-100k")["warmup_updates"] == 100
    (tmp_path / "a.yaml").write_text("warmup_updates: 7\n", encoding="utf-8")
    assert Config("LlamaRec", "ml-100k", [tmp_path / "a.yaml"])["warmup_updates"] == 7
    config = Config("LlamaRec", "ml-100k", [tmp_path / "a.yaml"], arguments={"warmup_ratio": 0.1})
    assert (config["warmup_ratio"], config["warmup_updates"]) == (0.1, None)
    replayed = Config("LlamaRec", "ml-100k", [config.merged])
    assert (replayed["warmup_ratio"], replayed["warmup_updates"]) == (0.1, None)
