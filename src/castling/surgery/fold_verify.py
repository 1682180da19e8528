"""Whether folding was exact: what a model and its rewritten modules return, before and after."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from castling.surgery.compared import Compared, tensors_in
from castling.surgery.fold_observe import Observation, observe

# Rounding may grow inside a network and shrink again; the error of a wrong fold is far larger.
_INNER_TOLERANCE_FACTOR = 100


class FoldError(RuntimeError):
    """Folding changed what a model computes; the model was restored."""


class Verified(NamedTuple):
    """How the outputs compare.

    Attributes:
        difference: the largest of any output.
        agreement: share of what the task concludes that is the same; None without such a notion.
    """

    difference: float
    agreement: float | None


def verified(
    model: nn.Module,
    images: Tensor,
    before: Observation,
    inside: dict[str, nn.Module],
    tolerance: float,
    task: Compared,
) -> Verified:
    """Compare the outputs, and those of the rewritten modules.

    Args:
        model: folded.
        images: (B, C, H, W), those of ``before``.
        before: what the model showed before it was folded, the outputs of ``inside`` included.
        inside: the rewritten modules by name.
        tolerance: as of :func:`castling.fold_`.
        task: as of :func:`castling.fold_`.

    Raises:
        ValueError: the folded model does not run, or its outputs are not finite.
        FoldError: some outputs differ by more than is allowed.
    """
    parts = set(inside.values())
    after = observe(model, images, lambda module: module in parts, task)
    worst = 0.0
    for name, output in before.result.items():
        difference, scale = _difference([output], [after.result[name]])
        worst = max(worst, difference)
        if not difference <= tolerance * scale:
            raise FoldError(
                f"folding changed the outputs{f' {name}' if name else ''} by {difference:.2e} "
                f"(outputs up to {scale:.2e}, allowed {tolerance * scale:.2e}); the model is "
                "unchanged. Either a BatchNorm meets its convolution in a way that its module does "
                "not show, or the network magnifies rounding: see whether model.double() folds"
            )
    for name, module in inside.items():
        old, new = (list(tensors_in(run.outputs.get(module))) for run in (before, after))
        if not all(torch.isfinite(tensor).all() for tensor in old):
            continue
        inner, scale = _difference(old, new)
        allowed = _INNER_TOLERANCE_FACTOR * tolerance * scale
        if not inner <= allowed:
            raise FoldError(
                f"folding changed what {name} computes by {inner:.2e} (up to {scale:.2e}, allowed "
                f"{allowed:.2e}), though the model's outputs hardly show it; the model is "
                f"unchanged. The handler registered for {type(module).__name__} is not exact"
            )
    height, width = images.shape[-2:]
    concluded = [task.postprocess(model, run.result, (height, width)) for run in (before, after)]
    agreement = task.agreement(*concluded)
    return Verified(worst, None if agreement is None else float(agreement.mean()))


def _difference(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """Largest difference, and the largest value or 1."""
    gaps = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True) if a.numel()]
    difference = max(gaps, default=0.0)
    return difference, max([1.0, *(float(old.abs().max()) for old in before if old.numel())])
