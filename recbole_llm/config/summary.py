"""The settings of a run in a few lines: departures from the defaults first, then what else matters, by concern."""

from collections.abc import Iterable, Mapping
from typing import Any

from recbole.utils import set_color

from recbole_llm.config.schema.blocks import Adaptor as TextAdaptor
from recbole_llm.config.schema.blocks import ItemLoss, LoRA, RecLLM, Reduced
from recbole_llm.config.schema.general import Data, LanguageModel, Protocol, Training
from recbole_llm.config.schema.recbole import AtomicFiles, Evaluation, Optimisation
from recbole_llm.config.schema.section import Section
from recbole_llm.config.values import SECRETS

# The first that declares a setting names its concern; a model's other settings are its own.
CONCERNS: dict[str, tuple[type[Section], ...]] = {
    "Training": (Optimisation, Training),
    "Loss": (ItemLoss,),
    "Item text": (Reduced, TextAdaptor),
    "Language model": (LanguageModel, RecLLM, LoRA),
    "Data": (Data, AtomicFiles),
    "Evaluation": (Protocol, Evaluation),
}
ORDER = ("Changed", "Model", "Item text", "Language model", "Loss", "Training", "Data", "Evaluation")
HIDDEN = SECRETS | {"model", "dataset", "smoke_settings", "show_progress"}


def concern(key: str) -> str:
    """Return the heading that a setting stands under.

    >>> concern("learning_rate"), concern("num_negatives"), concern("hidden_size")
    ('Training', 'Loss', 'Model')
    """
    found = (name for name, sections in CONCERNS.items() if any(key in section.types() for section in sections))
    return next(found, "Model")


def summary(
    merged: Mapping[str, Any], defaults: Mapping[str, Any], given: Mapping[str, Any], model_keys: Iterable[str]
) -> str:
    """Return one line for each concern that has settings; the first holds those that were changed.

    Parameters
    ----------
    merged, defaults, given : dict
        All settings of a run, their defaults, and the user's.
    model_keys : iterable of str
        Settings of the model.
    """
    sources = {**given, **(defaults["smoke_settings"] if merged["smoke"] else {})}
    always = {*model_keys, *Optimisation.types(), *Training.types()}
    groups: dict[str, list[str]] = {name: [] for name in ORDER}
    for key, value in merged.items():
        if key in HIDDEN or value is None:
            continue
        shown = f"{set_color(key, 'cyan')} = {set_color(str(value), 'yellow')}"
        if key in sources and value != defaults.get(key):
            groups["Changed"].append(shown)
        elif key in always:
            groups[concern(key)].append(shown)
    return "\n".join(f"{set_color(name, 'pink')}: {', '.join(shown)}" for name, shown in groups.items() if shown)
