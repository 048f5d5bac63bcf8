"""LlamaRec on a tiny world, for the tests of its parts."""

import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.run.submodel import build
from recbole_llm.trainer.trainer import RunTrainer

K = 6


def prepare(settings, stage="ranker", dataset="cycle", **more):
    config = Config("LlamaRec", dataset, config_dict={**settings, **more})
    train, valid, test = prepare_data(config, HistoryDataset(config))
    torch.manual_seed(0)
    model = build(config, train.dataset)
    if stage == "ranker":
        model.start_stage("ranker")
    return model.eval(), train, valid, test


def batch_of(loader):
    batch = next(iter(loader))
    return batch[0] if isinstance(batch, tuple) else batch


def evaluated(settings, patch=None, **more):
    """Test result, unmasked result and the rows of both steps, with ``patch`` applied to the model."""
    model, train, _, test = prepare(settings, topk=[1, K, 20], valid_metric="NDCG@20", **more)
    if patch is not None:
        patch(model)
    trainer = RunTrainer(model.config, model, None, train.dataset.train_counts, finished=True)
    masked = trainer.evaluate(test, load_best_model=False)
    return masked, trainer.evaluation.unmasked, trainer.evaluation.retrieval
