"""Training batches of a stage."""

from recbole_llm.contract import LLMRecommender, Reranker
from recbole_llm.data.loader import FullSortLoader, TrainLoader, train_loader
from recbole_llm.data.train_candidates import PrefixNegatives, RetrievedLists, rows_at
from recbole_llm.errors import DataError
from recbole_llm.evaluator.evaluator import Evaluator
from recbole_llm.trainer.stage import Stage


def batches_of(
    stage: Stage, model: LLMRecommender, train_data: TrainLoader, evaluator: Evaluator, show_progress: bool = False
) -> TrainLoader:
    """Return the loader that a stage trains from: the given one, set up for the model, or one of the stage's own.

    Rows of similar length come together where the model names their costs; a reranker with ``pools`` draws its
    training negatives from what its retriever puts first, or takes these lists as they are.

    Raises
    ------
    DataError
        If a reranker that trains on retrieved lists would have no row left.
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
        rows = rows_at(train_data.dataset, train_data.rows.positions())
        split = FullSortLoader(evaluator.config, rows, None)
        split.phase = "train"
        pool = evaluator.retrieve(reranker, split, reranker.pools, show_progress)
        if reranker.trains_on_retrieved:
            train_data.train_on(RetrievedLists(rows, pool.items, reranker.shuffles_retrieved))
            if not train_data.sample_size:
                raise DataError(
                    "The retriever named none of the targets of the training rows, so that there is no list to learn "
                    "from. Train it longer, or let the reranker train on sampled negatives."
                )
        else:
            assert isinstance(train_data.negatives, PrefixNegatives), "a model with pools draws negatives"
            train_data.negatives.draw_from(rows, pool.items)
    return train_data
