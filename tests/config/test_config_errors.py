"""Keys, values and files that are refused, and what the messages say."""

import logging
import re

import pytest

from recbole_llm.config import Config
from recbole_llm.errors import ConfigError
from tests.configs import sasrec

pytestmark = pytest.mark.usefixtures("isolated")


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
