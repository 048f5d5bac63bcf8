"""A RecBole user's own scripts, with our models in them, on today's stack; each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_dataset

ROOT = Path(__file__).parents[1]
SETTINGS = """
import sys
sys.argv = ["script.py"]
import recbole_llm
recbole_llm.compat()
recbole_llm.compat()
settings = {
    "data_path": ".", "epochs": 1, "MAX_ITEM_LIST_LENGTH": 4, "hidden_size": 8, "inner_size": 8, "n_heads": 1,
    "train_neg_sample_args": None, "show_progress": False, "use_gpu": False, "state": "ERROR", "n_layers": 1,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "user_inter_num_interval": "[0,inf)",
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
}
"""
RUN = """
from recbole.config import Config
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_model

assert get_model("LLM2SASRec").__module__ == "recbole_llm.model.llm2sasrec"
assert get_model("SASRec").__module__.startswith("recbole.")
for model in ("SASRec", "LLM2SASRec", "LRURec"):
    own = {**settings, "llm_init": False, "checkpoint_dir": model}
    result = run_recbole(model=model, dataset="shop", config_dict=own)
    assert 0 <= result["test_result"]["recall@10"] <= 1, result
    from pathlib import Path
    (file,) = Path(model).glob("*.pth")
    config, network, dataset, train, valid, test = load_data_and_model(str(file))
    assert type(network).__name__ == model and dataset.item_num == 13
config = Config(model="LLM2SASRec", dataset="shop", config_dict=settings)
assert config["dim_reduction"] == "pca" and config["hidden_size"] == 8
print("ok")
"""
TUNE = """
from pathlib import Path
from recbole.trainer import HyperTuning
from recbole_llm import objective_function

Path("space.test").write_text("learning_rate choice [0.01,0.001]\\n")
Path("fixed.yaml").write_text(__import__("yaml").safe_dump({**settings, "model": "LRURec", "dataset": "shop"}))
tuning = HyperTuning(
    objective_function=objective_function, algo="exhaustive", params_file="space.test",
    fixed_config_file_list=["fixed.yaml"], max_evals=2, early_stop=2,
)
tuning.run()
assert set(tuning.best_params) == {"learning_rate"} and len(tuning.params2result) == 2, tuning.params2result
print("ok")
"""


def script(folder, text):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", SETTINGS + text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_run_recbole_config_get_model_and_load(tmp_path):
    write_dataset(tmp_path)
    done = script(tmp_path, RUN)
    assert done.stdout.splitlines()[-1:] == ["ok"], done.stderr[-3000:]


def test_hyper_tuning_of_recbole_with_our_objective(tmp_path):
    pytest.importorskip("hyperopt")
    write_dataset(tmp_path)
    done = script(tmp_path, TUNE)
    assert done.stdout.splitlines()[-1:] == ["ok"], done.stderr[-3000:]


def test_what_recbole_imports_and_lacks_says_so_when_used(tmp_path):
    done = script(tmp_path, "import lightgbm\nlightgbm.Booster")
    if "MissingExtraError" not in done.stderr:
        pytest.skip("lightgbm is installed here")
    assert "pip install -U lightgbm" in done.stderr
