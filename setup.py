"""Builds the C++ operators of castling.ops.native, where there is a compiler.

- Plain C interface, linked against neither Python nor PyTorch: works with any build of torch.
- Kernels are compiled once per instruction set; the library chooses one when it is loaded.
- Optional: without a compiler the installation goes on, and operators use the naive backend.
- ``python setup.py build_ext --inplace`` rebuilds the library beside the sources.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/castling/ops/native/csrc")
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    # No errno, fused multiply-adds; NaN and infinity keep their meaning.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fno-exceptions", "-fno-rtti", "-Wall", "-Wno-psabi", "-Wno-unused-function"),
    # GCC warns about its own AVX-512 headers.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
X86 = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ),
}


def compiler() -> list[str]:
    """The C++ compiler's command: $CXX, or the first of the usual ones."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise FileNotFoundError("no C++ compiler found (g++, clang++ or $CXX)")


def run(command: list[str]) -> None:
    """Run a command; raise RuntimeError with the first error it prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        first = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise RuntimeError(f"{shlex.join(command[:1])} failed: {first[0].strip()}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


def interface(sources: Path) -> str:
    """Fingerprint of the argument structures; ``native/library.py`` compares it with its own."""
    # The tests of a build that fails have no sources.
    header = sources / "arguments.h"
    return hashlib.sha256(header.read_bytes() if header.exists() else b"").hexdigest()[:16]


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``target``, and move it there once it is complete.

    A process that loads half a library crashes; one that has the old library loaded keeps it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        write(new)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def build_library(target: Path, temporary: Path) -> None:
    """Compile every source for every instruction set and link the shared library."""
    cxx = compiler()
    machine = os.environ.get("CASTLING_MACHINE", platform.machine()).lower()
    sets = dict(X86) if machine in ("x86_64", "amd64") else {}
    has = [f"-DCASTLING_HAS_{name.upper()}" for name in sets]
    has.append(f'-DCASTLING_INTERFACE="{interface(SOURCES)}"')
    temporary.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[list[str], Path]] = []
    for source in sorted(SOURCES.glob("*.cpp")):
        jobs.append(([*has, str(source)], temporary / f"{source.stem}.o"))
    for source in sorted((SOURCES / "kernels").glob("*.cpp")):
        for name, flags in {"portable": (), **sets}.items():
            define = f"-DCASTLING_NAMESPACE=castling_{name}"
            jobs.append(([*flags, define, str(source)], temporary / f"{source.stem}.{name}.o"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: run([*cxx, *FLAGS, *job[0], "-c", "-o", str(job[1])]), jobs))
    objects = [str(job[1]) for job in jobs]
    write_whole(target, lambda new: run([*cxx, "-shared", "-pthread", "-o", str(new), *objects]))


class BuildNative(build_ext):
    """Builds the library; warns in one line if it cannot be built."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's file name, without a Python version: it depends on none."""
        suffix = ".dylib" if sys.platform == "darwin" else ".so"
        return os.path.join(*fullname.split(".")) + suffix

    def build_extension(self, ext: Extension) -> None:
        """Build into the package, or warn and continue."""
        self.built = False
        try:
            build_library(Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp))
            self.built = True
        except (OSError, RuntimeError) as error:
            # A library of an earlier build would not match these sources.
            name = self.get_ext_filename(ext.name)
            for stale in (Path(self.get_ext_fullpath(ext.name)), Path("src") / name):
                stale.unlink(missing_ok=True)
            print(
                f"warning: castling's C++ operators were not built ({error}); attention on a CPU "
                "will use slower PyTorch operators. Install a C++17 compiler and install again.",
                file=sys.stderr,
            )

    def copy_extensions_to_source(self) -> None:
        """Editable installation: copy the library whole, or not at all if nothing was built."""
        if not self.built:
            return
        for ext in self.extensions:
            name = self.get_ext_filename(ext.name)
            built = Path(self.build_lib) / name
            write_whole(Path("src") / name, lambda new, built=built: shutil.copy2(built, new))


class NativeWheel(bdist_wheel):
    """A wheel for any Python version on one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """(python, abi, platform)."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("castling.ops.native.libcastling_native", [], optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": NativeWheel},
)
