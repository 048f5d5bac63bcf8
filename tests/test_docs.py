"""README and docs: every link leads somewhere, every command is one that there is."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from recbole_llm.cli import COMMANDS
from recbole_llm.config.registry import own_models, stock_models
from recbole_llm.config.schema import types_by_key

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)]*)?\)")
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN = ("run_recbole_llm.py", "recbole-llm")


def commands(page):
    """Lines of the page's bash blocks as lists of words; comments and environments left out."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                names = [i for i, word in enumerate(words) if Path(word).name in RUN]
                if names and words[names[0] + 1 :] != ["..."]:
                    yield words[names[0] + 1 :]


ALL_COMMANDS = [(page.relative_to(ROOT), words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_to_files(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link[0]]
    assert [target for target, _ in links if not (page.parent / target).exists()] == []
    for target, anchor in links:
        file = page.parent / target if target else page
        assert not anchor or anchor[1:] in anchors(file), f"{target}{anchor}"


def anchors(file):
    """Anchors that GitHub and MyST give the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_elsewhere_are_well_formed(page):
    """Nobody opens them here; a space, a quotation mark or a missing host would show."""
    for address in re.findall(r"https?:[^\s)>\]`\"]*", page.read_text(encoding="utf-8")):
        parts = urlsplit(address)
        assert parts.scheme == "https" and re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), address
        assert parts.netloc != "arxiv.org" or re.fullmatch(r"/abs/\d{4}\.\d{5}", parts.path), address


@pytest.mark.parametrize(
    ("page", "words"), ALL_COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_commands_are_ones_that_there_are(page, words):
    command = words[0] if words and not words[0].startswith("-") else "run"
    assert command in COMMANDS
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    if command in ("run", "tune"):
        own = {"params_file", "algo", "max_evals", "pruner", "tool", "parallel", "resume", "seeds", "baselines"}
        own |= {"gpus_per_trial", "ray_address", "config_files", "model", "dataset"}
        known = {*types_by_key(), *own}
        models = {*own_models(), *stock_models()}
        of_ones_own = ":" in options.get("model", "")  # whose settings stand in its class
        for key in options:
            prefix, dot, rest = key.rpartition(".")
            assert of_ones_own or (rest in known and (not dot or prefix in models)), key
        for name in options.get("model", "").split(","):
            assert name in models or not name or ":" in name
        for name in options.get("config_files", "").split():
            places = [ROOT / "props" / folder / f"{name}.yaml" for folder in ("preset", "paper")]
            assert any(place.is_file() for place in places) or name.endswith(".yaml"), name
    else:
        shown = help_of(command)
        for key in options:
            assert f"--{key}" in shown or key in types_by_key() or "." in key, key


def help_of(command, cache={}):  # noqa: B006
    if command not in cache:
        done = subprocess.run(
            [sys.executable, str(ROOT / "run_recbole_llm.py"), command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        cache[command] = done.stdout
    return cache[command]


def test_files_that_pages_name_exist():
    missing = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(
            r"`(?:pytest |python )?((?:tests|benchmarks|props|examples|recbole_llm)/[\w./-]+\.\w+)", text
        ):
            if not (ROOT / name).exists():
                missing.append((page.name, name))
    assert missing == []


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 180
