"""A model on a tiny made-up dataset with a tiny random language model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.run import submodel
from recbole_llm.run.experiment import run
from recbole_llm.testing.datasets import write_cycle

TINY: dict[str, Any] = {
    "llm": "tiny-random-t5",
    "rec_llm": "tiny-random-t5",
    "train_batch_size": 16,
    "epochs": 2,
    "show_progress": False,
    "use_gpu": False,
    "worker": 0,
}


class NotApplicable(Exception):
    """A promise that a model does not make, such as learning."""


class Case:
    """A model class on the made-up dataset, in a folder of its own.

    Parameters
    ----------
    model : str or class
        As :class:`recbole_llm.config.Config` takes it.
    folder : pathlib.Path
    settings : dict, optional
        What the model cannot do without, such as the members of an ensemble.
    """

    def __init__(self, model: str | type, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.model, self.folder = model, folder
        write_cycle(folder / "data")
        places = {
            "data_path": folder / "data",
            "checkpoint_dir": folder / "saved",
            "embedding_cache_dir": folder / "c",
        }
        self.settings: dict[str, Any] = {key: str(value) for key, value in places.items()}
        defaults = self.config().internal_config_dict
        # A model that is not trained keeps its own epochs: 0.
        trains = defaults["epochs"] != 0
        self.settings |= {key: value for key, value in TINY.items() if key in defaults and (trains or key != "epochs")}
        # A model may need another tiny language model than most, and less of it.
        smoke = (defaults.get("smoke_settings") or {}) if "smoke_settings" in self.config().model_keys else {}
        self.settings |= {key: value for key, value in smoke.items() if key not in TINY or "llm" in key}
        self.settings |= dict(settings or {})

    def config(self, **more: Any) -> Config:
        """Return the settings of a run, with changes."""
        return Config(self.model, "cycle", config_dict={**self.settings, **more})

    def build(self, weights_seed: int = 1, **more: Any) -> tuple[LLMRecommender, Any, Interaction]:
        """Return the model as a new run would start it, its training batches, and a batch of test rows."""
        config = self.config(**more)
        train, _, test = prepare_data(config, HistoryDataset(config))
        torch.manual_seed(weights_seed)
        model = submodel.build(config, train.dataset)
        return model, train, next(iter(test))[0].to(config["device"])

    def run(self, saved: bool = True, **more: Any) -> dict[str, Any]:
        """Return the result of a whole run."""
        return run(self.model, "cycle", config_dict={**self.settings, **more}, saved=saved)

    def require_training(self) -> LLMRecommender:
        """Return a new model; raises NotApplicable where it has no trainable parameters."""
        model = self.build()[0]
        if self.config()["epochs"] == 0 or not any(parameter.requires_grad for parameter in model.parameters()):
            raise NotApplicable("it has no trainable parameters")
        return model
