"""The house has floors: imports run only downwards."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import castling

ROOT = Path(castling.__file__).parent
FLOORS = ["utils", "ops", "attention", "surgery", "models", "data", "tasks", "export", "train"]
FLOORS += ["profiling", "deploy", "demo", "cli"]
TOP = len(FLOORS)


def floor(module: str) -> int | None:
    """The floor of ``castling.X.…``, files beside the packages on top; None for foreign ones."""
    parts = module.split(".")
    if parts[0] != "castling" or len(parts) < 2:
        return None
    return FLOORS.index(parts[1]) if parts[1] in FLOORS else TOP


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def test_imports_run_downwards():
    upwards = []
    for path in ROOT.rglob("*.py"):
        module = ".".join(("castling", *path.relative_to(ROOT).with_suffix("").parts))
        mine = floor(module)
        if path.name == "__init__.py" and path.parent == ROOT:
            continue
        for imported in imports(path):
            theirs = floor(imported)
            if mine is not None and theirs is not None and theirs > mine:
                upwards.append(f"{module} imports {imported}")
    assert not upwards


def test_lightning_is_imported_by_training_alone():
    strangers = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if any(name.split(".")[0] == "lightning" for name in imports(path))
        and path.relative_to(ROOT).parts[0] != "train"
    ]
    assert not strangers


def test_nothing_below_the_command_line_prints():
    printing = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if not path.is_relative_to(ROOT / "cli")
        and any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert not printing


@pytest.mark.parametrize("package", ["attention", "surgery", "models"])
def test_no_import_circle(package):
    """Imports for typing alone included."""
    modules = {
        ".".join(("castling", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    graph = {name: set(imports(path)) & set(modules) for name, path in modules.items()}
    assert len(graph) > 3
    TopologicalSorter(graph).prepare()  # raises CycleError
