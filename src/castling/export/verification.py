"""Compare an exported file in its runtime with the model in PyTorch, for every target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from castling.export.exported_model import ExportedModel
from castling.export.outputs import NamedOutputs, Outputs, PlainOutputs
from castling.export.precision import REMEDIES, Limits, Precision
from castling.export.proof import difference, ratio, squared_norms
from castling.export.report import OutputCheck, ShapeCheck
from castling.export.sizes import Shape, images_of, run_once
from castling.export.target import ExportError
from castling.utils.text import first_line


@dataclass(frozen=True)
class Verification:
    """How a file is compared.

    Attributes:
        shapes: (B, 3, H, W) of the images, one comparison each.
        tolerance: largest absolute difference allowed of an output of floating-point numbers;
            others must be equal. Where the task compares sets: in units of the output's largest
            value or 1, since boxes are in pixels.
        runtime: its name in error messages.
        task: what is compared, and how far both agree.
        images: (N, 3, H, W), normalised, scaled to every shape; None is noise.
        precision: of the file.
        limits: of a file of less than fp32, in the place of ``tolerance``: relative errors here,
            agreement on real images.
    """

    shapes: Sequence[Shape]
    tolerance: float
    runtime: str
    task: Outputs = field(default_factory=PlainOutputs)
    images: Tensor | None = None
    precision: Precision = "fp32"
    limits: Limits | None = None


def verify(
    model: NamedOutputs, exported: ExportedModel, how: Verification
) -> tuple[ShapeCheck, ...]:
    """Compare the file with the model at each shape.

    Args:
        model: in evaluation mode.
        exported: the file, opened.
        how: at which shapes, how strictly.

    Returns:
        one entry per shape.

    Raises:
        ExportError: the file does not run, names other outputs, differs in shape or type or by
            more than the tolerance, finds other things, or an output holds NaN.
    """
    return tuple(_check(model, exported, shape, how) for shape in how.shapes)


def _check(
    model: NamedOutputs, exported: ExportedModel, shape: Shape, how: Verification
) -> ShapeCheck:
    images = images_of(shape, how.images)
    expected = run_once(model, images)
    try:
        found = exported(images)
    except Exception as error:
        raise ExportError(
            f"{how.runtime} cannot run the exported model at shape {shape}: {_reason(error)}"
        ) from error
    found = {name: value.cpu() for name, value in found.items()}
    _require_alike(expected, found, shape, how)
    share = how.task.agreement(expected, found)
    agreement = None if share is None else float(share.mean())
    aligned = how.task.align(expected, found)
    sets = aligned[0] is not expected
    least = how.task.least_agreement
    exact = how.limits is None
    if exact and sets and agreement is not None and not agreement >= least:
        raise ExportError(
            f"at input shape {shape} {how.runtime} agrees with PyTorch in {agreement:.2%} of what "
            f"the model finds, less than {least:.1%}. Where many scores are nearly "
            "equal, as of weights that were not trained, the last bit decides what is kept: train "
            "the model first, or compare on other images (--data; in Python images=, or "
            "raw_outputs= for the head's outputs, among which nothing is chosen yet)"
        )
    checks = {
        name: _compare(name, value, aligned[1][name], shape, how, sets)
        for name, value in aligned[0].items()
    }
    nothing = sets and not any(bool(value.any()) for value in aligned[0].values())
    return ShapeCheck(shape, checks, agreement, nothing)


def _reason(error: Exception) -> str:
    """The first line that says something; OpenVINO begins with the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = (line for line in lines if line and not line.startswith("Exception from"))
    return next(said, first_line(error))


def _require_alike(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], shape: Shape, how: Verification
) -> None:
    """Raise ExportError unless names, shapes and types are the same, and nothing is NaN."""
    if set(expected) != set(found):
        raise ExportError(
            f"{how.runtime} returns the outputs {', '.join(sorted(found))}, PyTorch "
            f"{', '.join(sorted(expected))}"
        )
    for name, value in expected.items():
        where = f"output {name} at input shape {shape}"
        for what, theirs, ours in (
            ("shape", tuple(found[name].shape), tuple(value.shape)),
            ("type", found[name].dtype, value.dtype),
        ):
            if theirs != ours:
                raise ExportError(
                    f"{where} has {what} {theirs} in {how.runtime}, {ours} in PyTorch"
                )
        for values, owner in ((value, "PyTorch"), (found[name], how.runtime)):
            if bool(values.isnan().any()):
                raise ExportError(f"{where} holds NaN in {owner}")


def _compare(
    name: str, expected: Tensor, found: Tensor, shape: Shape, how: Verification, sets: bool
) -> OutputCheck:
    apart = difference(expected, found)
    largest = float(apart.max()) if apart.numel() else 0.0
    error = ratio(*squared_norms(apart, expected).tolist())
    relative = error if expected.is_floating_point() else None
    if how.limits is not None:
        _require_near(name, relative, shape, how.limits, how)
    allowed = how.tolerance if expected.is_floating_point() else 0.0
    if sets and expected.numel():
        allowed *= max(1.0, float(expected.abs().max()))
    if how.limits is None and not largest <= allowed:
        raise ExportError(
            f"output {name} at input shape {shape} differs from PyTorch by {largest:.3g} in "
            f"{how.runtime}, above the tolerance {allowed:g}"
        )
    rows = expected.ndim == 2 and expected.is_floating_point() and expected.numel() > 0
    agreement = None
    if rows and not sets:
        agreement = float((found.argmax(1) == expected.argmax(1)).double().mean())
    return OutputCheck(tuple(expected.shape), largest, agreement, relative)


def _require_near(
    name: str, error: float | None, shape: Shape, limits: Limits, how: Verification
) -> None:
    if error is not None and not error <= limits.max_error:
        raise ExportError(
            f"output {name} at input shape {shape} in {how.precision} is {error:.3g} of its size "
            f"away from PyTorch in {how.runtime}, more than {limits.max_error:g}: "
            f"{REMEDIES[how.precision]}"
        )
