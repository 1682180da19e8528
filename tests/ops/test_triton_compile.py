"""Kernels compile for a Hopper GPU where there is none, and what they take is reported."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from castling.ops import triton as backend

pytestmark = pytest.mark.skipif(
    backend.why_never() is not None or backend.interpreting(),
    reason="needs Triton, and not its interpreter",
)
SCRIPT = Path(__file__).parents[2] / "benchmarks/compile_kernels.py"


def compiled(tmp_path, *options):
    # A cache of its own: a kernel found in the user's would prove nothing.
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--jobs", "1", "--output", str(report), *options],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout[-2000:] + done.stderr[-4000:]
    return done, json.loads(report.read_text())


@pytest.mark.slow
def test_linear_attention_compiles_without_spilling(tmp_path):
    options = ("--families", "linear_attention", "--only", "^d=64 bf16 n=4096 unit l2 grid2d$")
    done, report = compiled(tmp_path, *options)
    assert done.returncode == 0, done.stdout[-2000:]
    kernels = {row["kernel"].removeprefix("linear_attention_") for row in report["rows"]}
    assert kernels >= {"fwd_kernel_state", "fwd_kernel_output"}
    assert kernels >= {"bwd_kernel_queries", "bwd_kernel_keys"}
    for row in report["rows"]:
        assert 0 < row["registers"] <= 255
        assert row["spilled_bytes"] == 0
        assert row["shared_bytes"] <= 227 * 1024


def test_verdicts():
    specification = importlib.util.spec_from_file_location("compile_kernels", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    good = {"main": True, "registers": 128, "shared_bytes": 1024, "spilled_bytes": 0}
    assert script.verdict(good) == ""
    assert script.verdict(good | {"spilled_bytes": 8}) == "SPILLS"
    assert script.verdict(good | {"spilled_bytes": 8, "main": False}) == ""
    assert script.verdict(good | {"shared_bytes": 228 * 1024}) == "TOO MUCH SHARED MEMORY"
    assert script.verdict({"error": "what the compiler said", "main": False}) == "DOES NOT COMPILE"
