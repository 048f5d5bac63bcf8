import pytest

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.model.mostpopular import MostPopular
from recbole_llm.quick_start import run


def test_counts_are_those_of_training():
    config = Config("MostPopular", "ml-100k", config_dict={"use_gpu": False})
    train, _, test = prepare_data(config, HistoryDataset(config))
    model = MostPopular(config, train.dataset)
    scores = model.full_sort_predict(next(iter(test))[0])
    assert scores[0, 1:].tolist() == scores[5, 1:].tolist() == train.dataset.train_counts[1:].tolist()


def test_published_figures_of_ml100k(isolated):
    result = run("MostPopular", "ml-100k", config_dict={"show_progress": False, "use_gpu": False}, saved=False)
    names = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")
    masked, unmasked = result["test_result"], result["test_result_unmasked"]
    assert [masked[name] for name in names] == pytest.approx([0.0859, 0.0449, 0.1273, 0.0552], abs=5e-5)
    assert [unmasked[name] for name in names] == pytest.approx([0.0498, 0.0224, 0.0827, 0.0306], abs=5e-5)
