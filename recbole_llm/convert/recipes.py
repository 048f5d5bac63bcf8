"""The papers' preparations and printed counts, from ``props/dataset/recipes.yaml``."""

from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import yaml

from recbole_llm.convert.filters import Counts, Filters
from recbole_llm.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """One preparation of one paper.

    Attributes
    ----------
    name, source, paper, note : str
    filters : Filters
    options : dict
        Settings of the source that the paper needs.
    published : dict of str to float
        ``users``, ``items``, ``interactions``, ``mean_length``, as far as they are printed.
    within : float
        Relative tolerance of the published numbers, for those printed as "148K".
    counted : {'interactions', 'targets'}
        ``targets``: the paper counts one interaction per user less.
    """

    name: str
    source: str
    paper: str
    filters: Filters
    published: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)
    within: float = 0.0
    counted: str = "interactions"
    note: str = ""

    def agrees(self, counts: Counts) -> bool:
        """Whether all published numbers are met, the mean length to the digits that are printed."""
        measured = measured_counts(self, counts)
        for key, value in self.published.items():
            if key == "mean_length":
                digits = len(str(value).partition(".")[2])
                if round(measured[key], digits) != value:
                    return False
            elif abs(measured[key] - value) > self.within * value:
                return False
        return True


def measured_counts(recipe: Recipe, counts: Counts) -> dict[str, float]:
    """Return our counts in the paper's way of counting."""
    fewer = counts.users if recipe.counted == "targets" else 0
    return {
        "users": counts.users,
        "items": counts.items,
        "interactions": counts.interactions - fewer,
        "mean_length": counts.mean_length,
    }


@lru_cache(maxsize=1)
def all_recipes() -> dict[str, Recipe]:
    """Return every recipe by name."""
    content = yaml.safe_load(_recipes_text())
    recipes = {}
    for name, entry in content.items():
        filters = Filters(**entry.pop("filters"))
        recipes[name] = Recipe(name=name, filters=filters, **entry)
    return recipes


def recipes_for(source: str) -> list[Recipe]:
    """Return the recipes of one source, in file order."""
    return [recipe for recipe in all_recipes().values() if recipe.source == source]


def get_recipe(name: str, source: str) -> Recipe:
    """Return a recipe by name.

    Raises
    ------
    ConfigError
        There is none of that name, or it is for another source.
    """
    recipe = all_recipes().get(name)
    if recipe is None or recipe.source != source:
        fitting = ", ".join(found.name for found in recipes_for(source)) or "none"
        other = f" is for {recipe.source}" if recipe else " does not exist"
        raise ConfigError(f"recipe {name!r}{other}; the recipes for {source} are: {fitting}.")
    return recipe


def _recipes_text() -> str:
    # A wheel holds props/ as recbole_llm.props; an editable install does not see that mapping, so the checkout's
    # folder is the fallback.
    try:
        import_module("recbole_llm.props.dataset")
        return resources.files("recbole_llm.props.dataset").joinpath("recipes.yaml").read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        checkout = Path(__file__).resolve().parents[2] / "props" / "dataset" / "recipes.yaml"
        return checkout.read_text("utf-8")
