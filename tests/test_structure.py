"""The house: modules of a size that can be read, imports that point one way."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "recbole_llm"
LINES, FLOORS = 400, 10


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name):
    """Modules of the package that a module imports, at its top, in functions, or for its types."""
    path, found = MODULES[name], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            found |= {
                f"{node.module}.{each.name}" if f"{node.module}.{each.name}" in MODULES else node.module
                for each in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names if each.name in MODULES}
    return found - {name}


def room_of(name):
    """The folder of a module, or the module where it stands in none; the package's face is no room."""
    return ".".join(name.split(".")[:2])


def faces(name):
    """Whether a module only hands on names of its package, or is the door that ``python -m`` opens."""
    return MODULES[name].name in ("__init__.py", "__main__.py")


def floors(graph):
    """Longest chain of imports below each node, itself included; a circle is an error that names it."""
    height, path = {}, []

    def climb(node):
        if node in path:
            raise AssertionError(f"imports go round: {' -> '.join([*path[path.index(node) :], node])}")
        if node not in height:
            path.append(node)
            height[node] = 1 + max(map(climb, sorted(graph[node])), default=0)
            path.pop()
        return height[node]

    for node in sorted(graph):
        climb(node)
    return height


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_read_in_one_sitting(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= LINES


def test_modules_do_not_import_each_other_in_circles():
    floors({name: set() if faces(name) else imports_of(name) for name in MODULES})


def test_rooms_stand_above_what_they_use():
    graph = {}
    for name in MODULES:
        used = set() if faces(name) else {room_of(other) for other in imports_of(name)}
        graph.setdefault(room_of(name), set()).update(used - {room_of(name)})
    assert max(floors(graph).values()) <= FLOORS


def test_nothing_is_there_for_tests_only():
    """What a module defines is used by another, by examples or benchmarks, or shown in the documentation."""
    users = [*MODULES.values(), *(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    used = Counter(word for path in [*users, *pages] for word in re.findall(r"\w+", path.read_text(encoding="utf-8")))
    for path in MODULES.values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert used[node.name] > 1 or node.name.startswith("__"), f"{path}: nothing uses {node.name}"


def test_a_circle_is_found():
    with pytest.raises(AssertionError, match="a -> b -> a"):
        floors({"a": {"b"}, "b": {"a"}})
