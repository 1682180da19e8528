"""``switch_``: cast the auxiliary branches away, after measuring what that costs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from castling.attention import AuxiliaryStatistics, auxiliaries, collect_statistics
from castling.ops.macs import macs
from castling.surgery.hosts import HostAttention

Batch = Tensor | tuple[Tensor, ...] | list[Tensor]


@dataclasses.dataclass(frozen=True)
class SwitchReport:
    """The certificate of a switch.

    Attributes:
        layers: per layer, what its branch still did on the calibration images.
        images: number of calibration images.
        max_gap: largest ‖Δlogits‖ / ‖logits‖ of one image.
        mean_gap: its mean over the images.
        max_difference: largest |Δlogit|.
        agreement: share of images whose top class stayed the same.
        tolerance: the bound on ``max_gap`` that was asked for.
        forced: True when the bound was exceeded and the switch made all the same.
        exact: True when every mask was provably empty: no weight could pass it on any image.
        parameters_before: number of parameters with the branches (score biases included).
        parameters_after: number of parameters without.
        macs_before: multiply-accumulates of one image with the branches computed.
        macs_after: multiply-accumulates of one image without.
        milliseconds_before: median time of one calibration batch with the branches computed.
        milliseconds_after: median time without, measured alternately.
        batch: shape of the timed batch.
        device: where the times were taken.
    """

    layers: dict[str, AuxiliaryStatistics]
    images: int
    max_gap: float
    mean_gap: float
    max_difference: float
    agreement: float
    tolerance: float
    forced: bool
    exact: bool
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    milliseconds_before: float
    milliseconds_after: float
    batch: tuple[int, ...]
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        kind = "exact" if self.exact else "forced" if self.forced else "within tolerance"
        return (
            f"switch {kind}: max gap {self.max_gap:.2e} (tolerance {self.tolerance:g}), "
            f"mean gap {self.mean_gap:.2e}, top-1 agreement {self.agreement:.4f} on {self.images} "
            f"images; parameters {self.parameters_before:,} -> {self.parameters_after:,}, "
            f"MACs {self.macs_before:,} -> {self.macs_after:,}, "
            f"{self.milliseconds_before:.2f} -> {self.milliseconds_after:.2f} ms for a batch of "
            f"{self.batch[0]} on {self.device}"
        )


class SwitchRefusedError(RuntimeError):
    """The outputs would move by more than the tolerance; the model was left as it was.

    Attributes:
        report: the certificate that was not granted.
    """

    def __init__(self, report: SwitchReport) -> None:
        worst = max(report.layers, key=lambda name: report.layers[name].surviving_mass)
        super().__init__(
            f"switching would move the logits by up to {report.max_gap:.2e} of their norm, above "
            f"the tolerance {report.tolerance:g}; the branch of {worst} still carries "
            f"{report.layers[worst].surviving_mass:.3f} of its attention. Train to the end of its "
            'schedule (schedule="ramp" ends with an empty mask), or pass force=True'
        )
        self.report = report


def is_switched(model: nn.Module) -> bool:
    """True when no auxiliary branch is left (also for models that never had one)."""
    return not auxiliaries(model)


def strip_(model: nn.Module) -> None:
    """Remove all auxiliary branches, and score biases that only they read, without measuring."""
    for module in model.modules():
        if isinstance(module, HostAttention):
            module.strip()
        elif getattr(module, "auxiliary", None) is not None:
            module.auxiliary = None  # type: ignore[assignment]
            module.config = dataclasses.replace(module.config, auxiliary=None)  # type: ignore[type-var]


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
    return images


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


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

    Runs the calibration images with and without the branches. If any image's logits move by more
    than
    ``tolerance`` of their norm, the model is left as it was, unless ``force``. Where every mask is
    provably empty (a ramp or gate run to its end) both passes are the same computation: the switch
    is exact on every image, not only on these.

    Args:
        model: a model with auxiliary branches; evaluated in eval mode, its mode is restored.
        calibration: batches of images (B, 3, H, W), or (images, labels), or one tensor.
        tolerance: bound on the largest relative change ‖Δlogits‖/‖logits‖ of an image.
        force: switch above the tolerance too; the certificate says so.
        repeats: timed passes for the medians.

    Returns:
        The certificate.

    Raises:
        ValueError: the model has no branch, or there are no calibration images.
        SwitchRefusedError: the tolerance is exceeded and ``force`` is False.
    """
    branches = auxiliaries(model)
    if not branches:
        raise ValueError(
            "the model has no auxiliary branch: it is switched already, or was built without one "
            "(auxiliary=castling.MaskedSoftmax())"
        )
    batches = [calibration] if isinstance(calibration, Tensor) else calibration
    exact = all(branch.empty for branch in branches.values())
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        gaps: list[Tensor] = []
        agreements: list[Tensor] = []
        largest = 0.0
        first: Tensor | None = None
        with collect_statistics(model) as layers:
            for batch in batches:
                images = _images(batch).to(device)
                first = images if first is None else first
                before = _first(model(images)).flatten(1).float()
                for branch in branches.values():
                    branch.collecting = False
                with _branches(model, computed=False):
                    after = _first(model(images)).flatten(1).float()
                for branch in branches.values():
                    branch.collecting = True
                difference = before - after
                gaps.append(difference.norm(dim=1) / before.norm(dim=1).clamp(min=1e-12))
                agreements.append((before.argmax(1) == after.argmax(1)).float())
                largest = max(largest, float(difference.abs().max()))
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
            agreement=float(torch.cat(agreements).mean()),
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
    finally:
        model.train(was_training)


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
