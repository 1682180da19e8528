"""A file against its model on real images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from castling.export.exported_model import ExportedModel
from castling.export.outputs import NamedOutputs, Outputs
from castling.export.precision import REMEDIES, Limits, Precision
from castling.export.report import ImageCheck
from castling.export.sizes import Size, images_of, run_once
from castling.export.target import DisagreementError

#: Images computed together, unless the file is for one.
_BATCH = 8


def check_images(
    model: NamedOutputs, exported: ExportedModel, images: Tensor, size: Size, task: Outputs
) -> ImageCheck:
    """Compare a file with its model on every image.

    Args:
        model: in evaluation mode.
        exported: the file, opened.
        images: (N, 3, H, W), normalised; scaled to ``size``.
        size: (height, width) in pixels that the file is meant for.
        task: says how far both agree.
    """
    largest = torch.zeros((), dtype=torch.float64)
    squares: dict[str, Tensor] = {}
    shares: list[Tensor] = []
    for batch in images.split(exported.input_shape[0] or _BATCH):
        batch = images_of((len(batch), 3, *size), batch)
        expected, found = run_once(model, batch), exported(batch)
        found = {name: value.cpu() for name, value in found.items()}
        share = agreement_of(task, expected, found)
        if share is not None:
            shares.append(share.double())
        expected, found = task.align(expected, found)
        for name, value in expected.items():
            apart = difference(value, found[name])
            if apart.numel():
                largest = torch.maximum(largest, apart.max().double())  # NaN stays NaN
            if value.is_floating_point():
                both = squared_norms(apart, value)
                squares[name] = squares.get(name, torch.zeros(2, dtype=torch.float64)) + both
    return ImageCheck(
        count=len(images),
        max_difference=float(largest),
        relative_error=_largest([ratio(*both.tolist()) for both in squares.values()]),
        agreement=float(torch.cat(shares).mean()) if shares else None,
    )


def _largest(values: list[float]) -> float | None:
    """NaN where one of them is; None of none."""
    return float(torch.tensor(values, dtype=torch.float64).max()) if values else None


def agreement_of(
    task: Outputs, expected: dict[str, Tensor], found: dict[str, Tensor]
) -> Tensor | None:
    """(B,) share in [0, 1] as the task says, else whether all outputs (B, K) have the same best."""
    share = task.agreement(expected, found)
    if share is not None:
        return share
    same = [
        found[name].argmax(1) == value.argmax(1)
        for name, value in expected.items()
        if value.ndim == 2 and value.is_floating_point() and value.numel()
    ]
    return torch.stack(same).all(0).double() if same else None


def difference(expected: Tensor, found: Tensor) -> Tensor:
    """|found − expected| in float64; equal infinities differ by nothing, where − gives NaN."""
    return torch.where(expected == found, 0.0, (found.double() - expected.double()).abs())


def squared_norms(apart: Tensor, expected: Tensor) -> Tensor:
    """(2,) ‖apart‖² and ‖expected‖² in float64; infinities count in the first alone."""
    size = expected.double().nan_to_num(posinf=0.0, neginf=0.0)
    return torch.stack([apart.square().sum(), size.square().sum()])


def ratio(difference: float, size: float) -> float:
    """Relative error from the squared norms of a difference and of what is approximated."""
    if difference == 0:
        return 0.0
    return math.sqrt(difference / size) if size else math.inf


def require_numbers(check: ImageCheck, runtime: str) -> None:
    """Raise DisagreementError where a file gives NaN or infinity that its model does not."""
    if not math.isfinite(check.max_difference):
        raise DisagreementError(
            f"{runtime} and PyTorch differ by {check.max_difference} on some of {check.count} real "
            "images: one of them gives numbers that are not finite"
        )


def require_limits(check: ImageCheck, limits: Limits, precision: Precision, runtime: str) -> None:
    """Raise DisagreementError unless a file is as near to its model as its precision must be."""
    images = f"on {check.count} real images"
    if check.agreement is not None and not check.agreement >= limits.min_agreement:
        raise DisagreementError(
            f"in {precision} {runtime} agrees with PyTorch in {check.agreement:.2%} {images}, less "
            f"than {limits.min_agreement:.1%}: {REMEDIES[precision]}"
        )
    if check.relative_error is not None and not check.relative_error <= limits.max_error:
        raise DisagreementError(
            f"in {precision} {runtime} is {check.relative_error:.3g} of the outputs' size away "
            f"from PyTorch {images}, more than {limits.max_error:g}: {REMEDIES[precision]}"
        )
