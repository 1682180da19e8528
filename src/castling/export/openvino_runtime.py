"""OpenVINO's CPU runtime: the only place that compiles for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from castling.utils.signal_stack import signal_stack_kept


def read_openvino(source: Path | bytes) -> Any:
    """An ``openvino.Model`` from a file, or from the bytes of an ONNX file."""
    import openvino

    # Stays offline; openvino.convert_model sends usage statistics.
    return openvino.Core().read_model(source)


def compile_openvino(model: Any, threads: int | None = None) -> Any:
    """An ``openvino.CompiledModel`` on the CPU in float32.

    Args:
        model: an ``openvino.Model``.
        threads: of one call, in one stream; None leaves OpenVINO's choice.
    """
    import openvino

    # CPUs with bfloat16 instructions would compute in that precision by default.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings |= {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
    with signal_stack_kept():
        return openvino.Core().compile_model(model, "CPU", settings)
