"""Reports: of a conversion, compared with the published figures for the same data, and of a check."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from recbole_llm.config.registry import props_dir
from recbole_llm.config.values import load_yaml
from recbole_llm.convert.interactions import Counts, Filters
from recbole_llm.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """A paper's preparation of a dataset, from ``props/dataset/recipes.yaml``.

    ``published`` are the paper's numbers, matched ``within`` a relative tolerance (for "148K"); ``options`` are the
    settings of the source that it needs; ``counted`` is ``'targets'`` if the paper counts one interaction fewer per
    user.
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

    def measured(self, counts: Counts) -> dict[str, float]:
        """Return our counts in the paper's way of counting."""
        fewer = counts.users if self.counted == "targets" else 0
        return {**vars(counts), "interactions": counts.interactions - fewer, "mean_length": counts.mean_length}

    def agrees(self, counts: Counts) -> bool:
        """Whether all published numbers are matched, the mean length to the digits printed."""
        measured = self.measured(counts)
        digits = len(str(self.published.get("mean_length", "")).partition(".")[2])
        measured["mean_length"] = round(measured["mean_length"], digits)
        within = {**dict.fromkeys(measured, self.within), "mean_length": 0.0}
        return all(abs(measured[key] - value) <= within[key] * value for key, value in self.published.items())


@lru_cache(maxsize=1)
def all_recipes() -> dict[str, Recipe]:
    """Return every recipe by name."""
    recipes = load_yaml(props_dir() / "dataset" / "recipes.yaml")
    return {
        name: Recipe(name=name, filters=Filters(**entry.pop("filters")), **entry) for name, entry in recipes.items()
    }


def recipes_for(source: str) -> list[Recipe]:
    """Return the recipes of one source, in file order."""
    return [recipe for recipe in all_recipes().values() if recipe.source == source]


