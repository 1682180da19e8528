"""``switch_``: cast the auxiliary branches away, after measuring what that costs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from castling.attention import AttentionCore, auxiliaries, collect_statistics
from castling.ops.macs import macs
from castling.surgery.hosts import HostAttention
from castling.surgery.switch_report import SwitchRefusedError, SwitchReport
from castling.utils.modes import eval_mode

Batch = Tensor | tuple[Tensor, ...] | list[Tensor]


def is_switched(model: nn.Module) -> bool:
    """True when no auxiliary branch is left (also for models that never had one)."""
    return not auxiliaries(model)


def strip_(model: nn.Module) -> None:
    """Remove all auxiliary branches, and score biases that only they read, without measuring."""
    for module in model.modules():
        if isinstance(module, AttentionCore):
            module.strip()


@contextmanager
def _branches(model: nn.Module, *, computed: bool) -> Iterator[None]:
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


def _outputs(output: Any) -> list[Tensor]:
    """All floating-point tensors of a model's output, each (B, values)."""
    tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
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


def _time(model: nn.Module, images: Tensor, repeats: int) -> tuple[float, float]:
    """Median milliseconds with and without the branches, measured alternately."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(repeats + 1):
        for computed in (True, False):
            with _branches(model, computed=computed):
                if images.is_cuda:
                    torch.cuda.synchronize(images.device)
                start = time.perf_counter()
                model(images)
                if images.is_cuda:
                    torch.cuda.synchronize(images.device)
                if repeat:  # the first round warms up
                    times[computed].append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[True]), statistics.median(times[False])


@torch.no_grad()
def switch_(
    model: nn.Module,
    calibration: Iterable[Batch] | Tensor,
    tolerance: float = 1e-3,
    force: bool = False,
    repeats: int = 5,
) -> SwitchReport:
    """Cast the auxiliary branches away, in place, and certify what that changed.

    Runs the calibration images with and without the branches. If the logits of any image change by
    more than ``tolerance`` of their norm, the model is left as it was, unless ``force``. Where
    every mask is provably empty (a ramp or gate run to its end) both passes are the same
    computation: the switch is exact on every image, not only on these.

    Args:
        model: a model with auxiliary branches; evaluated in eval mode, its mode is restored.
        calibration: batches of images (B, 3, H, W), or (images, labels), or one tensor.
        tolerance: bound on the largest relative change of an image's outputs (``max_gap``).
        force: switch above the tolerance too; the certificate says so.
        repeats: timed passes for the medians.

    Returns:
        The certificate.

    Raises:
        ValueError: the model has no branch, the tolerance is negative, there are no images, or
            they are not finite.
        SwitchRefusedError: the tolerance is exceeded and ``force`` is False.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    branches = auxiliaries(model)
    if not branches:
        raise ValueError(
            "the model has no auxiliary branch: it is switched already, or was built without one "
            "(auxiliary=castling.MaskedSoftmax())"
        )
    batches = [calibration] if isinstance(calibration, Tensor) else calibration
    exact = all(branch.empty for branch in branches.values())
    device = next(model.parameters()).device
    with eval_mode(model):
        gaps: list[Tensor] = []
        agreements: list[Tensor] = []
        largest = 0.0
        first: Tensor | None = None
        with collect_statistics(model) as layers:
            for batch in batches:
                images = _images(batch).to(device)
                first = images if first is None else first
                answer = model(images)
                before = _outputs(answer)
                for branch in branches.values():
                    branch.collecting = False
                with _branches(model, computed=False):
                    after = _outputs(model(images))
                for branch in branches.values():
                    branch.collecting = True
                difference = max(
                    float((old - new).abs().max()) for old, new in zip(before, after, strict=True)
                )
                largest = max(largest, difference)
                unchanged = difference == 0 and exact
                gaps.append(torch.zeros(len(images)) if unchanged else _gaps(before, after).cpu())
                if isinstance(answer, Tensor) and answer.dim() == 2:
                    agreements.append((before[0].argmax(1) == after[0].argmax(1)).float().cpu())
        if first is None:
            raise ValueError("calibration yielded no images")
        gap = torch.cat(gaps)
        size = (first.shape[1], first.shape[2], first.shape[3])
        with _branches(model, computed=True):
            macs_before = macs(model, size).total
        with _branches(model, computed=False):
            macs_after = macs(model, size).total
        before_ms, after_ms = _time(model, first, repeats)
        refused = bool(gap.max() > tolerance) or not bool(torch.isfinite(gap).all())
        report = SwitchReport(
            layers=dict(layers),
            images=gap.numel(),
            max_gap=float(gap.max()),
            mean_gap=float(gap.mean()),
            max_difference=largest,
            agreement=float(torch.cat(agreements).mean()) if agreements else None,
            tolerance=tolerance,
            forced=refused and force,
            exact=exact,
            parameters_before=_count(model),
            parameters_after=_count(model) - _biases(model),
            macs_before=macs_before,
            macs_after=macs_after,
            milliseconds_before=before_ms,
            milliseconds_after=after_ms,
            batch=tuple(first.shape),
            device=str(device),
        )
        if refused and not force:
            raise SwitchRefusedError(report)
        strip_(model)
        return report


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _biases(model: nn.Module) -> int:
    """Parameters that ``strip_`` will remove."""
    return sum(bias.numel() for bias in _idle_biases(model))


def _idle_biases(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, HostAttention) and not module.kernel.takes_bias:
            for name in module.bias_names:
                if hasattr(module, name):
                    yield getattr(module, name)


def has_idle_biases(model: nn.Module) -> bool:
    """True when hosts hold score biases that the kernel does not read, only a branch if at all."""
    return any(True for _ in _idle_biases(model))
