"""Training batches of a stage."""

from recbole_llm.contract import LLMRecommender, Reranker
from recbole_llm.data.loader import FullSortLoader, TrainLoader, train_loader
from recbole_llm.evaluator.evaluator import Evaluator
from recbole_llm.trainer.stage import Stage


def batches_of(
    stage: Stage, model: LLMRecommender, train_data: TrainLoader, evaluator: Evaluator, show_progress: bool = False
) -> TrainLoader:
    """Return the loader that a stage trains from: the given one, set up for the model, or one of the stage's own.

    Rows of similar length come together where the model names their costs; a reranker with ``pools`` draws its
    training negatives from what its retriever puts first.
    """
    if stage.own_settings:
        return train_loader(stage.settings, train_data.dataset)
    reranker = model if isinstance(model, Reranker) else None
    if reranker is not None and not reranker.reranks:
        return train_data
    costs = model.batch_costs()
    if costs is not None:
        train_data.bucket(*costs)
    if reranker is not None and reranker.pools:
        split = FullSortLoader(evaluator.config, train_data.dataset, None)
        split.phase = "train"
        pool = evaluator.retrieve(reranker, split, reranker.pools, show_progress)
        assert train_data.negatives is not None, "a model with pools draws negatives"
        train_data.negatives.draw_from(pool.items)
    return train_data
