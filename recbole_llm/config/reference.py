"""Reference of the settings: ``recbole-llm help KEY``, ``recbole-llm models`` and the page ``docs/settings.md``.

``python -m recbole_llm.config.reference docs/settings.md`` writes the page. Types come from the schema, defaults
and descriptions from the property files and their comments.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from recbole_llm.config.registry import (
    included_files,
    known_models,
    model_file,
    own_models,
    property_file,
    props_dir,
    recbole_root,
    stock_models,
)
from recbole_llm.config.schema import Comparison, Section, StudyOptions, general_sections, types_by_key, types_of
from recbole_llm.config.schema.models import MODELS
from recbole_llm.config.schema.recbole import RECBOLE
from recbole_llm.config.types import describe
from recbole_llm.config.values import nearest
from recbole_llm.errors import ConfigError

_EVERY_RUN = "\nThe settings of every run apply as well: see docs/settings.md.\n"
_KEY = re.compile(r"(\w+):.*?\s#\s*(?:\(.*?\)\s*)?(.*)")


@cache
def comments(path: Path) -> dict[str, str]:
    """Parse the comment of each key of a property file: behind it and on the indented lines below."""
    found: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _KEY.match(line):
            key = match[1]
            found[key] = match[2].strip()
        elif key and re.match(r"\s+#", line):
            found[key] = f"{found[key]} {line.strip().lstrip('#').strip()}".strip()
        else:
            key = ""
    for other in included_files(path):
        found = {**comments(other), **found}
    return {name: text for name, text in found.items() if text}


def explain(name: str) -> str:
    """Explain a setting, or list the settings of a model.

    Raises
    ------
    ConfigError
        For a name that is neither, with the nearest one.
    """
    if ":" in name:
        return _explain_class(name)
    if name in known_models():
        return _explain_model(name)
    name = name.removeprefix("--")
    if name not in types_by_key():
        known = [*types_by_key(), *known_models()]
        raise ConfigError(
            f"{name!r} is neither a setting nor a model.{nearest(name, known)} For a class of your own: "
            "`recbole-llm help package.module:Class`."
        )
    lines = [name]
    for kind in types_by_key()[name]:
        lines.append(textwrap.indent(textwrap.fill(f"{_sentence(describe(kind))}", 96), "  "))
    for path, title in _general_files():
        if name in property_file(path):
            lines.append(_explained(name, path, title))
    alike: dict[tuple[str, str], list[str]] = {}
    for model in (model for model in own_models() if name in _of_model(model)):
        said = (_shown(_of_model(model)[name]), comments(model_file(model)).get(name, ""))
        alike.setdefault(said, []).append(model)
    lines += [_explained(name, model_file(models[0]), ", ".join(models)) for models in alike.values()]
    of_recbole = [model for model in stock_models() if name in _of_model(model)]
    if of_recbole:
        text = f"of RecBole's {', '.join(of_recbole)}: {comments(model_file(of_recbole[0])).get(name, '')}"
        lines.append(textwrap.indent(textwrap.fill(text, 96, subsequent_indent="  "), "  "))
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _general_files() -> list[tuple[Path, str]]:
    """Property files of every run, strongest first."""
    theirs, ours = recbole_root() / "properties", props_dir()
    return [
        (ours / "overall.yaml", "default"),
        (ours / "compare.yaml", "default"),
        (ours / "tune.yaml", "default"),
        (theirs / "dataset" / "sample.yaml", "RecBole's default"),
        (theirs / "overall.yaml", "RecBole's default"),
    ]


def _of_model(name: str) -> dict[str, Any]:
    return property_file(model_file(name))


def _explained(key: str, path: Path, title: str) -> str:
    text = f"{title}: {_shown(property_file(path)[key])}. {comments(path).get(key, '')}"
    return textwrap.indent(textwrap.fill(text.strip(), 96, subsequent_indent="  "), "  ")


def _explain_model(name: str) -> str:
    return explained_settings(name, _of_model(name), comments(model_file(name))) + _EVERY_RUN


def _explain_class(reference: str) -> str:
    """List the settings of a user's own class, with the first line of its docstring."""
    from recbole_llm.config.registry import default_settings, get_model, own_files

    cls = get_model(reference)
    said: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        bases = [model_file(part.__name__)] if part.__name__ in known_models() else own_files(part)
        for path in bases:
            said.update(comments(path))
    about = (vars(cls).get("__doc__") or "").strip().partition("\n")[0]
    return explained_settings(f"{reference}  {about}".rstrip(), default_settings(cls), said) + _EVERY_RUN