def get_recipe(name: str, source: str) -> Recipe:
    """Return a recipe by name; ConfigError if there is none of that name for the source."""
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
    name, output : str, Path
        Source, and folder of the atomic files.
    counts, steps : Counts, list of (str, Counts)
        Counts of what was written (items with at least one interaction); counts as read and after each filter.
    skipped, first_skipped : dict
        Number of skipped lines by reason, and the first place of each.
    settings : dict
        Everything that determines the output besides the sources.
    listed_items, untitled_items, renamed_ids : int
        Rows of the ``.item`` file, those without a title, and ids that had to be written in another form.
    sources, hashes : list of dict, dict
        Name, size and SHA-256 of each file read; SHA-256 of each file written.
    published : list of (Recipe, Counts or None)
        The papers' preparations of this source, and the counts of each on this data; ``None`` if it needs other
        settings or titles.
    """

    name: str
    output: Path
    counts: Counts
    steps: list[tuple[str, Counts]]
    skipped: dict[str, int]
    first_skipped: dict[str, str]
    settings: dict[str, object]
    listed_items: int = 0
    untitled_items: int = 0
    renamed_ids: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    sources: list[dict[str, str | int]] = field(default_factory=list)
    published: list[tuple[Recipe, Counts | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """Return what the sidecar records; the same for the same input and settings."""
        return {
            "source": self.name,
            "settings": self.settings,
            "read": self.sources,
            "written": self.hashes,
            "counts": {
                **vars(self.counts),
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
            lines.append(f"  items without a title: {self.untitled_items:,} (kept; --untitled drop removes them)")
        if len(self.steps) > 1:
            lines.append("  filters, in this order:")
            lines += [
                f"    {name:<22} {step.users:>11,} users {step.items:>11,} items {step.interactions:>13,} interactions"
                for name, step in self.steps
            ]
        for reason, number in self.skipped.items():
            lines.append(f"  skipped {number:,}: {reason} (first: {self.first_skipped[reason]})")
        if self.renamed_ids:
            lines.append(f"  ids rewritten because they would be misread: {self.renamed_ids:,}")
        by_time = self.settings.get("order") == "time"
        lines.append(f"  order: {'by time, ties in the order of the input' if by_time else 'as in the input'}")
        lines += self._published_lines()
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  sha256 {digest[:16]}  {name}" for name, digest in self.hashes.items()]
        return "\n".join(lines)

    def _published_lines(self) -> list[str]:
        lines = ["  published figures, and those of the same filters on this data:"] if self.published else []
        for recipe, counts in self.published:
            verdict = "not tried" if counts is None else "equal" if recipe.agrees(counts) else "DIFFERENT"
            measured = recipe.measured(counts) if counts else {}
            cells = []
            for key, published in recipe.published.items():
                form = ".2f" if key == "mean_length" else ",.0f"
                ours = format(measured[key], form) if measured else "?"
                cells.append(f"{key.replace('_', ' ')} {published:{form}} / {ours}")
            options = "".join(f" --{key} {value}" for key, value in recipe.options.items())
            lines.append(f"    {verdict:<9} published / measured: {', '.join(cells)}")
            lines.append(f"{' ' * 14}{recipe.paper}; --recipe {recipe.name} ({recipe.filters.text()}{options})")
            if recipe.note:
                lines.append(f"{' ' * 14}{recipe.note}")
        return lines


@dataclass(frozen=True)
class Finding:
    """A problem in a dataset, or something good to know.

    ``name`` does not change, for programs; ``severity`` is ``'error'`` (a run rejects the file), ``'warning'`` or
    ``'note'``; ``value`` is the number in the text, a count or a share; ``keys`` are settings that help.
    """

    name: str
    severity: str
    text: str
    value: float = 0.0
    keys: dict[str, str] = field(default_factory=dict)


class Findings(list[Finding]):
    """Findings in the order in which they were added."""

    def add(self, name: str, severity: str, text: str, value: float = 1, keys: dict[str, str] | None = None) -> None:
        """Add a finding whose number is not 0."""
        if value:
            self.append(Finding(name, severity, text, float(value), keys or {}))


@dataclass
class CheckReport:
    """Result of :func:`check`; ``sizes`` has users, items, interactions, lengths, density and bytes."""

    folder: Path
    sizes: dict[str, float]
    findings: list[Finding]

    def __getitem__(self, name: str) -> Finding:
        """Return the first finding of that name, or raise ``KeyError``."""
        return {finding.name: finding for finding in reversed(self.findings)}[name]

    def __contains__(self, name: str) -> bool:
        return any(finding.name == name for finding in self.findings)

    @property
    def failed(self) -> bool:
        """Whether there is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def keys(self) -> dict[str, str]:
        """All suggested settings."""
        return {key: value for finding in self.findings for key, value in finding.keys.items()}

    def text(self) -> str:
        """Return what the command line prints."""
        sizes = self.sizes
        lines = [
            f"{self.folder}",
            f"  users {sizes['users']:,.0f}   items {sizes['items']:,.0f}   "
            f"interactions {sizes['interactions']:,.0f}   density {sizes['density']:.6f}",
            f"  interactions per user: mean {sizes['mean_length']:.2f}, median {sizes['median_length']:g}, "
            f"min {sizes['min_length']:.0f}, max {sizes['max_length']:.0f};  "
            f"per item: median {sizes['median_count']:g}, max {sizes['max_count']:.0f}",
            f"  leave-one-out: {sizes['train_rows']:,.0f} training rows of RecBole's prefix augmentation;  "
            f"5-core: {sizes['users_5core']:,.0f} / {sizes['items_5core']:,.0f} / {sizes['interactions_5core']:,.0f}",
        ]
        for severity in ("error", "warning", "note"):
            found = [finding for finding in self.findings if finding.severity == severity]
            lines += [f"  {severity.upper():<8}{finding.text}" for finding in found]
        if self.keys:
            lines += ["  keys to consider:", *(f"    {key}: {value}" for key, value in self.keys.items())]
        if all(finding.severity == "note" for finding in self.findings):
            lines.append("  no problems found.")
        return "\n".join(lines)
