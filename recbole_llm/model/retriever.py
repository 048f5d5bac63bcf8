"""The retriever of a reranker: trained in the same run, or taken from a finished one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.config import Config
from recbole_llm.config.registry import get_model
from recbole_llm.contract import LLMRecommender, Reranker
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import CheckpointError, ConfigError
from recbole_llm.run import submodel


@dataclass(frozen=True)
class Retriever:
    """A retriever and its settings.

    Attributes
    ----------
    model : recbole SequentialRecommender
    config : Config
    run_dir : str or None
        Folder of the finished run that it comes from; None: it is still to be trained.
    """

    model: LLMRecommender
    config: Config
    run_dir: str | None


def get_retriever(name: str, settings: Mapping[str, Any], config: Config, dataset: HistoryDataset) -> Retriever:
    """Build a new model by its name, or load the model of a finished run by its folder.

    Parameters
    ----------
    name : str
    settings : dict
        Departures from the property file of a new model.
    config : Config
        Of the run.
    dataset : HistoryDataset
        Training split.

    Raises
    ------
    ConfigError
        For an unknown model, or one that cannot be trained inside this run.
    CheckpointError
        If the folder is no finished run on the same data.
    """
    if Path(name).is_dir():
        model = submodel.load_trained(name, config, dataset)
        if not np.array_equal(model.item_tokens, dataset.field2id_token[dataset.iid_field]):
            raise CheckpointError(
                f"retriever={name!r} numbers its items differently from this run. Train it again with the same files "
                "and filters."
            )
        if settings:
            raise ConfigError(
                f"retriever_settings={settings} are for a retriever that is trained here, and {name} is a finished "
                "run. Leave them out, or set retriever_settings={}."
            )
        return Retriever(model, model.config, name)
    _check_name(name)
    inner = submodel.inner_config(name, config, settings)
    config.notices += inner.notices
    if reason := _cannot_be_trained_here(inner):
        raise _in_a_run_of_its_own(name, reason)
    model = submodel.build(inner, dataset)
    if len(model.training_stages) > 1:
        raise _in_a_run_of_its_own(name, "is itself trained in stages")
    return Retriever(model, inner, None)


def _check_name(name: str) -> None:
    try:
        get_model(name)
    except ConfigError as error:
        known = str(error).replace("model=", "retriever=", 1)
        raise ConfigError(f"{known} The run directory of a finished run works, too.") from error


def _cannot_be_trained_here(inner: Any) -> str | None:
    if issubclass(inner.model_class, Reranker):
        return "has its own retriever"
    if submodel.has_pretraining(inner):
        return "is itself trained in stages"
    if "item" in (inner["load_col"] or {}):
        return "reads item features, which this run does not load"
    return None


def _in_a_run_of_its_own(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"retriever={name!r} {reason}. Train it in a separate run and set retriever to its run directory."
    )
