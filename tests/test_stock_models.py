"""RecBole's own sequential models run through the same entry point, untouched."""

import numpy as np
import pytest

from recbole_llm.config.registry import stock_models
from recbole_llm.errors import ConfigError
from recbole_llm.quick_start import run
from tests.worlds import write_cycle

# They read data that RecBole prepares in a dataset class of their own (knowledge graphs, negative histories).
OWN_DATASET = {"DIEN", "GRU4RecKG", "KSR"}
SETTINGS = {
    "FDSA": {"selected_features": ["title"]},
    "GRU4RecF": {"selected_features": ["title"]},
    "SASRecF": {"selected_features": ["title"]},
    "S3Rec": {"item_attribute": "title", "pretrain_epochs": 1},
    "Caser": {"MAX_ITEM_LIST_LENGTH": 6},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def settings(tmp_path):
    write_cycle(tmp_path / "data", users=16, items=120)
    return {
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "use_gpu": False,
        "show_progress": False,
        "epochs": 1,
        "train_batch_size": 64,
        "MAX_ITEM_LIST_LENGTH": 8,
    }


@pytest.mark.parametrize("model", [name for name in stock_models() if name not in OWN_DATASET])
def test_a_stock_model_trains_and_is_evaluated(model, settings):
    if model == "DIN" and not hasattr(np, "long"):
        pytest.skip("RecBole's DIN uses np.long, which numpy 1.24 to 1.26 lack")
    result = run(model, "cycle", config_dict={**settings, **SETTINGS.get(model, {})})
    assert set(result["test_result"]) >= {"recall@10", "ndcg@10"}
    assert 0.0 <= result["test_result"]["recall@10"] <= 1.0


@pytest.mark.parametrize("model", sorted(OWN_DATASET))
def test_a_model_with_a_dataset_of_its_own_is_refused_with_the_reason(model, settings):
    with pytest.raises(ConfigError, match=f"{model}.*{model}Dataset"):
        run(model, "cycle", config_dict=settings)
