"""The C++ library: loading, the table of its arguments, its measurement of the machine."""

import math
import os
import shutil
import struct
import subprocess
import sys

import pytest
import torch

from castling.ops import native
from castling.ops.native.arguments import (
    HEADER,
    LINEAR,
    LINEAR_GRADIENTS,
    STRUCTURES,
    header_text,
)
from castling.ops.native.library import load
from castling.ops.native.structures import INTEGER, REAL, TENSOR, Block, Field, packer

built = pytest.mark.skipif(not native.available(), reason="the native operators are not built")


def test_the_header_is_the_table():
    assert HEADER.read_text(encoding="utf-8") == header_text(), "run python -m castling.ops.native"


def test_members_are_packed_in_order_by_name():
    block = Block("rest", "", (Field("a", INTEGER), Field("b", REAL)))
    pack = packer((Field("x", TENSOR), Field("n", INTEGER), block))
    x = torch.zeros(2, 3, 4, 5)
    rest = packer(block.fields)(b=0.5, a=7)
    expected = struct.pack("=5q q q d", x.data_ptr(), 60, 20, 5, 1, 3, 7, 0.5)
    assert pack(rest=rest, n=3, x=x) == expected
    assert pack(rest=b"", n=3, x=x) == expected[:48] + bytes(16)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.name)
def test_misspelt_missing_and_surplus_fields_fail(structure):
    pack = packer(structure.members)
    given = {member.name: torch.zeros(1, 1, 1, 1) for member in structure.members}
    with pytest.raises(TypeError, match=f"missing.*{structure.members[-1].name}"):
        pack(**dict(list(given.items())[:-1]))
    with pytest.raises(TypeError, match="qeury"):
        pack(**given, qeury=0)


def test_an_absent_tensor_is_packed_as_zeros():
    names = [field.name for field in LINEAR_GRADIENTS.fields[:4]]
    pack = packer(LINEAR_GRADIENTS.fields)
    packed = pack(**dict.fromkeys(names), d_local_weight=0, d_constant=0)
    assert packed == bytes(22 * 8)
    assert len(header_text().split("struct LinearArguments")) == 2
    assert isinstance(LINEAR.members[-1], Block)


@built
def test_a_rate_of_multiply_adds_is_measured():
    rate = native.multiply_add_rate()
    assert math.isfinite(rate)
    assert rate > 0


def test_a_missing_library_is_said(tmp_path):
    assert "install a C++17 compiler" in load(tmp_path / "missing.so")


def test_a_library_of_other_sources_is_not_used(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("wants a C compiler")
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(
        'const char* castling_interface(void) { return "other"; }\n'
        'const char* castling_compiler(void) { return "none"; }\n'
        "void castling_use_openmp(void* entry) {}\n"
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    assert load(library) == "other.so was built from other sources: install castling again"


@built
def test_an_instruction_set_that_does_not_run_leaves_the_naive_backend():
    program = """
import castling, torch
from castling.ops import native
from castling.ops.backends import select_backend
print(select_backend(torch.zeros(1)), castling.available_backends("cpu"))
print(castling.describe_backends()["native"])
try:
    native.multiply_add_rate()
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CASTLING_ISA": "avx9"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, described, error = done.stdout.splitlines()
    assert first == "naive ('naive', 'compiled')"
    assert described == f"missing: {error}"
    assert error.startswith("CASTLING_ISA=avx9: this machine and build run portable")
