"""The rules that keep the code readable, checked on the source itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from metarun import types

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "metarun"
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = (
    "testing",
    "cli",
    "jobs",
    "analyses",
    "training",
    "diagnostics",
    "regularizers",
    "algorithms",
    "models",
    "data",
    "compute",
    "report",
    "config",
    "storage",
)
"""Top to bottom: a file imports from its own room, from the rooms below it, and from the vocabulary."""

VOCABULARY = ("types", "errors")
LONGEST_FILE, LONGEST_FUNCTION, MOST_ENTRIES = 400, 60, 16


def module_of(path: Path) -> str:
    """metarun/algorithms/maml.py -> metarun.algorithms.maml; metarun/jobs/__init__.py -> metarun.jobs."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def room_of(module: str) -> str:
    """metarun.algorithms.maml -> algorithms."""
    return module.split(".")[1] if "." in module else ""


def test_every_module_is_in_a_room() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__" and path.name != "conf"}
    expected = {*ROOMS, *(f"{name}.py" for name in VOCABULARY), "__init__.py", "__main__.py", "py.typed"}
    assert entries <= expected, f"a new room needs a place in ROOMS: {sorted(entries - expected)}"
    assert len([name for name in entries if not name.startswith("__")]) <= MOST_ENTRIES


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for(room: str) -> None:
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
    assert docstring is not None
    assert "May import" in docstring


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = room_of(module_of(path))
    if own in ("", "__main__"):  # the package's front door imports lazily, from anywhere
        return
    allowed = {*VOCABULARY, ""} if own in VOCABULARY else {*ROOMS[ROOMS.index(own) :], *VOCABULARY, ""}
    for module in imports(path):
        if module.split(".")[0] == "metarun":
            assert room_of(module) in allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Strongly connected components of the imports at module level, by Tarjan's algorithm; each is one module."""
    graph = {name: {m for m in top_level_imports(path) if m in MODULES and m != name} for name, path in MODULES.items()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                circles.append(stack[at:])
            del stack[at:]

    for name in graph:
        if name not in index:
            visit(name)
    assert circles == []


def top_level_imports(path: Path) -> Iterator[str]:
    """Those that run when the module is imported, and those for the type checker alone, which are imports too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in inside:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import) and id(node) not in inside:
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_imports_hydra(path: Path) -> None:
    if room_of(module_of(path)) != "cli":
        assert not [m for m in imports(path) if m.split(".")[0] == "hydra"]


@pytest.mark.parametrize("room", ["cli", "report", "config", "storage"])
def test_rooms_that_need_no_torch_do_not_import_it(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        assert not [m for m in top_level_imports(path) if m.split(".")[0] == "torch"], path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small_and_files_say_what_they_hold(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= LONGEST_FILE
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


def test_no_class_inherits_for_reuse() -> None:
    """A class derives from protocols and errors of metarun alone: shared behaviour is a value that it holds, or a
    function that it calls."""
    classes = {
        n.name: n for path in FILES for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)
    }

    def bases(name: str) -> list[str]:
        return [base.id for base in classes[name].bases if isinstance(base, ast.Name)]

    def is_interface(name: str) -> bool:
        if name not in classes:
            return name in ("Protocol", "Exception", "KeyboardInterrupt")
        return any(is_interface(base) for base in bases(name))

    wrong = [
        f"{name}({base})" for name in classes for base in bases(name) if base in classes and not is_interface(base)
    ]
    assert not wrong, f"these derive from a class of metarun; let them hold a value or call functions instead: {wrong}"


def test_no_algorithm_imports_another() -> None:
    algorithms = {yaml_target(p).rpartition(".")[0] for p in (ROOT / "conf/algo").glob("*.yaml")}
    for module in algorithms:
        path = ROOT / (module.replace(".", "/") + ".py")
        assert not algorithms & (set(imports(path)) - {module})


FRAME = ("cli", "jobs", "training", "compute")
# Options whose names are ordinary words.
ORDINARY = ("none", "folder", "group", "own", "table", "arrays", "windows", "linear")


@pytest.mark.parametrize("path", [p for room in FRAME for p in sorted((PACKAGE / room).rglob("*.py"))], ids=module_of)
def test_the_frame_names_no_component(path: Path) -> None:
    text = path.read_text(encoding="utf-8").lower()
    for group in ("algo", "data", "reg", "model"):
        for option in (ROOT / "conf" / group).glob("*.yaml"):
            if option.stem not in ORDINARY:
                assert f'"{option.stem}"' not in text
                assert not re.search(rf"import {option.stem}\b", text)


def test_members_that_a_component_may_leave_out_are_read_by_optional() -> None:
    """`hasattr` and `getattr` with a default would decide in another place what is assumed without them."""
    declared = {name for key, kind in vars(types).items() if key.endswith("Options") for name in kind.__annotations__}
    assert {"norm", "class_names", "score"} <= declared
    for path in (path for path in FILES if path.parent.name != "testing" and path.name != "types.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        for call in calls:
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name == "hasattr" or (name == "getattr" and len(call.args) == 3):
                asked = call.args[1]
                assert not (isinstance(asked, ast.Constant) and asked.value in declared), (path, call.lineno)


@pytest.mark.parametrize("path", sorted((ROOT / "conf/algo").glob("*.yaml")), ids=lambda p: p.stem)
def test_each_algorithm_has_its_formula_and_reference(path: Path) -> None:
    module = yaml_target(path).rpartition(".")[0]
    docstring = ast.get_docstring(ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")))
    assert docstring is not None
    assert "arXiv" in docstring
    assert "Symbols:" in docstring
    assert "=" in docstring


def yaml_target(path: Path) -> str:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["algo"]["_target_"]
