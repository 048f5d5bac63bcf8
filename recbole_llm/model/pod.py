"""POD (Li, Zhang and Chen, CIKM 2023): prompt distillation, its sequential and top-N tasks.

Trained vectors precede the words of a prompt, separate ones for each task; discrete templates are mixed in during
training, and only the bare form, ``user_1 item_2 item_3``, is left at test time. Batches alternate between the tasks.
Whole-word embeddings number users and items, all pieces of one alike. A training row is a random segment of a history
(``train_view: segment``). Explanations are not implemented.
"""

import torch

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.model.generative import GenerativeRecommender


class POD(GenerativeRecommender):
    """Soft prompts before mixed templates, on a T5 that writes item codes; keys in ``props/model/POD.yaml``."""

    train_view = "segment"

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        super().__init__(config, dataset)
        if len(self.tasks) > 1:
            # Part of what is saved: a run that is resumed inside an epoch goes on with the task whose turn it is.
            self.register_buffer("batches", torch.zeros((), dtype=torch.long, device=self.device))

    def train_tasks(self, config: Config) -> list[str]:
        """Return the tasks whose batches alternate."""
        tasks = list(dict.fromkeys(config["train_tasks"] or [self.task]))
        if self.task not in tasks:
            raise ConfigError(
                f"train_tasks={tasks!r} lacks the evaluated task: add {self.task}, or set task to one of them."
            )
        return tasks

    def next_task(self) -> str:
        """Return the task of the next batch: one after the other."""
        if len(self.tasks) == 1 or not self.training:
            return self.task
        task = self.tasks[int(self.batches) % len(self.tasks)]
        self.batches += 1
        return task
