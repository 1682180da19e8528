"""What a switch would change: raw outputs and conclusions, with and without branches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from castling.attention import AuxiliaryStatistics, auxiliaries, collect_statistics
from castling.surgery.compared import Compared, Outputs

Batch = Tensor | tuple[Tensor, ...] | list[Tensor]


@contextmanager
def branches_computed(model: nn.Module, *, computed: bool) -> Iterator[None]:
    """Within the context, compute every branch, or none."""
    branches = list(auxiliaries(model).values())
    states = [branch.empty for branch in branches]
    for branch in branches:
        branch.empty = not computed
    try:
        yield
    finally:
        for branch, state in zip(branches, states, strict=True):
            branch.empty = state


def _images(batch: Batch) -> Tensor:
    images = batch if isinstance(batch, Tensor) else batch[0]
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise ValueError(
            "calibration must yield image batches (B, 3, H, W), alone or first in a tuple"
        )
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        bad = int((~torch.isfinite(images).flatten(1).all(dim=1)).sum())
        raise ValueError(
            f"{bad} of {len(images)} calibration images hold NaN or infinite pixels: nothing can "
            "be measured with them; check how they are loaded and normalised"
        )
    return images


def _values(outputs: Outputs) -> list[Tensor]:
    """All floating-point tensors among the outputs, each (B, values)."""
    tensors = [tensor for tensor in outputs.values() if tensor.is_floating_point()]
    if not tensors:
        raise ValueError("the model returns no floating-point tensor to compare")
    return [tensor.flatten(1).float() for tensor in tensors]


def _gaps(before: list[Tensor], after: list[Tensor]) -> Tensor:
    """Relative change per image, the largest over all outputs, (B,)."""
    gaps = []
    for old, new in zip(before, after, strict=True):
        size = (old - old.mean(dim=1, keepdim=True)).norm(dim=1) if old.shape[1] > 1 else old.abs()
        size = size.reshape(-1)
        # An output that does not depend on the image cannot show what a branch contributes.
        blind = size <= 1e-6 * old.norm(dim=1).clamp(min=1e-6)
        gap = (new - old).norm(dim=1) / size.clamp(min=1e-30)
        gaps.append(gap.masked_fill(blind, math.inf))
    return torch.stack(gaps).amax(dim=0)


class Measured(NamedTuple):
    """What the calibration images showed.

    Attributes:
        layers: what each branch still did.
        gaps: relative change of each image's outputs.
        difference: largest absolute one.
        agreement: of each image; None where the task has no such notion.
        first: the first batch.
    """

    layers: dict[str, AuxiliaryStatistics]
    gaps: Tensor
    difference: float
    agreement: Tensor | None
    first: Tensor


def measure_switch(
    model: nn.Module, batches: Iterable[Batch], task: Compared, device: torch.device
) -> Measured:
    """Run every image with and without the branches."""
    branches = auxiliaries(model)
    exact = all(branch.empty for branch in branches.values())
    gaps: list[Tensor] = []
    agreements: list[Tensor] = []
    difference = 0.0
    first: Tensor | None = None
    with collect_statistics(model) as layers:
        for batch in batches:
            images = _images(batch).to(device)
            first = images if first is None else first
            before = task.raw_outputs(model, images)
            for branch in branches.values():
                branch.collecting = False
            with branches_computed(model, computed=False):
                after = task.raw_outputs(model, images)
            for branch in branches.values():
                branch.collecting = True
            old, new = _values(before), _values(after)
            apart = max(float((a - b).abs().max()) for a, b in zip(old, new, strict=True))
            difference = max(difference, apart)
            unchanged = apart == 0 and exact
            gaps.append(torch.zeros(len(images)) if unchanged else _gaps(old, new).cpu())
            height, width = images.shape[-2:]
            concluded = [task.postprocess(model, raw, (height, width)) for raw in (before, after)]
            agreed = task.agreement(*concluded)
            if agreed is not None:
                agreements.append(agreed.float().cpu())
    if first is None:
        raise ValueError("calibration yielded no images")
    agreement = torch.cat(agreements) if agreements else None
    return Measured(dict(layers), torch.cat(gaps), difference, agreement, first)
