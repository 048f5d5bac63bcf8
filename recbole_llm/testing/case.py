"""Tiny made-up datasets, and a model on one of them with a tiny random language model."""

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

WORDS = [
    *("apple", "violin", "harbor", "meteor", "cactus", "lantern"),
    *("pirate", "glacier", "wizard", "saddle", "quartz", "balloon"),
]


def write_dataset(folder: Path, name: str, histories: dict[str, list[str]], texts: dict[str, str]) -> Path:
    """Write ``folder/name/name.inter`` and ``.item``; times count up within a user. Returns ``folder``.

    >>> folder = write_dataset(Path("data"), "shop", {"ann": ["1", "2"]}, {"1": "a red ball", "2": "a blue ball"})
    >>> (folder / "shop" / "shop.inter").read_text().splitlines()[1].split("\\t")
    ['ann', '1', '0']
    """
    target = folder / name
    target.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in histories.items():
        lines += [f"{user}\t{item}\t{time}" for time, item in enumerate(items)]
    (target / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = ["item_id:token\ttitle:token_seq"] + [f"{item}\t{text}" for item, text in texts.items()]
    (target / f"{name}.item").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_cycle(folder: Path, name: str = "cycle", users: int = 40, items: int = 30, length: int = 12) -> Path:
    """Write a dataset whose next item is always the next number: user u has u, u+1, u+2, ... (modulo ``items``)."""
    histories = {f"u{u}": [f"i{(7 * u + i) % items}" for i in range(length - u % 4)] for u in range(users)}
    texts = {f"i{i}": f"{WORDS[i % len(WORDS)]} volume {i}" for i in range(items)}
    return write_dataset(folder, name, histories, texts)


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
