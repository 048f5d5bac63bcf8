"""Templates of prompts: which fields they may hold, and which of them training and evaluation use."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_llm.config.registry import props_dir
from recbole_llm.errors import ConfigError

FIELDS = ("user", "history", "candidates", "item")
FIELD = re.compile("|".join(f"{{{field}}}" for field in FIELDS))
# By setting: what a template may hold, and what it must, without which there would be nothing to answer.
# {history} of the top-N task is the list of candidates.
MAY_HOLD = {
    "templates": (("user", "history"), None),
    "history_templates": (("user", "history"), "history"),
    "topn_templates": (("user", "history"), "history"),
    "choice_templates": (("user", "history", "candidates"), "candidates"),
    "yes_no_templates": (("user", "history", "item"), "item"),
}


def read_prompt(name: str) -> tuple[Path, str]:
    """Return file and text of ``props/prompt/<name>.txt``, or of any file by its path.

    Raises
    ------
    ConfigError
        If there is no such file.
    """
    folder, path = props_dir() / "prompt", Path(name).expanduser()
    ours = folder / f"{name}.txt"
    file = ours if ours.is_file() and path.name == name else path
    try:
        return file, file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.txt")))
        raise ConfigError(f"prompt={name!r} is neither one of ours ({known}) nor a text file: {error}.") from error


def check_placeholders(text: str, known: Sequence[str], where: str) -> None:
    """Raise a ConfigError if ``text`` holds a word in braces that is not ``known``: it would be shown as it is."""
    strange = [name for name in re.findall(r"\{[A-Za-z_]\w*\}", text) if name not in known]
    if strange:
        raise ConfigError(f"{where} holds {strange[0]}, which nothing replaces: {', '.join(known)} can be in braces.")


def check_fields(text: str, kind: str, key: str) -> None:
    """Raise a ConfigError that names the setting ``key`` unless ``text`` holds what templates of ``kind`` may hold."""
    allowed, needed = MAY_HOLD[kind]
    found = [field[1:-1] for field in FIELD.findall(text)]
    known = set(found) <= set(allowed) and len(set(found)) == len(found)
    if known and {"user", "history"} & set(found) and needed in (None, *found):
        return
    must = ["{user} or {history}"] if needed != "history" else []
    must += [f"{{{needed}}}"] if needed else []
    fields = ", ".join(f"{{{field}}}" for field in allowed)
    raise ConfigError(f"{key}: {text!r} must hold {' and '.join(must)}, and no fields but {fields}, each once.")


@dataclass(frozen=True)
class Templates:
    """Templates of several tasks in one list.

    Attributes
    ----------
    texts : list of str
    of_task : dict of str to range
        Numbers of the templates that training draws from, by task.
    test : int
        Number of the evaluation template.
    """

    texts: list[str]
    of_task: dict[str, range]
    test: int

    @classmethod
    def of(cls, config: Any, keys: Mapping[str, str], task: str, test_key: str) -> "Templates":
        """Join the templates of tasks.

        Parameters
        ----------
        config : mapping
        keys : dict of str to str
            The setting with the training templates, by task.
        task : str
            The evaluated one.
        test_key : str
            The setting with the evaluation template: the number of one of the task's, or a text.

        Raises
        ------
        ConfigError
            Naming the setting, for a template without the fields of its kind or with others, or a wrong number.
        """
        texts: list[str] = []
        of_task = {}
        for name, key in keys.items():
            templates: Sequence[str] = config[key]
            for text in templates:
                check_fields(text, key, key)
            of_task[name] = range(len(texts), len(texts) + len(templates))
            texts += templates
        known, test = of_task[task], config[test_key]
        if isinstance(test, str):
            check_fields(test, keys[task], test_key)
            return cls([*texts, test], of_task, len(texts))
        if type(test) is not int or not 0 <= test < len(known):
            raise ConfigError(
                f"{test_key}={test!r} is neither a template nor the number of one of the {len(known)} templates (0 to "
                f"{len(known) - 1})."
            )
        return cls(texts, of_task, known[test])

    def draw(self, task: str, rows: int, separators: int) -> torch.Tensor:
        """Draw a template with a separator for each row, from torch's global generator; (rows,)."""
        known = self.of_task[task]
        return torch.randint(len(known) * separators, (rows,)) + known.start * separators
