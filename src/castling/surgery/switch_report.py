"""The certificate of a switch: what it measured, granted or not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from castling.attention import AuxiliaryStatistics


@dataclasses.dataclass(frozen=True)
class SwitchReport:
    """The certificate of a switch.

    Attributes:
        layers: per layer, what its branch still did on the calibration images.
        images: number of calibration images.
        max_gap: largest relative change of one image's outputs: ‖Δ‖ / ‖y − mean of y‖, of every
            output tensor the worst. What all logits share does not count as size.
        mean_gap: its mean over the images.
        max_difference: largest |Δ| of any output.
        agreement: share of what the task concludes that stayed the same, mean over the images: of
            a classifier the images whose best class did, of a detector the detections that both
            have; None for a task without such a notion.
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
    agreement: float | None
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
        same = "" if self.agreement is None else f"agreement {self.agreement:.4f} on "
        return (
            f"switch {kind}: max gap {self.max_gap:.2e} (tolerance {self.tolerance:g}), "
            f"mean gap {self.mean_gap:.2e}, {same}{self.images} "
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
        super().__init__(_reason(report))
        self.report = report


def _reason(report: SwitchReport) -> str:
    if math.isnan(report.max_gap):
        return (
            "the model's outputs for the calibration images are NaN or infinite, with its branches "
            "or without: nothing can be compared; look for weights that are not finite"
        )
    worst = max(report.layers, key=lambda name: report.layers[name].surviving_mass)
    return (
        f"switching would change the outputs by up to {report.max_gap:.2e} of their size, "
        f"above the tolerance {report.tolerance:g}; the branch of {worst} still carries "
        f"{report.layers[worst].surviving_mass:.3f} of its attention. Train to the end of its "
        'schedule (schedule="ramp" ends with an empty mask), or pass force=True'
    )
