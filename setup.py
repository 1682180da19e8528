"""Build the C++ operators of castling.ops.native, if there is a compiler. Metadata: pyproject.toml.

- Plain C interface, linked against neither Python nor PyTorch: works with every wheel of torch.
- Kernels are compiled once per instruction set, and the library chooses one when it is loaded.
- Optional: without a compiler the installation succeeds, and another backend is used.
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
    """Run a command; RuntimeError holds the first line of its errors."""
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
    """Fingerprint of the argument structures; ``native/library.py`` computes the same."""
    headers = sorted(sources.glob("*.h"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in headers)).hexdigest()[:16]


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file, and rename it to ``target`` once it is complete.

    A process that loads half a library crashes; one that has loaded the old library keeps it.
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
    """Build the library, or warn in one line."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's file, without a Python version, because it depends on none."""
        suffix = ".dylib" if sys.platform == "darwin" else ".so"
        return os.path.join(*fullname.split(".")) + suffix

    def build_extension(self, ext: Extension) -> None:
        """Build into the package, or warn and continue."""
        self.built = False
        try:
            build_library(Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp))
            self.built = True
        except (OSError, RuntimeError) as error:
            # A library of an earlier build does not fit these sources.
            name = self.get_ext_filename(ext.name)
            for stale in (Path(self.get_ext_fullpath(ext.name)), Path("src") / name):
                stale.unlink(missing_ok=True)
            print(
                f"warning: castling's C++ operators were not built ({error}); attention on a CPU "
                "will use the slower PyTorch backend. Install a C++17 compiler and install again.",
                file=sys.stderr,
            )

    def copy_extensions_to_source(self) -> None:
        """Copy the library for an editable installation, if it was built."""
        if not self.built:
            return
        for ext in self.extensions:
            name = self.get_ext_filename(ext.name)
            built = Path(self.build_lib) / name
            write_whole(Path("src") / name, lambda new, built=built: shutil.copy2(built, new))


class NativeWheel(bdist_wheel):
    """A wheel for every Python of one platform: the library is linked against none."""

    def get_tag(self) -> tuple[str, str, str]:
        """(python, abi, platform)."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("castling.ops.native.libcastling_native", [], optional=True)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": NativeWheel},
)
