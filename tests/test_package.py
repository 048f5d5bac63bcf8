"""The wheel holds what the checkout holds, and finds its property files from anywhere."""

import configparser
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "setup.cfg").is_file(), reason="needs the checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built offline from a copy, so that nothing is left in the checkout."""
    found = importlib.util.find_spec("build")
    if found is None or found.origin is None:  # a folder build/ in the checkout is not the package
        pytest.skip("needs the package `build`: pip install -e '.[dev]'")
    source = tmp_path_factory.mktemp("source") / "copy"
    out = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "saved", "dataset.zip")
    for folder in ("recbole_llm", "props"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
        else:
            (source / name).write_text("", encoding="utf-8")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=out)
    if done.returncode and re.search("(Missing|Unmet) dependencies", done.stdout + done.stderr, re.IGNORECASE):
        pytest.skip("this environment's setuptools cannot build the wheel offline")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.whl")
    return file


def test_setup_cfg_lists_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(setup["options"]["packages"].split())
    code = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "recbole_llm").rglob("__init__.py")}
    props = {".".join(("recbole_llm", *path.parent.relative_to(ROOT).parts)) for path in (ROOT / "props").rglob("*.*")}
    assert code | props | {"recbole_llm.props"} <= listed
    for folder in {path.parent for path in (ROOT / "recbole_llm").rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), f"{folder} is no package and would be left out of the wheel"


def test_version_is_said_once():
    import recbole_llm

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert setup["metadata"]["version"] in (recbole_llm.__version__, "attr: recbole_llm.__version__")


def test_wheel_holds_code_and_property_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recbole_llm").rglob("*.py")}
    props = {f"recbole_llm/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "props").rglob("*.*")}
    assert code | props | {"recbole_llm/py.typed"} <= names
    for folder in ("", "model/", "dataset/", "paper/"):
        assert any(name.startswith(f"recbole_llm/props/{folder}") and name.endswith(".yaml") for name in names), folder
    others = {name.partition("/")[0] for name in names} - {"recbole_llm"}
    assert all(name.endswith(".dist-info") for name in others), others


def test_installed_wheel_finds_its_own_property_files(wheel, tmp_path):
    target = tmp_path / "target"
    # What `pip install --no-deps --target` does with a pure wheel, without needing pip in the environment.
    zipfile.ZipFile(wheel).extractall(target)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import recbole_llm.config.registry as c, recbole_llm.cli as cli, recbole_llm.config as config\n"
        "print(c.__file__); print(c.props_dir()); print(c.own_models()); cli.main(['models'])\n"
        "print(config.Config('LiteLLM4Rec', 'ml-100k')['item_llm_mode'])\n"
    )
    # -I: neither the current folder nor PYTHONPATH; the checkout, if installed, comes later on sys.path.
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code, str(target)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert Path(lines[0]) == target / "recbole_llm" / "config" / "registry.py"
    assert Path(lines[1]) == target / "recbole_llm" / "props"
    assert "LiteLLM4Rec" in lines[2]
    assert lines[-1] == "two_stage"


def test_console_script_is_declared(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "recbole-llm = recbole_llm.cli:main" in archive.read(name).decode()
