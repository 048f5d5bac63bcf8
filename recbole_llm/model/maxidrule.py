"""The rule of the largest id: recommend the numbers that follow the largest number of the history. Nothing is learned.

A control: where it does well, the item numbers in use leak the order of the histories. On Amazon 2014 files numbered
as P5 and POD were published it beats several trained models.
"""

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.config.schema import untrained as schema
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.prompt.item_index import Histories, build_item_index


class MaxIdRule(LLMRecommender):
    """Score items by how soon their number follows the largest number of the history.

    Parameters
    ----------
    config : Config
        Keys of ``props/model/MaxIdRule.yaml``.
    dataset : HistoryDataset
        A training split.
    """

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        settings = schema.MaxIdRule.of(config)
        if settings.item_index == "internal":
            number = np.arange(self.n_items)
        else:
            index = build_item_index(settings.item_index, Histories.of(dataset), settings.item_index_seed)
            number = np.array([0, *map(int, index.items[1:])])
        if self.n_items < 2:
            raise ConfigError("MaxIdRule needs at least one item.")
        rank = torch.from_numpy(number[1:].argsort().argsort())
        self.register_buffer("rank", torch.cat([torch.tensor([-1]), rank]))
        self.to(self.device)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Minus the distance from the largest number of the history, upwards with wrap-around; shape (B, n_items)."""
        top = self.rank[interaction[self.ITEM_SEQ]].amax(1, keepdim=True)
        return self.mask_padding(-((self.rank - top - 1) % (self.n_items - 1)).float())
