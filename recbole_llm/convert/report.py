"""What a conversion did: for the screen and for the sidecar."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_llm.convert.filters import Counts
from recbole_llm.convert.recipes import Recipe, measured_counts


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
    listed_items: int
    untitled_items: int
    steps: list[tuple[str, Counts]]
    skipped: dict[str, int]
    first_skipped: dict[str, str]
    renamed_ids: int
    settings: dict[str, Any]
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
