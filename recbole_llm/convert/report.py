"""What a conversion did, for the screen and for the sidecar; and what the papers printed for the same data."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from recbole_llm.convert.interactions import Counts, Filters
from recbole_llm.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """One preparation of one paper, from ``props/dataset/recipes.yaml``.

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
    content = yaml.safe_load(_recipes_file().read_text("utf-8"))
    recipes = {}
    for name, entry in content.items():
        filters = Filters(**entry.pop("filters"))
        recipes[name] = Recipe(name=name, filters=filters, **entry)
    return recipes


def _recipes_file() -> Path:
    # A wheel holds props/ inside the package; an editable install does not see that mapping, so the checkout's folder
    # is the fallback. (config.registry knows it too, but imports torch.)
    package = Path(__file__).resolve().parents[1]
    folder = next(folder for folder in (package / "props", package.parent / "props") if (folder / "dataset").is_dir())
    return folder / "dataset" / "recipes.yaml"


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


@dataclass
class Report:
    """Result of :func:`recbole_llm.convert.convert`.

    Attributes
    ----------
    name : str
        Source that was converted.
    output : Path
        Folder of the atomic files.
    counts : Counts
        Users, items with at least one interaction, and interactions written.
    listed_items, untitled_items : int
        Rows of the ``.item`` file, and how many of them have no title.
    steps : list of (str, Counts)
        The counts as read and after each filter.
    skipped : dict of str to int
        Lines that were not used, by reason; ``first_skipped`` has the first place of each.
    renamed_ids : int
        Ids that had to be written in another form.
    hashes : dict of str to str
        SHA-256 of each file written.
    sources : list of dict
        Name, size and SHA-256 of each file read.
    settings : dict
        Everything that determines the output besides the sources.
    published : list of (Recipe, Counts or None)
        The papers' preparations of this source, and what each gives on this data; ``None`` where it needs other
        settings or the titles.
    notes : list of str
    seconds : float
        Not part of the sidecar.
    """

    name: str
    output: Path
    counts: Counts
    steps: list[tuple[str, Counts]]
    skipped: dict[str, int]
    first_skipped: dict[str, str]
    settings: dict[str, Any]
    listed_items: int = 0
    untitled_items: int = 0
    renamed_ids: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    published: list[tuple[Recipe, Counts | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return what the sidecar records; the same for the same input and settings."""
        return {
            "source": self.name,
            "settings": self.settings,
            "read": self.sources,
            "written": self.hashes,
            "counts": {
                "users": self.counts.users,
                "items": self.counts.items,
                "interactions": self.counts.interactions,
                "items_listed": self.listed_items,
                "items_untitled": self.untitled_items,
                "ids_renamed": self.renamed_ids,
            },
            "steps": [{"step": name, **vars(counts)} for name, counts in self.steps],
            "skipped": self.skipped,
            "order": "time, then order of the input (stable)" if self.settings.get("order") == "time" else "input",
        }

    def text(self) -> str:
        """Return the summary that the command line prints."""
        counts = self.counts
        lines = [
            f"{self.name} -> {self.output}  ({self.seconds:.1f} s)",
            f"  users {counts.users:,}   items {counts.items:,} rated of {self.listed_items:,} listed   "
            f"interactions {counts.interactions:,}   mean length {counts.mean_length:.2f}",
        ]
        if self.untitled_items:
            lines.append(f"  items without a title: {self.untitled_items:,} (kept; --untitled drop leaves them out)")
        if len(self.steps) > 1:
            lines.append("  filters, in this order:")
            lines += [
                f"    {name:<22} {step.users:>11,} users {step.items:>11,} items {step.interactions:>13,} interactions"
                for name, step in self.steps
            ]
        for reason, number in self.skipped.items():
            lines.append(f"  skipped {number:,}: {reason} (first: {self.first_skipped[reason]})")
        if self.renamed_ids:
            lines.append(f"  ids written in another form, because they would be misread: {self.renamed_ids:,}")
        lines.append(
            "  order: by time, ties in the order of the input"
            if self.settings.get("order") == "time"
            else "  order: as in the input"
        )
        lines += self._published_lines()
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  sha256 {digest[:16]}  {name}" for name, digest in self.hashes.items()]
        return "\n".join(lines)

    def _published_lines(self) -> list[str]:
        if not self.published:
            return []
        lines = ["  published figures, and what the same filter gives on this data:"]
        for recipe, counts in self.published:
            measured = measured_counts(recipe, counts) if counts else {}
            cells = []
            for key, there in recipe.published.items():
                form = ".2f" if key == "mean_length" else ",.0f"
                here = format(measured[key], form) if measured else "?"
                cells.append(f"{key.replace('_', ' ')} {there:{form}} / {here}")
            verdict = "not tried" if counts is None else "equal" if recipe.agrees(counts) else "DIFFERENT"
            lines.append(f"    {verdict:<9} published / measured: {', '.join(cells)}")
            settings = " ".join(
                [recipe.filters.text(), *(f"--{key} {value}" for key, value in recipe.options.items())]
            )
            lines.append(f"              {recipe.paper}; --recipe {recipe.name} ({settings})")
            if recipe.note:
                lines.append(f"              {recipe.note}")
        return lines
