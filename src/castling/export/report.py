"""What was exported, and how it compared with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from castling.export.sizes import Shape
from castling.export.target import Dynamic


@dataclass(frozen=True)
class OutputCheck:
    """One output compared at one input shape.

    Attributes:
        shape: of the output.
        max_difference: largest absolute difference.
        argmax_agreement: share of rows whose largest entry is at the same place, in [0, 1]; None
            unless the output is (B, K) of floating-point numbers.
    """

    shape: tuple[int, ...]
    max_difference: float
    argmax_agreement: float | None


@dataclass(frozen=True)
class ShapeCheck:
    """All outputs compared on images of one shape.

    Attributes:
        shape: (batch, channels, height, width) of the images.
        outputs: per output name.
        concluded: share of what the task concludes in which both agree, in [0, 1]; None where it
            has no such notion.
        nothing: whether sets were compared and all were empty, which shows little.
    """

    shape: Shape
    outputs: Mapping[str, OutputCheck]
    concluded: float | None = None
    nothing: bool = False

    @property
    def max_difference(self) -> float:
        """The largest difference of any output."""
        return max(check.max_difference for check in self.outputs.values())

    @property
    def agreement(self) -> float | None:
        """``concluded``, else the smallest of any output; None where none is (B, K)."""
        if self.concluded is not None:
            return self.concluded
        found = (check.argmax_agreement for check in self.outputs.values())
        return min((share for share in found if share is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "shape": list(self.shape),
            "max_difference": self.max_difference,
            "agreement": self.agreement,
            "outputs": {name: asdict(check) for name, check in self.outputs.items()},
        }


@dataclass(frozen=True)
class ExportReport:
    """An export that was verified; also written beside the file, named after it with ``.json``.

    Attributes:
        path: the file.
        target: name of the target.
        runtime: name and version of the runtime that ran the file.
        bytes: size of the file, with those that belong to it.
        dynamic: input dimensions that may change: ``"all"`` (batch, height, width), ``"batch"`` or
            ``"none"``.
        multiple: height and width must be multiples of it, in pixels.
        traced: shape of the images that the exporter traced.
        opset: ONNX operator set; None where the file was not written through ONNX.
        tolerance: largest difference that was allowed.
        checks: one entry per shape.
        versions: of torch and the target's packages.
        notes: restrictions that a user of the file has to know.
        metadata: what the file stores, decoded: how to feed it, classes, the card.
    """

    path: str
    target: str
    runtime: str
    bytes: int
    dynamic: Dynamic
    multiple: int
    traced: Shape
    opset: int | None
    tolerance: float
    checks: tuple[ShapeCheck, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def max_difference(self) -> float:
        """The largest difference of any output at any shape."""
        return max(check.max_difference for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "checks": [check.to_dict() for check in self.checks],
            "max_difference": self.max_difference,
        }

    def __str__(self) -> str:
        free = {"all": "batch, height and width", "batch": "batch", "none": "nothing"}
        opset = "" if self.opset is None else f"opset {self.opset}, "
        several = len(self.checks[0].outputs) > 1
        lines = [
            f"{self.path}: {self.bytes / 1e6:.2f} MB, {opset}dynamic {free[self.dynamic]}",
            f"{self.runtime + ' against PyTorch at':34}{'max |Δ|':>10}{'agreement':>13}",
        ]
        for check in self.checks:
            lines.append(
                _line(" × ".join(map(str, check.shape)), check.max_difference, check.agreement)
            )
            if several:
                lines += [
                    _line(f"  {name}", output.max_difference, output.argmax_agreement)
                    for name, output in check.outputs.items()
                ]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _line(name: str, difference: float, agreement: float | None) -> str:
    share = "" if agreement is None else f"{agreement:13.1%}"
    return f"  {name:32}{difference:10.2e}{share}"