def explained_settings(title: str, settings: Mapping[str, Any], said: Mapping[str, str]) -> str:
    """List settings below a title, each with its default and what is said about it."""
    lines = [title, ""]
    for key, value in settings.items():
        text = f"{key} = {_shown(value)}  {said.get(key, '')}"
        lines.append(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent=" " * 6))
    if not settings:
        lines.append("  It has no settings of its own.")
    return "\n".join(lines) + "\n"


def paper_of(model: str) -> str:
    """Return where a model of ours was published; empty for others.

    >>> paper_of("LRURec")
    'arXiv 2310.02367'
    """
    return str(property_file(props_dir() / "models.yaml").get(model, {}).get("paper", ""))


def models_table() -> str:
    """Return the table of models with their papers, requirements and status."""
    about = property_file(props_dir() / "models.yaml")
    rows = [("model", "paper", "needs", "status")]
    for name in own_models():
        entry = about.get(name, {})
        rows.append((name, entry.get("paper", ""), entry.get("needs", ""), entry.get("status", "")))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows]
    theirs = textwrap.fill(", ".join(stock_models()), 100, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*lines, "", "RecBole's sequential models, unchanged:", theirs]) + "\n"


# ---- the page


def settings_page() -> str:
    """Return ``docs/settings.md``."""
    lines = [
        "# Settings",
        "",
        "Written by `python -m recbole_llm.config.reference docs/settings.md`; do not edit it.",
        "",
        "Set any of these in a YAML file (`--config_files`), in a dictionary, or on the command line as",
        "`--key=value` or `--key value`; the command line wins over the dictionary, the dictionary over the files,",
        "and the files over the defaults. All values are checked before a run starts, and an unknown key is an error",
        "(a warning with `--allow_unknown_keys`). `recbole-llm help KEY` shows the same in the terminal.",
        "`~` is YAML's null: not set.",
    ]
    for title, sections in (("Every run: RecBole's settings", RECBOLE), ("Every run: our settings", None)):
        lines += ["", f"## {title}"]
        for section in sections or [section for section in general_sections() if section not in RECBOLE]:
            lines += _section(section)
    lines += ["", "## Comparisons", "", "See [compare](compare.md).", "", *_table(Comparison.types())]
    lines += ["", "## Studies", "", "See [tuning](tune.md).", "", *_table(StudyOptions.types())]
    lines += ["", "## Our models"]
    for name in MODELS:
        paths = {key: model_file(name) for key in _of_model(name)}
        lines += ["", f"### {name}", "", *_table({key: types_of(name)[key] for key in paths}, paths)]
    lines += ["", "## RecBole's models", "", "| setting | allowed | models |", "|---|---|---|"]
    names: dict[str, list[str]] = {}
    for model in stock_models():
        for key in _of_model(model):
            names.setdefault(key, []).append(model)
    for key, models in sorted(names.items()):
        kind = types_of(models[0], _of_model(models[0]))[key]
        lines.append(f"| `{key}` | {_cell(_sentence(describe(kind)))} | {', '.join(models)} |")
    return "\n".join(lines) + "\n"


def _section(section: type[Section]) -> list[str]:
    return ["", f"### {section.__name__}", "", (section.__doc__ or "").splitlines()[0], "", *_table(section.types())]


def _table(types: dict[str, Any], paths: dict[str, Path] | None = None) -> Iterable[str]:
    yield from ("| setting | default | allowed | meaning |", "|---|---|---|---|")
    for key, kind in types.items():
        files = [paths[key]] if paths else [path for path, _ in _general_files() if key in property_file(path)]
        default = f"`{_shown(property_file(files[0])[key])}`" if files else ""
        text = next((comments(path)[key] for path in files if key in comments(path)), "")
        yield f"| `{key}` | {_cell(default)} | {_cell(_sentence(describe(kind)))} | {_cell(text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _sentence(text: str) -> str:
    return text.removeprefix("a ").removeprefix("choose from ")


def _shown(value: Any) -> str:
    if value is None:
        return "~"
    return value.encode("unicode_escape").decode() if isinstance(value, str) and value.strip() else str(value) or '""'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(settings_page(), encoding="utf-8")
