"""Whether folding was exact: what a model and its rewritten modules return, before and after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from castling.surgery.fold_observe import Observation, observe, tensors_in

# Rounding may grow inside a network and shrink again; the error of a wrong fold is far larger.
_INNER_TOLERANCE_FACTOR = 100


class FoldError(RuntimeError):
    """Folding changed what a model computes; the model was restored."""


def verified(
    model: nn.Module,
    images: Tensor,
    before: Observation,
    inside: dict[str, nn.Module],
    tolerance: float,
) -> float:
    """The largest difference of the outputs, after comparing the rewritten modules' outputs too.

    Args:
        model: folded.
        images: (B, C, H, W), those of ``before``.
        before: what the model showed before it was folded, the outputs of ``inside`` included.
        inside: the rewritten modules by name.
        tolerance: as of :func:`castling.fold_`.

    Raises:
        ValueError: the folded model does not run, or its outputs are not finite.
        FoldError: some outputs differ by more than is allowed.
    """
    parts = set(inside.values())
    after = observe(model, images, lambda module: module in parts)
    reference = list(tensors_in(before.result))
    difference, scale = _difference(reference, list(tensors_in(after.result)))
    if not difference <= tolerance * scale:
        raise FoldError(
            f"folding changed the outputs by {difference:.2e} (outputs up to {scale:.2e}, "
            f"allowed {tolerance * scale:.2e}); the model is unchanged. Either a BatchNorm "
            "meets its convolution in a way that its module does not show, or the network "
            "magnifies rounding: see whether model.double() folds"
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
    return difference


def _difference(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """Largest difference, and the largest value or 1."""
    gaps = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True) if a.numel()]
    difference = max(gaps, default=0.0)
    return difference, max([1.0, *(float(old.abs().max()) for old in before if old.numel())])
