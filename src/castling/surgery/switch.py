"""``switch_``: cast the auxiliary branches away, after measuring what that costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from castling.attention import AttentionCore, auxiliaries
from castling.ops.macs import macs
from castling.surgery.compared import Compared, ModelOutputs
from castling.surgery.hosts import HostAttention
from castling.surgery.switch_measure import Batch, branches_computed, measure_switch
from castling.surgery.switch_report import SwitchRefusedError, SwitchReport
from castling.utils.modes import eval_mode


def is_switched(model: nn.Module) -> bool:
    """True when no auxiliary branch is left (also for models that never had one)."""
    return not auxiliaries(model)


def strip_(model: nn.Module) -> None:
    """Remove all auxiliary branches, and score biases that only they read, without measuring."""
    for module in model.modules():
        if isinstance(module, AttentionCore):
            module.strip()


def _time(model: nn.Module, images: Tensor, repeats: int) -> tuple[float, float]:
    """Median milliseconds with and without the branches, measured alternately."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(repeats + 1):
        for computed in (True, False):
            with branches_computed(model, computed=computed):
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
    *,
    task: Compared | None = None,
) -> SwitchReport:
    """Cast the auxiliary branches away, in place, and certify what that changed.

    Runs the calibration images with and without the branches. If the raw outputs of any image
    change by more than ``tolerance`` of their norm, the model is left as it was, unless ``force``.
    Where every mask is provably empty (a ramp or gate run to its end) both passes are the same
    computation: the switch is exact on every image, not only on these.

    Args:
        model: a model with auxiliary branches; evaluated in eval mode, its mode is restored.
        calibration: batches of images (B, 3, H, W), or (images, labels), or one tensor.
        tolerance: bound on the largest relative change of an image's outputs (``max_gap``).
        force: switch above the tolerance too; the certificate says so.
        repeats: timed passes for the medians.
        task: says what the raw outputs are, and how far both models agree on classes or boxes, as
            every task of castling does; None compares all tensors that the model returns, and of
            one tensor (B, K) the best class.

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
    device = next(model.parameters()).device
    with eval_mode(model):
        found = measure_switch(model, batches, task or ModelOutputs(), device)
        gap = found.gaps
        size = (found.first.shape[1], found.first.shape[2], found.first.shape[3])
        with branches_computed(model, computed=True):
            macs_before = macs(model, size).total
        with branches_computed(model, computed=False):
            macs_after = macs(model, size).total
        before_ms, after_ms = _time(model, found.first, repeats)
        refused = bool(gap.max() > tolerance) or not bool(torch.isfinite(gap).all())
        report = SwitchReport(
            layers=found.layers,
            images=gap.numel(),
            max_gap=float(gap.max()),
            mean_gap=float(gap.mean()),
            max_difference=found.difference,
            agreement=None if found.agreement is None else float(found.agreement.mean()),
            tolerance=tolerance,
            forced=refused and force,
            exact=all(branch.empty for branch in branches.values()),
            parameters_before=_count(model),
            parameters_after=_count(model) - _biases(model),
            macs_before=macs_before,
            macs_after=macs_after,
            milliseconds_before=before_ms,
            milliseconds_after=after_ms,
            batch=tuple(found.first.shape),
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
