"""MostPopular: the same list for everybody, items by the number of their training interactions.

RecBole's ``Pop`` is a general recommender and learns its counts in a training epoch; this one runs beside sequential
models, under their split, and has no parameters.
"""

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset


class MostPopular(LLMRecommender):
    """Score of an item = its training interactions; equal ones by internal id, which is first appearance.

    Parameters
    ----------
    config : Config
    dataset : recbole SequentialDataset
        Training split.
    """

    reads_history = False
    counts: torch.Tensor

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        counts = np.asarray(dataset.inter_matrix(form="csr").sum(axis=0)).reshape(-1)
        # Not saved: they come from the data.
        self.register_buffer("counts", torch.from_numpy(counts).float(), persistent=False)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Score of ``ITEM_ID`` for every row, shape (B,)."""
        return self.counts[interaction[self.ITEM_ID]]

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the whole catalogue, shape (B, n_items); padding is ``-inf``."""
        return self.mask_padding(self.counts.repeat(len(interaction), 1))
