"""The rules that keep the code readable, checked on the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "metarun"
FILES = sorted(PACKAGE.rglob("*.py"))

# A file may import from its own level or from a lower one. What is not listed is level 2: components and their helpers.
LEVELS = {
    "errors": 0,
    "ranks": 0,
    "durable": 1,
    "ownership": 1,
    "progress": 0,
    "config": 0,
    "config_jobs": 0,
    "foreign": 0,
    "bugs": 0,
    "vision": 0,
    "types": 0,
    "acting": 0,
    "penalties": 0,
    "places": 0,
    "outcome": 0,
    "published": 0,
    "linalg": 1,
    "losses": 1,
    "regularization": 1,
    "inner": 1,
    "adjoint": 1,
    "build": 1,
    "record": 1,
    "ledger": 1,
    "device": 1,
    "machine": 1,
    "parallel": 1,
    "batching": 1,
    "compilation": 1,
    "outer": 1,
    "diagnostics": 1,
    "statistics": 1,
    "report": 2,
    "evaluation": 3,
    "metagradient": 4,
    "stages": 4,
    "nonfinite": 4,
    "trainer": 4,
    "checkpoint": 5,
    "experiment": 5,
    "result": 6,
    "resuming": 6,
    "shortage": 6,
    "functions": 6,
    "session": 6,
    "summary": 6,
    "predict": 7,
    "export": 7,
    "export_files": 7,
    "export_program": 7,
    "prepare": 7,
    "profiling": 7,
    "profiling_inside": 7,
    "profiling_marks": 7,
    "profiling_parts": 7,
    "profiling_phases": 7,
    "profiling_table": 7,
    "profiling_trace": 7,
    "training": 7,
    "analyses": 8,
    "jobs": 8,
    "usage": 7,
    "reuse": 7,
    "sweep": 7,
    "cli_sweep": 8,
    "cli": 9,
    "__main__": 10,
}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "metarun":
                yield from (f"metarun.{alias.name}" for alias in node.names)
            else:
                yield node.module


def part(module: str) -> str:
    """metarun.algorithms.maml -> algorithms."""
    return module.split(".")[1] if "." in module else ""


def module_of(path: Path) -> str:
    return "metarun." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = part(module_of(path))
    if own == "__init__":  # the package's front door imports lazily, from anywhere
        return
    for module in imports(path):
        if module.startswith("metarun."):
            assert LEVELS.get(part(module), 2) <= LEVELS.get(own, 2), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_imports_hydra(path: Path) -> None:
    if not path.name.startswith("cli"):
        assert not [m for m in imports(path) if m.split(".")[0] == "hydra"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small_and_files_say_what_they_hold(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= 250
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 40, node.name


def test_no_algorithm_imports_another() -> None:
    algorithms = {yaml_target(p).rpartition(".")[0] for p in (ROOT / "conf/algo").glob("*.yaml")}
    for module in algorithms:
        path = ROOT / (module.replace(".", "/") + ".py")
        assert not algorithms & (set(imports(path)) - {module})


FRAME = (
    "trainer",
    "metagradient",
    "parallel",
    "evaluation",
    "outer",
    "session",
    "jobs",
    "experiment",
    "predict",
    "prepare",
)
ORDINARY = ("none", "folder")  # options whose names are ordinary words


@pytest.mark.parametrize("name", FRAME)
def test_the_frame_names_no_component(name: str) -> None:
    text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8").lower()
    for group in ("algo", "data", "reg", "model"):
        for option in (ROOT / "conf" / group).glob("*.yaml"):
            if option.stem not in ORDINARY:
                assert f'"{option.stem}"' not in text
                assert f"import {option.stem}" not in text


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
