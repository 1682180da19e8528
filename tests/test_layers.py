"""The architecture: imports run downwards, without circles, and heavy libraries load late.

Two views are checked. The static one reads every import statement, those inside functions and under
``TYPE_CHECKING`` included. The dynamic one loads each package in a process of its own and looks at
``sys.modules``.
"""

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import castling

ROOT = Path(castling.__file__).parent
FLOORS = [
    "utils",
    "ops",
    "attention",
    "surgery",
    "conversion",
    "models",
    "data",
    "heads",
    "tasks",
    "export",
]
FLOORS += ["train", "profiling", "explanation", "deploy", "demo", "cli"]
PACKAGES = [name for name in FLOORS if (ROOT / name).is_dir()]
#: Floors that lie lower but must not be loaded all the same.
APART = {"profiling": {"train"}, "explanation": {"train"}, "deploy": {"train"}}
TASKS = ["classification", "detection", "segmentation", "pretraining", "distillation"]
#: What ``import castling`` does not load: each costs time, or is an optional dependency.
LATE = ["jsonargparse", "lightning", "matplotlib", "onnx", "onnxruntime", "openvino", "scipy"]
LATE += ["sklearn", "tensorboard", "torchmetrics", "torchvision.transforms.v2"]
LATE += ["torchvision.tv_tensors", "transformers", "nncf", "onnxconverter_common"]
LATE += ["executorch"]


def module_name(path: Path) -> str:
    parts = ("castling", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@functools.cache
def imports(module: str) -> list[tuple[str, str]]:
    """(module, name) of every import statement; the name is empty for ``import module``."""
    found = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
    return found


def floor(module: str) -> str:
    return [*module.split("."), ""][1]


def defining_module(module: str, name: str) -> str:
    """The module of castling that an import reaches, re-exports of packages followed."""
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    if FILES[module].name == "__init__.py":
        for source, exported in imports(module):
            if exported == name and source in FILES and source != module:
                return defining_module(source, name)
    return module


def import_graph() -> dict[str, set[str]]:
    """Module to the modules it imports; a package's re-exports count as the modules behind them."""
    graph = {}
    for module, path in FILES.items():
        if path.name == "__init__.py":
            continue
        targets = {defining_module(*pair) for pair in imports(module) if pair[0] in FILES}
        graph[module] = targets - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module."""
    reachable = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        reachable[start] = seen
    found = {
        tuple(sorted({one, *(two for two in seen if one in reachable.get(two, ()))}))
        for one, seen in reachable.items()
        if one in seen
    }
    return sorted(map(list, found))


def test_every_package_has_a_floor():
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert folders <= set(FLOORS)


def test_import_statements_point_downwards():
    wrong = []
    for module in FILES:
        if module == "castling":
            continue
        mine = floor(module)
        for target, name in imports(module):
            if target == "castling" and (name not in FLOORS):
                wrong.append(f"{module} imports the root package")
                continue
            if target.split(".")[0] != "castling":
                continue
            theirs = name if target == "castling" else floor(target)
            if FLOORS.index(theirs) > FLOORS.index(mine) or theirs in APART.get(mine, ()):
                wrong.append(f"{module} imports {target}")
    wrong = sorted(set(wrong))
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    found = circles(import_graph())
    assert not found, "\n".join(map(", ".join, found))


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(graph) == [["b", "c"], ["e"]]


def test_only_training_imports_lightning():
    found = {
        module
        for module in FILES
        for target, _ in imports(module)
        if target.split(".")[0] in ("lightning", "pytorch_lightning") and floor(module) != "train"
    }
    assert not found


def test_training_names_no_task():
    named = [
        f"{module}: {task}"
        for module, path in FILES.items()
        for task in TASKS
        if floor(module) == "train" and task in path.read_text(encoding="utf-8").lower()
    ]
    assert not named


def test_nothing_below_the_command_line_prints():
    printing = {
        module
        for module in FILES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and floor(module) != "cli"
    }
    assert not printing


#: Forks one process per package, so that PyTorch and timm are imported only once.
LOADER = """
import importlib, json, os, sys, types
import timm, torch

def load(package, modules):
    # An empty root package: the real one imports models, which would hide what the floor imports.
    if package != "castling":
        sys.modules["castling"] = types.ModuleType("castling")
        sys.modules["castling"].__path__ = [sys.argv[1]]
    for module in modules:
        importlib.import_module(module)
    return sorted(sys.modules)

for package, modules in json.loads(sys.argv[2]).items():
    child = os.fork()
    if not child:
        try:
            found = load(package, modules)
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        print(json.dumps([package, found]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def loaded() -> Callable[[str], set[str]]:
    """What is in ``sys.modules`` after loading a package with all of its modules."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    packages = {"castling": ["castling"]}
    for name in PACKAGES:
        # Triton's modules need Triton.
        packages[name] = [each for each in FILES if floor(each) == name and ".triton" not in each]
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(ROOT), json.dumps(packages)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT.parent), "OMP_NUM_THREADS": "1"},
    )
    results = dict(json.loads(line) for line in done.stdout.splitlines())

    def modules(package: str) -> set[str]:
        assert isinstance(results[package], list), results[package]
        return set(results[package])

    return modules


def floors(modules: set[str]) -> set[str]:
    return {floor(name) for name in modules if name.startswith("castling.")} & set(FLOORS)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_loads_only_floors_below_it(loaded, package):
    allowed = set(FLOORS[: FLOORS.index(package) + 1]) - APART.get(package, set())
    wrong = floors(loaded(package)) - allowed
    assert not wrong


@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in ("train", "demo")])
def test_a_package_loads_no_lightning(loaded, package):
    wrong = {"lightning", "pytorch_lightning"} & loaded(package)
    assert not wrong


def test_importing_castling_loads_models_heads_and_no_heavy_library(loaded):
    modules = loaded("castling")
    wrong = set(LATE) & modules
    assert not wrong
    assert floors(modules) == {"utils", "ops", "attention", "surgery", "models", "heads"}
