"""The documentation: its examples run, its names and commands exist, its site builds."""

import ast
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import castling
from castling_launcher import VERBS

ROOT = Path(castling.__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = "<!-- Written by docs/build.py"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)

if not DOCS.is_dir():
    pytest.skip("needs the sources", allow_module_level=True)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(title, code) of a page's code blocks."""
    text = page.read_text(encoding="utf-8")
    return [(title, code) for kind, title, code in _BLOCK.findall(text) if kind == language]


def all_blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of all pages written by hand."""
    return [
        (str(page.relative_to(ROOT)), code)
        for page in PAGES
        if not page.read_text(encoding="utf-8").startswith(GENERATED)
        for _, code in blocks(page, language)
    ]


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every ``castling …`` command in the documentation."""
    found = []
    for page, code in all_blocks("bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["castling"]:
                found.append((page, words[1:]))
    return found


@functools.cache
def help_text(verb: str, part: str) -> str:
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("reference_pages").help_text(verb, part)
    finally:
        sys.path.remove(str(DOCS))


def test_the_examples_of_the_extension_pages_pass_their_own_tests(tmp_path):
    tests = 0
    for page in sorted((DOCS / "extend").glob("*.md")):
        for title, code in blocks(page, "python"):
            if title:
                (tmp_path / title).write_text(code, encoding="utf-8")
                tests += code.count("\ndef test_")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
            str(tmp_path),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(tmp_path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{tests} passed" in done.stdout
    assert tests >= 8


@pytest.mark.parametrize("page", dict.fromkeys(page for page, _ in all_blocks("python")))
def test_python_examples_use_names_that_exist(page):
    nodes = [
        node
        for name, code in all_blocks("python")
        if name == page
        for node in ast.walk(ast.parse(code))
    ]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "castling":
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {missing}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "castling":
            assert hasattr(castling, node.attr), f"castling.{node.attr}"


def test_the_interfaces_that_examples_implement_are_in_the_reference():
    """Base classes, registration and values of the extension pages."""
    reference = (DOCS / "reference" / "interfaces.md").read_text(encoding="utf-8")
    used = set()
    for page in (DOCS / "extend").glob("*.md"):
        for title, code in blocks(page, "python"):
            if title and not title.startswith("test_"):
                tree = ast.parse(code)
                bases = {
                    ast.unparse(base)
                    for node in ast.walk(tree)
                    if isinstance(node, ast.ClassDef)
                    for base in node.bases
                }
                imported = {
                    alias.name
                    for node in ast.walk(tree)
                    if isinstance(node, ast.ImportFrom) and str(node.module).startswith("castling")
                    for alias in node.names
                }
                used |= imported & bases
                used |= {name for name in imported if name.startswith("register_")}
    assert {"AttentionConfig", "register_host", "Task"} <= used
    assert not {name for name in used if f"heading: {name}\n" not in reference}


def test_commands_use_verbs_and_options_that_exist():
    found = commands()
    assert len(found) > 20
    for page, words in found:
        verb, *rest = words
        assert verb in VERBS, f"{page}: castling {verb}"
        part = rest[0] if verb == "bench" and rest else ""
        for word in rest:
            option = word.split("=")[0]
            if option.startswith("--"):
                known = re.search(rf"{re.escape(option)}[\s,=]", help_text(verb, part))
                assert known, f"{page}: castling {verb} {part} has no {option}"


def test_recipes_named_in_the_documentation_exist():
    missing = [
        (page, words[index + 1])
        for page, words in commands()
        for index, word in enumerate(words)
        if word == "--config"
        and words[index + 1].startswith("recipes/")
        and not (ROOT / words[index + 1]).is_file()
    ]
    assert not missing


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS not in page.parents])
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith("http")]
    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    fetched = [
        (str(page.relative_to(tmp_path)), url)
        for page in pages
        for url in re.findall(
            r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(https?://[^"]+)"',
            page.read_text(encoding="utf-8"),
        )
        if "canonical" not in url and not url.startswith("https://castling-vit.github.io/")
    ]
    assert not fetched


def test_the_version_stands_in_one_place():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert castling.__version__ == project["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_explain_page_runs_as_it_stands(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for _, code in blocks(DOCS / "tasks" / "explain.md", "python"):
        # The same lines on a model of this suite's size.
        small = code.replace("vit_tiny_patch16_224", "deit_pico").replace("224, 224", "32, 32")
        exec(small, scope)
    assert "student: 4 of 4" in capsys.readouterr().out
    assert scope["page"].is_file()


def test_the_conversion_page_runs_as_it_stands(capsys, monkeypatch):
    measure = castling.plan

    def twice_as_fast(*arguments, **options):
        plan = measure(*arguments, **options, rounds=1, verify=False)
        halved = [replace(layer, linear_ms=layer.softmax_ms / 2) for layer in plan.layers]
        return replace(plan, layers=tuple(halved))

    monkeypatch.setattr(castling, "plan", twice_as_fast)  # how fast this machine is does not matter
    scope = {}
    for _, code in blocks(DOCS / "tasks" / "conversion.md", "python"):
        # The same lines on a model of this suite's size.
        small = code.replace("vit_tiny_patch16_224", "deit_pico").replace("224, 224", "32, 32")
        exec(small, scope)
    assert "end to end" in capsys.readouterr().out
    assert scope["report"].stages[-1].agreement is None
    assert scope["budget"].agreement == 0.5
