"""What was exported, and how it compared with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from castling.export.precision import Limits, Precision
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
        relative_error: ‖file − PyTorch‖ / ‖PyTorch‖; None unless of floating-point numbers.
    """

    shape: tuple[int, ...]
    max_difference: float
    argmax_agreement: float | None
    relative_error: float | None = None


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
    def relative_error(self) -> float | None:
        """The largest of any output; None where none is of floating-point numbers."""
        found = (check.relative_error for check in self.outputs.values())
        return max((error for error in found if error is not None), default=None)

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
            "relative_error": self.relative_error,
            "agreement": self.agreement,
            "outputs": {name: asdict(check) for name, check in self.outputs.items()},
        }


@dataclass(frozen=True)
class ImageCheck:
    """File and PyTorch compared on real images, none of which the file was calibrated with.

    Attributes:
        count: of images.
        max_difference: largest absolute difference of any output.
        relative_error: ‖file − PyTorch‖ / ‖PyTorch‖ over all images, the largest of any output;
            None where none is of floating-point numbers.
        agreement: share in [0, 1] of what the task concludes in which both agree: best classes,
            labels of pixels, detections that match; None where it has no such notion.
    """

    count: int
    max_difference: float
    relative_error: float | None
    agreement: float | None

    def __str__(self) -> str:
        """One line."""
        share = "" if self.agreement is None else f"agreement {self.agreement:.1%}, "
        error = "" if self.relative_error is None else f", relative error {self.relative_error:.2e}"
        images = "1 real image" if self.count == 1 else f"{self.count} real images"
        return f"on {images}: {share}max |Δ| {self.max_difference:.2e}{error}"


@dataclass(frozen=True)
class Speed:
    """Medians of a short measurement; ``castling bench models`` takes more care.

    Attributes:
        shape: of the images of one call.
        threads: of the CPU.
        milliseconds: per call of ``"file"``, of ``"pytorch"``, and where the file is of less than
            fp32, of ``"fp32 file"``, the same model in the same runtime.
    """

    shape: Shape
    threads: int
    milliseconds: Mapping[str, float]

    def __str__(self) -> str:
        """One line."""
        times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in self.milliseconds.items())
        return f"one call of {_text(self.shape)} on {self.threads} thread(s): {times}"


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
        tolerance: largest difference that was allowed of a file in fp32.
        checks: one entry per shape.
        versions: of torch and the target's packages.
        notes: restrictions that a user of the file has to know.
        metadata: what the file stores, decoded: how to feed it, classes, the card. Beside these
            it stores :meth:`proof`, as ``report``.
        precision: of the file.
        limits: what a file of less than fp32 had to reach.
        on_images: the comparison on real images; None where there were none.
        calibration_images: number of images that an int8 file was calibrated with.
        fp32_bytes: size of the same model as a file in fp32; None of a file that is one.
        speed: milliseconds of the file and of PyTorch.
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
    precision: Precision = "fp32"
    limits: Limits | None = None
    on_images: ImageCheck | None = None
    calibration_images: int = 0
    fp32_bytes: int | None = None
    speed: Speed | None = None

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

    def proof(self) -> dict[str, Any]:
        """What the file itself stores: all but its place, its size and its other metadata."""
        apart = ("path", "bytes", "metadata")
        return {key: value for key, value in self.to_dict().items() if key not in apart}

    def __str__(self) -> str:
        free = {"all": "batch, height and width", "batch": "batch", "none": "nothing"}
        opset = "" if self.opset is None else f"opset {self.opset}, "
        several = len(self.checks[0].outputs) > 1
        relative = self.precision != "fp32"
        size = f"{self.bytes / 1e6:.2f} MB"
        if self.fp32_bytes is not None:
            size += f" in {self.precision} ({self.fp32_bytes / 1e6:.2f} MB in fp32)"
        lines = [
            f"{self.path}: {size}, {opset}dynamic {free[self.dynamic]}",
            f"{self.runtime + ' against PyTorch at':34}"
            f"{'relative' if relative else 'max |Δ|':>10}{'agreement':>13}",
        ]
        for check in self.checks:
            difference = check.relative_error if relative else check.max_difference
            lines.append(_line(_text(check.shape), difference, check.agreement))
            if several:
                lines += [
                    _line(
                        f"  {name}",
                        output.relative_error if relative else output.max_difference,
                        output.argmax_agreement,
                    )
                    for name, output in check.outputs.items()
                ]
        lines += [str(line) for line in (self.on_images, self.speed) if line is not None]
        if self.calibration_images:
            lines.append(f"calibrated on {self.calibration_images} other images")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _text(shape: Shape) -> str:
    return " × ".join(map(str, shape))


def _line(name: str, difference: float | None, agreement: float | None) -> str:
    share = "" if agreement is None else f"{agreement:13.1%}"
    return f"  {name:32}{'' if difference is None else f'{difference:10.2e}':10}{share}"
