"""Building the C++ library: what is loaded is whole, whatever happens to a build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
resource = pytest.importorskip("resource", reason="limits of processes are a POSIX matter")

ROOT = Path(__file__).parent.parent
LIBRARY = Path("src/castling/ops/native/libcastling_native.so")


@pytest.fixture
def project(tmp_path):
    """Our setup.py and a compiler whose every output is 4 MB, made without writing them."""
    if sys.platform != "linux" or not (ROOT / "setup.py").exists():
        pytest.skip("wants Linux and the sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "src/castling/ops/native/csrc").mkdir(parents=True)
    (tmp_path / "linked").write_bytes(bytes(4_000_000))
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        'ln -f "${0%compiler}linked" "$2" && touch "$2"\n'
    )
    compiler.chmod(0o755)
    (tmp_path / LIBRARY).write_bytes(b"the old library")
    return tmp_path


def build(project, **options):
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=project,
        env=os.environ | {"CXX": str(project / "compiler")},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_a_library_beside_the_sources_is_replaced(project):
    done = build(project)
    assert done.returncode == 0, done.stderr
    assert (project / LIBRARY).stat().st_size == 4_000_000
    assert [path.name for path in (project / LIBRARY).parent.glob("lib*")] == [LIBRARY.name]


def test_a_build_that_stops_in_the_middle_leaves_the_library_alone(project):
    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = build(project, preexec_fn=no_room)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert (project / LIBRARY).read_bytes() == b"the old library"
    assert [path.name for path in (project / LIBRARY).parent.glob("lib*")] == [LIBRARY.name]
