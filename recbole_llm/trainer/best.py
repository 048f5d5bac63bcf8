"""The weights of the best validation, in the run directory or in memory."""

from pathlib import Path

import torch

from recbole_llm import distributed
from recbole_llm.contract import LLMRecommender
from recbole_llm.trainer import checkpoint


class BestWeights:
    """What a model has learned at its best validation.

    Parameters
    ----------
    model : LLMRecommender
    run_dir : pathlib.Path, optional
        Folder of the file; without it, weights are kept in memory.
    """

    def __init__(self, model: LLMRecommender, run_dir: Path | None) -> None:
        self.model = model
        self.file = None if run_dir is None else run_dir / checkpoint.WEIGHTS
        self._in_memory: dict[str, torch.Tensor] | None = None

    def keep(self, to_file: bool) -> None:
        """Keep the model's present weights, in the file or in memory."""
        if not to_file or self.file is None:
            tensors = checkpoint.learned_tensors(self.model)
            self._in_memory = {name: tensor.clone() for name, tensor in tensors.items()}
        elif distributed.world().is_main:
            checkpoint.save_weights(self.model, self.file)

    def restore(self) -> None:
        """Give the model the weights that were kept last; none were kept in a run that is only evaluated."""
        if self._in_memory is not None:
            self.model.load_state_dict(self._in_memory, strict=False)
        elif self.file is not None:
            self.load(self.file)

    def load(self, file: Path) -> None:
        """Read a file of weights, on the main process, into the model of every process."""
        distributed.from_main(lambda: checkpoint.load_weights(self.model, file))
        distributed.broadcast_state(self.model)
