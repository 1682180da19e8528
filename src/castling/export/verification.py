"""Compare an exported file in its runtime with the model in PyTorch, for every target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from castling.export.exported_model import ExportedModel
from castling.export.outputs import NamedOutputs
from castling.export.report import OutputCheck, ShapeCheck
from castling.export.sizes import Shape, random_images, run_once
from castling.export.target import ExportError
from castling.utils.text import first_line


def verify(
    model: NamedOutputs,
    exported: ExportedModel,
    shapes: Sequence[Shape],
    tolerance: float,
    runtime: str,
) -> tuple[ShapeCheck, ...]:
    """Compare the file with the model on random images of each shape (B, 3, H, W).

    Args:
        model: in evaluation mode.
        exported: the file, opened.
        shapes: to compare at.
        tolerance: largest absolute difference allowed of an output of floating-point numbers;
            others must be equal.
        runtime: its name in error messages.

    Returns:
        one entry per shape.

    Raises:
        ExportError: the file does not run, names other outputs, differs in shape or type or by
            more than ``tolerance``, or an output holds NaN.
    """
    checks = []
    for shape in shapes:
        expected = run_once(model, shape)
        try:
            found = exported(random_images(shape))
        except Exception as error:
            raise ExportError(
                f"{runtime} cannot run the exported model at shape {shape}: {first_line(error)}"
            ) from error
        checks.append(ShapeCheck(shape, _compare(expected, found, shape, tolerance, runtime)))
    return tuple(checks)


def _compare(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    shape: Shape,
    tolerance: float,
    runtime: str,
) -> dict[str, OutputCheck]:
    if set(expected) != set(found):
        raise ExportError(
            f"{runtime} returns the outputs {', '.join(sorted(found))}, PyTorch "
            f"{', '.join(sorted(expected))}"
        )
    return {
        name: _compare_output(name, value, found[name].cpu(), shape, tolerance, runtime)
        for name, value in expected.items()
    }


def _compare_output(
    name: str, expected: Tensor, found: Tensor, shape: Shape, tolerance: float, runtime: str
) -> OutputCheck:
    where = f"output {name} at input shape {shape}"
    for what, theirs, ours in (
        ("shape", tuple(found.shape), tuple(expected.shape)),
        ("type", found.dtype, expected.dtype),
    ):
        if theirs != ours:
            raise ExportError(f"{where} has {what} {theirs} in {runtime}, {ours} in PyTorch")
    for values, owner in ((expected, "PyTorch"), (found, runtime)):
        if bool(values.isnan().any()):
            raise ExportError(f"{where} holds NaN in {owner}")
    # Equal infinities differ by nothing; their difference would be NaN.
    apart = torch.where(expected == found, 0.0, (found.double() - expected.double()).abs())
    difference = float(apart.max()) if apart.numel() else 0.0
    allowed = tolerance if expected.is_floating_point() else 0.0
    if difference > allowed or math.isnan(difference):
        raise ExportError(
            f"{where} differs from PyTorch by {difference:.3g} in {runtime}, above the tolerance "
            f"{allowed:g}"
        )
    agreement = None
    if expected.ndim == 2 and expected.is_floating_point() and expected.numel():
        agreement = float((found.argmax(1) == expected.argmax(1)).double().mean())
    return OutputCheck(tuple(expected.shape), difference, agreement)
