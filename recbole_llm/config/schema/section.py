"""Sections of the schema: dataclasses whose annotations are the types of settings."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

from recbole_llm.config.types import unwrap
from recbole_llm.typing import Settings

SectionT = TypeVar("SectionT", bound="Section")


@dataclass(frozen=True, kw_only=True)
class Section:
    """Settings that belong together, by the names that files and the command line use.

    Defaults and their comments are in ``props/``; types are declared here.

    >>> @dataclass(frozen=True, kw_only=True)
    ... class Optimizer(Section):
    ...     learning_rate: float
    >>> Optimizer.of({"learning_rate": 1})
    Optimizer(learning_rate=1.0)
    """

    valid_figures: ClassVar[tuple[str, ...]] = ()
    """Figures that the model reports and that ``valid_metric`` may name beside the metrics."""

    @classmethod
    def types(cls) -> dict[str, Any]:
        """Return the annotation of every setting."""
        hints = get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name] for field in fields(cls)}

    @classmethod
    def contradiction(cls, settings: Mapping[str, Any]) -> str | None:
        """Return a message about settings that contradict one another; None if none do."""
        return None

    @classmethod
    def of(cls: type[SectionT], config: Settings) -> SectionT:
        """Read the section from a configuration, whole numbers as floats where a float is declared."""
        values = {}
        for name, kind in cls.types().items():
            value = config[name]
            whole = isinstance(value, int) and not isinstance(value, bool)
            values[name] = float(value) if whole and unwrap(kind)[0] is float else value
        return cls(**values)


@dataclass(frozen=True)
class InnerSettings:
    """Mark a mapping that holds the settings of a model inside the model.

    Parameters
    ----------
    model : str
        Whose settings they are where nothing else says so.
    named_by : str, optional
        Setting that names the inner model; otherwise the entry ``model`` of the mapping does.
    """

    model: str
    named_by: str | None = None
