"""ONNX Runtime against PyTorch: the comparison, and the report that goes with an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from castling.export.sizes import random_images, run_once
from castling.utils.text import first_line


class ExportError(RuntimeError):
    """The model could not be exported, or the file did not reproduce it."""


@dataclass(frozen=True)
class ShapeCheck:
    """One comparison of ONNX Runtime with PyTorch on random images.

    Attributes:
        shape: (batch, channels, height, width).
        max_difference: largest absolute difference of any output.
        argmax_agreement: share of images whose highest class is the same, in [0, 1].
    """

    shape: tuple[int, int, int, int]
    max_difference: float
    argmax_agreement: float


@dataclass(frozen=True)
class ExportReport:
    """What was exported and how it compared; also written beside the file as ``….onnx.json``.

    Attributes:
        path: the ONNX file.
        bytes: its size.
        dynamic: which input dimensions may change: ``"all"`` (batch, height, width) or ``"batch"``.
        multiple: height and width must be multiples of it.
        traced: the shape that the exporter saw.
        opset: ONNX operator set.
        tolerance: the largest difference that was allowed.
        checks: one entry per shape.
        versions: of torch, onnx and onnxruntime.
        notes: what whoever feeds the file has to know.
    """

    path: str
    bytes: int
    dynamic: Literal["all", "batch"]
    multiple: int
    traced: tuple[int, int, int, int]
    opset: int
    tolerance: float
    checks: tuple[ShapeCheck, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def max_difference(self) -> float:
        """The largest difference over all shapes."""
        return max(check.max_difference for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "max_difference": self.max_difference}

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.bytes / 1e6:.2f} MB, opset {self.opset}, dynamic "
            + ("batch, height and width" if self.dynamic == "all" else "batch"),
            f"{'ONNX Runtime against PyTorch at':34}{'max |Δ|':>10}{'same class':>13}",
        ]
        lines += [
            f"  {' × '.join(map(str, check.shape)):32}{check.max_difference:10.2e}"
            f"{check.argmax_agreement:13.1%}"
            for check in self.checks
        ]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def compare(model: nn.Module, path: Path, shape: tuple[int, int, int, int]) -> ShapeCheck:
    """Run the file and the model on the same random images of a shape.

    Raises:
        ExportError: the file does not run, or its output has another shape.
    """
    import onnxruntime

    images = random_images(shape)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    expected = run_once(model, shape)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        result = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot run the exported model at shape {shape}: {first_line(error)}; "
            "nothing was written. dynamic='batch' (--dynamic batch) exports for one size"
        ) from error
    if result.shape != expected.shape:
        raise ExportError(
            f"ONNX Runtime gives an output of shape {tuple(result.shape)} at {shape}, PyTorch "
            f"{tuple(expected.shape)}; nothing was written"
        )
    same = (result.flatten(1).argmax(1) == expected.flatten(1).argmax(1)).float().mean()
    return ShapeCheck(shape, float((result - expected).abs().max()), float(same))


def require_same(checks: Sequence[ShapeCheck], tolerance: float) -> None:
    """Raise ExportError unless every difference is within ``tolerance``."""
    for check in checks:
        if not check.max_difference <= tolerance:  # a NaN is refused as well
            raise ExportError(
                f"the exported model differs from PyTorch by {check.max_difference:.3g} at shape "
                f"{check.shape}, above the tolerance {tolerance:g}; nothing was written"
            )
